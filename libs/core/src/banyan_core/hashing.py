"""Content addresses of KV blocks, seeds of choices, and ids that derive from decisions.

hash = H(parent hash, token ids, salt). The salt narrows who may share: it is an HMAC over the
tenant (or a share group that the operator declared), the request's own `cache_salt`, the model
card and the adapter, so that equal tokens of two tenants, or of two adapters, never meet.
SHA-256 cut to 16 bytes: a cheaper, forgeable hash would let one tenant plant KV for another.
"""

from __future__ import annotations

import hashlib
import hmac
from array import array
from collections.abc import Iterator, Sequence
from functools import lru_cache

import xxhash

from banyan_core.types import BlockHash

HASH_BYTES = 16


@lru_cache(maxsize=1024)
def cache_salt(
    mesh_secret: bytes,
    share_group: str,
    request_salt: str,
    card_digest: bytes,
    adapter_digest: bytes | None = None,
) -> bytes:
    """16 bytes that every block hash of a request starts from; without an adapter, the model's.

    Remembered, because nearly all requests of a tenant have the same.
    """
    parts = [share_group.encode(), request_salt.encode(), card_digest]
    if adapter_digest is not None:
        parts.append(adapter_digest)
    message = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return hmac.new(mesh_secret, message, hashlib.sha256).digest()[:HASH_BYTES]


def block_hash(parent: BlockHash, token_ids: Sequence[int], salt: bytes) -> BlockHash:
    """The address of one full block that follows `parent` (empty for the first block)."""
    tokens = array("I", token_ids).tobytes()
    return hashlib.sha256(b"%b|%b|%b" % (salt, parent, tokens)).digest()[:HASH_BYTES]


def block_hashes(token_ids: Sequence[int], block_size: int, salt: bytes) -> tuple[BlockHash, ...]:
    """Addresses of all full blocks of a prompt, in order."""
    return tuple(_chain(token_ids, block_size, salt))


def _chain(token_ids: Sequence[int], block_size: int, salt: bytes) -> Iterator[BlockHash]:
    parent = b""
    for end in range(block_size, len(token_ids) + 1, block_size):
        parent = block_hash(parent, token_ids[end - block_size : end], salt)
        yield parent


def page_checksum(data: bytes | memoryview) -> bytes:
    """16 bytes of one (block, layer) page; taken when the block fills, checked on import.

    XXH3-128: it tells of bytes that changed by accident. Nobody is kept from forging it, and need
    not be: whoever may hand over pages may hand over wrong ones with a checksum that fits.
    """
    return xxhash.xxh3_128_digest(data)


def page_digest(data: bytes | memoryview) -> bytes:
    """What peers of version 0.1 take in the checksum's place."""
    return hashlib.blake2b(data, digest_size=16).digest()


def derive(seed: int, *parts: int | str) -> int:
    """63 random-looking bits from a seed and a place: H(seed, parts)."""
    text = "/".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def pack(hashes: Sequence[BlockHash]) -> bytes:
    """Hashes as the wire carries them: end to end, 16 bytes each."""
    return b"".join(hashes)


def unpack(packed: bytes) -> tuple[BlockHash, ...]:
    """The reverse of `pack`. Raises ValueError when the length is no multiple of 16."""
    if len(packed) % HASH_BYTES:
        raise ValueError(f"block_hashes: {len(packed)} bytes is not a multiple of {HASH_BYTES}")
    return tuple([packed[i : i + HASH_BYTES] for i in range(0, len(packed), HASH_BYTES)])
