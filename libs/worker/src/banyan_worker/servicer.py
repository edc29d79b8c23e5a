"""The worker's verbs: protobuf in, the parts called, protobuf out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable

from banyan.v1 import kv_pb2, worker_pb2
from banyan_runtime import codec, wire
from banyan_runtime.page_traces import traced_pages
from banyan_runtime.rpc import Code, Handler, RpcError, serve_bidi, serve_stream, serve_unary
from banyan_runtime.tracing import NO_TRACING, Tracing
from banyan_worker.work import Work


class WorkerServicer:
    """`drain` starts a drain with a grace in ns."""

    def __init__(
        self,
        epoch: int,
        work: Work,
        drain: Callable[[int], None],
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self._tracing = tracing
        self._epoch = epoch
        self._work = work
        self._drain = drain

    def handlers(self) -> tuple[Handler, ...]:
        return (
            serve_stream(wire.WATCH, self.watch),
            serve_unary(wire.PREFILL, self.prefill),
            serve_unary(wire.DECODE, self.decode),
            serve_bidi(wire.TOKENS, self.tokens),
            serve_stream(wire.PULL, self.pull),
            serve_unary(wire.RELEASE, self.release),
            serve_unary(wire.DRAIN, self.drain),
        )

    def watch(
        self, request: worker_pb2.WatchRequest
    ) -> AsyncGenerator[worker_pb2.WorkerReport, None]:
        parts = self._work.parts
        return parts.board.watch(parts.streams.outbox.running_ids())

    async def prefill(self, request: worker_pb2.PrefillRequest) -> worker_pb2.Admission:
        spec = codec.sequence_spec_from_pb(request.sequence)
        refusal = await self._work.missing(spec)
        refusal = refusal or self._work.admit_prefill(spec, request.lease_ns, request.skip_store)
        return codec.admission_to_pb(refusal, self._epoch)

    async def decode(self, request: worker_pb2.DecodeRequest) -> worker_pb2.Admission:
        spec = codec.sequence_spec_from_pb(request.sequence)
        source = None
        if request.HasField("source"):
            try:
                source = codec.leased_kv_from_pb(request.source)
            except ValueError as error:
                raise RpcError(Code.INVALID, f"source.worker: {error}") from None
        refusal = await self._work.missing(spec)
        refusal = refusal or self._work.admit_decode(spec, source, request.skip_store)
        return codec.admission_to_pb(refusal, self._epoch)

    def tokens(
        self, requests: AsyncIterator[worker_pb2.TokensRequest]
    ) -> AsyncGenerator[worker_pb2.TokensReport, None]:
        return self._work.parts.streams.stream(requests)

    def pull(self, request: worker_pb2.PullRequest) -> AsyncGenerator[kv_pb2.KvPages, None]:
        pages = self._work.parts.exporter.pull(request, self._work.parts.steps)
        asked = {"banyan.lease.id": request.lease_id}
        return traced_pages(self._tracing, "kv export", asked, pages)

    async def release(self, request: worker_pb2.ReleaseRequest) -> worker_pb2.ReleaseResponse:
        num_released = self._work.release(list(request.lease_ids))
        return worker_pb2.ReleaseResponse(num_released=num_released)

    async def drain(self, request: worker_pb2.DrainRequest) -> worker_pb2.DrainResponse:
        load = self._work.load()
        self._drain(request.grace_ns)
        return worker_pb2.DrainResponse(num_running=load.num_running + load.num_waiting)
