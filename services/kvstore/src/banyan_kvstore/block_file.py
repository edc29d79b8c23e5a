"""One block in one file: how it is framed, written so that a crash leaves no half, and checked.

    magic 8 | block hash 16 | number of layers u32 | per layer: length u32 | checksums | all data

Numbers are big-endian. The lengths in the header must add up to the size of the file, and each
page's checksum must be that of its data; a file for which that does not hold is damaged, and so is
one of an older version of this format.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from banyan_core.hashing import HASH_BYTES
from banyan_core.types import BlockHash
from banyan_kvstore.block import Block
from banyan_runtime.kv_pages import CHECKSUM_BYTES, MAX_LAYERS

MAGIC = b"BNYNKV2\n"
_HEAD = struct.Struct(f">8s{HASH_BYTES}sI")
_LAYER_BYTES = 4 + CHECKSUM_BYTES


class DamagedFile(Exception):
    """Not a whole block: truncated, changed, or something else altogether."""


def file_bytes(block: Block) -> int:
    """The size of the file that `write` makes."""
    return _HEAD.size + len(block.page_bytes) * _LAYER_BYTES + block.num_bytes


def write(path: Path, block: Block, scratch: Path, reused: Path | None = None) -> None:
    """Write to `scratch`, then rename: whoever sees `path` sees the whole block. Raises OSError.

    The file `reused`, which is no longer wanted, becomes this one: to write over its bytes costs
    a fifth of having the file system free them and find new ones.
    """
    num_layers = len(block.page_bytes)
    head = _HEAD.pack(MAGIC, block.block_hash, num_layers)
    lengths = struct.pack(f">{num_layers}I", *block.page_bytes)
    try:
        if reused is not None:
            with suppress(FileNotFoundError):  # then it is a new file
                reused.rename(scratch)
        _write_over(scratch, [head, lengths, block.checksums, block.data])
        try:
            scratch.rename(path)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch.rename(path)
    except OSError:
        with suppress(OSError):  # then the next start does it
            scratch.unlink()
        raise


def _write_over(path: Path, parts: list[bytes]) -> None:
    """Make these the file's content, whatever it had before."""
    num_bytes = sum(map(len, parts))
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if os.writev(file, parts) != num_bytes:
            raise OSError(f"{path}: not all of {num_bytes} bytes were written")
        if os.fstat(file).st_size != num_bytes:
            os.ftruncate(file, num_bytes)
    finally:
        os.close(file)


def read(path: Path, block_hash: BlockHash) -> Block:
    """The block, every checksum checked. Raises DamagedFile, or OSError when it cannot be read.

    A read also sets the file's time, by which a restarted store knows what was used last.
    """
    with path.open("rb", buffering=0) as file:
        page_bytes, checksums = _header(file.read, block_hash, os.fstat(file.fileno()).st_size)
        block = Block(block_hash, page_bytes, checksums, file.read())
    if not block.intact:
        raise DamagedFile(f"{path}: a page does not match its checksum")
    os.utime(path)
    return block


def probe(path: Path, block_hash: BlockHash) -> tuple[int, int]:
    """(size, mtime in ns) of a file whose header adds up. Raises DamagedFile or OSError."""
    with path.open("rb", buffering=0) as file:
        stat = os.fstat(file.fileno())
        _header(file.read, block_hash, stat.st_size)
    return stat.st_size, stat.st_mtime_ns


def _header(
    read_bytes: Callable[[int], bytes], block_hash: BlockHash, num_bytes: int
) -> tuple[tuple[int, ...], bytes]:
    """Length of each page, and all checksums, of a file of this size."""
    head = read_bytes(_HEAD.size)
    if len(head) < _HEAD.size:
        raise DamagedFile("shorter than a header")
    magic, named, num_layers = _HEAD.unpack(head)
    if magic != MAGIC or named != block_hash or not 0 < num_layers <= MAX_LAYERS:
        raise DamagedFile("not the header of this block")
    rest = read_bytes(num_layers * _LAYER_BYTES)
    if len(rest) < num_layers * _LAYER_BYTES:
        raise DamagedFile("shorter than its header")
    page_bytes = struct.unpack_from(f">{num_layers}I", rest)
    if _HEAD.size + len(rest) + sum(page_bytes) != num_bytes:
        raise DamagedFile("its pages do not add up to its size")
    return page_bytes, rest[4 * num_layers :]
