"""What an engine asks of the thing that computes: one step at a time.

There is no prefill or decode flag. A decode step is a plan item with one token, a prefill chunk
one with many; `sample` says whether the last token's logits are wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from banyan_core.types import KvLayout, OutputToken, SamplingParams


@dataclass(frozen=True, slots=True)
class PlanItem:
    """One sequence's share of a step.

    Compute `token_ids` at positions `start`, `start + 1`, ...; their K and V go to the slots of
    `block_table` (position p lives in block `block_table[p // block_size]`, slot
    `p % block_size`). Everything before `start` is already there. `output_token_ids` is the
    whole output so far, for penalties; its length is the index of the token to sample.
    """

    sequence_id: str
    token_ids: tuple[int, ...]
    start: int
    block_table: tuple[int, ...]
    sample: bool
    sampling: SamplingParams
    num_prompt_tokens: int
    prompt_token_ids: tuple[int, ...]
    output_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One batch. `number` counts steps of this engine from 1."""

    number: int
    items: tuple[PlanItem, ...]


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token that followed one item, or why it could not be had (NaN logits, say)."""

    sequence_id: str
    token: OutputToken | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step gave. `modelled_ns` is the time a modelled runner says that it took, else 0."""

    number: int
    sampled: tuple[Sampled, ...]
    modelled_ns: int = 0


class Runner(Protocol):
    """Computes steps over a fixed pool of KV blocks.

    `run` may be called on another thread, one step at a time; `on_layer(l)` is called there each
    time layer `l` of this step has written all its K and V. `export_page` and `import_page` may
    be called meanwhile for blocks that the running step does not write.
    """

    @property
    def layout(self) -> KvLayout: ...

    @property
    def num_blocks(self) -> int: ...

    @property
    def block_size(self) -> int: ...

    def run(self, plan: StepPlan, on_layer: Callable[[int], None]) -> StepResult: ...

    def export_page(self, block_id: int, layer: int) -> bytes:
        """K then V of one block in one layer, `layout.token_bytes * block_size / num_layers`."""
        ...

    def import_page(self, block_id: int, layer: int, data: bytes) -> None:
        """Write a page. Raises ValueError when its length is not this layout's."""
        ...
