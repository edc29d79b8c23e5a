"""A request's way from acceptance to its one end, over any number of lost workers.

    queue -> place -> dispatch -> prefill -> handover -> decode -> ended
      ^_____________________ any loss _____________________|

The router plans, this drives, workers are leaves; every retry of the mesh sits here. Whatever is
lost, the answer is the same: place again with the prompt and the tokens that already stand, and
go on at the next index. A worker's stale attempt is recognised by its sequence id and ignored.
"""

from __future__ import annotations

from collections.abc import Callable

from banyan_core.choice import HANDED_OVER, Choice, Leg, Phase, Verb
from banyan_core.journey_books import Books
from banyan_core.journey_dispatch import Dispatcher
from banyan_core.journey_legs import Legs
from banyan_core.journey_limits import JourneyLimits
from banyan_core.journey_messages import (
    Accepted,
    AckEnd,
    CancelSequence,
    Deliver,
    EndChoice,
    EndRequest,
    JourneyCommand,
    NotPlaced,
    Placed,
    RequestRecord,
)
from banyan_core.journey_recovery import Recovery
from banyan_core.ledger import Ledger, Stage
from banyan_core.queue import Queue
from banyan_core.types import Finish, Outcome, Refusal, SequenceReport, ShedReason
from banyan_core.waiting import Waiting, fits_nowhere


class Journey:
    """One accepted request. Methods take news and `now`; `emit` receives the commands in order."""

    def __init__(
        self,
        accepted: Accepted,
        number: int,
        gateway: tuple[str, int],
        limits: JourneyLimits,
        queue: Queue,
        emit: Callable[[JourneyCommand], None],
    ) -> None:
        self.accepted = accepted
        self.ended = False
        self.booked_wake: int | None = None  # the owner's note, see `Journeys`
        self._limits = limits
        self._queue = queue
        self._emit = emit
        self._books = Books(accepted, Ledger(since=accepted.received_ns))
        self._dispatcher = Dispatcher(accepted, gateway, limits.lease_ns, emit)
        self.waiting = Waiting(accepted, limits.queue_timeout_ns, queue, self._books, emit)
        self._legs = Legs(queue, emit)
        self._recovery = Recovery(limits.max_failures, queue, self.waiting, self._legs, emit)
        self.choices = [
            Choice(index, self.waiting.ticket(index, number))
            for index in range(accepted.num_choices)
        ]

    # ------------------------------------------------------------ placing

    def turn(self, now: int, choice: Choice) -> None:
        """The queue lets it ask for workers."""
        too_late = self.waiting.too_late(now, choice)
        if too_late is not None:
            self.shed(now, *too_late)
        else:
            self.waiting.ask(now, choice)

    def placed(self, now: int, fact: Placed) -> None:
        """A router chose: dispatch, unless this answer is of an attempt that is over."""
        choice = self.choices[fact.choice]
        if choice.phase is not Phase.PLACING or choice.num_attempts != fact.attempt:
            return
        self._books.keep(fact.decision)
        choice.phase = Phase.RUNNING
        self._books.move(choice, Stage.DISPATCH, now)
        self._dispatcher.start(now, choice, fact.placement)

    def not_placed(self, now: int, fact: NotPlaced) -> None:
        """Back to its place in the queue; the gate shuts, unless only this choice has no place."""
        choice = self.choices[fact.choice]
        if choice.phase is not Phase.PLACING or choice.num_attempts != fact.attempt:
            return
        self._legs.abandon(choice, "no placement")
        why_never = fits_nowhere(fact.decision)
        if why_never:
            assert fact.decision is not None
            self._books.keep(fact.decision)
            num_tokens = len(self.accepted.prompt_token_ids) + len(choice.tokens)
            message = f"{num_tokens} tokens fit into no worker's KV pool ({why_never})"
            self.shed(now, ShedReason.TOO_LARGE, message)
            return
        self.waiting.not_placed(now, choice, fact)

    # ------------------------------------------------------------ news from workers

    def admitted(self, now: int, worker_id: str, choice: Choice, sequence_id: str) -> None:
        leg = choice.leg(sequence_id)
        if leg is None or not leg.running:
            # It was cancelled before the worker had promised: say it again.
            self._emit(CancelSequence(worker_id, sequence_id))
            return
        leg.admitted_ns = now
        self._queue.gate.worker_free(worker_id)
        if choice.promised():
            self.waiting.taken(choice)
        awaited = leg.verb is Verb.PREFILL or choice.live(Verb.PREFILL) is None
        if awaited and self._books.ledger.stage is Stage.DISPATCH:
            self._books.move(choice, Stage.PREFILL, now)

    def refused(
        self, now: int, choice: Choice, sequence_id: str, refusal: Refusal, unreachable: bool
    ) -> None:
        given_up = self._recovery.refused(now, choice, sequence_id, refusal, unreachable)
        if given_up is not None:
            self.shed(now, *given_up)

    def reported(self, now: int, worker_id: str, choice: Choice, report: SequenceReport) -> None:
        leg = choice.leg(report.sequence_id)
        if leg is None or not leg.running:
            if report.finish is not None:
                self._emit(AckEnd(worker_id, report.sequence_id))
            return
        leg.figures = report.figures or leg.figures
        if report.figures is not None:
            self._books.note_figures(choice, leg, report, report.figures)
        fresh = choice.take(report.first_index, report.tokens)
        if fresh is None:
            self._lost(now, choice, leg, "its tokens contradict those already sent")
            return
        if fresh:
            self._deliver(now, choice, leg)
        prompt_logprobs = choice.take_prompt_logprobs(report.prompt_logprobs)
        if fresh or prompt_logprobs:
            request_id = self.accepted.request_id
            self._emit(Deliver(request_id, choice.index, fresh, prompt_logprobs))
        if report.finish is not None:
            self._leg_ended(now, choice, leg, report)
        self._finish_when_complete(now, choice)

    def _deliver(self, now: int, choice: Choice, leg: Leg) -> None:
        """Book the time of fresh tokens, and let the next choices begin."""
        choice.num_failures = 0
        if choice.waiting_since is not None:
            self.waiting.taken(choice)
        self._books.token_written(now, choice)
        stage = self._books.ledger.stage
        # Without figures a decode worker only passes on the token that it got with the KV.
        if leg.verb is Verb.DECODE and leg.figures is not None:
            self._legs.release_lease(choice)
            if stage is not Stage.DECODE:
                self._books.move(choice, Stage.DECODE, now, leg)
        elif stage in (Stage.DISPATCH, Stage.PREFILL):
            self._books.move(choice, Stage.HANDOVER, now, leg)
        if choice.index == 0:
            self._start_held(now)

    def _start_held(self, now: int) -> None:
        for other in self.choices:
            if other.phase is Phase.HELD:
                self.waiting.join(now, other)

    def _leg_ended(self, now: int, choice: Choice, leg: Leg, report: SequenceReport) -> None:
        finish = report.finish
        assert finish is not None
        known = report.first_index + len(report.tokens)
        one_token = leg.verb is Verb.PREFILL and finish is Finish.LENGTH
        is_part = one_token and known < self.accepted.sampling.max_tokens
        leg.running, leg.end = False, HANDED_OVER if is_part else finish.value
        self._emit(AckEnd(leg.worker.worker_id, leg.sequence_id))
        self._queue.gate.left_place(leg.worker.worker_id)
        if finish is Finish.FAILED:
            self._end(now, Outcome.FAILED, report.error or "the worker could not serve it", False)
        elif finish in (Finish.STOP, Finish.LENGTH):
            if not is_part:
                choice.pending_finish, choice.ends_at = finish, known
        else:
            leg.running = True
            self._lost(now, choice, leg, f"{leg.worker.worker_id} {finish.value} it")

    def _finish_when_complete(self, now: int, choice: Choice) -> None:
        if self.ended or choice.pending_finish is None or choice.ends_at is None:
            return
        if len(choice.tokens) >= choice.ends_at:
            self._end_choice(now, choice, choice.pending_finish)

    # ------------------------------------------------------------ losses

    def worker_lost(self, now: int, worker_id: str, epoch: int, reason: str) -> None:
        for choice in self.choices:
            for leg in choice.legs:
                same_life = leg.worker.worker_id == worker_id and leg.worker.epoch == epoch
                if same_life and leg.running and not self.ended:
                    self._recovery.avoid(now, choice, leg)
                    self._lost(now, choice, leg, reason)
                elif same_life:
                    leg.leased = False

    def _lost(self, now: int, choice: Choice, leg: Leg, reason: str) -> None:
        """A running leg is gone or useless."""
        self._legs.cancel(leg, reason)
        self._books.note_loss(now, leg, reason)
        if not self._limits.recover:
            self._end(now, Outcome.FAILED, f"worker lost: {reason}", True)
            return
        given_up = self._recovery.lost(now, choice, leg, reason)
        if given_up is not None:
            self.shed(now, *given_up)

    # ------------------------------------------------------------ ends

    def stopped(self, now: int, choice: Choice, num_tokens: int) -> None:
        """A stop string: what came after it is neither sent nor counted."""
        if choice.phase is not Phase.ENDED:
            del choice.tokens[num_tokens:]
            self._end_choice(now, choice, Finish.STOP)

    def _end_choice(self, now: int, choice: Choice, finish: Finish) -> None:
        figures = next((leg.figures for leg in reversed(choice.legs) if leg.figures), None)
        self._legs.leave_places(choice)
        self._legs.abandon(choice, "the choice ended")
        choice.phase, choice.finish = Phase.ENDED, finish
        if choice.index == 0:
            self._books.ledger.move(Stage.OTHER_CHOICES, now, figures)
            self._start_held(now)
        self._emit(EndChoice(self.accepted.request_id, choice.index, finish))
        if all(other.phase is Phase.ENDED for other in self.choices):
            self._end(now, Outcome.FINISHED, "", False)

    def client_gone(self, now: int, reason: str) -> None:
        self._end(now, Outcome.CANCELLED, reason, False)

    def stop_serving(self, now: int) -> None:
        self._end(now, Outcome.FAILED, "the gateway is stopping", True)

    def wake(self, now: int) -> None:
        """Whatever was due: the deadline, or the end of a choice's patience."""
        deadline = self.accepted.deadline_ns
        if deadline is not None and now >= deadline:
            self.shed(now, ShedReason.DEADLINE, "its deadline passed")
            return
        for choice in self.choices:
            until = self.waiting.until(choice)
            if until is not None and now >= until and not self.ended:
                self.shed(now, ShedReason.QUEUE_TIMEOUT, self.waiting.why_so_long(choice))

    def next_wake(self) -> int | None:
        wake = self.accepted.deadline_ns
        for choice in self.choices:
            if choice.phase is Phase.RUNNING:  # asked for every token: nearly always so
                continue
            until = self.waiting.until(choice)
            if until is not None and (wake is None or until < wake):
                wake = until
        return wake

    def shed(self, now: int, shed: ShedReason, message: str) -> None:
        """Given up: shed if the client has nothing yet, failed if an answer breaks off."""
        retry_after_ns = self._queue.retry_after_ns(self.accepted.request_id)
        if self._books.ttft_ns is None:
            self._end(now, Outcome.SHED, message, True, retry_after_ns, shed)
        else:
            self._end(now, Outcome.FAILED, message, True, retry_after_ns)

    def _end(
        self,
        now: int,
        outcome: Outcome,
        reason: str,
        retryable: bool,
        retry_after_ns: int = 0,
        shed: ShedReason | None = None,
    ) -> None:
        if self.ended:
            return
        self.ended = True
        for choice in self.choices:
            self._legs.leave_places(choice)
            self._legs.abandon(choice, outcome.value)
        figures = next((leg.figures for leg in reversed(self.choices[0].legs) if leg.figures), None)
        self._books.ledger.move(Stage.OTHER_CHOICES, now, figures)
        record = self.record(now, outcome, reason, shed)
        if outcome is Outcome.FINISHED:
            queued_ns = self._books.ledger.parts.get("queue", 0)
            self._queue.service_time.finished(record.e2e_ns - queued_ns, record.num_output_tokens)
        self._emit(EndRequest(record, retryable, retry_after_ns))

    def record(
        self, now: int, outcome: Outcome, reason: str, shed: ShedReason | None = None
    ) -> RequestRecord:
        return self._books.record(now, self.choices, outcome, reason, shed)
