"""The runner that really computes: a model folder, a pool of KV blocks, one step at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from banyan_core import model_spec
from banyan_core.masks import MaskSource
from banyan_core.packing_config import check_packing
from banyan_core.runner import PlanItem, Sampled, StepPlan, StepResult
from banyan_core.types import Adapter, KvLayout
from banyan_engine.cpu import default_dtype
from banyan_engine.decode_graphs import DecodeGraphs
from banyan_engine.device import check_on_cuda, open_device
from banyan_engine.draw import Logits
from banyan_engine.flat_forward import flat_forward
from banyan_engine.lora import LoraWeights, load_lora
from banyan_engine.mask_filler import MaskFiller
from banyan_engine.model import Model
from banyan_engine.paged_kv import DTYPES, KV_DTYPES, PagedKv
from banyan_engine.sequence_state import SequenceState
from banyan_engine.spans import Span
from banyan_engine.spec import read_spec
from banyan_engine.step_sampler import num_logit_rows, sample_item
from banyan_engine.tiled_forward import tiled_forward
from banyan_engine.weights import FORMATS, load_weights

Forward = Callable[[Model, PagedKv, Sequence[Span], Callable[[int], None]], Tensor]

NUMERICS: dict[str, Forward] = {"fast": flat_forward, "deterministic": tiled_forward}


class TorchRunner:
    """`banyan_core.runner.Runner` and `AdapterRunner` over torch.

    `numerics` is "fast" or "deterministic". The pool is given as `num_blocks` or as `kv_bytes`
    (K and V of all layers). `dtype` is that of weights and activations; unset it is bfloat16 in
    fast mode on a CPU that multiplies it, else float32, whatever the checkpoint has. `kv_dtype`
    unset depends on `numerics` only, as the model card's; `quantize` "int8" or "int4" packs the
    matrices of layers. Deterministic mode has neither, and one thread; elsewhere `num_threads`
    unset leaves torch's own choice. `end_token_ids` are masked by `min_tokens`; unset they are
    the folder's own. `mask_source` opens grammars; without it a sequence that has one fails.
    `device` is "cpu", "cuda" or "cuda:N"; a CUDA device computes in fast mode, nothing packed.

    Raises ModelError for the folder and ValueError for the other arguments.
    """

    def __init__(
        self,
        folder: Path,
        *,
        num_blocks: int | None = None,
        kv_bytes: int | None = None,
        block_size: int = 16,
        numerics: str = "fast",
        dtype: str | None = None,
        kv_dtype: str | None = None,
        quantize: str | None = None,
        num_threads: int | None = None,
        end_token_ids: tuple[int, ...] | None = None,
        mask_source: MaskSource | None = None,
        device: str = "cpu",
    ) -> None:
        self._device = open_device(device)
        on_cuda = self._device.type == "cuda"
        dtype = dtype or ("bfloat16" if on_cuda else default_dtype(numerics))
        kv_dtype = kv_dtype or model_spec.kv_dtype(numerics)
        _check_choices(numerics, dtype, num_threads)
        _check_formats(numerics, kv_dtype, quantize)
        spec = read_spec(folder)
        check_packing(spec.packing, numerics, quantize)
        if on_cuda:
            packed = quantize if spec.packing is None else spec.packing.layout
            check_on_cuda(numerics, kv_dtype, packed, block_size, spec.head_dim)
        layout = model_spec.kv_layout(spec, kv_dtype)
        num_blocks = _pool_blocks(num_blocks, kv_bytes, layout, block_size)
        self._kv = PagedKv(layout, num_blocks, block_size, self._device)
        weights = load_weights(folder, spec, DTYPES[dtype], quantize, self._device)
        self._model = Model(spec, weights)
        self._forward = DecodeGraphs(self._model, self._kv) if on_cuda else NUMERICS[numerics]
        self._num_threads = 1 if numerics == "deterministic" else num_threads
        self._end_token_ids = spec.end_token_ids if end_token_ids is None else end_token_ids
        self._masks = MaskFiller(mask_source, spec.vocab_size)
        self._states: dict[str, SequenceState] = {}
        self._adapters: dict[bytes, LoraWeights] = {}

    @property
    def layout(self) -> KvLayout:
        """Shape of one token's KV."""
        return self._kv.layout

    @property
    def num_blocks(self) -> int:
        """Blocks of the pool; block ids are 0 to this, exclusive."""
        return self._kv.num_blocks

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return self._kv.block_size

    def run(self, plan: StepPlan, on_layer: Callable[[int], None]) -> StepResult:
        """Compute a step. Raises ValueError for a plan that does not fit the pool or the model."""
        if self._num_threads is not None and torch.get_num_threads() != self._num_threads:
            torch.set_num_threads(self._num_threads)
        for sequence_id in plan.closed:
            self._states.pop(sequence_id, None)
        for source, target in plan.copies:
            self._kv.copy_block(source, target)
        states = [self._state_of(item) for item in plan.items]
        if not plan.items:
            return StepResult(plan.number, ())
        self._masks.start([s for s, item in zip(states, plan.items, strict=True) if item.sample])
        with torch.inference_mode():
            spans = _spans(plan.items, states)
            logits = self._forward(self._model, self._kv, spans, on_layer).cpu().numpy()
        return StepResult(plan.number, self._sample(logits, plan.items, states))

    def export_page(self, block_id: int, layer: int) -> bytes:
        """K then V of one block in one layer."""
        return self._kv.export_page(block_id, layer)

    def import_page(self, block_id: int, layer: int, data: bytes) -> None:
        """Write a page. Raises ValueError when its length is not this layout's."""
        self._kv.import_page(block_id, layer, data)

    def load_adapter(self, adapter: Adapter, folder: str) -> None:
        """Read it from its folder. Raises ModelError."""
        if adapter.digest not in self._adapters:
            spec, dtype = self._model.spec, self._model.dtype
            weights = load_lora(Path(folder), spec, dtype, self._device)
            self._adapters[adapter.digest] = weights

    def drop_adapter(self, digest: bytes) -> None:
        self._adapters.pop(digest, None)

    def _state_of(self, item: PlanItem) -> SequenceState:
        """What is known of the item's sequence, with what the item adds to it."""
        self._check_tokens(item)
        if item.opening is not None:
            weights = self._adapter_of(item)
            self._states[item.sequence_id] = SequenceState(item.opening, self.num_blocks, weights)
        state = self._states.get(item.sequence_id)
        if state is None:
            raise ValueError(f"{item.sequence_id}: expected an opening, it is not known here")
        state.extend(item.new_block_ids)
        return state

    def _adapter_of(self, item: PlanItem) -> LoraWeights | None:
        adapter = None if item.opening is None else item.opening.adapter
        if adapter is None:
            return None
        if adapter.digest not in self._adapters:
            raise ValueError(f"{item.sequence_id}: adapter {adapter.name!r} is not loaded")
        return self._adapters[adapter.digest]

    def _sample(
        self, logits: Logits, items: Sequence[PlanItem], states: Sequence[SequenceState]
    ) -> tuple[Sampled, ...]:
        masks = iter(self._masks.result(sum(item.sample for item in items)))
        found: list[Sampled] = []
        end = 0
        for item, state in zip(items, states, strict=True):
            start, end = end, end + num_logit_rows(item, state)
            allowed = next(masks) if item.sample else None
            rows = logits[start:end]
            sampled = sample_item(rows, item, state, self._end_token_ids, allowed)
            if sampled is not None:
                found.append(sampled)
        return tuple(found)

    def _check_tokens(self, item: PlanItem) -> None:
        spec, end = self._model.spec, item.start + len(item.token_ids)
        if item.start < 0 or end > spec.context_tokens:
            raise ValueError(
                f"{item.sequence_id}: positions {item.start} to {end}, "
                f"expected at most {spec.context_tokens}"
            )
        if not item.token_ids:
            raise ValueError(f"{item.sequence_id}: token_ids: expected at least one")
        if min(item.token_ids) < 0 or max(item.token_ids) >= spec.vocab_size:
            raise ValueError(f"{item.sequence_id}: token_ids: expected 0 to {spec.vocab_size - 1}")


def _spans(items: Sequence[PlanItem], states: Sequence[SequenceState]) -> list[Span]:
    token_ids = torch.tensor([token_id for item in items for token_id in item.token_ids])
    parts = torch.split(token_ids, [len(item.token_ids) for item in items])
    return [
        Span(part, item.start, state.block_table, num_logit_rows(item, state), state.adapter)
        for part, item, state in zip(parts, items, states, strict=True)
    ]


def _check_choices(numerics: str, dtype: str, num_threads: int | None) -> None:
    if numerics not in NUMERICS:
        raise ValueError(f"numerics: {numerics!r}, expected one of {', '.join(NUMERICS)}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype: {dtype!r}, expected one of {', '.join(DTYPES)}")
    if numerics == "deterministic" and dtype != "float32":
        raise ValueError(f"dtype: {dtype!r}, expected 'float32' in deterministic mode")
    if num_threads is not None and num_threads < 1:
        raise ValueError(f"num_threads: {num_threads}, expected at least 1")
    if numerics == "deterministic" and num_threads not in (None, 1):
        raise ValueError(f"num_threads: {num_threads}, expected 1 in deterministic mode")


def _check_formats(numerics: str, kv_dtype: str, quantize: str | None) -> None:
    if kv_dtype not in KV_DTYPES:
        raise ValueError(f"kv_dtype: {kv_dtype!r}, expected one of {', '.join(KV_DTYPES)}")
    if quantize not in FORMATS:
        names = ", ".join(name for name in FORMATS if name)
        raise ValueError(f"quantize: {quantize!r}, expected one of {names}")
    if numerics == "deterministic" and kv_dtype != "float32":
        raise ValueError(f"kv_dtype: {kv_dtype!r}, expected 'float32' in deterministic mode")
    if numerics == "deterministic" and quantize is not None:
        raise ValueError(f"quantize: {quantize!r}, expected none in deterministic mode")


def _pool_blocks(
    num_blocks: int | None, kv_bytes: int | None, layout: KvLayout, block_size: int
) -> int:
    if block_size < 1:
        raise ValueError(f"block_size: {block_size}, expected at least 1")
    if (num_blocks is None) == (kv_bytes is None):
        raise ValueError("num_blocks, kv_bytes: expected exactly one of them")
    if num_blocks is None:
        num_blocks = (kv_bytes or 0) // (layout.token_bytes * block_size)
    if num_blocks < 1:
        raise ValueError(f"num_blocks: {num_blocks}, expected room for at least one block")
    return num_blocks
