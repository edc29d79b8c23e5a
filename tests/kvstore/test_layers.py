"""Blocks that come to the store, and go, as layers end to end."""

from __future__ import annotations

from typing import Any, cast

import pytest
from tests.core.clusters import hashes
from tests.kvstore.stored import Stored, block, layers_of, pages_of, virtually

from banyan.v1 import kv_pb2
from banyan_runtime.rpc import Code, RpcError

H = hashes(8)


def test_a_block_may_come_whole_or_in_parts_and_goes_whole() -> None:
    async def test(stored: Stored) -> None:
        store = await stored.store()
        whole, parted = block(H[0], num_layers=3), block(H[1], num_layers=3)
        parts = [layers_of(parted, 1), layers_of(parted, 0, 2), layers_of(whole)]
        response = await store.put_layers(*parts)
        assert (response.num_stored_blocks, response.num_rejected_pages) == (2, 0)
        (message,) = await store.get_layers(H[0], H[1])
        assert message == kv_pb2.KvPages(layers=[layers_of(whole), layers_of(parted)])
        (message,) = await store.get(H[0], H[1])
        assert list(message.pages) == pages_of([whole, parted])

    virtually(test)


def test_a_block_larger_than_a_message_goes_in_parts() -> None:
    async def test(stored: Stored) -> None:
        store = await stored.store()
        large = block(H[0], page_bytes=400_000, num_layers=5)
        await store.put_layers(layers_of(large, 0, 3), layers_of(large, 3))
        messages = await store.get_layers(H[0])
        parts = [part for message in messages for part in message.layers]
        assert parts == [layers_of(large, 0, 2), layers_of(large, 2, 4), layers_of(large, 4)]

    virtually(test)


def test_a_flipped_bit_of_one_layer_spoils_its_block_only() -> None:
    async def test(stored: Stored) -> None:
        store = await stored.store()
        bad = layers_of(block(H[0]))
        bad.data = bad.data[:-1] + bytes([bad.data[-1] ^ 1])
        response = await store.put_layers(bad, layers_of(block(H[1])), layers_of(block(H[0])))
        assert (response.num_stored_blocks, response.num_rejected_pages) == (1, 1)
        assert (await store.has(H[0]), await store.has(H[1])) == (0, 1)
        assert store.figure("rejected_pages_total") == 1

    virtually(test)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block_hash": b"short"}, "block_hash has 5 bytes, expected 16"),
        ({"num_layers": 5000}, "num_layers is 5000, expected 1 to 1024"),
        ({"first_layer": 1}, "layer 2 of 2 layers"),
        ({"page_bytes": []}, "data is empty"),
        ({"page_bytes": [200, 0]}, "data is empty"),
        ({"page_bytes": [100, 101]}, "data has 200 bytes, page_bytes 201"),
        ({"checksums": bytes(31)}, "checksums has 31 bytes, expected 32"),
    ],
)
def test_a_malformed_part_is_told_what_is_wrong(fields: dict[str, Any], message: str) -> None:
    async def test(stored: Stored) -> None:
        store = await stored.store()
        part = layers_of(block(H[0]))
        for field in fields:
            part.ClearField(cast(Any, field))
        part.MergeFrom(kv_pb2.KvLayers(**fields))
        with pytest.raises(RpcError) as caught:
            await store.put_layers(part)
        assert (caught.value.code, caught.value.message) == (Code.INVALID, message)
        assert (await store.put(block(H[0]))).num_stored_blocks == 1

    virtually(test)
