"""Settings: a frozen dataclass read once from the environment, in each service's `main`.

A field `queue_size: int = 64` of a class read with the prefix `BANYAN_ROUTER_` is the key
`BANYAN_ROUTER_QUEUE_SIZE`. Keys of that prefix that no field knows are refused: a misspelt
setting that is silently ignored is worse than a stop.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_KEY = "banyan.settings.key"
_SECRET = "banyan.settings.secret"
_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")


class SettingsError(Exception):
    """One sentence: the key, its value, and what was expected."""


def shared(key: str, default: Any = dataclasses.MISSING) -> Any:
    """A field whose key is the same for all services, such as BANYAN_DIRECTORY."""
    return dataclasses.field(default=default, metadata={_KEY: key})


def secret(key: str | None = None, default: Any = dataclasses.MISSING) -> Any:
    """A field that may also come from the file that `<KEY>_FILE` names; never shown in repr."""
    return dataclasses.field(default=default, repr=False, metadata={_KEY: key, _SECRET: True})


def read_settings(cls: type[T], prefix: str, env: Mapping[str, str]) -> T:
    """An instance of the dataclass `cls` out of `env`. Raises SettingsError."""
    hints = get_type_hints(cls)
    known: list[str] = []
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
            values[field.name] = _convert(source, text, hints[field.name], hide)
        elif _is_required(field):
            raise SettingsError(f"{key} is not set: expected {_expected(hints[field.name])}.")
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
        if key.startswith(prefix) and key not in known:
            near = difflib.get_close_matches(key, known, n=2, cutoff=0.8)
            if near:
                hint = f"did you mean {' or '.join(near)}?"
            else:
                hint = f"expected one of {', '.join(sorted(known))}."
            raise SettingsError(f"{key} is not a setting: {hint}")


def _convert(key: str, text: str, hint: Any, hide: bool) -> Any:
    inner, optional = _strip_optional(hint)
    if optional and text == "":
        return None
    try:
        return _parse(text, inner)
    except ValueError:
        shown = "(hidden)" if hide else text
        raise SettingsError(f"{key}={shown}: expected {_expected(hint)}.") from None


def _strip_optional(hint: Any) -> tuple[Any, bool]:
    if get_origin(hint) in (Union, UnionType):
        inner = [arg for arg in get_args(hint) if arg is not NoneType]
        if len(inner) == 1:
            return inner[0], True
    return hint, False


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
    if isinstance(hint, type) and issubclass(hint, Enum):
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
