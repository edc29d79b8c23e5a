"""Settings: a frozen dataclass read once from the environment, in each service's `main`.

A field `queue_size: int = 64` of a class read with the prefix `BANYAN_ROUTER_` is the key
`BANYAN_ROUTER_QUEUE_SIZE`. Keys of that prefix that no field knows are refused, and keys of the
mesh that nobody owns: a misspelt setting that is silently ignored is worse than a stop. What a
value must be beyond its type stands in the annotation, so that no `main` checks it by hand.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_KEY = "banyan.settings.key"
_SECRET = "banyan.settings.secret"
_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")
_MESH = "BANYAN_"
_OWNERS = (
    *("AUTOSCALER", "DECODE", "GATEWAY", "KVSTORE", "METRICS", "PREFILL", "ROUTER"),
    "TEST",
)
SHARED_KEYS = (
    "BANYAN_ADAPTERS",
    "BANYAN_ALLOW_OPEN",
    "BANYAN_API_KEY",  # of clients; services inherit it from the shell that starts them
    "BANYAN_BUS_URL",
    "BANYAN_CHANNELS",
    "BANYAN_DIRECTORY",
    "BANYAN_INDEX_URL",
    "BANYAN_KAFKA_CA_FILE",
    "BANYAN_KAFKA_MECHANISM",
    "BANYAN_KAFKA_PASSWORD",
    "BANYAN_KAFKA_PASSWORD_FILE",
    "BANYAN_KAFKA_SECURITY",
    "BANYAN_KAFKA_USERNAME",
    "BANYAN_MESH_SECRET",
    "BANYAN_MESH_SECRET_FILE",
    "BANYAN_POLICIES",
    "BANYAN_TOPICS",
)
"""Every key of the mesh that belongs to no single service."""


class SettingsError(Exception):
    """One sentence: the key, its value, and what was expected. One for each that is missing."""


@dataclasses.dataclass(frozen=True, slots=True)
class Bound:
    """What a value must fulfil beyond its type: `Annotated[int, Bound("an even number", ...)]`."""

    expected: str
    holds: Callable[[Any], bool]


@dataclasses.dataclass(frozen=True, slots=True)
class Parsed:
    """A type with a parser of its own, whose ValueError says what was expected."""

    expected: str
    parse: Callable[[str], Any]


def is_address(text: str) -> bool:
    """Whether it is HOST:PORT; an IPv6 host stands in brackets."""
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        return False
    if not host.startswith("["):
        return ":" not in host
    try:
        ipaddress.IPv6Address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return host.endswith("]")


def is_origin(text: str) -> bool:
    """Whether it is http://HOST:PORT or https://HOST:PORT."""
    scheme, _, address = text.partition("://")
    return scheme in ("http", "https") and is_address(address.removesuffix("/"))


Address = Annotated[str, Bound("HOST:PORT, port 0 to 65535", is_address)]
WebOrigin = Annotated[str, Bound("http://HOST:PORT or https://HOST:PORT", is_origin)]
Positive = Annotated[int, Bound("a whole number from 1", lambda value: value >= 1)]
NotNegative = Annotated[int, Bound("a whole number from 0", lambda value: value >= 0)]
Seconds = Annotated[float, Bound("0 or more seconds", lambda value: value >= 0)]
Ratio = Annotated[float, Bound("a number from 0 to 1", lambda value: 0 <= value <= 1)]
PositiveSeconds = Annotated[float, Bound("more than 0 seconds", lambda value: value > 0)]


def shared(key: str, default: Any = dataclasses.MISSING) -> Any:
    """A field whose key is the same for all services, such as BANYAN_DIRECTORY."""
    return dataclasses.field(default=default, metadata={_KEY: key})


def secret(key: str | None = None, default: Any = dataclasses.MISSING) -> Any:
    """A field that may also come from the file that `<KEY>_FILE` names; never shown in repr."""
    return dataclasses.field(default=default, repr=False, metadata={_KEY: key, _SECRET: True})


def read_settings(cls: type[T], prefix: str, env: Mapping[str, str]) -> T:
    """An instance of the dataclass `cls` out of `env`. Raises SettingsError."""
    hints = get_type_hints(cls, include_extras=True)
    known: list[str] = []
    missing: list[str] = []
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]  # T is a dataclass
        key = field.metadata.get(_KEY) or prefix + field.name.upper()
        known.append(key)
        text, source = env.get(key), key
        if field.metadata.get(_SECRET):
            known.append(f"{key}_FILE")
            text, source = _read_secret(key, env)
        if text is not None:
            hide = bool(field.metadata.get(_SECRET))
            if hints[field.name] is str and _is_required(field) and not text.strip():
                raise SettingsError(f"{source}={text}: expected text that is not empty.")
            values[field.name] = _convert(source, text, hints[field.name], hide)
        elif _is_required(field):
            missing.append(f"{key} is not set: expected {_expected(hints[field.name])}.")
    if missing:
        raise SettingsError("\n".join(missing))
    _refuse_unknown(prefix, known, env)
    return cls(**values)


def _is_required(field: dataclasses.Field[Any]) -> bool:
    no_default = field.default is dataclasses.MISSING
    return no_default and field.default_factory is dataclasses.MISSING


def _read_secret(key: str, env: Mapping[str, str]) -> tuple[str | None, str]:
    file_key = f"{key}_FILE"
    if file_key not in env:
        return env.get(key), key
    if key in env:
        raise SettingsError(f"{key} and {file_key} are both set: expected one of them.")
    try:
        return Path(env[file_key]).read_text().strip(), file_key
    except (OSError, ValueError):
        shown = f"{file_key}={env[file_key]}"
        raise SettingsError(f"{shown}: expected a readable text file.") from None


def _refuse_unknown(prefix: str, known: list[str], env: Mapping[str, str]) -> None:
    for key in sorted(env):
        if key in known or not key.startswith((prefix, _MESH)):
            continue
        if key.startswith(prefix):
            raise SettingsError(f"{key} is not a setting: {_hint(key, known)}")
        owners = (f"{_MESH}{owner}_" for owner in _OWNERS)
        if key not in SHARED_KEYS and not key.startswith(tuple(owners)):
            raise SettingsError(f"{key} is not a setting: {_hint(key, [*known, *SHARED_KEYS])}")


def _hint(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, sorted(set(known)), n=2, cutoff=0.8)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"expected one of {', '.join(sorted(set(known)))}."


def _convert(key: str, text: str, hint: Any, hide: bool) -> Any:
    inner, optional = _strip_optional(hint)
    if optional and text == "":
        return None
    shown = "(hidden)" if hide else text
    inner, rule = _strip_rule(inner)
    if isinstance(rule, Parsed):
        try:
            return rule.parse(text)
        except ValueError as error:
            raise SettingsError(f"{key}={shown}: {error}.") from None
    try:
        value = _parse(text, inner)
        if rule is None or rule.holds(value):
            return value
    except ValueError:
        pass
    raise SettingsError(f"{key}={shown}: expected {_expected(hint)}.")


def _strip_optional(hint: Any) -> tuple[Any, bool]:
    if get_origin(hint) in (Union, UnionType):
        inner = [arg for arg in get_args(hint) if arg is not NoneType]
        if len(inner) == 1:
            return inner[0], True
    return hint, False


def _strip_rule(hint: Any) -> tuple[Any, Bound | Parsed | None]:
    if get_origin(hint) is Annotated:
        inner, rule = get_args(hint)
        return inner, rule
    return hint, None


def _parse(text: str, hint: Any) -> Any:
    if hint is bool:
        return _parse_bool(text)
    if hint is float:
        value = float(text)
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError(text)
        return value
    if hint is Path and not text:
        raise ValueError(text)
    if hint in (str, int, Path) or (isinstance(hint, type) and issubclass(hint, Enum)):
        return hint(text)
    raise TypeError(f"settings of type {hint} are not supported")


def _parse_bool(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError(text)


def _expected(hint: Any) -> str:
    hint, optional = _strip_optional(hint)
    hint, rule = _strip_rule(hint)
    if rule is not None:
        words = rule.expected
    elif isinstance(hint, type) and issubclass(hint, Enum):
        words = "one of " + ", ".join(str(member.value) for member in hint)
    else:
        words = {
            bool: "true or false",
            int: "a whole number",
            float: "a number",
            Path: "a path",
            str: "text",
        }[hint]
    return words + (" or nothing" if optional else "")
