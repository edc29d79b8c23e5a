"""KV pages on the wire: layers of a block end to end, or page by page for peers of version 0.1.

Translation happens at the doors: who reads a message sees `KvLayers` whatever came, who writes one
makes `KvLayers`, and `as_pages` of it where the other side did not say that it takes them. A page
that does not match what was taken of it never gets to match by being translated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from banyan.v1 import kv_pb2
from banyan_core.hashing import HASH_BYTES, page_checksum, page_digest

CHECKSUM_BYTES = 16
MESSAGE_BYTES = 1 << 20
MAX_LAYERS = 1024
_UNKNOWN = bytes(CHECKSUM_BYTES)
"""In the place of a digest or checksum that did not fit before it was translated."""


def layers_in(message: kv_pb2.KvPages) -> Iterator[kv_pb2.KvLayers]:
    """All that a message carries, in order; malformed as it may be."""
    yield from message.layers
    for page in message.pages:
        data = page.data
        yield kv_pb2.KvLayers(
            block_hash=page.block_hash,
            first_layer=page.layer,
            num_layers=page.num_layers,
            page_bytes=(len(data),),
            checksums=page_checksum(data) if page_digest(data) == page.digest else _UNKNOWN,
            data=data,
        )


def as_pages(message: kv_pb2.KvPages) -> kv_pb2.KvPages:
    """The same for a peer of version 0.1."""
    translated = kv_pb2.KvPages(output_token_ids=message.output_token_ids)
    for part in message.layers:
        for layer, (checksum, page) in enumerate(pages_of(part), part.first_layer):
            data = bytes(page)
            translated.pages.add(
                block_hash=part.block_hash,
                layer=layer,
                num_layers=part.num_layers,
                digest=page_digest(data) if page_checksum(data) == checksum else _UNKNOWN,
                data=data,
            )
    return translated


def pages_of(part: kv_pb2.KvLayers) -> list[tuple[bytes, memoryview]]:
    """Checksum and bytes of each page of a part that is not malformed."""
    return split(part.checksums, part.page_bytes, part.data)


def split(
    checksums: bytes, page_bytes: Sequence[int], data: bytes
) -> list[tuple[bytes, memoryview]]:
    """Checksum and bytes of each page of several that lie end to end."""
    view, start, pages = memoryview(data), 0, []
    for index, num_bytes in enumerate(page_bytes):
        checksum = checksums[index * CHECKSUM_BYTES : (index + 1) * CHECKSUM_BYTES]
        pages.append((checksum, view[start : start + num_bytes]))
        start += num_bytes
    return pages


def what_is_wrong(part: kv_pb2.KvLayers) -> str:
    """Why a part cannot be read, in words that name the field; empty when it can."""
    num_here = len(part.page_bytes)
    if len(part.block_hash) != HASH_BYTES:
        return f"block_hash has {len(part.block_hash)} bytes, expected {HASH_BYTES}"
    if not 0 < part.num_layers <= MAX_LAYERS:
        return f"num_layers is {part.num_layers}, expected 1 to {MAX_LAYERS}"
    if not all(part.page_bytes) or not num_here:
        return "data is empty"
    if part.first_layer + num_here > part.num_layers:
        return f"layer {part.first_layer + num_here - 1} of {part.num_layers} layers"
    if sum(part.page_bytes) != len(part.data):
        return f"data has {len(part.data)} bytes, page_bytes {sum(part.page_bytes)}"
    if len(part.checksums) != num_here * CHECKSUM_BYTES:
        return f"checksums has {len(part.checksums)} bytes, expected {num_here * CHECKSUM_BYTES}"
    return ""


def num_pages(message: kv_pb2.KvPages) -> int:
    return len(message.pages) + sum(len(part.page_bytes) for part in message.layers)


def num_bytes(message: kv_pb2.KvPages) -> int:
    """Of pages; a part's own lengths are taken at their word, for a field's bytes are a copy."""
    layers = sum(sum(part.page_bytes) for part in message.layers)
    return layers + sum(len(page.data) for page in message.pages)
