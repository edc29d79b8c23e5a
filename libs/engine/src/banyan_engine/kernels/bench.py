"""How near products and decode attention come to the memory bus and the multipliers.

`python -m banyan_engine.kernels.bench` prints tables. The roofs are measured in the same run:
reading, by a dot product over 1 GiB, and multiplying, by a bfloat16 product of 2,048 cubed. A
share is the time that the slower of the two needs at least, over the time that it took. Weights
are many matrices, together beyond any cache, each used once per round.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from time import perf_counter

import torch
from torch import Tensor

from banyan_engine.kernels import native
from banyan_engine.kernels.native import Pools
from banyan_engine.linear import (
    Weight,
    dense,
    linear_helped,
    linear_torch,
    quantize_int4,
    quantize_int8,
)

SHAPE = (3072, 1024)
NUM_MATRICES = 40
NUM_ROUNDS = 7
NUM_ROWS = (1, 2, 4, 8, 16, 32)
KV_HEADS, HEAD_DIM, BLOCK_SIZE = 8, 128, 16
CONTEXTS = ((1, 128), (1, 4096), (8, 1024), (32, 512))


def best_s(work: Callable[[], object]) -> float:
    """Shortest of some rounds, after one to warm up."""
    work()
    times = []
    for _ in range(NUM_ROUNDS):
        start = perf_counter()
        work()
        times.append(perf_counter() - start)
    return min(times)


def read_roof() -> float:
    """Bytes per second."""
    numbers = torch.ones(1 << 28)
    return numbers.nbytes / best_s(lambda: torch.dot(numbers, numbers))


def multiply_roof(dtype: torch.dtype) -> float:
    """Operations per second."""
    matrix = torch.randn(2048, 2048).to(dtype)
    return 2 * 2048**3 / best_s(lambda: matrix @ matrix)


def products(helper: ctypes.CDLL | None, read: float, multiply: float) -> None:
    """Shares of the roof by format and rows, with the helper and by torch alone."""
    print("| rows | " + " | ".join(f"{name}, {by}" for name in MAKERS for by in WAYS) + " |")
    print("|---|" + "---:|" * len(MAKERS) * len(WAYS))
    matrices = [torch.randn(SHAPE).to(torch.bfloat16) for _ in range(NUM_MATRICES)]
    formats = [[make(matrix) for matrix in matrices] for make in MAKERS.values()]
    for num_rows in NUM_ROWS:
        x = torch.randn(num_rows, SHAPE[1]).to(torch.bfloat16)
        cells = []
        for weights in formats:
            num_bytes = sum(weight.num_bytes for weight in weights)
            num_operations = 2 * num_rows * SHAPE[0] * SHAPE[1] * len(weights)
            least_s = max(num_bytes / read, num_operations / multiply)
            cells.append("-" if helper is None else _share(least_s, x, weights, helper))
            cells.append(_share(least_s, x, weights, None))
        print(f"| {num_rows} | " + " | ".join(cells) + " |")


def _share(least_s: float, x: Tensor, weights: list[Weight], helper: ctypes.CDLL | None) -> str:
    def work() -> None:
        for weight in weights:
            if helper is None:
                linear_torch(x, weight)
            else:
                linear_helped(x, weight, None, helper)

    return f"{least_s / best_s(work):.2f}"


def attention(helper: ctypes.CDLL, read: float) -> None:
    """Shares of the read roof of decode attention, bfloat16 KV and two query heads per KV head."""
    print("| sequences | context | share |\n|---:|---:|---:|")
    for num_sequences, context in CONTEXTS:
        num_blocks = context // BLOCK_SIZE
        num_pools = max(1, (256 << 20) // (num_sequences * context * KV_HEADS * HEAD_DIM * 4))
        shape = (num_blocks * num_sequences, BLOCK_SIZE, KV_HEADS, HEAD_DIM)
        layers = [
            Pools(*(torch.randn(shape).to(torch.bfloat16) for _ in range(2)))
            for _ in range(num_pools)
        ]
        tables = torch.randperm(shape[0]).view(num_sequences, -1)
        rows = native.rows([context - 1] * num_sequences, list(tables))
        q = torch.randn(num_sequences, 2 * KV_HEADS, HEAD_DIM).to(torch.bfloat16)

        def work(q: Tensor = q, rows: native.Rows = rows, layers: list[Pools] = layers) -> None:
            for pools in layers:
                native.attend(q, pools, rows, scale=0.1, window=None, softcap=None, helper=helper)

        num_bytes = sum(pool.nbytes for pools in layers for pool in pools)
        print(f"| {num_sequences} | {context} | {num_bytes / read / best_s(work):.2f} |")


MAKERS: dict[str, Callable[[Tensor], Weight]] = {
    "bf16": dense,
    "int8": quantize_int8,
    "int4": quantize_int4,
}
WAYS = ("helper", "torch")


def main() -> None:
    """Print the tables."""
    helper = native.loader.wait(300)
    read, multiply = read_roof(), multiply_roof(torch.bfloat16)
    print(f"helper: {native.loader.status}; threads: {torch.get_num_threads()}")
    print(f"roofs: {read / 1e9:.1f} GB/s, bf16 {multiply / 1e9:.0f} GFLOP/s\n")
    products(helper, read, multiply)
    if helper is not None:
        print()
        attention(helper, read)


if __name__ == "__main__":
    main()
