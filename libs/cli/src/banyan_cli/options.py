"""What a mesh on one machine is made of, checked before anything starts."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from banyan_cli.errors import CommandError
from banyan_cli.plan import MAX_REPLICAS
from banyan_core.model_spec import KvDtype, Quantize

HOST = "127.0.0.1"
MAX_ROUTERS = 4
MAX_PORT = 65535
# Below the range from which systems draw the ports of outgoing connections: a process that comes
# back must find its port free.
_FIRST_PORT, _LAST_PORT = 20_000, 32_000
_MODEL_FILES = ("config.json", "tokenizer.json", "*.safetensors")


class RunnerKind(StrEnum):
    TORCH = "torch"
    ECHO = "echo"


class Numerics(StrEnum):
    FAST = "fast"
    DETERMINISTIC = "deterministic"


@dataclass(frozen=True, slots=True)
class MeshOptions:
    """What `banyan up` was asked for. Port 0 is any free one; the echo runner needs no model, and
    has neither formats nor adapters.

    `bus` is that of brokers outside the mesh, whose topics are made as `topics` says; without it
    the mesh's own Valkey is the bus.
    """

    policies: Path
    model: Path | None = None
    state_dir: Path = Path(".banyan")
    num_prefill: int = 1
    num_decode: int = 1
    num_routers: int = 1
    runner: RunnerKind = RunnerKind.TORCH
    numerics: Numerics = Numerics.FAST
    quantize: Quantize | None = None
    kv_dtype: KvDtype | None = None
    adapters: Path | None = None
    port: int = 8000
    autoscale: bool = False
    bus: str | None = None
    topics: Path | None = None
    num_cores: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))

    @property
    def num_workers(self) -> int:
        return self.num_prefill + self.num_decode

    @property
    def counts(self) -> dict[str, int]:
        """How many processes of each service, in the order in which they start."""
        return {
            "valkey": 1,
            "router": self.num_routers,
            "kvstore": 1,
            "prefill": self.num_prefill,
            "decode": self.num_decode,
            "gateway": 1,
            "autoscaler": 1,
            "metrics": 1,
        }


def check_options(options: MeshOptions) -> None:
    """Raises CommandError for what cannot work."""
    _check_count("--prefill", options.num_prefill, 0, MAX_REPLICAS)
    _check_count("--decode", options.num_decode, 1, MAX_REPLICAS)
    _check_count("--routers", options.num_routers, 1, MAX_ROUTERS)
    _check_count("--port", options.port, 0, MAX_PORT)
    if not options.policies.is_file():
        raise CommandError(f"The policy file {options.policies} does not exist.")
    if options.bus is not None:
        _check_bus(options.bus)
    _check_formats(options)
    if options.runner is RunnerKind.TORCH:
        _check_model(options.model)
    if options.port and not is_free(options.port):
        raise CommandError(
            f"Port {options.port} is taken: stop what uses it, or choose another with --port."
        )


def _check_formats(options: MeshOptions) -> None:
    """What only the torch runner has, and some of it in fast mode only."""
    formats = {"--quantize": options.quantize, "--kv-dtype": options.kv_dtype}
    for option, value in {**formats, "--adapters": options.adapters}.items():
        if value is not None and options.runner is RunnerKind.ECHO:
            raise CommandError(f"{option} is {value}: expected nothing, as --runner is echo.")
    for option, value in formats.items():
        exact = value in (None, KvDtype.FLOAT32)
        if options.numerics is Numerics.DETERMINISTIC and not exact:
            expected = "expected nothing, as --numerics is deterministic"
            raise CommandError(f"{option} is {value}: {expected}.")
    if options.adapters is not None and not options.adapters.is_dir():
        raise CommandError(f"The folder of adapters {options.adapters} does not exist.")


def _check_model(folder: Path | None) -> None:
    if folder is None:
        raise CommandError("The torch runner needs a model: name its folder with --model.")
    if not folder.is_dir():
        raise CommandError(f"The model folder {folder} does not exist.")
    for pattern in _MODEL_FILES:
        if not list(folder.glob(pattern)):
            raise CommandError(
                f"The model folder {folder} has no {pattern}: expected one in Hugging Face layout."
            )


def _check_bus(url: str) -> None:
    from banyan_runtime.buses import BUS_URL_EXPECTED, is_bus_url  # it brings gRPC with it

    try:
        is_good = is_bus_url(url)
    except ValueError:
        is_good = False
    if not is_good:
        raise CommandError(f"--bus is {url}: expected {BUS_URL_EXPECTED}.")


def _check_count(option: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise CommandError(f"{option} is {value}: expected {least} to {most}.")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


class Ports:
    """Hands out free ports; never one twice."""

    def __init__(self) -> None:
        # Meshes that start together should not probe the same ports.
        span = _LAST_PORT - _FIRST_PORT
        self._next = _FIRST_PORT + os.getpid() * 101 % span
        self._last = self._next + span

    def take(self) -> int:
        """A port that is free now. Raises CommandError when none is."""
        while self._next < self._last:
            port = _FIRST_PORT + (self._next - _FIRST_PORT) % (_LAST_PORT - _FIRST_PORT)
            self._next += 1
            if is_free(port):
                return port
        raise CommandError(f"No port from {_FIRST_PORT} to {_LAST_PORT} is free.")
