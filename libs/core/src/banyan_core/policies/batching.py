"""Who shares a step's token budget, and in which order.

A running sequence that needs one token *decodes*; everything else, admissions included, is *prompt*
work. The order among equals is by due time: a sequence is due when it came, and `aging_s` later
for each step of priority below the first. So a better class goes first, and no class starves:
whoever waits long enough is due before anyone who comes now.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from banyan_core.types import NS_PER_S


class Phase(StrEnum):
    """Kinds of work in a step."""

    DECODE = "decode"
    PROMPT = "prompt"


class BatchingPolicy(Protocol):
    """Which kinds of work share the next step's budget, first come first served."""

    @property
    def aging_ns(self) -> int: ...

    def phases(self, num_decoding: int) -> tuple[Phase, ...]: ...


@dataclass(frozen=True, slots=True)
class _Aging:
    aging_s: float = 5.0

    def __post_init__(self) -> None:
        if not self.aging_s > 0:
            raise ValueError(f"aging_s: expected more than 0, got {self.aging_s}")

    @property
    def aging_ns(self) -> int:
        return round(self.aging_s * NS_PER_S)


@dataclass(frozen=True, slots=True)
class Chunked(_Aging):
    """Every decode gets its token; prompts fill what is left, in chunks (SplitFuse)."""

    def phases(self, num_decoding: int) -> tuple[Phase, ...]:
        return (Phase.DECODE, Phase.PROMPT)


@dataclass(frozen=True, slots=True)
class PrefillFirst(_Aging):
    """Prompts first: the shortest wait for a first token; long prompts stall who decodes."""

    def phases(self, num_decoding: int) -> tuple[Phase, ...]:
        return (Phase.PROMPT, Phase.DECODE)


@dataclass(frozen=True, slots=True)
class DecodeFirst(_Aging):
    """Prompts only when nobody decodes: the evenest gaps between tokens, in batches."""

    def phases(self, num_decoding: int) -> tuple[Phase, ...]:
        return (Phase.DECODE,) if num_decoding else (Phase.PROMPT,)
