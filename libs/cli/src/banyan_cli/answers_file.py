"""The file that answers go to, one JSON line each, such that a killed run can go on.

A line is written in one piece and handed to the system at once. What a kill leaves at the end, a
line without its end, is cut off when the file is opened again. One process at a time holds it.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from banyan_cli.errors import CommandError

_PIECE_BYTES = 1 << 16


class AnswersFile:
    """`keys` are those of the lines that it had. Raises CommandError when it cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file: BinaryIO = path.open("a+b")
        except OSError as error:
            raise CommandError(f"--output {path}: {error.strerror}.") from None
        try:
            self._lock()
            _cut_torn_line(self._file)
            self.keys = self._read_keys()
        except BaseException:
            self._file.close()
            raise

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CommandError(f"--output {self.path}: another run is writing it.") from None

    def _read_keys(self) -> set[str]:
        keys = set()
        self._file.seek(0)
        for number, data in enumerate(self._file, 1):
            try:
                key = json.loads(data)["custom_id"]
            except (ValueError, TypeError, KeyError):
                key = None
            if not isinstance(key, str):
                raise CommandError(
                    f"--output {self.path}: line {number} is no answer with a custom_id; "
                    "name a file that this command wrote, or a new one."
                )
            keys.add(key)
        return keys


def _cut_torn_line(file: BinaryIO) -> None:
    """Shortens the file to the end of its last whole line."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - _PIECE_BYTES)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    file.truncate(end)
    file.seek(0, os.SEEK_END)
