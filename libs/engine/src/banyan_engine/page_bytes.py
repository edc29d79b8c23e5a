"""One layer's pools as bytes, block by block: how pages leave the pool and come in.

On the host they are the same memory. On a device a page goes through pinned memory, which a
device can copy to and from without the driver's own detour; torch keeps such memory for the next
page. Copies wait for what the device was told before, so a page of a layer that was announced is
whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Pages(Protocol):
    """K then V of a block."""

    def read(self, block_id: int) -> bytes: ...

    def write(self, block_id: int, data: bytes) -> None:
        """`data` has a page's length."""
        ...


def pages_of(pools: Sequence[Tensor]) -> Pages:
    """Of K and V, each [blocks, ...]."""
    return HostPages(pools) if pools[0].device.type == "cpu" else DevicePages(pools)


class HostPages:
    """numpy views: no copy but the page's own."""

    def __init__(self, pools: Sequence[Tensor]) -> None:
        self._halves = [pool.view(torch.uint8).flatten(1).numpy() for pool in pools]

    def read(self, block_id: int) -> bytes:
        return b"".join([half[block_id] for half in self._halves])

    def write(self, block_id: int, data: bytes) -> None:
        keys, values = self._halves
        num_key_bytes = keys.shape[1]
        keys[block_id] = np.frombuffer(data, np.uint8, num_key_bytes)
        values[block_id] = np.frombuffer(data, np.uint8, -1, num_key_bytes)


class DevicePages:
    """A buffer of its own for each page, as several threads may move pages at once."""

    def __init__(self, pools: Sequence[Tensor]) -> None:
        self._halves = [pool.view(torch.uint8).flatten(1) for pool in pools]

    def read(self, block_id: int) -> bytes:
        buffer = self._buffer()
        for half, part in zip(self._halves, self._parts(buffer), strict=True):
            part.copy_(half[block_id])
        return buffer.numpy().tobytes()

    def write(self, block_id: int, data: bytes) -> None:
        buffer = self._buffer()
        buffer.numpy()[:] = np.frombuffer(data, np.uint8)
        for half, part in zip(self._halves, self._parts(buffer), strict=True):
            half[block_id].copy_(part)

    def _buffer(self) -> Tensor:
        num_bytes = sum(half.shape[1] for half in self._halves)
        pinned = self._halves[0].device.type == "cuda"
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=pinned)

    def _parts(self, buffer: Tensor) -> tuple[Tensor, ...]:
        num_key_bytes = self._halves[0].shape[1]
        return buffer[:num_key_bytes], buffer[num_key_bytes:]
