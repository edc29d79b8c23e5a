"""The container engine over the Docker API, through aiodocker.

Whoever may speak to this socket is root on its host: the actuator that uses it is opt-in.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiodocker
import aiohttp

from banyan_autoscaler.container_engine import (
    Container,
    EngineError,
    Json,
    NameTaken,
    NoSuchContainer,
)
from banyan_autoscaler.replica_copy import (
    NUMBER_LABEL,
    ONEOFF_LABEL,
    PROJECT_LABEL,
    SERVICE_LABEL,
)

ANSWER_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 900.0
"""More than any sensible grace of a container: the engine kills what outlives its own."""


class DockerEngine:
    """Opened at the first call, so that an engine that is away is an answer and not a start-up."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._docker: aiodocker.Docker | None = None

    async def containers(self, project: str, service: str) -> tuple[Container, ...]:
        labels = (
            f"{PROJECT_LABEL}={project}",
            f"{SERVICE_LABEL}={service}",
            f"{ONEOFF_LABEL}=False",
        )
        filters = json.dumps({"label": list(labels)})
        async with self._calling("list containers") as docker:
            listed = await docker.containers.list(all=1, filters=filters)
        return tuple(sorted(_container(found) for found in listed))

    async def inspect(self, container_id: str) -> Json:
        async with self._calling("inspect") as docker:
            found: dict[str, Any] = await docker.containers.container(container_id).show()
        return found

    async def create(self, name: str, config: Json) -> str:
        """Networks beyond the first are joined one by one: engines before 25 take one at most."""
        networks = dict(config["NetworkingConfig"]["EndpointsConfig"])
        mode = config["HostConfig"]["NetworkMode"]
        first = {mode: networks.pop(mode)} if mode in networks else {}
        body = {**config, "NetworkingConfig": {"EndpointsConfig": first}}
        async with self._calling(f"create {name}") as docker:
            created = await docker.containers.create(body, name=name)
        try:
            for network, endpoint in networks.items():
                async with self._calling(f"connect {name} to {network}") as docker:
                    joined = await docker.networks.get(network)
                    await joined.connect({"Container": created.id, "EndpointConfig": endpoint})
        except EngineError:
            await self.remove(created.id)
            raise
        return created.id

    async def start(self, container_id: str) -> None:
        async with self._calling("start") as docker:
            await docker.containers.container(container_id).start()

    async def stop(self, container_id: str) -> None:
        async with self._calling("stop", STOP_TIMEOUT_S) as docker:
            await docker.containers.container(container_id).stop()

    async def remove(self, container_id: str) -> None:
        async with self._calling("remove") as docker:
            await docker.containers.container(container_id).delete(force=True, v=True)

    async def close(self) -> None:
        if self._docker is not None:
            await self._docker.close()
            self._docker = None

    @asynccontextmanager
    async def _calling(
        self, verb: str, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> AsyncIterator[aiodocker.Docker]:
        try:
            async with asyncio.timeout(timeout_s):
                if self._docker is None:
                    self._docker = aiodocker.Docker(self._url)
                yield self._docker
        except aiodocker.DockerError as error:
            raise _said(verb, error) from None
        except TimeoutError:
            raise EngineError(f"{verb}: no answer from {self._url} in {timeout_s:.0f} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise EngineError(f"{verb}: {self._url} cannot be reached: {error}") from None


def _said(verb: str, error: aiodocker.DockerError) -> EngineError:
    kind = {404: NoSuchContainer, 409: NameTaken}.get(error.status, EngineError)
    if kind is NameTaken and not verb.startswith("create"):
        kind = EngineError
    if kind is NoSuchContainer and verb.startswith(("create", "connect")):
        kind = EngineError  # it is the image or the network that is not there
    return kind(f"{verb}: {error.message} ({error.status})")


def _container(found: aiodocker.containers.DockerContainer) -> Container:
    labels = found["Labels"]
    number = labels.get(NUMBER_LABEL, "")
    return Container(
        int(number) if number.isdecimal() else 0,
        found["Id"],
        found["Names"][0].removeprefix("/"),
        found["State"],
    )
