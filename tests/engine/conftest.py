"""Tiny models on disk, and a driver that plays the scheduler: it writes plans directly."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from banyan_core.runner import Opening, PlanItem
from banyan_core.types import SamplingParams
from banyan_engine.kernels import native
from banyan_engine.kernels.build import cpu_level
from banyan_engine.lora import LoraWeights
from banyan_engine.random_model import TINY_CONFIG, write_random_model
from banyan_engine.spans import Span

CONFIGS: dict[str, dict[str, object]] = {
    "grouped heads": {},
    "one head each, tied": {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "one kv head, wide heads": {"num_key_value_heads": 1, "head_dim": 16, "num_hidden_layers": 3},
    "linear rope": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama3 rope": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 1000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
}


@dataclass
class Script:
    """One sequence whose tokens are known beforehand, cut into plan items at will."""

    sequence_id: str
    token_ids: tuple[int, ...]
    block_table: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=0.0))

    def item(self, start: int, end: int, *, sample: bool = True) -> PlanItem:
        """Positions `start` to `end`, all of them prompt."""
        opening = Opening(self.token_ids, (), self.block_table, self.sampling)
        return PlanItem(
            self.sequence_id, self.token_ids[start:end], start, sample=sample, opening=opening
        )

    def span(
        self, start: int, end: int, *, num_sampled: int = 1, adapter: LoraWeights | None = None
    ) -> Span:
        """The same positions as a forward pass takes them."""
        return Span(
            token_ids=torch.tensor(self.token_ids[start:end]),
            start=start,
            block_table=torch.tensor(self.block_table),
            num_sampled=num_sampled,
            adapter=adapter,
        )


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tests share cores: one thread each, whatever a runner under test sets."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A folder with random weights: `model_folder("grouped heads", seed=1)`; made once each."""
    made: dict[tuple[str, int], Path] = {}

    def folder(name: str = "grouped heads", seed: int = 0) -> Path:
        if (name, seed) not in made:
            path = tmp_path_factory.mktemp("model")
            made[name, seed] = write_random_model(path, TINY_CONFIG | CONFIGS[name], seed)
        return made[name, seed]

    return folder


@pytest.fixture(scope="session")
def script() -> Callable[..., Script]:
    """The sequence type, for test modules, which cannot import this file."""
    return Script


@pytest.fixture(scope="session")
def random_tokens() -> Callable[[int, int], tuple[int, ...]]:
    """`random_tokens(num, seed)`: token ids of the tiny vocabulary."""

    def tokens(num_tokens: int, seed: int) -> tuple[int, ...]:
        generator = torch.Generator().manual_seed(seed)
        ids: Sequence[int] = torch.randint(3, 97, (num_tokens,), generator=generator).tolist()
        return tuple(ids)

    return tokens


@pytest.fixture(scope="session")
def helper() -> ctypes.CDLL:
    """The compiled helper; skips where a machine can have none."""
    if cpu_level() is None:
        pytest.skip("the compiled helper has no code for this CPU")
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile the helper with")
    library = native.loader.wait(300)
    assert library is not None, native.loader.status
    return library
