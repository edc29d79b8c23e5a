"""Prints a digest of everything that the gateway was told and decided in one seeded mix."""

from __future__ import annotations

import asyncio
import hashlib
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from tests.mesh.asking import Question, ask, prompt_of

from banyan_runtime.recorder import FileRecorder
from banyan_runtime.virtual_loop import VirtualLoop, run_virtual
from banyan_sim.builders import Shared
from banyan_sim.mesh import SimMesh
from banyan_sim.mixes import draw_faults, draw_topology, unleash


async def record_mix(path: Path) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    with FileRecorder(path) as recorder:
        shared = Shared(recorders={"gateway-0": recorder})
        topology = replace(draw_topology(loop.rng("topology")), shared=shared)
        mesh = SimMesh(topology)
        await mesh.start()
        unleash(mesh, draw_faults(loop.rng("faults"), topology, 1.0))
        questions = [Question(f"q{n}", prompt_of(50 + n), 60, 1.0, n) for n in range(8)]
        await asyncio.gather(*(ask(mesh, question) for question in questions))
        await mesh.stop()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gateway-0.jsonl"
        run_virtual(lambda: record_mix(path), seed=int(sys.argv[1]))
        print(hashlib.sha256(path.read_bytes()).hexdigest())
