"""What is written down of a request on its way: instants, counts, decisions, the ledger.

From these its record is made, the only thing that outlives the request. No text, no token ids.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from banyan_core.choice import Choice, Leg, Phase, Verb
from banyan_core.journey_messages import Accepted, LegRecord, LossRecord, RequestRecord
from banyan_core.ledger import Ledger, Stage
from banyan_core.placement import Decision
from banyan_core.types import Outcome, SequenceFigures, SequenceReport, ShedReason

MAX_KEPT_DECISIONS = 32
MAX_KEPT_LOSSES = 32


@dataclass(slots=True)
class Books:
    """One request's figures. Instants are the gateway's, in ns."""

    accepted: Accepted
    ledger: Ledger
    num_recoveries: int = 0
    num_cached_tokens: int | None = None
    ttft_ns: int | None = None
    itl_ns: list[int] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    losses: list[LossRecord] = field(default_factory=list)

    def keep(self, decision: Decision) -> None:
        """The first decisions tell the story; a request that goes on for ever tells no more."""
        if len(self.decisions) < MAX_KEPT_DECISIONS:
            self.decisions.append(decision)

    def move(self, choice: Choice, stage: Stage, now: int, leg: Leg | None = None) -> None:
        """The ledger follows the first choice; the others run beside it."""
        if choice.index == 0 and choice.phase is not Phase.ENDED:
            last = leg or next((leg for leg in reversed(choice.legs) if leg.figures), None)
            asked_ns = None if leg is None else leg.sent_ns
            self.ledger.move(stage, now, last.figures if last else None, asked_ns)

    def note_loss(self, now: int, leg: Leg, reason: str) -> None:
        """A leg is gone; it counts as a recovery unless its loss was seen before."""
        self.num_recoveries += not leg.overtaken
        if len(self.losses) < MAX_KEPT_LOSSES:
            self.losses.append(LossRecord(now, leg.worker.worker_id, leg.verb.value, reason))

    def token_written(self, now: int, choice: Choice) -> None:
        if self.ttft_ns is None:
            self.ttft_ns = now - self.accepted.received_ns
        if choice.last_token_ns is not None:
            self.itl_ns.append(now - choice.last_token_ns)
        choice.last_token_ns = now

    def count_cached(self, num_cached_tokens: int) -> None:
        """Cached = prompt tokens that no engine step computed, whichever worker's it was."""
        known = self.num_cached_tokens
        self.num_cached_tokens = (
            num_cached_tokens if known is None else min(known, num_cached_tokens)
        )

    def note_figures(
        self, choice: Choice, leg: Leg, report: SequenceReport, figures: SequenceFigures
    ) -> None:
        """A worker's figures, and what they betray.

        A decode worker that sampled the first token itself, before the prefill worker said it,
        found the pull broken: that is a loss, seen earlier than the dead stream shows it.
        """
        if choice.index == 0:
            self.count_cached(figures.num_cached_tokens)
            if leg.verb is Verb.PREFILL and report.first_index < len(choice.tokens):
                self.ledger.explain_prefill(figures)
        prefill = choice.live(Verb.PREFILL)
        sampled_first = report.tokens and report.first_index == leg.first_index
        if leg.verb is Verb.DECODE and sampled_first and prefill and not prefill.overtaken:
            prefill.overtaken = True
            self.num_recoveries += 1

    def record(
        self,
        now: int,
        choices: list[Choice],
        outcome: Outcome,
        reason: str,
        shed: ShedReason | None = None,
    ) -> RequestRecord:
        accepted = self.accepted
        return RequestRecord(
            request_id=accepted.request_id,
            tenant=accepted.tenant,
            model=accepted.model,
            outcome=outcome,
            reason=reason,
            num_prompt_tokens=len(accepted.prompt_token_ids),
            num_cached_tokens=self.num_cached_tokens or 0,
            num_output_tokens=sum(len(choice.tokens) for choice in choices),
            ttft_ns=self.ttft_ns,
            e2e_ns=now - accepted.received_ns,
            itl_ns=tuple(self.itl_ns),
            num_recoveries=self.num_recoveries,
            ledger=self.ledger.entries(),
            decisions=tuple(self.decisions),
            legs=tuple(
                LegRecord(leg.sequence_id, leg.worker.worker_id, leg.verb.value, leg.end)
                for choice in choices
                for leg in choice.legs
            ),
            finish_reasons=tuple(
                choice.finish.value if choice.finish else "" for choice in choices
            ),
            visits=tuple(self.ledger.visits),
            losses=tuple(self.losses),
            shed=shed,
        )
