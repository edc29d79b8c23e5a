"""Replicas as containers of compose services: a role's workers are the service of its name.

Scaling out starts what stands still, then makes copies of an existing replica; scaling in stops
the replica with the highest number, as `docker compose up --scale` does, and removes it when its
worker has drained. Names and choice follow from the engine's list alone. So two autoscalers by
mistake want the same container: one of them finds the name taken, or stops what is stopping.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from banyan_autoscaler.actuators import ActuatorError
from banyan_autoscaler.container_engine import (
    Container,
    ContainerEngine,
    EngineError,
    NoSuchContainer,
)
from banyan_autoscaler.replica_copy import replica_config, replica_name
from banyan_core.types import Role
from banyan_runtime.lifespan import Tasks


class ComposeActuator:
    """`project` is the compose project, such as `docker compose ls` lists it."""

    name = "compose"

    def __init__(self, engine: ContainerEngine, project: str, logger: logging.Logger) -> None:
        self._engine = engine
        self._project = project
        self._logger = logger
        self._tasks = Tasks()
        self._leaving: set[str] = set()

    async def replicas(self) -> Mapping[Role, int]:
        return {role: len(self._staying(await self._containers(role))) for role in Role}

    async def set_replicas(self, role: Role, num_replicas: int) -> bool:
        """Growing returns when the containers run; shrinking at once, the drain goes on."""
        containers = await self._containers(role)
        staying = self._staying(containers)
        if num_replicas > len(staying):
            await self._grow(role, containers, num_replicas - len(staying))
        for container in staying[num_replicas:]:
            # The last container of a service stays, stopped: the next one is copied from it.
            is_last = num_replicas == 0 and container is staying[0]
            self._leaving.add(container.container_id)
            self._tasks.spawn_brief(f"drain {container.name}", self._drain(container, is_last))
        return True

    async def close(self) -> None:
        """What drains goes on to; its container is then left stopped, to be started again."""
        await self._tasks.cancel_all()

    async def _containers(self, role: Role) -> tuple[Container, ...]:
        try:
            return await self._engine.containers(self._project, role.value)
        except EngineError as error:
            raise ActuatorError(f"{role.value}: {error}") from None

    def _staying(self, containers: Sequence[Container]) -> list[Container]:
        return [c for c in containers if c.is_up and c.container_id not in self._leaving]

    # ------------------------------------------------------------ out

    async def _grow(self, role: Role, containers: Sequence[Container], num_more: int) -> None:
        idle = [c for c in containers if c.is_idle and c.container_id not in self._leaving]
        try:
            for container in idle:
                if num_more > 0 and await self._wake(container):
                    num_more -= 1
            number = max((c.number for c in containers), default=0)
            for _ in range(num_more):
                number += 1
                await self._add(role, containers, number)
        except EngineError as error:
            raise ActuatorError(f"{role.value}: {error}") from None

    async def _wake(self, container: Container) -> bool:
        """Start one that was stopped, crashed, or left half-made. False: it would not start."""
        try:
            await self._engine.start(container.container_id)
        except EngineError as error:
            self._log("replica would not start", container.name, why=f"{error}")
            return False
        self._log("replica started again", container.name)
        return True

    async def _add(self, role: Role, containers: Sequence[Container], number: int) -> None:
        name = replica_name(self._project, role.value, number)
        config = replica_config(await self._template(role, containers), name, number)
        container_id = await self._engine.create(name, config)
        try:
            await self._engine.start(container_id)
        except BaseException:  # the caller's time-out as well: nothing half-made is left
            self._tasks.spawn_brief(f"remove {name}", self._remove(container_id, name))
            raise
        self._log("replica added", name)

    async def _template(self, role: Role, containers: Sequence[Container]) -> dict[str, object]:
        """The newest replica that is still there: it shows what compose makes today."""
        for container in sorted(containers, key=lambda c: (c.is_up, c.number), reverse=True):
            try:
                return dict(await self._engine.inspect(container.container_id))
            except NoSuchContainer:
                continue
        raise EngineError(
            f"project {self._project} has no container of service {role.value} to copy: "
            "bring it up once with `docker compose up`"
        )

    # ------------------------------------------------------------ in

    async def _drain(self, container: Container, keeps: bool) -> None:
        self._log("replica drains", container.name)
        try:
            await self._engine.stop(container.container_id)
            if not keeps:
                await self._engine.remove(container.container_id)
        except NoSuchContainer:
            pass  # somebody else removed it
        except EngineError as error:  # it is counted again, and the next decision sees it
            self._log("replica would not leave", container.name, why=f"{error}")
            return
        finally:
            self._leaving.discard(container.container_id)
        self._log("replica left", container.name)

    async def _remove(self, container_id: str, name: str) -> None:
        try:
            await self._engine.remove(container_id)
        except EngineError as error:
            self._log("half-made replica stays", name, why=f"{error}")

    def _log(self, message: str, container: str, **more: object) -> None:
        level = logging.WARNING if "why" in more else logging.INFO
        self._logger.log(level, message, extra={"container": container, **more})
