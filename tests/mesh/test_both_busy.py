"""One prefill and one decode worker with more prompts than the prefill worker can compute.

What overflows runs whole on the decode worker, so both stay busy. Steps cost what those of a Llama
of 150 million parameters cost on one core, on virtual time: throughput may be asserted.
"""

from __future__ import annotations

import asyncio
import random

from tests.mesh.asking import Question, ask

from banyan_core.echo import EchoLatency
from banyan_core.scheduler import EngineLimits
from banyan_runtime.virtual_loop import run_virtual
from banyan_sim.builders import Shared
from banyan_sim.mesh import SimMesh, Topology
from banyan_worker.options import WorkerOptions

NUM_CLIENTS, NUM_INPUT, NUM_OUTPUT = 8, 512, 128
STEP_S, TOKEN_S = 0.014, 0.00135
SETTLE_S, WINDOW_S = 6.0, 25.0
SHARED = Shared(
    num_blocks=2048,
    latency=EchoLatency(round(STEP_S * 1e9), round(TOKEN_S * 1e9), 0),
    worker=WorkerOptions(limits=EngineLimits()),
)


def one_process_rate() -> float:
    """Output tokens per second of one engine that is twice as fast, its batch always full."""
    steps_s = NUM_OUTPUT / NUM_CLIENTS * STEP_S
    return 2 * NUM_OUTPUT / (steps_s + (NUM_INPUT + NUM_OUTPUT) * TOKEN_S)


async def client(mesh: SimMesh, number: int) -> None:
    """Asks, reads to the end, asks again; the first answer is shorter, as after a while."""
    rng, turn = random.Random(number), 0
    num_tokens = NUM_OUTPUT * (number + 1) // NUM_CLIENTS
    while True:
        prompt = tuple(rng.choices(range(32, 127), k=NUM_INPUT))
        answer = await ask(mesh, Question(f"{number}-{turn}", prompt, num_tokens))
        assert answer.failure is None, answer.failure
        num_tokens, turn = NUM_OUTPUT, turn + 1


def test_two_workers_do_nearly_what_one_process_twice_as_fast_does() -> None:
    async def main() -> None:
        mesh = SimMesh(Topology(shared=SHARED))
        await mesh.start()
        clients = [asyncio.create_task(client(mesh, number)) for number in range(NUM_CLIENTS)]
        await asyncio.wait(clients, timeout=SETTLE_S, return_when=asyncio.FIRST_COMPLETED)
        before = num_output(mesh)
        await asyncio.wait(clients, timeout=WINDOW_S, return_when=asyncio.FIRST_COMPLETED)
        assert not any(each.done() for each in clients), "a request was refused"
        rate = (num_output(mesh) - before) / WINDOW_S
        for each in clients:
            each.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        await mesh.stop()
        assert rate >= 0.85 * one_process_rate()

    run_virtual(main)


def num_output(mesh: SimMesh) -> float:
    return sum(each.figures()["vllm:generation_tokens"] for each in mesh.workers().values())
