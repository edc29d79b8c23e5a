"""Which runner computes, and the model card that goes with it.

Torch is imported only when it was asked for, so that a worker without it still installs, imports
and serves the echo runner.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import ParamSpec

from banyan_core.echo import EchoLatency, EchoRunner
from banyan_core.model_spec import KvDtype, Quantize
from banyan_core.runner import AdapterRunner, Runner
from banyan_core.types import ModelCard
from banyan_runtime.settings import SettingsError
from banyan_text.card import echo_card, read_card
from banyan_text.grammar import Grammars
from banyan_text.hf_tokenizer import HfTokenizer
from banyan_text.model_folder import ModelFolderError

P = ParamSpec("P")

ECHO_BLOCKS = 16_384
"""The echo runner's pool: its blocks are so small that a share of memory would say nothing."""


class RunnerKind(StrEnum):
    TORCH = "torch"
    ECHO = "echo"


@dataclass(frozen=True, slots=True)
class Loaded:
    runner: Runner
    card: ModelCard
    adapters: AdapterRunner | None = None


def _on_a_thread_that_ends(load: Callable[P, Loaded]) -> Callable[P, Loaded]:
    """Each thread that computes has a pool of OpenMP threads for as long as it lives, and torch
    computes as it is imported; OMP_PROC_BIND binds whoever imports it to a core. With a pool left
    over beside that of the steps there would be more threads than cores, and GNU OpenMP then has
    none wait awake, whatever GOMP_SPINCOUNT says."""

    @wraps(load)
    def on_thread(*args: P.args, **kwargs: P.kwargs) -> Loaded:
        with ThreadPoolExecutor(1, "load") as loading:
            return loading.submit(load, *args, **kwargs).result()

    return on_thread


@_on_a_thread_that_ends
def load_runner(
    kind: RunnerKind,
    *,
    prefix: str,
    folder: Path | None,
    name: str | None,
    numerics: str,
    block_size: int,
    kv_bytes: int,
    num_blocks: int | None,
    num_threads: int | None,
    quantize: Quantize | None = None,
    kv: KvDtype | None = None,
    device: str = "cpu",
) -> Loaded:
    """Build the runner out of sizes that are 1 or more.

    Raises SettingsError, with keys that start with `prefix`.
    """
    if kind is RunnerKind.ECHO:
        return _echo(name, numerics, block_size, num_blocks)
    if folder is None:
        raise SettingsError(f"{prefix}MODEL is not set: expected the folder of a model.")
    try:
        from banyan_engine.device import open_device
        from banyan_engine.torch_runner import TorchRunner
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"{prefix}RUNNER=torch needs {error.name}: install the service with its torch extra, "
            "or set it to echo."
        ) from None
    try:
        open_device(device)
    except ValueError as error:
        raise SettingsError(f"{prefix}DEVICE={device}: {error}.") from None
    try:
        card = read_card(folder, block_size, numerics, name, quantize=quantize, kv=kv)
        grammars = Grammars(HfTokenizer(folder), card.end_token_ids)
    except ModelFolderError as error:
        raise SettingsError(f"{prefix}MODEL={folder}: {error}") from None
    block_bytes = card.kv_layout.token_bytes * block_size
    if num_blocks is None and kv_bytes < block_bytes:
        expected = f"expected {block_bytes} or more, which is one block of this model"
        raise SettingsError(f"{prefix}KV_BYTES={kv_bytes}: {expected}.")
    try:
        runner = TorchRunner(
            folder,
            num_blocks=num_blocks,
            kv_bytes=kv_bytes if num_blocks is None else None,
            block_size=block_size,
            numerics=numerics,
            num_threads=num_threads,
            quantize=quantize,
            kv_dtype=card.kv_layout.dtype,
            mask_source=grammars,
            device=device,
        )
    except (ModelFolderError, ValueError) as error:
        raise SettingsError(f"{prefix}MODEL={folder}: {error}") from None
    return Loaded(runner, card, runner)


def _echo(name: str | None, numerics: str, block_size: int, num_blocks: int | None) -> Loaded:
    num_blocks = ECHO_BLOCKS if num_blocks is None else num_blocks
    card = echo_card(block_size, numerics, name or "echo")
    return Loaded(EchoRunner(num_blocks, block_size, EchoLatency()), card)
