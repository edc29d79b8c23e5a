"""What an engine asks of the thing that computes: one step at a time.

There is no prefill or decode flag. A decode step is a plan item with one token, a prefill chunk
one with many; `sample` says whether the last token's logits are wanted. A plan holds what is new:
what a runner was told of a sequence it keeps until the sequence is closed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from banyan_core.types import Adapter, KvLayout, OutputToken, SamplingParams


@dataclass(frozen=True, slots=True)
class Opening:
    """All that a runner must know of a sequence beyond its steps; it keeps it until `closed`.

    `output_token_ids` is the output so far, for penalties; its length is the index of the next
    token to sample. `block_table` names the blocks of the sequence in order.
    """

    prompt_token_ids: tuple[int, ...]
    output_token_ids: tuple[int, ...]
    block_table: tuple[int, ...]
    sampling: SamplingParams
    adapter: Adapter | None = None


@dataclass(frozen=True, slots=True)
class PlanItem:
    """One sequence's share of a step. What it holds does not grow with the context.

    Compute `token_ids` at positions `start`, `start + 1`, ...; their K and V go to the slots of
    the sequence's block table (position p lives in block `table[p // block_size]`, slot
    `p % block_size`), which `new_block_ids` make longer. Everything before `start` is already
    there. The last `num_draft_tokens` are guesses at what will be sampled: each is checked
    against the token sampled before it. With an `opening` the runner forgets what it knew of the
    sequence and starts from that.
    """

    sequence_id: str
    token_ids: tuple[int, ...]
    start: int
    sample: bool
    new_block_ids: tuple[int, ...] = ()
    num_draft_tokens: int = 0
    opening: Opening | None = None


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One batch. `number` counts steps of this engine from 1.

    The runner first forgets the `closed` sequences, then makes the `copies` (from, to) of
    blocks, then computes.
    """

    number: int
    items: tuple[PlanItem, ...]
    copies: tuple[tuple[int, int], ...] = ()
    closed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampled:
    """What followed one item, or why it could not be had (NaN logits, say).

    One token, and one more for each draft that was sampled just so. `finished` says that the
    sequence's grammar allows nothing more. `prompt_logprobs`, if asked for, come with the first
    token: one entry for each prompt token after the first.
    """

    sequence_id: str
    tokens: tuple[OutputToken, ...]
    error: str = ""
    finished: bool = False
    prompt_logprobs: tuple[OutputToken, ...] = ()


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
        """K then V of one block in one layer, `layout.page_bytes(layer, block_size)` long."""
        ...

    def import_page(self, block_id: int, layer: int, data: bytes) -> None:
        """Write a page. Raises ValueError when its length is not this layout's."""
        ...


class AdapterRunner(Protocol):
    """What a runner has besides, if it can compute with LoRA adapters.

    Both may be called while a step runs, on another thread. A sequence that was opened with an
    adapter keeps it, dropped or not.
    """

    def load_adapter(self, adapter: Adapter, folder: str) -> None:
        """Make it ready for openings that name its digest. Raises ValueError that says why not."""
        ...

    def drop_adapter(self, digest: bytes) -> None: ...
