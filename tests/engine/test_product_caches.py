"""A process that has multiplied chunks of many lengths has not kept code for all of them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from banyan_engine.cpu import multiplies_bfloat16

SCRIPT = """
from pathlib import Path
import banyan_engine.linear
import torch
from torch.nn import functional as F

def own_mb():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024

torch.set_num_threads(1)
weight = torch.randn(256, 256, dtype=torch.bfloat16)
x = torch.randn(700, 256, dtype=torch.bfloat16)
with torch.inference_mode():
    F.linear(x, weight)
    before = own_mb()
    for num_rows in range(100, 700):
        F.linear(x[:num_rows], weight)
print(own_mb() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.skipif(not multiplies_bfloat16(), reason="oneDNN has no code of its own here")
def test_products_of_many_lengths_do_not_pile_up() -> None:
    """600 lengths: 55 MB; 386 with the caches that torch keeps by itself, of 1,024 each."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 150
