"""The `Tokens` streams: one per gateway, one message per engine step for all its sequences.

A stream only carries what the outbox says is due; a slow one gets several steps in one message.
Silence is filled with heartbeats, so that a gateway can tell a quiet worker from a dead one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

from banyan.v1 import worker_pb2
from banyan_core.outbox import Outbox, StaleGateway
from banyan_core.types import SequenceReport, SequenceSpec
from banyan_runtime import codec
from banyan_runtime.clock import Clock
from banyan_runtime.rpc import Code, RpcError
from banyan_worker.changes import Changes
from banyan_worker.options import WorkerOptions

_EXPIRE_EVERY_S = 0.25


class TokenStreams:
    """`cancel` is called with sequences that nobody wants any more."""

    def __init__(
        self,
        epoch: int,
        clock: Clock,
        options: WorkerOptions,
        cancel: Callable[[Sequence[str]], None],
    ) -> None:
        self.outbox = Outbox(options.grace_ns)
        self._epoch = epoch
        self._clock = clock
        self._options = options
        self._cancel = cancel
        self._changes = Changes()
        self._step = 0

    def open(self, spec: SequenceSpec) -> None:
        """A sequence is admitted. Raises RpcError INVALID for an outdated gateway."""
        try:
            outdated = self.outbox.open(self._clock.now_ns(), spec)
        except StaleGateway as error:
            raise RpcError(Code.INVALID, str(error)) from None
        self._cancel(outdated)

    def add(self, step: int, reports: Sequence[SequenceReport]) -> None:
        """News to deliver; `step` is the engine step that made it."""
        self._step = max(self._step, step)
        self.outbox.add(self._clock.now_ns(), reports)
        self._changes.notify()

    async def expire(self) -> None:
        """Ends what was unwanted for the grace time, for ever."""
        while True:
            await asyncio.sleep(_EXPIRE_EVERY_S)
            self._cancel(self.outbox.expire(self._clock.now_ns()))

    async def stream(
        self, requests: AsyncIterator[worker_pb2.TokensRequest]
    ) -> AsyncGenerator[worker_pb2.TokensReport, None]:
        """Serves one stream until either side ends it or a newer one takes its place."""
        first = await anext(requests, None)
        if first is None or not first.HasField("hello"):
            raise RpcError(Code.INVALID, "message: expected hello first")
        hello = first.hello
        number = self._attach(hello)
        reader = asyncio.get_running_loop().create_task(
            self._read(requests), name=f"tokens from {hello.gateway_id}"
        )
        try:
            yield self._heartbeat()
            while not reader.done():
                reports = self.outbox.collect(hello.gateway_id, number)
                if reports is None:
                    raise RpcError(Code.CANCELLED, "a newer stream of this gateway is open")
                if reports:
                    yield self._message(reports)
                elif not await self._changes.wait(self._options.heartbeat_s):
                    yield self._heartbeat()
        finally:
            self.outbox.detach(self._clock.now_ns(), hello.gateway_id, number)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    def _attach(self, hello: worker_pb2.TokensHello) -> int:
        resume = {entry.sequence_id: entry.next_index for entry in hello.resume}
        try:
            number, outdated = self.outbox.attach(
                self._clock.now_ns(), hello.gateway_id, hello.gateway_epoch, resume
            )
        except StaleGateway as error:
            raise RpcError(Code.INVALID, str(error)) from None
        self._cancel(outdated)
        self._changes.notify()
        return number

    async def _read(self, requests: AsyncIterator[worker_pb2.TokensRequest]) -> None:
        """Cancels and acknowledgements, until the gateway closes its side."""
        try:
            async for request in requests:
                if request.HasField("cancel"):
                    self._cancel(list(request.cancel.sequence_ids))
                elif request.HasField("ack"):
                    self.outbox.ack(list(request.ack.sequence_ids))
        finally:
            self._changes.notify()

    def _message(self, reports: Sequence[SequenceReport]) -> worker_pb2.TokensReport:
        sequences = [codec.sequence_report_to_pb(report) for report in reports]
        return worker_pb2.TokensReport(epoch=self._epoch, step=self._step, sequences=sequences)

    def _heartbeat(self) -> worker_pb2.TokensReport:
        return worker_pb2.TokensReport(epoch=self._epoch)
