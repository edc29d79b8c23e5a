"""Writes down what a decider was told and what it answered, and reads it back.

One JSON line per step: `[now, facts, commands]`. Every dataclass and enum carries its type's
name, so that a replay gets back the very values: it feeds `facts` to a fresh machine and demands
equal commands. Off unless a service is given a recorder.
"""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, get_args, get_type_hints

import msgspec

_BUFFER_BYTES = 1 << 20


class RecordingError(Exception):
    """A recording that cannot be read: the line and what is wrong with it."""


class RecordedStep(NamedTuple):
    now: int
    facts: tuple[Any, ...]
    commands: tuple[Any, ...]


class FileRecorder:
    """Appends steps to a file, buffered. `close` writes what is left."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=_BUFFER_BYTES)

    def record(self, now: int, facts: Sequence[object], commands: Sequence[object]) -> None:
        step = [now, [_plain(fact) for fact in facts], [_plain(item) for item in commands]]
        self._file.write(msgspec.json.encode(step) + b"\n")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_recording(path: Path, types: Iterable[Any]) -> list[RecordedStep]:
    """The steps of a recording. `types`: facts' and commands' classes or unions of them.

    Raises RecordingError when a line is damaged or names a type that was not given.
    """
    known = _reachable(types)
    steps = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            now, facts, commands = msgspec.json.decode(line)
            steps.append(RecordedStep(now, _build(facts, known), _build(commands, known)))
        except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
            raise RecordingError(f"{path} line {number}: {error!r}") from None
    return steps


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return {"enum": type(value).__name__, "value": value.value}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, "fields": fields}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {"map": [[_plain(key), _plain(item)] for key, item in value.items()]}
    raise TypeError(f"a {type(value).__name__} cannot be recorded: its order or type would be lost")


def _build(value: Any, known: Mapping[str, Any]) -> Any:
    if isinstance(value, list):
        return tuple(_build(item, known) for item in value)
    if not isinstance(value, dict):
        return value
    tag = next(iter(value))
    return _BUILDERS[tag](value, known)


def _build_dataclass(value: dict[str, Any], known: Mapping[str, Any]) -> Any:
    fields = {name: _build(item, known) for name, item in value["fields"].items()}
    return known[value["type"]](**fields)


_BUILDERS: dict[str, Callable[[dict[str, Any], Mapping[str, Any]], Any]] = {
    "type": _build_dataclass,
    "enum": lambda value, known: known[value["enum"]](value["value"]),
    "bytes": lambda value, known: base64.b64decode(value["bytes"]),
    "float": lambda value, known: float(value["float"]),
    "map": lambda value, known: {_build(k, known): _build(v, known) for k, v in value["map"]},
}


def _reachable(types: Iterable[Any]) -> dict[str, Any]:
    """These types and all that their fields mention, by name."""
    known: dict[str, Any] = {}
    waiting = list(types)
    while waiting:
        hint = waiting.pop()
        waiting.extend(get_args(hint))
        if not isinstance(hint, type) or hint.__name__ in known:
            continue
        if dataclasses.is_dataclass(hint):
            known[hint.__name__] = hint
            waiting.extend(get_type_hints(hint).values())
        elif issubclass(hint, Enum):
            known[hint.__name__] = hint
    return known
