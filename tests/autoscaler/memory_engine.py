"""The twin of the container engine: containers are records, and die when they are told to."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

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

IMAGE = "sha256:1"


@dataclass
class MemoryEngine:
    """`away`, `refused` (verbs) and `broken` (ids that will not start) make it fail."""

    images: set[str] = field(default_factory=lambda: {IMAGE})
    networks: set[str] = field(default_factory=lambda: {"p_default", "p_back"})
    away: bool = False
    refused: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    grace_s: float = 0.0
    start_s: float = 0.0

    def __post_init__(self) -> None:
        self._records: dict[str, str] = {}  # inspect's answers, encoded: nobody shares them
        self._num_created = 0

    def compose_up(self, project: str, service: str, number: int, oneoff: bool = False) -> str:
        """What `docker compose up` and `run` make, running."""
        container_id = self._next_id()
        aliases = [f"{project}-{service}-{number}", service, container_id[:12]]
        labels = {
            PROJECT_LABEL: project,
            SERVICE_LABEL: service,
            NUMBER_LABEL: str(number),
            ONEOFF_LABEL: str(oneoff),
            "com.docker.compose.config-hash": "abc",
        }
        endpoint = {"Aliases": aliases, "IPAddress": "172.18.0.2", "IPAMConfig": None}
        self._write(
            {
                "Id": container_id,
                "Name": f"/{project}-{service}-{'run-' if oneoff else ''}{number}",
                "Image": IMAGE,
                "Config": {
                    "Hostname": container_id[:12],
                    "Image": "worker:dev",
                    "Env": ["COLOUR=green"],
                    "StopTimeout": 20,
                    "Labels": labels,
                },
                "HostConfig": {"NetworkMode": "p_default", "ReadonlyRootfs": True},
                "NetworkSettings": {"Networks": {"p_default": endpoint, "p_back": endpoint}},
                "State": {"Status": "running"},
            }
        )
        return container_id

    # ------------------------------------------------------------ the port

    async def containers(self, project: str, service: str) -> tuple[Container, ...]:
        self._answer("list")
        found = []
        for record in map(json.loads, self._records.values()):
            labels = record["Config"]["Labels"]
            wanted = (project, service, "False")
            if (labels[PROJECT_LABEL], labels[SERVICE_LABEL], labels[ONEOFF_LABEL]) == wanted:
                name, state = record["Name"].removeprefix("/"), record["State"]["Status"]
                found.append(Container(int(labels[NUMBER_LABEL]), record["Id"], name, state))
        return tuple(sorted(found))

    async def inspect(self, container_id: str) -> Json:
        self._answer("inspect")
        return self._read(container_id)

    async def create(self, name: str, config: Json) -> str:
        self._answer("create")
        if any(json.loads(record)["Name"] == f"/{name}" for record in self._records.values()):
            raise NameTaken(f"{name} exists")
        networks = config["NetworkingConfig"]["EndpointsConfig"]
        if config["Image"] not in self.images or not self.networks.issuperset(networks):
            raise EngineError("no such image or network")
        container_id = self._next_id()
        config = json.loads(json.dumps(config))
        for endpoint in networks.values():
            endpoint["Aliases"] = [*endpoint["Aliases"], container_id[:12]]
        self._write(
            {
                "Id": container_id,
                "Name": f"/{name}",
                "Image": config["Image"],
                "Config": {"Hostname": container_id[:12], **config},
                "HostConfig": config["HostConfig"],
                "NetworkSettings": {"Networks": networks},
                "State": {"Status": "created"},
            }
        )
        return container_id

    async def start(self, container_id: str) -> None:
        self._read(container_id)
        await asyncio.sleep(self.start_s)
        self._answer("start")
        if container_id in self.broken:
            raise EngineError("start: it is broken")
        self._set_state(container_id, "running")

    async def stop(self, container_id: str) -> None:
        self._answer("stop")
        self._read(container_id)
        await asyncio.sleep(self.grace_s)
        self._answer("stop")
        self._set_state(container_id, "exited")

    async def remove(self, container_id: str) -> None:
        self._answer("remove")
        self._read(container_id)
        del self._records[container_id]

    # ------------------------------------------------------------ inside

    def _answer(self, verb: str) -> None:
        if self.away:
            raise EngineError(f"{verb}: the engine is away")
        if verb in self.refused:
            raise EngineError(f"{verb}: refused")

    def _next_id(self) -> str:
        self._num_created += 1
        return f"{self._num_created:064x}"[::-1]

    def _read(self, container_id: str) -> dict[str, Any]:
        if container_id not in self._records:
            raise NoSuchContainer(f"no container {container_id}")
        record: dict[str, Any] = json.loads(self._records[container_id])
        return record

    def _write(self, record: dict[str, Any]) -> None:
        self._records[record["Id"]] = json.dumps(record)

    def _set_state(self, container_id: str, state: str) -> None:
        self._write({**self._read(container_id), "State": {"Status": state}})
