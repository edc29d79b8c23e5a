"""One gateway's token stream with one life of one worker.

All sequences that this gateway runs there share the stream: one message per engine step. It is
read without pause, whatever the clients do. After a break it connects again and resumes by
(sequence, index); when the worker stays away, or another life of it answers, the link is lost and
every request on it is placed elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from banyan.v1 import worker_pb2
from banyan_core.types import Finish, SequenceReport, WorkerRef
from banyan_runtime import codec, wire
from banyan_runtime.rpc import Channel, RefusedError, RpcError

SILENCE_S = 3.0
"""A worker says something at least every second: longer silence is a break."""

RECONNECT_DELAYS_S = (0.0, 0.05, 0.1)
"""Waits before the tries of one break; the worker is lost when all fail, or one is refused."""

MAX_OUTGOING = 10_000


class LinkBroken(Exception):
    """The stream ended, fell silent, or another life of the worker answered."""


class WorkerLink:
    """`on_reports` gets each step's news, `on_lost` the reason, once, at the end of `run`."""

    def __init__(
        self,
        worker: WorkerRef,
        channel: Channel,
        gateway: tuple[str, int],
        on_reports: Callable[[str, tuple[SequenceReport, ...]], None],
        on_lost: Callable[[WorkerRef, str], None],
    ) -> None:
        self.worker = worker
        self.channel = channel
        self._gateway_id, self._gateway_epoch = gateway
        self._on_reports = on_reports
        self._on_lost = on_lost
        self._next_index: dict[str, int] = {}
        self._promised: dict[str, None] = {}  # admitted sequences, in order
        self._resumed: frozenset[str] = frozenset()  # those promised when the stream was opened
        self._cancels: list[str] = []
        self._acks: list[str] = []
        self._due = asyncio.Event()

    def expect(self, sequence_id: str, next_index: int) -> None:
        """A sequence is about to be started here."""
        self._next_index[sequence_id] = next_index

    def promised(self, sequence_id: str) -> None:
        """The worker admitted it: from now on it must know it."""
        if sequence_id in self._next_index:
            self._promised[sequence_id] = None

    def cancel(self, sequence_id: str) -> None:
        self._forget(sequence_id)
        self._say(self._cancels, sequence_id)

    def ack(self, sequence_id: str) -> None:
        self._forget(sequence_id)
        self._say(self._acks, sequence_id)

    def _forget(self, sequence_id: str) -> None:
        self._next_index.pop(sequence_id, None)
        self._promised.pop(sequence_id, None)

    def _say(self, outgoing: list[str], sequence_id: str) -> None:
        # Past the bound the worker reads nothing any more; its grace time ends what we drop here.
        if len(outgoing) < MAX_OUTGOING:
            outgoing.append(sequence_id)
            self._due.set()

    async def run(self) -> None:
        """Keep the stream up until the worker is lost."""
        reason = "unreachable"
        tries = 0
        while tries < len(RECONNECT_DELAYS_S):
            await asyncio.sleep(RECONNECT_DELAYS_S[tries])
            tries += 1
            try:
                async with aclosing(self._one_stream()) as news:
                    async for _ in news:
                        tries = 0
            except LinkBroken as broken:
                reason = str(broken)
                break
            except RefusedError as error:
                reason = error.message
                break
            except RpcError as error:
                reason = error.message
        self._on_lost(self.worker, reason)

    async def _one_stream(self) -> AsyncGenerator[None, None]:
        """Read one stream to its end; yields after each message that it understood."""
        requests = self._requests()
        stream = self.channel.bidi(wire.TOKENS, requests)
        heard = False
        async with aclosing(requests), aclosing(stream):
            while True:
                try:
                    async with asyncio.timeout(SILENCE_S):
                        message = await anext(stream, None)
                except TimeoutError:
                    if not heard:
                        raise LinkBroken("it is silent") from None
                    return
                if message is None:
                    return
                if message.epoch != self.worker.epoch:
                    raise LinkBroken("it was restarted")
                heard = True
                try:
                    self._take(message)
                except ValueError as error:  # of another version: other workers may be of ours
                    raise LinkBroken(f"its news cannot be read: {error}") from None
                yield

    def _take(self, message: worker_pb2.TokensReport) -> None:
        reports = []
        for report_pb in message.sequences:
            report = codec.sequence_report_from_pb(report_pb)
            known = report.sequence_id in self._next_index
            if report.finish is Finish.UNKNOWN and report.sequence_id not in self._resumed:
                continue  # its start and our hello crossed on the way
            if known and report.tokens:
                self._promised[report.sequence_id] = None
                self._next_index[report.sequence_id] = report.first_index + len(report.tokens)
            reports.append(report)
        if reports:
            self._on_reports(self.worker.worker_id, tuple(reports))

    async def _requests(self) -> AsyncGenerator[worker_pb2.TokensRequest, None]:
        self._resumed = frozenset(self._promised)
        resume = [
            worker_pb2.TokensResume(sequence_id=sequence_id, next_index=index)
            for sequence_id, index in self._next_index.items()
        ]
        yield worker_pb2.TokensRequest(
            hello=worker_pb2.TokensHello(
                gateway_id=self._gateway_id, gateway_epoch=self._gateway_epoch, resume=resume
            )
        )
        while True:
            await self._due.wait()
            self._due.clear()
            cancels, self._cancels = self._cancels, []
            acks, self._acks = self._acks, []
            if cancels:
                cancel = worker_pb2.TokensCancel(sequence_ids=cancels)
                yield worker_pb2.TokensRequest(cancel=cancel)
            if acks:
                yield worker_pb2.TokensRequest(ack=worker_pb2.TokensAck(sequence_ids=acks))
