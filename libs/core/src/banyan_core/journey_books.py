"""What is written down of a request on its way: instants, counts, decisions, the ledger.

From these its record is made, the only thing that outlives the request. No text, no token ids.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from banyan_core.choice import Choice
from banyan_core.journey_messages import Accepted, LegRecord, RequestRecord
from banyan_core.ledger import Ledger
from banyan_core.types import Decision, Outcome

MAX_KEPT_DECISIONS = 32


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

    def keep(self, decision: Decision) -> None:
        """The first decisions tell the story; a request that goes on for ever tells no more."""
        if len(self.decisions) < MAX_KEPT_DECISIONS:
            self.decisions.append(decision)

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

    def record(
        self, now: int, choices: list[Choice], outcome: Outcome, reason: str
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
        )
