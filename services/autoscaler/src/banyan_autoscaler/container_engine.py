"""The narrow port to a container engine: the six verbs that scaling a compose service takes.

Docker implements it (`docker_engine`), a twin in the tests as well, and one contract suite holds
for both. What an engine returns beyond these few facts stays the JSON that it is: a copy of a
container must keep what we do not know of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

Json = Mapping[str, Any]


class EngineError(Exception):
    """The engine could not, or did not answer; the sentence says why."""


class NoSuchContainer(EngineError):
    """It is gone, whoever removed it."""


class NameTaken(EngineError):
    """A container of that name exists already."""


@dataclass(frozen=True, slots=True, order=True)
class Container:
    """One replica of a compose service, in whatever state the engine calls it."""

    number: int
    container_id: str
    name: str
    state: str

    @property
    def is_up(self) -> bool:
        """Runs, or will again by itself or by the hand that paused it."""
        return self.state in ("running", "restarting", "paused")

    @property
    def is_idle(self) -> bool:
        """Would run if it were started."""
        return self.state in ("created", "exited")


class ContainerEngine(Protocol):
    """All verbs raise EngineError. Those that name a container raise NoSuchContainer."""

    async def containers(self, project: str, service: str) -> tuple[Container, ...]:
        """Of this compose service, in any state, by number; one-off containers left out."""
        ...

    async def inspect(self, container_id: str) -> Json: ...

    async def create(self, name: str, config: Json) -> str:
        """The new container's id. Raises NameTaken. On any error no container is left."""
        ...

    async def start(self, container_id: str) -> None:
        """Nothing happens to one that runs."""
        ...

    async def stop(self, container_id: str) -> None:
        """Its stop signal, then its grace, then SIGKILL; returns when it has ended."""
        ...

    async def remove(self, container_id: str) -> None:
        """With its anonymous volumes, even if it runs."""
        ...
