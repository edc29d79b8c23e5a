"""A step in one call of the helper against the same operations one by one: equal bits."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from banyan_core import model_spec
from banyan_engine import flat_forward
from banyan_engine.linear import Int4
from banyan_engine.model import Model
from banyan_engine.paged_kv import PagedKv
from banyan_engine.random_model import TINY_CONFIG, write_random_model
from banyan_engine.spans import Span
from banyan_engine.spec import read_spec
from banyan_engine.weights import load_weights
from banyan_engine.whole_layers import whole_layers

LLAMA = TINY_CONFIG | {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32}
BIASED = LLAMA | {"attention_bias": True, "mlp_bias": True}
QWEN3 = LLAMA | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
GEMMA2 = LLAMA | {
    "model_type": "gemma2",
    "architectures": ["Gemma2ForCausalLM"],
    "num_hidden_layers": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 32,
    "sliding_window": 20,
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 30.0,
    "tie_word_embeddings": True,
}
MIXTURE = LLAMA | {
    "model_type": "qwen2_moe",
    "architectures": ["Qwen2MoeForCausalLM"],
    "num_hidden_layers": 3,
    "mlp_only_layers": [1],
    "decoder_sparse_step": 1,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 96,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "norm_topk_prob": False,
}
NUM_BLOCKS = 60
STARTS = (0, 15, 16, 37, 300)
"""Of these the first and the third begin a block."""


def made(folder: Path, config: dict[str, object], quantize: str | None) -> Model:
    write_random_model(folder, config, seed=3)
    spec = read_spec(folder)
    return Model(spec, load_weights(folder, spec, torch.bfloat16, quantize))


def filled_kv(model: Model, dtype: str) -> PagedKv:
    kv = PagedKv(model_spec.kv_layout(model.spec, dtype), NUM_BLOCKS, 16)
    torch.manual_seed(5)
    for layer in range(model.spec.num_layers):
        for block in range(NUM_BLOCKS):
            slots = kv.slots(0, 16, torch.tensor([block]))
            heads = (16, model.spec.num_kv_heads, model.spec.head_dim)
            kv.write(layer, slots, *(torch.randn(heads).to(torch.bfloat16) for _ in "kv"))
    return kv


def single_tokens(num_sequences: int) -> list[Span]:
    """Over scattered blocks, each sequence its own."""
    blocks = torch.arange(NUM_BLOCKS).flip(0).tolist()
    spans = []
    for number in range(num_sequences):
        start = STARTS[number % len(STARTS)] if number < len(STARTS) else 5
        table = torch.tensor([blocks.pop() for _ in range(start // 16 + 1)])
        spans.append(Span(torch.tensor([7 + number]), start, table, 1))
    return spans


@pytest.mark.parametrize("config", [LLAMA, BIASED, QWEN3, GEMMA2], ids=lambda c: c["model_type"])
@pytest.mark.parametrize(
    "kv_dtype, quantize", [("bfloat16", None), ("int8", "int8"), ("int8", "int4")]
)
@pytest.mark.parametrize("num_sequences", [1, 20])
def test_equal_bits(  # type: ignore[no-untyped-def]
    helper: ctypes.CDLL, tmp_path, monkeypatch, config, kv_dtype, quantize, num_sequences
) -> None:
    torch.set_num_threads(2 if num_sequences == 1 else 1)
    check_equal_bits(made(tmp_path, config, quantize), monkeypatch, kv_dtype, num_sequences)


@pytest.mark.parametrize("num_sequences", [1, 2, 20])
def test_equal_bits_of_mixtures(  # type: ignore[no-untyped-def]
    helper: ctypes.CDLL, tmp_path, monkeypatch, num_sequences
) -> None:
    torch.set_num_threads(1 if num_sequences == 1 else 2)
    check_equal_bits(made(tmp_path, MIXTURE, None), monkeypatch, "bfloat16", num_sequences)


def check_equal_bits(
    model: Model, monkeypatch: pytest.MonkeyPatch, kv_dtype: str, num_sequences: int
) -> None:
    spans = single_tokens(num_sequences)
    announced: list[int] = []
    pools = [filled_kv(model, kv_dtype) for _ in range(2)]
    assert whole_layers(model, pools[0], spans) is not None
    with torch.inference_mode():
        found = flat_forward.flat_forward(model, pools[0], spans, announced.append)
        monkeypatch.setattr(flat_forward, "whole_layers", lambda *_: None)
        wanted = flat_forward.flat_forward(model, pools[1], spans, lambda layer: None)
    assert torch.equal(found, wanted)
    assert announced == list(range(model.spec.num_layers))
    for layer in announced:
        for block in range(NUM_BLOCKS):
            assert pools[0].export_page(block, layer) == pools[1].export_page(block, layer)


def test_what_goes_the_other_way(helper: ctypes.CDLL, tmp_path: Path) -> None:
    model = made(tmp_path / "plain", LLAMA, None)
    kv = filled_kv(model, "bfloat16")
    table = torch.tensor([0, 1])
    assert whole_layers(model, kv, [Span(torch.tensor([1, 2]), 0, table, 1)]) is None
    assert whole_layers(model, kv, [Span(torch.tensor([1]), 0, table, 0)]) is None
    assert whole_layers(model, kv, [Span(torch.tensor([1]), 0, table, 1)] * 65) is None
    narrow = made(tmp_path / "narrow", LLAMA | {"head_dim": 16}, None)
    one = [Span(torch.tensor([1]), 0, table, 1)]
    assert whole_layers(narrow, filled_kv(narrow, "bfloat16"), one) is None
    assert whole_layers(model, filled_kv(model, "float32"), one) is None


def test_packed_experts_and_zero_points_go_the_other_way(
    helper: ctypes.CDLL, tmp_path: Path
) -> None:
    packed = made(tmp_path / "experts", MIXTURE, "int4")
    one = [Span(torch.tensor([1]), 0, torch.tensor([0, 1]), 1)]
    assert whole_layers(packed, filled_kv(packed, "bfloat16"), one) is None
    folder = tmp_path / "zeros"
    write_random_model(folder, LLAMA, seed=3)
    spec = read_spec(folder)
    weights = load_weights(folder, spec, torch.bfloat16, "int4")
    first, *others = weights.layers
    assert isinstance(first.qkv, Int4)
    shifted = replace(first.qkv, offsets=torch.ones(first.qkv.shape[0], 1))
    layers = (replace(first, qkv=shifted), *others)
    zeros = Model(spec, replace(weights, layers=layers))
    assert whole_layers(zeros, filled_kv(zeros, "bfloat16"), one) is None
