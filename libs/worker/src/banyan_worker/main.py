"""What the `main` of both worker services does: settings, runner, real adapters, run."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TypeVar

from banyan_core.model_spec import KvDtype, Quantize
from banyan_core.policies import BATCHING, ENGINE_ADMISSION, ONBOARD
from banyan_core.policies.batching import Chunked
from banyan_core.policies.engine_admission import Watermark
from banyan_core.policies.onboard import Cheapest
from banyan_core.scheduler import EngineLimits
from banyan_core.types import NS_PER_S, Role, WorkerRef
from banyan_runtime.buses import BusSettings, open_bus
from banyan_runtime.core_turns import CoreTurns
from banyan_runtime.directories import DirectorySetting
from banyan_runtime.freed_memory import keep_freed_memory
from banyan_runtime.offload import ThreadOffload
from banyan_runtime.policy_file import PolicyFile, read_policy_file
from banyan_runtime.service_main import Kit, run_main
from banyan_runtime.settings import Address, NotNegative, Positive, Seconds, SettingsError, shared
from banyan_text.adapter_folder import AdapterFolder
from banyan_worker.adapter_pool import AdapterSource
from banyan_worker.options import WorkerOptions
from banyan_worker.runners import Loaded, RunnerKind, load_runner
from banyan_worker.service import WorkerService
from banyan_worker.step_loop import ThreadExecutor

P = TypeVar("P")

_ANY_HOST = ("0.0.0.0", "[::]")


class Numerics(StrEnum):
    FAST = "fast"
    DETERMINISTIC = "deterministic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(BusSettings):
    """`advertise` is the address that others call; unset it is `address`, with this machine's
    name where that is every interface. `quantize` packs weights, `kv_dtype` K and V; both make
    the card, with `numerics`, and are alike in a mesh. The KV pool is `num_blocks` if set, else
    what fits into `kv_bytes`. `device` is "cpu", "cuda" or "cuda:N". Workers with the same folder
    `core_turns` take turns by step, for they have the same cores. `adapters` is a folder of
    LoRA adapters, of which at most `max_adapters` are in memory. `max_draft_tokens` are guessed
    at, out of the prompt, where that pays; an echo has no use for it. `grace_s` is how long
    running sequences may go on after SIGTERM.
    """

    metrics_address: Address
    directory: DirectorySetting = shared("BANYAN_DIRECTORY")
    advertise: Address | None = None
    policies: Path | None = shared("BANYAN_POLICIES", default=None)
    runner: RunnerKind = RunnerKind.TORCH
    model: Path | None = None
    model_name: str | None = None
    numerics: Numerics = Numerics.FAST
    quantize: Quantize | None = None
    kv_dtype: KvDtype | None = None
    block_size: Positive = 16
    kv_bytes: Positive = 256 << 20
    num_blocks: Positive | None = None
    num_threads: Positive | None = None
    device: str = "cpu"
    core_turns: Path | None = None
    adapters: Path | None = shared("BANYAN_ADAPTERS", default=None)
    max_adapters: Positive = 16
    max_step_tokens: Positive = 512
    max_running: Positive = 64
    max_waiting: Positive = 8
    max_draft_tokens: NotNegative = 4
    offload: bool = True
    stream_grace_s: Seconds = 5.0
    grace_s: Seconds = 10.0


@dataclass(frozen=True, slots=True)
class Wiring:
    """What the settings mean, checked and loaded before anything starts."""

    loaded: Loaded
    options: WorkerOptions
    advertise: str
    adapters: AdapterFolder | None = None


def wire(role: Role, settings: Settings) -> Wiring:
    """Raises SettingsError."""
    prefix = _prefix(role)
    _check_together(settings, prefix)
    file = read_policy_file(settings.policies) if settings.policies else None
    options = WorkerOptions(
        bind_address=settings.address,
        limits=_limits(settings, file),
        onboard=_policy(file, "onboard", ONBOARD, Cheapest()),
        grace_ns=round(settings.stream_grace_s * NS_PER_S),
        offload=settings.offload,
    )
    loaded = load_runner(
        settings.runner,
        prefix=prefix,
        folder=settings.model,
        name=settings.model_name,
        numerics=settings.numerics.value,
        block_size=settings.block_size,
        kv_bytes=settings.kv_bytes,
        num_blocks=settings.num_blocks,
        num_threads=settings.num_threads,
        quantize=settings.quantize,
        kv=settings.kv_dtype,
        device=settings.device,
    )
    advertise = settings.advertise or _callable(settings.address)
    return Wiring(loaded, options, advertise, _adapter_folder(settings, loaded))


def _adapter_folder(settings: Settings, loaded: Loaded) -> AdapterFolder | None:
    if settings.adapters is None:
        return None
    given = f"BANYAN_ADAPTERS={settings.adapters}"
    if not settings.adapters.is_dir():
        raise SettingsError(f"{given}: expected a folder of LoRA adapters.")
    if loaded.adapters is None:
        raise SettingsError(f"{given}: expected nothing, for the echo runner has no adapters.")
    return AdapterFolder(settings.adapters)


def _prefix(role: Role) -> str:
    return f"BANYAN_{role.value.upper()}_"


def _check_together(settings: Settings, prefix: str) -> None:
    """What is right or wrong only beside another setting."""
    most, threads = settings.max_step_tokens, settings.num_threads
    if settings.max_running > most:
        expected = f"expected 1 to {most}, which is {prefix}MAX_STEP_TOKENS"
        raise SettingsError(f"{prefix}MAX_RUNNING={settings.max_running}: {expected}.")
    if settings.numerics is Numerics.DETERMINISTIC and threads not in (None, 1):
        expected = f"expected 1, because {prefix}NUMERICS is deterministic"
        raise SettingsError(f"{prefix}NUM_THREADS={threads}: {expected}.")
    for key, value in (("QUANTIZE", settings.quantize), ("KV_DTYPE", settings.kv_dtype)):
        if settings.numerics is Numerics.DETERMINISTIC and value not in (None, KvDtype.FLOAT32):
            expected = f"expected it unset, because {prefix}NUMERICS is deterministic"
            raise SettingsError(f"{prefix}{key}={value}: {expected}.")
    turns = settings.core_turns
    if turns is not None and not turns.is_dir():
        expected = "expected a folder that all workers of this machine have"
        raise SettingsError(f"{prefix}CORE_TURNS={turns}: {expected}.")


def _limits(settings: Settings, file: PolicyFile | None) -> EngineLimits:
    return EngineLimits(
        max_step_tokens=settings.max_step_tokens,
        max_running=settings.max_running,
        max_waiting=settings.max_waiting,
        max_draft_tokens=0 if settings.runner is RunnerKind.ECHO else settings.max_draft_tokens,
        batching=_policy(file, "batching", BATCHING, Chunked()),
        admission=_policy(file, "engine_admission", ENGINE_ADMISSION, Watermark()),
    )


def _policy(file: PolicyFile | None, kind: str, table: Mapping[str, type[P]], default: P) -> P:
    """The policy of the file's section; the default when there is no file or section."""
    return file.policy(kind, table) if file and file.section(kind) else default


def _callable(address: str) -> str:
    host, _, port = address.rpartition(":")
    return f"{socket.gethostname()}:{port}" if host in _ANY_HOST else address


async def start(role: Role, settings: Settings, wiring: Wiring, kit: Kit) -> WorkerService:
    """Raises OSError when an address cannot be had."""
    await kit.serve_metrics(settings.metrics_address)
    service = WorkerService(
        WorkerRef(settings.id, kit.clock.unix_ns(), wiring.advertise, role),
        wiring.loaded.card,
        wiring.loaded.runner,
        kit.network,
        kit.keep(open_bus(settings, kit.logger)),
        settings.directory,
        kit.clock,
        ThreadExecutor(_core_turns(settings, kit)),
        wiring.options,
        logger=kit.logger,
        registry=kit.registry,
        recorder=kit.recorder,
        tracing=kit.tracing,
        on_drained=lambda: signal.raise_signal(signal.SIGTERM),
        adapters=_adapter_source(settings, wiring, kit),
    )
    await service.start()
    return service


def _core_turns(settings: Settings, kit: Kit) -> CoreTurns | None:
    return CoreTurns(settings.core_turns, kit.logger) if settings.core_turns else None


def _adapter_source(settings: Settings, wiring: Wiring, kit: Kit) -> AdapterSource | None:
    if wiring.adapters is None or wiring.loaded.adapters is None:
        return None
    offload = kit.keep(ThreadOffload(1))
    return AdapterSource(wiring.adapters, wiring.loaded.adapters, offload, settings.max_adapters)


def run(role: Role, env: Mapping[str, str]) -> int:
    """The exit code."""
    return run_main(role.value, Settings, env, partial(wire, role), partial(start, role))


def run_worker(role: Role) -> None:
    """The whole of a worker service's `main`. Does not return."""
    keep_freed_memory()
    sys.exit(run(role, os.environ))
