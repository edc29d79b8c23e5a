"""The driving half of the gateway: requests in, deltas out, journeys in between.

    generate -> Accepted -> Journeys (core) -> commands -> routers, workers, answers
                               ^__________________ facts _______________|

The pure machine decides; this class carries its commands out and feeds it what came of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from banyan_core.journey_limits import JourneyLimits
from banyan_core.journey_messages import (
    AckEnd,
    CancelSequence,
    ClientGone,
    Deliver,
    EndChoice,
    EndRequest,
    GatewayStopping,
    JourneyCommand,
    JourneyFact,
    Place,
    ReleaseLease,
    RequestRecord,
    StartDecode,
    StartPrefill,
    Stopped,
)
from banyan_core.journeys import Journeys
from banyan_core.types import NS_PER_S, ModelCard, Outcome
from banyan_gateway.acceptance import Acceptance
from banyan_gateway.answer import Answer
from banyan_gateway.ports import Delta, GenerationRequest, RequestFailed, Unread, Usage
from banyan_gateway.readiness import Readiness
from banyan_gateway.request_events import ALIVE_EVERY_S, RequestEvents
from banyan_gateway.request_failure import failure_of
from banyan_gateway.request_log import RequestLog, queue_view, record_view, unread_record
from banyan_gateway.request_metrics import TOO_LATE, TOO_MANY_OPEN, QueueFigures, RequestMetrics
from banyan_gateway.request_traces import RequestTraces
from banyan_gateway.router_client import RouterClient
from banyan_gateway.worker_calls import WorkerCalls
from banyan_runtime.bus import Bus, EventProducer
from banyan_runtime.clock import Clock
from banyan_runtime.directory import Directory
from banyan_runtime.lifespan import Tasks
from banyan_runtime.offload import Offload
from banyan_runtime.pump import Pump, Recorder
from banyan_runtime.rpc import Network
from banyan_runtime.trace_context import TraceContext, in_trace
from banyan_runtime.tracing import NO_TRACING, Tracing
from banyan_text.choice_text import ChoiceText
from banyan_text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """`max_open_requests` leaves a better class room to push the queue's last ones out."""

    mesh_secret: bytes
    max_open_requests: int = 2500
    limits: JourneyLimits = field(default_factory=JourneyLimits)


class Gateway:
    """Drives requests; implements `ports.GatewayPort`."""

    def __init__(
        self,
        gateway_id: str,
        epoch: int,
        card: ModelCard,
        tokenizer: Tokenizer,
        network: Network,
        directory: Directory,
        bus: Bus,
        clock: Clock,
        offload: Offload,
        logger: logging.Logger,
        options: GatewayOptions,
        recorder: Recorder | None = None,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self.epoch = epoch
        self._card = card
        self._tokenizer = tokenizer
        self._clock = clock
        self._logger = logger
        self._options = options
        self._tasks = Tasks()
        self._acceptance = Acceptance(options.mesh_secret, card, offload)
        self._readiness = Readiness(network, directory, card)
        self._routers = RouterClient(network, directory)
        self._log = RequestLog()
        self._traces = RequestTraces(tracing)
        self._events = RequestEvents(EventProducer(bus, clock, gateway_id, epoch))
        self._answers: dict[str, Answer] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False
        self._num_turned_away = 0
        self._journeys = Journeys(gateway_id, epoch, options.limits)
        self.metrics = RequestMetrics(card.name, self._look)
        self._pump: Pump[JourneyFact, JourneyCommand] = Pump(
            self._journeys, clock, self._apply, recorder
        )
        self._workers = WorkerCalls(network, self._tasks, (gateway_id, epoch), self._pump.feed)
        self._appliers: dict[type, Callable[[Any], None]] = {
            Place: self._traces.within(self._place),
            StartPrefill: self._traces.within(self._workers.start_prefill),
            StartDecode: self._traces.within(self._workers.start_decode),
            CancelSequence: self._workers.cancel,
            AckEnd: self._workers.ack,
            ReleaseLease: self._workers.release,
            Deliver: self._deliver,
            EndChoice: self._end_choice,
            EndRequest: self._end_request,
        }

    @property
    def num_open(self) -> int:
        return len(self._answers)

    def _look(self) -> QueueFigures:
        journeys = self._journeys
        num_waiting, wait_ns = journeys.num_waiting, journeys.expected_wait_ns()
        return QueueFigures(
            num_running=journeys.num_open - num_waiting,
            num_waiting=num_waiting,
            expected_wait_s=None if wait_ns is None else wait_ns / NS_PER_S,
            num_retries_left=journeys.num_retries_left(self._clock.now_ns()),
        )

    async def start(self) -> None:
        self._tasks.spawn("journeys", self._pump.run())
        self._tasks.spawn("alive", self._say_alive())

    async def stop(self, grace_s: float) -> None:
        """Take nothing new, let running answers end within the grace, then fail the rest."""
        self._stopping = True
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            self._pump.feed(GatewayStopping())
            await self._idle.wait()
        await self._tasks.cancel_all()

    # ------------------------------------------------------------ requests

    async def generate(
        self, request: GenerationRequest
    ) -> AsyncGenerator[list[Delta | Usage], None]:
        """Drive one request to its end; see `ports.GatewayPort.generate`."""
        refusal = self.refusal()
        if refusal is not None:
            raise refusal
        accepted = await self._acceptance.accept(request)
        answer = self._open(request)
        self._traces.begin(request)
        self._events.accepted(accepted, self._traces.context(request.request_id))
        self._pump.feed(accepted)
        try:
            while True:
                items = await answer.take()
                yield items
                if isinstance(items[-1], Usage):
                    return
        finally:
            if not answer.ended:
                self._pump.feed(ClientGone(request.request_id, "the client closed the connection"))

    def refusal(self, waited_ns: int = 0) -> RequestFailed | None:
        """What a request that waited so long to begin is told unread; None when there is room."""
        if self._stopping:
            return RequestFailed("stopping", "the gateway is stopping", 1.0, 503)
        num_open = len(self._answers)
        if num_open >= self._options.max_open_requests:
            reason, why = TOO_MANY_OPEN, f"{num_open} requests are open"
        elif waited_ns > 2 * self._options.limits.queue.max_wait_ns:  # as long as in the queue
            reason, why = TOO_LATE, f"it waited {waited_ns / NS_PER_S:.1f} s to be read"
        else:
            return None
        self._num_turned_away += 1
        self.metrics.turned_away(reason)
        spread = str(self._num_turned_away)
        retry_after_s = self._journeys.retry_after_ns(spread) / NS_PER_S
        return RequestFailed("overloaded", why, retry_after_s, 429)

    def sheds(self, priority: int) -> bool:
        return self._journeys.judge_unread(self._clock.now_ns(), priority) is not None

    def shed(self, unread: Unread) -> RequestFailed | None:
        now = self._clock.now_ns()
        verdict = self._journeys.judge_unread(now, unread.priority)
        if verdict is None:
            return None
        record = unread_record(unread, self._card.name, now, *verdict)
        retry_after_ns = self._journeys.retry_after_ns(unread.request_id)
        self._write_down(record, None)
        return failure_of(EndRequest(record, True, retry_after_ns))

    def _open(self, request: GenerationRequest) -> Answer:
        texts = [
            ChoiceText(
                self._tokenizer,
                request.stop,
                request.include_stop,
                request.sampling.stop_token_ids,
                request.shown,
            )
            for _ in range(request.n)
        ]
        answer = Answer(texts, partial(self._stopped, request.request_id))
        self._answers[request.request_id] = answer
        self._idle.clear()
        return answer

    def request_view(self, request_id: str) -> dict[str, Any] | None:
        """What is known of a request, running or ended, JSON-ready."""
        ended = self._log.view(request_id)
        if ended is not None:
            return ended
        journey = self._journeys.journey(request_id)
        if journey is None:
            return None
        running = journey.record(self._clock.now_ns(), Outcome.FINISHED, "")
        view = record_view(running, "running", self._traces.context(request_id))
        return view | queue_view(self._journeys.place_in_line(request_id))

    async def ready(self) -> tuple[bool, str]:
        if self._stopping:
            return False, "the gateway is stopping"
        return await self._readiness.look()

    # ------------------------------------------------------------ commands

    def _apply(self, command: JourneyCommand) -> None:
        self._appliers[type(command)](command)

    def _place(self, command: Place) -> None:
        self._tasks.spawn_brief("place", self._ask_router(command))

    async def _ask_router(self, command: Place) -> None:
        self._pump.feed(await self._routers.place(command.query))

    def _deliver(self, command: Deliver) -> None:
        answer = self._answers.get(command.request_id)
        if answer is None:
            return
        answer.push(command.choice, command.tokens, command.prompt_logprobs)
        if answer.overflowed:
            self._pump.feed(ClientGone(command.request_id, "the client does not read"))

    def _stopped(self, request_id: str, choice: int, num_tokens: int) -> None:
        self._pump.feed(Stopped(request_id, choice, num_tokens))

    def _end_choice(self, command: EndChoice) -> None:
        self._answers[command.request_id].end_choice(command.choice, command.finish.value)

    def _end_request(self, command: EndRequest) -> None:
        answer = self._answers.pop(command.record.request_id)
        if not self._answers:
            self._idle.set()
        record = replace(command.record, num_output_tokens=answer.num_output_tokens)
        trace = self._traces.ended(record)
        self._write_down(record, trace)
        if record.outcome is Outcome.FINISHED:
            answer.end(
                Usage(record.num_prompt_tokens, record.num_output_tokens, record.num_cached_tokens)
            )
        else:
            answer.end(failure_of(command))

    def _write_down(self, record: RequestRecord, trace: TraceContext | None) -> None:
        """A request's end, for all who ask of it later."""
        self._log.keep(record, trace)
        self._events.ended(record, trace)
        self.metrics.ended(record)
        ended = {
            "request_id": record.request_id,
            "outcome": record.outcome.value,
            "reason": record.reason,
            "num_recoveries": record.num_recoveries,
        }
        with in_trace(trace):
            self._logger.info("request ended", extra=ended)

    async def _say_alive(self) -> None:
        while True:
            self._events.alive(len(self._answers))
            await asyncio.sleep(ALIVE_EVERY_S)
