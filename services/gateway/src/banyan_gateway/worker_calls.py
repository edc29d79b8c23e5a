"""Carries out what a journey wants of workers: links, verbs, and their outcomes as facts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from banyan.v1 import worker_pb2
from banyan_core.journey_messages import (
    AckEnd,
    Admitted,
    CancelSequence,
    JourneyFact,
    Refused,
    ReleaseLease,
    Reported,
    StartDecode,
    StartPrefill,
    WorkerLost,
)
from banyan_core.types import Refusal, SequenceReport, SequenceSpec, WorkerRef
from banyan_gateway.worker_link import WorkerLink
from banyan_runtime import codec, wire
from banyan_runtime.lifespan import Tasks
from banyan_runtime.rpc import Network, RpcError, Unary

Req = TypeVar("Req", worker_pb2.PrefillRequest, worker_pb2.DecodeRequest)

START_TIMEOUT_S = 5.0
RELEASE_TIMEOUT_S = 2.0


class WorkerCalls:
    """One link per life of a worker that this gateway has work on."""

    def __init__(
        self,
        network: Network,
        tasks: Tasks,
        gateway: tuple[str, int],
        feed: Callable[[JourneyFact], None],
    ) -> None:
        self._network = network
        self._tasks = tasks
        self._gateway = gateway
        self._feed = feed
        self._links: dict[tuple[str, int], WorkerLink] = {}

    def start_prefill(self, command: StartPrefill) -> None:
        request = worker_pb2.PrefillRequest(
            sequence=codec.sequence_spec_to_pb(command.spec),
            lease_ns=command.lease_ns,
            skip_store=command.skip_store,
        )
        self._start(command.worker, command.spec, wire.PREFILL, request)

    def start_decode(self, command: StartDecode) -> None:
        request = worker_pb2.DecodeRequest(
            sequence=codec.sequence_spec_to_pb(command.spec), skip_store=command.skip_store
        )
        if command.source is not None:
            request.source.CopyFrom(codec.leased_kv_to_pb(command.source))
        self._start(command.worker, command.spec, wire.DECODE, request)

    def cancel(self, command: CancelSequence) -> None:
        for link in self._links_to(command.worker_id):
            link.cancel(command.sequence_id)

    def ack(self, command: AckEnd) -> None:
        for link in self._links_to(command.worker_id):
            link.ack(command.sequence_id)

    def release(self, command: ReleaseLease) -> None:
        self._tasks.spawn_brief("release", self._release(command))

    def _start(
        self,
        worker: WorkerRef,
        spec: SequenceSpec,
        method: Unary[Req, worker_pb2.Admission],
        request: Req,
    ) -> None:
        link = self._link(worker)
        link.expect(spec.sequence_id, len(spec.output_token_ids))
        self._tasks.spawn_brief("start", self._ask(link, spec.sequence_id, method, request))

    async def _ask(
        self,
        link: WorkerLink,
        sequence_id: str,
        method: Unary[Req, worker_pb2.Admission],
        request: Req,
    ) -> None:
        worker = link.worker
        try:
            answer = await link.channel.unary(method, request, START_TIMEOUT_S)
        except RpcError as error:
            refusal = Refusal(f"{worker.worker_id}: {error.message}")
            self._feed(Refused(worker.worker_id, sequence_id, refusal, unreachable=True))
            return
        if answer.epoch != worker.epoch:
            refusal = Refusal(f"{worker.worker_id} was restarted")
            self._feed(Refused(worker.worker_id, sequence_id, refusal, unreachable=True))
        elif answer.accepted:
            link.promised(sequence_id)
            self._feed(Admitted(worker.worker_id, sequence_id))
        else:
            refusal = Refusal(answer.reason, answer.retry_after_ns)
            self._feed(Refused(worker.worker_id, sequence_id, refusal))

    async def _release(self, command: ReleaseLease) -> None:
        request = worker_pb2.ReleaseRequest(lease_ids=[command.lease_id])
        channel = self._network.channel(command.worker.address)
        try:
            await channel.unary(wire.RELEASE, request, RELEASE_TIMEOUT_S)
        except RpcError:
            return  # the lease ends by itself

    def _link(self, worker: WorkerRef) -> WorkerLink:
        key = (worker.worker_id, worker.epoch)
        link = self._links.get(key)
        if link is None:
            channel = self._network.channel(worker.address)
            link = WorkerLink(worker, channel, self._gateway, self._reports, self._lost)
            self._links[key] = link
            self._tasks.spawn_brief(f"link {worker.worker_id}", link.run())
        return link

    def _links_to(self, worker_id: str) -> list[WorkerLink]:
        return [link for (known, _), link in self._links.items() if known == worker_id]

    def _reports(self, worker_id: str, reports: tuple[SequenceReport, ...]) -> None:
        self._feed(Reported(worker_id, reports))

    def _lost(self, worker: WorkerRef, reason: str) -> None:
        del self._links[worker.worker_id, worker.epoch]
        self._feed(WorkerLost(worker.worker_id, worker.epoch, f"{worker.worker_id}: {reason}"))
