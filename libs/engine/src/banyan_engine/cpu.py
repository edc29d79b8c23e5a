"""What this machine's CPU is good at."""

from __future__ import annotations

from functools import cache
from pathlib import Path

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Instructions that multiply bfloat16, as Linux names them (the last on ARM)."""


def default_dtype(numerics: str) -> str:
    """Type of weights and activations: bfloat16 where that is no slower, in fast mode only."""
    return "bfloat16" if numerics == "fast" and multiplies_bfloat16() else "float32"


@cache
def multiplies_bfloat16() -> bool:
    """Whether the CPU has such instructions; unknown is no."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = (line.split(":", 1)[1] for line in lines if line.startswith(("flags", "Features")))
    return bool(BF16_FLAGS & set(next(flags, "").split()))
