"""One of a request's n answers: its authoritative tokens and the workers that make it.

The token list here is the truth. Workers' reports are taken by index: a known index must agree,
a later one waits until the gap before it closes. So a token once delivered is never doubled,
dropped or contradicted, whichever worker says it, and however often.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from banyan_core.types import Finish, OutputToken, SequenceFigures, WorkerRef
from banyan_core.waiting_line import Ticket

MAX_EARLY_TOKENS = 1024
"""Tokens held back behind a gap; past it the choice is placed again."""


class Phase(StrEnum):
    HELD = "held"  # waits for choice 0's first token, to find the prompt's blocks cached
    PLACING = "placing"
    WAITING = "waiting"  # in the gateway's queue, for its turn
    RUNNING = "running"
    ENDED = "ended"


class Verb(StrEnum):
    PREFILL = "prefill"
    DECODE = "decode"


HANDED_OVER = "handed over"
"""How a prefill leg ends that did its part: its one token is there, decode goes on."""


@dataclass(slots=True)
class Leg:
    """One sequence on one worker."""

    sequence_id: str
    worker: WorkerRef
    verb: Verb
    sent_ns: int
    admitted_ns: int | None = None
    figures: SequenceFigures | None = None
    running: bool = True  # on the worker, as far as we know
    leased: bool = False  # its blocks are still held for the decode worker
    overtaken: bool = False  # decode did without it, which counts as its loss
    first_index: int = 0  # of the output token that it makes first
    end: str = ""


@dataclass(slots=True)
class Choice:
    """State of one choice. `tokens` only ever grows."""

    index: int
    ticket: Ticket
    phase: Phase = Phase.HELD
    tokens: list[OutputToken] = field(default_factory=list)
    has_prompt_logprobs: bool = False
    early: dict[int, OutputToken] = field(default_factory=dict)
    legs: list[Leg] = field(default_factory=list)
    num_attempts: int = 0  # every Place, Prefill and Decode gets its own number
    num_failures: int = 0  # since the last new token
    waiting_since: int | None = None  # until a worker has promised, through all refusals
    refused: str = ""  # why it was not placed last
    avoid: dict[str, int] = field(default_factory=dict)  # worker id -> until when
    last_token_ns: int | None = None
    finish: Finish | None = None
    ends_at: int | None = None  # tokens that must be here before `pending_finish` counts
    pending_finish: Finish | None = None

    def next_attempt(self) -> int:
        self.num_attempts += 1
        return self.num_attempts

    def leg(self, sequence_id: str) -> Leg | None:
        for leg in reversed(self.legs):
            if leg.sequence_id == sequence_id:
                return leg
        return None

    def live(self, verb: Verb) -> Leg | None:
        """The running leg of this verb; there is at most one."""
        for leg in reversed(self.legs):
            if leg.running and leg.verb is verb:
                return leg
        return None

    def kept_prefill(self) -> Leg | None:
        """A prefill that runs, or whose blocks are still held for a decode worker."""
        return self.live(Verb.PREFILL) or next(
            (leg for leg in reversed(self.legs) if leg.leased), None
        )

    def promised(self) -> bool:
        """Every worker that was asked has said yes."""
        return all(leg.admitted_ns is not None for leg in self.legs if leg.running)

    def take_prompt_logprobs(self, found: tuple[OutputToken, ...]) -> tuple[OutputToken, ...]:
        """The first that come; another worker may compute them again."""
        if self.has_prompt_logprobs:
            return ()
        self.has_prompt_logprobs = bool(found)
        return found

    def take(
        self, first_index: int, tokens: Sequence[OutputToken]
    ) -> tuple[OutputToken, ...] | None:
        """Accept reported tokens. Those now in order, or None if one contradicts what stands."""
        if first_index == len(self.tokens) and not self.early:  # as nearly always
            self.tokens.extend(tokens)
            return tuple(tokens)
        for index, token in enumerate(tokens, first_index):
            if index < len(self.tokens):
                if self.tokens[index].token_id != token.token_id:
                    return None
            else:
                self.early[index] = token
        fresh = []
        while (following := self.early.pop(len(self.tokens), None)) is not None:
            self.tokens.append(following)
            fresh.append(following)
        return tuple(fresh) if len(self.early) <= MAX_EARLY_TOKENS else None

    def avoided(self, now: int) -> tuple[str, ...]:
        """Workers not to be placed on at this moment, in a fixed order."""
        return tuple(sorted(worker for worker, until in self.avoid.items() if until > now))
