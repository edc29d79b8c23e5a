"""The same seed gives the same run, step by step, whatever the hash seed and the addresses are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def trace(seed: int, hash_seed: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.mesh.trace_of_a_mix", str(seed)],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return done.stdout.strip()


@pytest.mark.parametrize("seed", [1, 2])
def test_a_mix_repeats_under_any_hash_seed(seed: int) -> None:
    traces = {trace(seed, hash_seed) for hash_seed in ("0", "1", "4242")}
    assert len(traces) == 1


def test_another_seed_is_another_run() -> None:
    assert trace(1, "0") != trace(2, "0")
