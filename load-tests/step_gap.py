"""How long a worker's runner waits between two steps: from the end of `run` to its next begin.

A worker service with real gRPC in this process, a gateway's side of the streams in another. All
sequences decode; what lies between two steps is the way from the runner's thread to the event loop
and back, the engine loop, and what it makes the worker do first.

    python load-tests/step_gap.py [--runner echo|sleep|demo] [--sequences 1 8 64] [--steps 600]

`echo` computes nothing, `sleep` waits 5 ms without Python (as a large model's products do), `demo`
is the demo model. Drafts are as a worker has them (4) with the demo model, unless `--drafts 0`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import uvloop

import banyan_engine.demo
from banyan.v1 import worker_pb2
from banyan_core.echo import EchoLatency, EchoRunner
from banyan_core.runner import Runner, StepPlan, StepResult
from banyan_core.scheduler import EngineLimits
from banyan_core.types import ModelCard, Role, SamplingParams, SequenceSpec, WorkerRef
from banyan_runtime import codec, wire
from banyan_runtime.clock import SystemClock
from banyan_runtime.directories import StaticDirectory
from banyan_runtime.grpc_network import GrpcNetwork
from banyan_runtime.grpc_security import ChannelSecurity
from banyan_runtime.memory_bus import MemoryBroker, MemoryBus
from banyan_text.card import echo_card
from banyan_worker.options import WorkerOptions
from banyan_worker.runners import RunnerKind, load_runner
from banyan_worker.service import WorkerService
from banyan_worker.step_loop import ThreadExecutor

BLOCK_SIZE = 16
NUM_BLOCKS = 8192
PROMPT_TOKENS = 100
SLEEP_S = 0.005


class Timed:
    """A runner that notes when each of its steps began and ended; it sleeps `sleep_s` besides."""

    def __init__(self, runner: Runner, sleep_s: float) -> None:
        self._runner: Any = runner
        self._sleep_s = sleep_s
        self.steps: list[tuple[float, float, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def run(self, plan: StepPlan, on_layer: Callable[[int], None]) -> StepResult:
        began = time.perf_counter()
        result: StepResult = self._runner.run(plan, on_layer)
        if self._sleep_s:
            time.sleep(self._sleep_s)
        num_decoding = len(plan.items) if all(item.start for item in plan.items) else 0
        self.steps.append((began, time.perf_counter(), num_decoding))
        return result


def load(kind: str) -> tuple[Runner, ModelCard]:
    if kind != "demo":
        runner = EchoRunner(NUM_BLOCKS, BLOCK_SIZE, EchoLatency(0, 0, 0))
        return runner, echo_card(BLOCK_SIZE, "fast", "echo")
    loaded = load_runner(
        RunnerKind.TORCH,
        prefix="",
        folder=Path(banyan_engine.demo.__path__[0]) / "banyan-demo",
        name=None,
        numerics="fast",
        block_size=BLOCK_SIZE,
        kv_bytes=1,
        num_blocks=NUM_BLOCKS,
        num_threads=1,
    )
    return loaded.runner, loaded.card


async def client(address: str, card_digest: bytes, num_sequences: int, num_tokens: int) -> None:
    """A gateway's side: opens the stream, starts the sequences, reads until all have ended."""
    network = GrpcNetwork(ChannelSecurity())
    channel = network.channel(address)

    async def requests() -> AsyncGenerator[worker_pb2.TokensRequest, None]:
        hello = worker_pb2.TokensHello(gateway_id="gateway", gateway_epoch=1)
        yield worker_pb2.TokensRequest(hello=hello)
        await asyncio.Event().wait()

    async def decode(number: int) -> None:
        rng = random.Random(number)
        spec = SequenceSpec(
            sequence_id=f"{number}/0/0",
            gateway_id="gateway",
            gateway_epoch=1,
            card_digest=card_digest,
            prompt_token_ids=tuple(rng.choices(range(16, 1024), k=PROMPT_TOKENS)),
            output_token_ids=(),
            sampling=SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True),
            salt=b"",
        )
        request = worker_pb2.DecodeRequest(
            sequence=codec.sequence_spec_to_pb(spec), skip_store=True
        )
        admission = await channel.unary(wire.DECODE, request, 30.0)
        assert admission.accepted, admission.reason

    stream = channel.bidi(wire.TOKENS, requests())
    left = num_sequences
    async with aclosing(stream):
        await anext(stream)
        await asyncio.gather(*(decode(number) for number in range(num_sequences)))
        async for message in stream:
            left -= sum(1 for report in message.sequences if report.finish)
            if left == 0:
                break
    await network.close()


def quantiles(values: list[float]) -> str:
    ordered = sorted(values)
    return "/".join(f"{1e3 * ordered[len(ordered) * part // 100]:.3f}" for part in (10, 50, 90))


async def measure(kind: str, num_sequences: int, num_steps: int, num_drafts: int) -> None:
    runner, card = load(kind)
    timed = Timed(runner, SLEEP_S if kind == "sleep" else 0.0)
    network, broker = GrpcNetwork(ChannelSecurity()), MemoryBroker()
    limits = EngineLimits(
        max_waiting=64, max_waiting_s=60.0, max_draft_tokens=num_drafts if kind == "demo" else 0
    )
    clock = SystemClock()
    probe = await network.serve("127.0.0.1:0", [])
    address = probe.address
    await probe.stop(0)
    service = WorkerService(
        WorkerRef("d1", 1, address, Role.DECODE),
        card,
        timed,
        network,
        MemoryBus(broker),
        StaticDirectory({}),
        clock,
        ThreadExecutor(),
        WorkerOptions(limits=limits),
        logger=logging.getLogger("worker"),
    )
    await service.start()
    arguments = ["--client", address, card.digest.hex(), str(num_sequences), str(num_steps)]
    cpu = time.process_time()
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, *arguments)
    assert await process.wait() == 0
    cpu = time.process_time() - cpu
    await service.stop(0)
    full = [i for i, step in enumerate(timed.steps) if step[2] == num_sequences]
    pairs = [(i, i + 1) for i in full if i + 1 < len(timed.steps)][10:-5]
    gaps = [timed.steps[b][0] - timed.steps[a][1] for a, b in pairs]
    periods = [timed.steps[b][0] - timed.steps[a][0] for a, b in pairs]
    runs = [timed.steps[a][1] - timed.steps[a][0] for a, _ in pairs]
    print(
        f"{kind} {num_sequences:3d} sequences, {len(pairs)} pairs, ms p10/p50/p90: "
        f"gap {quantiles(gaps)}  step {quantiles(runs)}  period {quantiles(periods)}  "
        f"cpu/step {1e3 * cpu / len(timed.steps):.3f}",
        flush=True,
    )


def main() -> None:
    if sys.argv[1:2] == ["--client"]:
        address, digest, num_sequences, num_tokens = sys.argv[2:]
        uvloop.run(client(address, bytes.fromhex(digest), int(num_sequences), int(num_tokens)))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runner", nargs="+", default=["echo", "sleep", "demo"])
    parser.add_argument("--sequences", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--drafts", type=int, default=4)
    asked = parser.parse_args()
    for kind in asked.runner:
        for num_sequences in asked.sequences:
            uvloop.run(measure(kind, num_sequences, asked.steps, asked.drafts))


if __name__ == "__main__":
    main()
