"""A folder of LoRA adapters: what is in it now, by name and by content.

The folder is the only list of adapters that there is. Each process reads its own copy, as with
the model folder: so nothing has to be told to anybody, and a restart forgets nothing. An adapter
is put in as a whole subfolder and taken out by removing it. One whose weights are still being
copied is not there yet: the file says in its header how long it will be.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from banyan_core.types import Adapter

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
MAX_ADAPTERS = 1024
"""Subfolders that are looked at, in order of their names."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HEADER_BYTES_MAX = 100 * 1024 * 1024  # the bound of the safetensors format itself
_PIECE_BYTES = 1024 * 1024

_Stamp = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Seen:
    stamp: _Stamp
    adapter: Adapter | None


class AdapterFolder:
    """Reads the subfolders; contents are hashed once for as long as a file stays the same."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: dict[str, _Seen] = {}

    def scan(self) -> tuple[Adapter, ...]:
        """All adapters, by name. A folder that cannot be read holds none."""
        try:
            names = sorted(each.name for each in self.path.iterdir() if _NAME.fullmatch(each.name))
        except OSError:
            names = []
        names = names[:MAX_ADAPTERS]
        self._seen = {name: self._seen[name] for name in names if name in self._seen}
        found = map(self.find, names)
        return tuple(adapter for adapter in found if adapter is not None)

    def find(self, name: str) -> Adapter | None:
        """The adapter of this name as it is now, if it is there and whole."""
        if not _NAME.fullmatch(name):
            return None
        folder = self.path / name
        try:
            stamp = _stamp(folder)
            seen = self._seen.get(name)
            if seen is None or seen.stamp != stamp:
                seen = _Seen(stamp, _read(folder))
                self._seen[name] = seen
        except OSError:
            self._seen.pop(name, None)
            return None
        return seen.adapter


def _stamp(folder: Path) -> _Stamp:
    """Changes whenever one of the files does. Raises OSError."""
    stats = [(folder / name).stat() for name in (CONFIG_NAME, WEIGHTS_NAME)]
    return tuple(
        number
        for each in stats
        for number in (each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns)
    )


def _read(folder: Path) -> Adapter | None:
    """Raises OSError."""
    config = (folder / CONFIG_NAME).read_bytes()
    digest = hashlib.sha256(b"%d|" % len(config) + config)
    path = folder / WEIGHTS_NAME
    if not _is_whole(path):
        return None
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return Adapter(folder.name, digest.digest()[:16])


def _is_whole(path: Path) -> bool:
    """Whether the file is as long as its header says. Raises OSError."""
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else num_bytes
        if not 0 < header_bytes <= min(num_bytes - 8, _HEADER_BYTES_MAX):
            return False
        try:
            header = json.loads(file.read(header_bytes))
            ends = [each["data_offsets"][1] for name, each in header.items() if name[:2] != "__"]
            return bool(num_bytes == 8 + header_bytes + max(ends, default=0))
        except (ValueError, AttributeError, KeyError, IndexError, TypeError, RecursionError):
            return False
