"""How a decision becomes workers. An actuator is told a number and says how many there are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from banyan_core.types import Role
from banyan_runtime.directory import Directory

SCALE_FILE = "scale.json"
MESH_FILE = "mesh.json"


class ActuatorError(Exception):
    """The actuator could not count or set; the sentence says why."""


class Actuator(Protocol):
    @property
    def name(self) -> str: ...

    async def replicas(self) -> Mapping[Role, int]:
        """How many of each role exist or start. Raises ActuatorError."""
        ...

    async def set_replicas(self, role: Role, num_replicas: int) -> bool:
        """Make it so, in the end. False: only noted, nothing will change. Raises ActuatorError."""
        ...


class DryRunActuator:
    """Counts what the directory lists and changes nothing: decisions can be watched first."""

    name = "dry-run"

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    async def replicas(self) -> Mapping[Role, int]:
        return {role: len(await self._directory.addresses(role.value)) for role in Role}

    async def set_replicas(self, role: Role, num_replicas: int) -> bool:
        return False


class LocalActuator:
    """The declarative seam to `banyan up`, through two files in its state folder.

    `mesh.json` is the supervisor's: the addresses by service that it runs. `scale.json` is ours:
    the wished number by role, replaced as a whole by a rename. The supervisor starts or drains
    workers until both agree. Files, because either side may be away, and a wish does not expire.
    """

    name = "local"

    def __init__(self, folder: Path) -> None:
        self._mesh = folder / MESH_FILE
        self._scale = folder / SCALE_FILE

    async def replicas(self) -> Mapping[Role, int]:
        mesh = _read_object(self._mesh)
        counts: dict[Role, int] = {}
        for role in Role:
            addresses = mesh.get(role.value, [])
            if not isinstance(addresses, list):
                raise ActuatorError(f"{self._mesh}: {role.value}: expected a list of addresses")
            counts[role] = len(addresses)
        return counts

    async def set_replicas(self, role: Role, num_replicas: int) -> bool:
        wished = _read_object(self._scale) if self._scale.exists() else {}
        wished[role.value] = num_replicas
        self._write(wished)
        return True

    def _write(self, wished: Mapping[str, object]) -> None:
        draft = self._scale.with_suffix(".tmp")
        try:
            draft.write_text(json.dumps(wished) + "\n")
            draft.replace(self._scale)
        except OSError as error:
            raise ActuatorError(f"{self._scale} cannot be written: {error}") from error


def _read_object(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ActuatorError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ActuatorError(f"{path}: expected an object, got {type(content).__name__}")
    return content
