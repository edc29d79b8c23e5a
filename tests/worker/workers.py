"""Workers with echo runners on the memory network, and a gateway's side of their streams."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from tests.core.engines import BLOCK_SIZE, card, spec

from banyan.v1 import worker_pb2
from banyan_core.echo import EchoLatency, EchoRunner
from banyan_core.types import (
    NS_PER_S,
    Finish,
    LeasedKv,
    Role,
    SamplingParams,
    SequenceFigures,
    SequenceReport,
    SequenceSpec,
    WorkerRef,
)
from banyan_runtime import codec, wire
from banyan_runtime.directories import StaticDirectory
from banyan_runtime.memory_bus import MemoryBroker, MemoryBus
from banyan_runtime.memory_mesh import MemoryMesh
from banyan_runtime.memory_network import MemoryNetwork
from banyan_runtime.virtual_loop import VirtualLoop, run_virtual
from banyan_worker.options import WorkerOptions
from banyan_worker.service import WorkerService
from banyan_worker.step_loop import InlineExecutor, StepExecutor

LEASE_NS = 10 * NS_PER_S
LATENCY = EchoLatency(base_ns=1_000_000, token_ns=100_000, sequence_ns=0)


def virtual(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Run an async test on virtual time."""

    async def main() -> None:
        await test()

    def wrapped() -> None:
        run_virtual(main)

    wrapped.__name__ = test.__name__
    return wrapped


def clock() -> VirtualLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


class Mesh:
    """What the processes of one test share."""

    def __init__(self, kvstores: tuple[str, ...] = ()) -> None:
        self.wires = MemoryMesh()
        self.broker = MemoryBroker()
        self.directory = StaticDirectory({"kvstore": kvstores})
        self.workers: list[WorkerService] = []
        self.runners: dict[str, EchoRunner] = {}
        self.logger = logging.getLogger("test")

    async def worker(
        self,
        worker_id: str,
        *,
        num_blocks: int = 64,
        options: WorkerOptions | None = None,
        latency: EchoLatency = LATENCY,
        executor: StepExecutor | None = None,
    ) -> WorkerService:
        runner = EchoRunner(num_blocks, BLOCK_SIZE, latency)
        role = Role.PREFILL if worker_id.startswith("p") else Role.DECODE
        ref = WorkerRef(worker_id, clock().clock.unix_ns(), f"{worker_id}:1", role)
        service = WorkerService(
            ref,
            card(),
            runner,
            MemoryNetwork(self.wires, worker_id),
            MemoryBus(self.broker),
            self.directory,
            clock().clock,
            executor or InlineExecutor(),
            options or WorkerOptions(),
            logger=self.logger,
        )
        await service.start()
        self.workers.append(service)
        self.runners[worker_id] = runner
        return service

    def gateway(self, gateway_id: str = "gateway", epoch: int = 1) -> Gateway:
        return Gateway(MemoryNetwork(self.wires, f"{gateway_id}-{epoch}"), gateway_id, epoch)

    async def pair(self, options: WorkerOptions | None = None) -> Pair:
        """A prefill and a decode worker and a gateway that listens to both."""
        prefill = await self.worker("p1", options=options)
        decode = await self.worker("d1", options=options)
        gateway = self.gateway()
        gateway.listen(prefill)
        gateway.listen(decode)
        return Pair(prefill, decode, gateway)

    async def stop(self) -> None:
        """Every worker must be empty by then."""
        for worker in self.workers:
            await worker.stop(0)
            assert worker.engine.idle
            worker.engine.check_invariants()
            assert worker.engine.num_used_blocks == 0, worker.engine.lease_ids()


@dataclass
class Pair:
    prefill: WorkerService
    decode: WorkerService
    gateway: Gateway

    async def split(self, prompt: tuple[int, ...], sampling: SamplingParams) -> None:
        """Start prefill `r/0/1` and decode `r/0/2` together, as the gateway does."""
        await asyncio.gather(
            self.gateway.prefill(self.prefill, spec("r/0/1", prompt, sampling=sampling)),
            self.gateway.decode(
                self.decode,
                spec("r/0/2", prompt, sampling=sampling),
                LeasedKv(self.prefill.ref, "r/0/1"),
            ),
        )


@dataclass
class Told:
    """What a gateway was told of one sequence."""

    tokens: dict[int, int] = field(default_factory=dict)
    finish: Finish | None = None
    error: str = ""
    figures: SequenceFigures | None = None
    num_repeated: int = 0

    def output(self) -> list[int]:
        assert sorted(self.tokens) == list(range(min(self.tokens), max(self.tokens) + 1))
        return [self.tokens[index] for index in sorted(self.tokens)]


class Gateway:
    """Asks workers, reads their token streams, remembers."""

    def __init__(self, network: MemoryNetwork, gateway_id: str, epoch: int) -> None:
        self.network = network
        self.gateway_id = gateway_id
        self.epoch = epoch
        self.told: dict[str, Told] = {}
        self.streams: dict[str, asyncio.Task[None]] = {}
        self.outgoing: dict[str, asyncio.Queue[worker_pb2.TokensRequest]] = {}
        self.num_messages = 0
        self.changed = asyncio.Event()

    async def prefill(
        self, worker: WorkerService, spec: SequenceSpec, lease_ns: int = LEASE_NS
    ) -> worker_pb2.Admission:
        request = worker_pb2.PrefillRequest(
            sequence=codec.sequence_spec_to_pb(spec), lease_ns=lease_ns
        )
        return await self.network.channel(worker.ref.address).unary(wire.PREFILL, request, 1.0)

    async def decode(
        self,
        worker: WorkerService,
        spec: SequenceSpec,
        source: LeasedKv | None = None,
        *,
        skip_store: bool = False,
    ) -> worker_pb2.Admission:
        request = worker_pb2.DecodeRequest(
            sequence=codec.sequence_spec_to_pb(spec), skip_store=skip_store
        )
        if source is not None:
            request.source.CopyFrom(codec.leased_kv_to_pb(source))
        return await self.network.channel(worker.ref.address).unary(wire.DECODE, request, 1.0)

    async def release(self, worker: WorkerService, *lease_ids: str) -> int:
        request = worker_pb2.ReleaseRequest(lease_ids=lease_ids)
        answer = await self.network.channel(worker.ref.address).unary(wire.RELEASE, request, 1.0)
        return answer.num_released

    def listen(self, worker: WorkerService, resume: dict[str, int] | None = None) -> None:
        """Open the token stream."""
        queue: asyncio.Queue[worker_pb2.TokensRequest] = asyncio.Queue()
        self.outgoing[worker.ref.worker_id] = queue
        task = asyncio.create_task(self._read(worker, queue, resume or {}))
        self.streams[worker.ref.worker_id] = task

    async def _requests(
        self, queue: asyncio.Queue[worker_pb2.TokensRequest], resume: dict[str, int]
    ) -> AsyncGenerator[worker_pb2.TokensRequest, None]:
        entries = [
            worker_pb2.TokensResume(sequence_id=name, next_index=index)
            for name, index in resume.items()
        ]
        yield worker_pb2.TokensRequest(
            hello=worker_pb2.TokensHello(
                gateway_id=self.gateway_id, gateway_epoch=self.epoch, resume=entries
            )
        )
        while True:
            yield await queue.get()

    async def _read(
        self,
        worker: WorkerService,
        queue: asyncio.Queue[worker_pb2.TokensRequest],
        resume: dict[str, int],
    ) -> None:
        channel = self.network.channel(worker.ref.address)
        requests = self._requests(queue, resume)
        stream = channel.bidi(wire.TOKENS, requests)
        assert isinstance(stream, AsyncGenerator)
        async with aclosing(stream), aclosing(requests):
            async for message in stream:
                self.num_messages += 1
                assert message.epoch == worker.ref.epoch
                for report in message.sequences:
                    self._note(codec.sequence_report_from_pb(report))

    def _note(self, report: SequenceReport) -> None:
        told = self.told.setdefault(report.sequence_id, Told())
        for index, token in enumerate(report.tokens, report.first_index):
            if index in told.tokens:
                told.num_repeated += 1
                assert told.tokens[index] == token.token_id, "a token was contradicted"
            told.tokens[index] = token.token_id
        told.figures = report.figures or told.figures
        if report.finish is not None:
            told.finish, told.error = report.finish, report.error
        self.changed.set()

    def say(self, worker: WorkerService, message: worker_pb2.TokensRequest) -> None:
        self.outgoing[worker.ref.worker_id].put_nowait(message)

    def cancel(self, worker: WorkerService, *sequence_ids: str) -> None:
        cancel = worker_pb2.TokensCancel(sequence_ids=sequence_ids)
        self.say(worker, worker_pb2.TokensRequest(cancel=cancel))

    def ack(self, worker: WorkerService, *sequence_ids: str) -> None:
        ack = worker_pb2.TokensAck(sequence_ids=sequence_ids)
        self.say(worker, worker_pb2.TokensRequest(ack=ack))

    async def until(self, sequence_id: str, num_tokens: int | None = None) -> Told:
        """Wait for the end of a sequence, or for so many of its tokens."""
        async with asyncio.timeout(120):
            while True:
                told = self.told.get(sequence_id, Told())
                if num_tokens is None and told.finish is not None:
                    return told
                if num_tokens is not None and len(told.tokens) >= num_tokens:
                    return told
                self.changed.clear()
                await self.changed.wait()

    async def close(self) -> None:
        for task in self.streams.values():
            task.cancel()
        await asyncio.gather(*self.streams.values(), return_exceptions=True)
