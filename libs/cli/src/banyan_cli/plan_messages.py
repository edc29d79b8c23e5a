"""What the supervisor tells the plan of a mesh, and what the plan answers: frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# ---------------------------------------------------------------- facts


@dataclass(frozen=True, slots=True)
class BecameReady:
    name: str


@dataclass(frozen=True, slots=True)
class Exited:
    """`code` is negative for a signal; `last_words` is the last line that it wrote, or empty."""

    name: str
    code: int
    last_words: str = ""


@dataclass(frozen=True, slots=True)
class Wished:
    """The number of workers that there should be, by role."""

    replicas: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class StopAsked:
    """A second one is impatient: kill what still runs."""


Fact = BecameReady | Exited | Wished | StopAsked

# ---------------------------------------------------------------- commands


@dataclass(frozen=True, slots=True)
class Start:
    name: str
    service: str


@dataclass(frozen=True, slots=True)
class Terminate:
    name: str


@dataclass(frozen=True, slots=True)
class Kill:
    name: str


@dataclass(frozen=True, slots=True)
class Say:
    """News for people; `trouble` when something went wrong."""

    text: str
    trouble: bool = False


@dataclass(frozen=True, slots=True)
class AllReady:
    """The mesh is up, for the first time."""


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing runs any more."""

    code: int


Command = Start | Terminate | Kill | Say | AllReady | Finish
