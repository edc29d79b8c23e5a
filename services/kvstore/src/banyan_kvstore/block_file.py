"""One block in one file: how it is framed, written so that a crash leaves no half, and checked.

    magic 8 | block hash 16 | number of layers u32 | per layer: digest 16, length u32 | all data

Numbers are big-endian. The lengths in the header must add up to the size of the file, and each
page's digest must be that of its data; a file for which that does not hold is damaged.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from banyan_core.hashing import HASH_BYTES
from banyan_core.types import BlockHash
from banyan_kvstore.block import Block, Page

MAGIC = b"BNYNKV1\n"
MAX_LAYERS = 1024
_HEAD = struct.Struct(f">8s{HASH_BYTES}sI")
_PAGE = struct.Struct(f">{HASH_BYTES}sI")


class DamagedFile(Exception):
    """Not a whole block: truncated, changed, or something else altogether."""


def file_bytes(block: Block) -> int:
    """The size of the file that `write` makes."""
    return _HEAD.size + len(block.pages) * _PAGE.size + block.num_bytes


def write(path: Path, block: Block, scratch: Path) -> None:
    """Write to `scratch`, then rename: whoever sees `path` sees the whole block.

    In one write: a call for each page costs more than putting them together.
    """
    head = _HEAD.pack(MAGIC, block.block_hash, len(block.pages))
    entries = [_PAGE.pack(page.digest, len(page.data)) for page in block.pages]
    scratch.write_bytes(b"".join([head, *entries, *(page.data for page in block.pages)]))
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch.replace(path)


def read(path: Path, block_hash: BlockHash) -> Block:
    """The block, every digest checked. Raises DamagedFile, or OSError when it cannot be read.

    A read also sets the file's time, by which a restarted store knows what was used last.
    """
    content = path.read_bytes()
    pages = []
    digests_and_lengths = _header(content, block_hash, len(content))
    offset = _HEAD.size + len(digests_and_lengths) * _PAGE.size
    for digest, length in digests_and_lengths:
        page = Page(digest, content[offset : offset + length])
        if not page.intact:
            raise DamagedFile(f"{path}: a page does not match its digest")
        pages.append(page)
        offset += length
    os.utime(path)
    return Block(block_hash, tuple(pages))


def probe(path: Path, block_hash: BlockHash) -> tuple[int, int]:
    """(size, mtime in ns) of a file whose header adds up. Raises DamagedFile or OSError."""
    stat = path.stat()
    with path.open("rb") as file:
        head = file.read(_HEAD.size + MAX_LAYERS * _PAGE.size)
    _header(head, block_hash, stat.st_size)
    return stat.st_size, stat.st_mtime_ns


def _header(content: bytes, block_hash: BlockHash, num_bytes: int) -> list[tuple[bytes, int]]:
    if len(content) < _HEAD.size:
        raise DamagedFile("shorter than a header")
    magic, named, num_layers = _HEAD.unpack_from(content)
    if magic != MAGIC or named != block_hash or not 0 < num_layers <= MAX_LAYERS:
        raise DamagedFile("not the header of this block")
    if len(content) < _HEAD.size + num_layers * _PAGE.size:
        raise DamagedFile("shorter than its header")
    entries = [
        _PAGE.unpack_from(content, _HEAD.size + layer * _PAGE.size) for layer in range(num_layers)
    ]
    if _HEAD.size + num_layers * _PAGE.size + sum(length for _, length in entries) != num_bytes:
        raise DamagedFile("its pages do not add up to its size")
    return entries
