"""A request's way from acceptance to its one end, over any number of lost workers.

    place -> dispatch -> prefill -> handover -> decode -> ended
      ^________________ any loss _______________|

The router plans, this drives, workers are leaves; every retry of the mesh sits here. Whatever is
lost, the answer is the same: place again with the prompt and the tokens that already stand, and
go on at the next index. A worker's stale attempt is recognised by its sequence id and ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from banyan_core.choice import HANDED_OVER, Choice, Leg, Phase, Verb
from banyan_core.journey_asks import place_query, sequence_spec
from banyan_core.journey_books import Books
from banyan_core.journey_messages import (
    Accepted,
    AckEnd,
    CancelSequence,
    Deliver,
    EndChoice,
    EndRequest,
    JourneyCommand,
    NotPlaced,
    Place,
    Placed,
    ReleaseLease,
    RequestRecord,
    StartDecode,
    StartPrefill,
)
from banyan_core.ledger import Ledger, Stage
from banyan_core.types import (
    NS_PER_MS,
    NS_PER_S,
    Finish,
    LeasedKv,
    Outcome,
    Placement,
    Refusal,
    SequenceFigures,
    SequenceReport,
    SequenceSpec,
    WorkerRef,
)

FIRST_BACKOFF_NS = 20 * NS_PER_MS
LONGEST_BACKOFF_NS = NS_PER_S
AVOID_LOST_NS = 250 * NS_PER_MS


@dataclass(frozen=True, slots=True)
class JourneyLimits:
    """Bounds of every journey. With `recover` off, a lost worker fails its requests."""

    lease_ns: int = 30 * NS_PER_S
    queue_timeout_ns: int = 30 * NS_PER_S
    max_failures: int = 16  # of one choice, without a new token between them
    recover: bool = True


class Journey:
    """One accepted request. Methods take news and `now`; `emit` receives the commands in order."""

    def __init__(
        self,
        accepted: Accepted,
        now: int,
        gateway_id: str,
        gateway_epoch: int,
        limits: JourneyLimits,
        emit: Callable[[JourneyCommand], None],
    ) -> None:
        self.accepted = accepted
        self.ended = False
        self.booked_wake: int | None = None  # the owner's note, see `Journeys`
        self._gateway = (gateway_id, gateway_epoch)
        self._limits = limits
        self._emit = emit
        self._books = Books(accepted, Ledger(since=accepted.received_ns))
        self.choices = [Choice(index) for index in range(accepted.num_choices)]
        self._place(now, self.choices[0])

    # ------------------------------------------------------------ placing

    def _place(self, now: int, choice: Choice, kept_prefill: str = "") -> None:
        choice.phase = Phase.PLACING
        self._move(choice, Stage.PLACE, now)
        query = place_query(self.accepted, choice, now, kept_prefill)
        self._emit(Place(query))

    def placed(self, now: int, fact: Placed) -> None:
        """A router chose: dispatch, unless this answer is of an attempt that is over."""
        choice = self.choices[fact.choice]
        if choice.phase is not Phase.PLACING or choice.num_attempts != fact.attempt:
            return
        self._books.keep(fact.decision)
        choice.waiting_since = None
        self._dispatch(now, choice, fact.placement)

    def not_placed(self, now: int, fact: NotPlaced) -> None:
        choice = self.choices[fact.choice]
        if choice.phase is not Phase.PLACING or choice.num_attempts != fact.attempt:
            return
        if fact.decision is not None:
            self._books.keep(fact.decision)
        if choice.waiting_since is None:
            choice.waiting_since = now
        if now - choice.waiting_since >= self._limits.queue_timeout_ns:
            self._give_up(now, f"no worker took it: {fact.refusal.reason}", fact.refusal)
            return
        self._abandon_legs(choice, "no placement")
        self._wait(now, choice, fact.refusal.retry_after_ns)

    def _wait(self, now: int, choice: Choice, wanted_ns: int) -> None:
        """Ask again later: no sooner than 20 ms, no later than 1 s."""
        choice.phase = Phase.WAITING
        choice.retry_ns = now + min(max(wanted_ns, FIRST_BACKOFF_NS), LONGEST_BACKOFF_NS)
        self._move(choice, Stage.QUEUE, now)

    def _dispatch(self, now: int, choice: Choice, placement: Placement) -> None:
        choice.phase = Phase.RUNNING
        self._move(choice, Stage.DISPATCH, now)
        kept = choice.live(Verb.PREFILL) or self._leased_leg(choice)
        if kept is not None:
            self._start_decode(now, choice, placement.decode, kept)
        elif self.accepted.sampling.max_tokens - len(choice.tokens) == 1:
            self._start_prefill(now, choice, placement.prefill or placement.decode)
        elif placement.prefill is None or placement.prefill == placement.decode:
            self._start_decode(now, choice, placement.decode, None)
        else:
            prefill = self._start_prefill(now, choice, placement.prefill)
            self._start_decode(now, choice, placement.decode, prefill)

    def _start_prefill(self, now: int, choice: Choice, worker: WorkerRef) -> Leg:
        leg = self._new_leg(now, choice, worker, Verb.PREFILL)
        leg.leased = True
        self._emit(StartPrefill(worker, self._spec(now, choice, leg), self._limits.lease_ns))
        return leg

    def _start_decode(
        self, now: int, choice: Choice, worker: WorkerRef, prefill: Leg | None
    ) -> None:
        leg = self._new_leg(now, choice, worker, Verb.DECODE)
        same = prefill is not None and prefill.worker == worker
        source = None if prefill is None or same else LeasedKv(prefill.worker, prefill.sequence_id)
        self._emit(StartDecode(worker, self._spec(now, choice, leg), source))

    def _new_leg(self, now: int, choice: Choice, worker: WorkerRef, verb: Verb) -> Leg:
        sequence_id = f"{self.accepted.request_id}/{choice.index}/{choice.next_attempt()}"
        leg = Leg(sequence_id, worker, verb, sent_ns=now, first_index=len(choice.tokens))
        choice.legs.append(leg)
        return leg

    def _spec(self, now: int, choice: Choice, leg: Leg) -> SequenceSpec:
        return sequence_spec(self.accepted, self._gateway, choice, leg.sequence_id, now)

    # ------------------------------------------------------------ news from workers

    def admitted(self, now: int, worker_id: str, choice: Choice, sequence_id: str) -> None:
        leg = choice.leg(sequence_id)
        if leg is None or not leg.running:
            # It was cancelled before the worker had promised: say it again.
            self._emit(CancelSequence(worker_id, sequence_id))
            return
        leg.admitted_ns = now
        awaited = leg.verb is Verb.PREFILL or choice.live(Verb.PREFILL) is None
        if awaited and self._books.ledger.stage is Stage.DISPATCH:
            self._move(choice, Stage.PREFILL, now)

    def refused(
        self, now: int, choice: Choice, sequence_id: str, refusal: Refusal, unreachable: bool
    ) -> None:
        """Nothing ran: place again, and only decode again if only decode said no."""
        leg = choice.leg(sequence_id)
        if leg is None or not leg.running:
            return
        leg.running, leg.leased, leg.end = False, False, f"refused: {refusal.reason}"
        choice.avoid[leg.worker.worker_id] = now + max(refusal.retry_after_ns, AVOID_LOST_NS)
        if unreachable:
            self._emit(CancelSequence(leg.worker.worker_id, sequence_id))
        self._again(now, choice, f"{leg.worker.worker_id} refused: {refusal.reason}", leg.verb)

    def reported(self, now: int, worker_id: str, choice: Choice, report: SequenceReport) -> None:
        leg = choice.leg(report.sequence_id)
        if leg is None or not leg.running:
            if report.finish is not None:
                self._emit(AckEnd(worker_id, report.sequence_id))
            return
        leg.figures = report.figures or leg.figures
        if report.figures is not None:
            self._note_figures(choice, leg, report, report.figures)
        fresh = choice.take(report.first_index, report.tokens)
        if fresh is None:
            self._lost(now, choice, leg, "its tokens contradict those already sent")
            return
        if fresh:
            self._deliver(now, choice, leg)
            self._emit(Deliver(self.accepted.request_id, choice.index, fresh))
        if report.finish is not None:
            self._leg_ended(now, choice, leg, report)
        self._finish_when_complete(now, choice)

    def _deliver(self, now: int, choice: Choice, leg: Leg) -> None:
        """Book the time of fresh tokens, and let the next choices begin."""
        choice.num_failures = 0
        self._books.token_written(now, choice)
        stage = self._books.ledger.stage
        # Without figures a decode worker only passes on the token that it got with the KV.
        if leg.verb is Verb.DECODE and leg.figures is not None:
            self._release_lease(choice)
            if stage is not Stage.DECODE:
                self._move(choice, Stage.DECODE, now, leg)
        elif stage in (Stage.DISPATCH, Stage.PREFILL):
            self._move(choice, Stage.HANDOVER, now, leg)
        if choice.index == 0:
            self._start_held(now)

    def _start_held(self, now: int) -> None:
        for other in self.choices:
            if other.phase is Phase.HELD:
                self._place(now, other)

    def _note_figures(
        self, choice: Choice, leg: Leg, report: SequenceReport, figures: SequenceFigures
    ) -> None:
        """Book a worker's figures, and what they betray.

        A decode worker that sampled the first token itself, before the prefill worker said it,
        found the pull broken: that is a loss, seen earlier than the dead stream shows it.
        """
        if choice.index == 0:
            self._books.count_cached(figures.num_cached_tokens)
            if leg.verb is Verb.PREFILL and report.first_index < len(choice.tokens):
                self._books.ledger.explain_prefill(figures)
        prefill = choice.live(Verb.PREFILL)
        sampled_first = report.tokens and report.first_index == leg.first_index
        if leg.verb is Verb.DECODE and sampled_first and prefill and not prefill.overtaken:
            prefill.overtaken = True
            self._books.num_recoveries += 1

    def _leg_ended(self, now: int, choice: Choice, leg: Leg, report: SequenceReport) -> None:
        finish = report.finish
        assert finish is not None
        known = report.first_index + len(report.tokens)
        one_token = leg.verb is Verb.PREFILL and finish is Finish.LENGTH
        is_part = one_token and known < self.accepted.sampling.max_tokens
        leg.running, leg.end = False, HANDED_OVER if is_part else finish.value
        self._emit(AckEnd(leg.worker.worker_id, leg.sequence_id))
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
                    choice.avoid[worker_id] = now + AVOID_LOST_NS
                    self._lost(now, choice, leg, reason)
                elif same_life:
                    leg.leased = False

    def _lost(self, now: int, choice: Choice, leg: Leg, reason: str) -> None:
        """A running leg is gone or useless."""
        leg.running, leg.leased, leg.end = False, False, reason
        self._emit(CancelSequence(leg.worker.worker_id, leg.sequence_id))
        self._books.num_recoveries += not leg.overtaken
        if not self._limits.recover:
            self._end(now, Outcome.FAILED, f"worker lost: {reason}", True)
            return
        if leg.verb is Verb.PREFILL and choice.live(Verb.DECODE) is not None:
            # Decode finds that the pull broke, computes the prompt itself and goes on.
            return
        self._again(now, choice, reason, leg.verb)

    def _again(self, now: int, choice: Choice, reason: str, gone: Verb) -> None:
        choice.num_failures += 1
        choice.early.clear()
        choice.pending_finish = choice.ends_at = None
        if choice.num_failures > self._limits.max_failures:
            self._give_up(now, f"given up after {choice.num_failures} tries: {reason}", None)
            return
        kept = choice.live(Verb.PREFILL) or self._leased_leg(choice)
        if gone is Verb.DECODE and kept is not None and len(choice.tokens) <= 1:
            self._place(now, choice, kept_prefill=kept.worker.worker_id)
            return
        self._abandon_legs(choice, reason)
        if choice.num_failures <= 2:
            self._place(now, choice)
        else:
            self._wait(now, choice, FIRST_BACKOFF_NS << min(choice.num_failures, 6))

    def _abandon_legs(self, choice: Choice, reason: str) -> None:
        """Stop what still works on this choice, and give back what it holds."""
        for leg in choice.legs:
            if leg.running:
                leg.running, leg.end = False, reason
                self._emit(CancelSequence(leg.worker.worker_id, leg.sequence_id))
        self._release_lease(choice)

    def _leased_leg(self, choice: Choice) -> Leg | None:
        return next((leg for leg in reversed(choice.legs) if leg.leased), None)

    def _release_lease(self, choice: Choice) -> None:
        for leg in choice.legs:
            if leg.leased:
                leg.leased = False
                self._emit(ReleaseLease(leg.worker, leg.sequence_id))

    # ------------------------------------------------------------ ends

    def stopped(self, now: int, choice: Choice, num_tokens: int) -> None:
        """A stop string: what came after it is neither sent nor counted."""
        if choice.phase is not Phase.ENDED:
            del choice.tokens[num_tokens:]
            self._end_choice(now, choice, Finish.STOP)

    def _end_choice(self, now: int, choice: Choice, finish: Finish) -> None:
        figures = next((leg.figures for leg in reversed(choice.legs) if leg.figures), None)
        self._abandon_legs(choice, "the choice ended")
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
        """Whatever was due: the deadline, or another try of a waiting choice."""
        deadline = self.accepted.deadline_ns
        if deadline is not None and now >= deadline:
            self._give_up(now, "its deadline passed", None)
            return
        for choice in self.choices:
            if choice.phase is Phase.WAITING and now >= choice.retry_ns and not self.ended:
                self._place(now, choice)

    def next_wake(self) -> int | None:
        times = [choice.retry_ns for choice in self.choices if choice.phase is Phase.WAITING]
        if self.accepted.deadline_ns is not None:
            times.append(self.accepted.deadline_ns)
        return min(times, default=None)

    def _give_up(self, now: int, reason: str, refusal: Refusal | None) -> None:
        """Shed if the client has nothing yet, failed if an answer breaks off."""
        outcome = Outcome.SHED if self._books.ttft_ns is None else Outcome.FAILED
        retry_after_ns = NS_PER_S if refusal is None else refusal.retry_after_ns
        self._end(now, outcome, reason, True, max(retry_after_ns, NS_PER_S))

    def _end(
        self, now: int, outcome: Outcome, reason: str, retryable: bool, retry_after_ns: int = 0
    ) -> None:
        if self.ended:
            return
        self.ended = True
        for choice in self.choices:
            self._abandon_legs(choice, outcome.value)
        figures = next((leg.figures for leg in reversed(self.choices[0].legs) if leg.figures), None)
        self._books.ledger.move(Stage.OTHER_CHOICES, now, figures)
        self._emit(EndRequest(self.record(now, outcome, reason), retryable, retry_after_ns))

    def record(self, now: int, outcome: Outcome, reason: str) -> RequestRecord:
        return self._books.record(now, self.choices, outcome, reason)

    def _move(self, choice: Choice, stage: Stage, now: int, leg: Leg | None = None) -> None:
        """The ledger follows the first choice; the others run beside it."""
        if choice.index == 0 and choice.phase is not Phase.ENDED:
            last = leg or next((leg for leg in reversed(choice.legs) if leg.figures), None)
            asked_ns = None if leg is None else leg.sent_ns
            self._books.ledger.move(stage, now, last.figures if last else None, asked_ns)
