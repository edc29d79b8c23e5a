"""The one shape of every state machine: facts and the time in, commands out.

A machine never does anything. It is told what happened (`facts`) and when (`now`), and answers
what should be done (commands) and when it wants to be asked again at the latest (`next_wake`).
The pump in `banyan_runtime.pump` feeds it live; the simulation and a replay feed it the same
way, so a recorded run gives equal commands again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

Fact_contra = TypeVar("Fact_contra", contravariant=True)
Command_co = TypeVar("Command_co", covariant=True)


class Stepped(NamedTuple, Generic[Command_co]):
    """What one step decided. `next_wake` is an instant on the clock of `now`, or None."""

    commands: Sequence[Command_co]
    next_wake: int | None


class Machine(Protocol[Fact_contra, Command_co]):
    """A decider. Facts arrive in order; with none, the step is a wake-up."""

    def step(self, now: int, facts: Sequence[Fact_contra]) -> Stepped[Command_co]: ...
