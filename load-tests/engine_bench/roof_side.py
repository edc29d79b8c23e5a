"""What the machine can do: bytes a second out of memory, operations a second of its multipliers.

python -m engine_bench.roof_side NUM_THREADS
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import torch

from engine_bench.serving import serve

READ_BYTES = 1 << 30
MATMUL_SIZE = 2048
NUM_REPEATS = 3
NUM_PIECES = 16


class Roofs:
    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads)
        # Written first: pages that nobody has written all lie in one place.
        self._words = torch.ones(READ_BYTES // 4)
        size = MATMUL_SIZE
        self._matrices = {
            name: (torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype))
            for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
        }
        self.matmul("float32")
        self.matmul("bfloat16")

    def read(self) -> float:
        """Bytes a second: each thread multiplies its part of the memory with itself."""
        parts = self._words.chunk(self._num_threads)
        torch.set_num_threads(1)
        try:
            return max(self._read_once(parts) for _ in range(NUM_REPEATS))
        finally:
            torch.set_num_threads(self._num_threads)

    def _read_once(self, parts: tuple[torch.Tensor, ...]) -> float:
        began = time.perf_counter()
        list(self._pool.map(_dot_in_pieces, parts))
        return READ_BYTES / (time.perf_counter() - began)

    def matmul(self, dtype: str) -> float:
        """Floating-point operations a second."""
        left, right = self._matrices[dtype]
        best_s = float("inf")
        for _ in range(NUM_REPEATS):
            began = time.perf_counter()
            torch.mm(left, right)
            best_s = min(best_s, time.perf_counter() - began)
        return 2.0 * MATMUL_SIZE**3 / best_s


def _dot_in_pieces(words: torch.Tensor) -> None:
    for piece in words.chunk(NUM_PIECES):
        torch.dot(piece, piece)


if __name__ == "__main__":
    roofs = Roofs(int(sys.argv[1]))
    serve({"read": roofs.read, "matmul": roofs.matmul})
