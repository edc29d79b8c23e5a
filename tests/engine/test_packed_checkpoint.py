"""Checkpoints that are packed on disk stand for the numbers that their layouts say."""

from __future__ import annotations

import ctypes
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.engine.packed_folders import SINGLE_NAME, Form, write_packed, write_plain
from torch import Tensor

from banyan_engine.linear import Dense, Int4, Int8, Weight, linear, linear_torch
from banyan_engine.model import Model
from banyan_engine.reference import reference_logits
from banyan_engine.spec import ModelError, read_spec
from banyan_engine.torch_runner import TorchRunner
from banyan_engine.weights import LayerWeights, load_weights

COMPRESSED, GPTQ, AWQ = (Form(layout) for layout in ("compressed-tensors", "gptq", "awq"))
EXACT = [
    *(replace(COMPRESSED, group=group) for group in (32, 64, 128, None)),
    replace(COMPRESSED, zeros=True),
    replace(COMPRESSED, zeros=True, group=None),
    replace(COMPRESSED, bits=8, group=None),
    *(replace(GPTQ, group=group) for group in (32, 128, None)),
    replace(GPTQ, zeros=True),
    replace(GPTQ, zeros=True, version="gptq_v2", group=64),
    replace(AWQ, zeros=True),
    replace(AWQ, zeros=True, group=32),
    AWQ,
]


def name_of(form: Form) -> str:
    marks = (form.version * (form.layout == "gptq"), "zeros" * form.zeros, str(form.scale_dtype))
    return " ".join((form.layout, f"{form.bits}/{form.group}", *marks))


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Model:
    spec = read_spec(folder)
    return Model(spec, load_weights(folder, spec, dtype))


def numbers(weight: Weight) -> Tensor:
    return weight.unpack(slice(None), torch.float32)


def matrices(layer: LayerWeights) -> dict[str, Weight]:
    assert layer.mlp is not None
    return {
        "self_attn.q_proj self_attn.k_proj self_attn.v_proj": layer.qkv,
        "self_attn.o_proj": layer.output,
        "mlp.gate_proj mlp.up_proj": layer.mlp.gate_up,
        "mlp.down_proj": layer.mlp.down,
    }


@pytest.mark.parametrize("form", EXACT, ids=name_of)
def test_numbers_are_exactly_what_the_file_stands_for(form: Form, tmp_path: Path) -> None:
    plain = write_packed(tmp_path, form)
    spec = read_spec(tmp_path)
    weights = load_weights(tmp_path, spec, torch.bfloat16)
    for index, layer in enumerate(weights.layers):
        for names, weight in matrices(layer).items():
            place = f"model.layers.{index}."
            expected = torch.cat([plain[f"{place}{name}.weight"] for name in names.split()])
            assert isinstance(weight, Int8 if form.bits == 8 else Int4), "packed it stays"
            assert torch.equal(numbers(weight), expected), names
            if isinstance(weight, Int4):
                assert (weight.offsets is not None) == form.zeros
    assert torch.equal(weights.embedding.float(), plain["model.embed_tokens.weight"].bfloat16())
    assert isinstance(weights.head, Dense), "the head is as the file has it"


@pytest.mark.parametrize("form", [GPTQ, replace(AWQ, zeros=True)], ids=name_of)
def test_scales_of_more_bits_are_rounded_to_bfloat16(form: Form, tmp_path: Path) -> None:
    """As GPTQ's and AWQ's are, in float16: each group is off by at most 2^-8 of itself."""
    plain = write_packed(tmp_path, replace(form, scale_dtype=torch.float16))
    layer = load_weights(tmp_path, read_spec(tmp_path), torch.bfloat16).layers[1]
    found, expected = numbers(layer.output), plain["model.layers.1.self_attn.o_proj.weight"]
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=2**-8, atol=1e-9)


def test_int8_with_several_scales_becomes_numbers(tmp_path: Path) -> None:
    plain = write_packed(tmp_path, replace(COMPRESSED, bits=8, group=64))
    output = load_weights(tmp_path, read_spec(tmp_path), torch.bfloat16).layers[0].output
    assert isinstance(output, Dense)
    expected = plain["model.layers.0.self_attn.o_proj.weight"].bfloat16()
    assert torch.equal(output.matrix, expected)


FAMILIES: dict[str, dict[str, object]] = {
    "llama, biased": {"attention_bias": True, "mlp_bias": True},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True},
    "phi3": {"architectures": ["Phi3ForCausalLM"], "pad_token_id": 0},
    "mixtral": {
        "architectures": ["MixtralForCausalLM"],
        "num_local_experts": 3,
        "num_experts_per_tok": 2,
    },
    "qwen2_moe": {
        "architectures": ["Qwen2MoeForCausalLM"],
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
        "shared_expert_intermediate_size": 256,
    },
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "form",
    [
        replace(COMPRESSED, group=32),
        replace(COMPRESSED, bits=8, group=None),
        GPTQ,
        replace(AWQ, zeros=True),
    ],
    ids=name_of,
)
def test_a_packed_model_says_what_its_numbers_say(
    family: str, form: Form, tmp_path: Path, random_tokens: Any
) -> None:
    plain = write_packed(tmp_path / "packed", form, FAMILIES[family])
    folder = write_plain(tmp_path / "plain", tmp_path / "packed", plain)
    tokens = random_tokens(20, 3)
    found = reference_logits(load(tmp_path / "packed"), tokens)
    expected = reference_logits(load(folder), tokens)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("num_rows", [1, 3, 32, 40])
def test_products_with_zero_points(
    helper: ctypes.CDLL, tmp_path: Path, dtype: torch.dtype, num_rows: int
) -> None:
    """Of inputs that do not centre on zero, so that what zero points add is most of a sum."""
    write_packed(tmp_path, replace(AWQ, zeros=True))
    down = load_weights(tmp_path, read_spec(tmp_path), dtype).layers[0].mlp
    assert down is not None
    weight, x = down.down, (torch.randn(num_rows, 256) + 3).to(dtype)
    bias = torch.randn(128).to(dtype)
    expected = x.float() @ numbers(weight).t() + bias.float()
    tolerance = 3e-2 if dtype == torch.bfloat16 else 1e-4
    for found in (linear(x, weight, bias), linear_torch(x, weight, bias)):
        assert found.dtype == dtype
        largest = float(expected.abs().max())
        torch.testing.assert_close(found.float(), expected, rtol=0, atol=tolerance * largest)


def test_a_packed_head_is_read_too(tmp_path: Path) -> None:
    config: dict[str, object] = {"vocab_size": 96}
    plain = write_packed(tmp_path, GPTQ, config, packs=lambda name: name.endswith("head.weight"))
    head = load_weights(tmp_path, read_spec(tmp_path), torch.bfloat16).head
    assert isinstance(head, Int4)
    assert torch.equal(numbers(head), plain["lm_head.weight"])


def change(folder: Path, changes: dict[str, Tensor]) -> None:
    save_file(load_file(folder / SINGLE_NAME) | changes, folder / SINGLE_NAME)


def test_biases_of_zeros_that_gptq_adds_are_no_surplus(tmp_path: Path) -> None:
    write_packed(tmp_path, GPTQ)
    name = "model.layers.0.self_attn.o_proj.bias"
    change(tmp_path, {name: torch.zeros(128)})
    load(tmp_path)
    change(tmp_path, {name: torch.ones(128)})
    with pytest.raises(ModelError, match=r"o_proj\.bias: expected zeros"):
        load(tmp_path)


O_PROJ = "model.layers.0.self_attn.o_proj"


@pytest.mark.parametrize(
    ("form", "name", "tensor", "message"),
    [
        (GPTQ, "g_idx", torch.arange(128).flip(0).int(), r"g_idx: expected groups of 128"),
        (GPTQ, "qweight", torch.zeros(8, 128, dtype=torch.int32), r"shape \[8, 128\], expected"),
        (
            GPTQ,
            "qzeros",
            torch.zeros(1, 16),
            r"qzeros: dtype torch\.float32, expected torch\.int32",
        ),
        (
            GPTQ,
            "scales",
            torch.zeros(1, 128).int(),
            r"scales: dtype torch\.int32, expected a float",
        ),
        (COMPRESSED, "weight_shape", torch.tensor([1, 2]), r"weight_shape: \[1, 2\], expected"),
        (AWQ, "g_idx", torch.zeros(128).int(), r"surplus .*o_proj\.g_idx"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    form: Form, name: str, tensor: Tensor, message: str, tmp_path: Path
) -> None:
    write_packed(tmp_path, form)
    change(tmp_path, {f"{O_PROJ}.{name}": tensor})
    with pytest.raises(ModelError, match=message):
        load(tmp_path)


def test_a_product_is_packed_as_one_or_not_at_all(tmp_path: Path) -> None:
    write_packed(tmp_path, GPTQ, packs=lambda name: name.endswith("q_proj.weight"))
    with pytest.raises(ModelError, match=r"k_proj: is not packed, expected packed as .*q_proj"):
        load(tmp_path)


def edited(form: Form, edit: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(json.dumps(form.config))
    if form.layout != "compressed-tensors":
        return config | edit
    scheme = config["config_groups"]["group_0"]
    scheme["weights"] |= edit.pop("weights", {})
    scheme |= edit.pop("scheme", {})
    return config | edit


@pytest.mark.parametrize(
    ("form", "edit", "message"),
    [
        (GPTQ, {"quant_method": "bitsandbytes"}, "quant_method: 'bitsandbytes', expected one of"),
        (GPTQ, {"bits": 3}, "bits: 3, expected 4"),
        (GPTQ, {"bits": True}, "bits: True, expected 4"),
        (GPTQ, {"group_size": 16}, "group_size: 16, expected -1 or a multiple of 32"),
        (GPTQ, {"desc_act": True}, "desc_act: True, expected false"),
        (GPTQ, {"checkpoint_format": "marlin"}, "checkpoint_format: 'marlin', expected gptq or"),
        (GPTQ, {"dynamic": {"-:lm_head": {}}}, "dynamic: .*, expected null"),
        (AWQ, {"bits": 8}, "bits: 8, expected 4"),
        (AWQ, {"version": "gemv"}, "version: 'gemv', expected gemm"),
        (COMPRESSED, {"format": "float-quantized"}, "format: 'float-quantized', expected pack-qua"),
        (COMPRESSED, {"config_groups": {}}, "config_groups: .*, expected exactly one group"),
        (COMPRESSED, {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme: .*, expected null"),
        (
            COMPRESSED,
            {"scheme": {"input_activations": {"num_bits": 8}}},
            "config_groups: group_0: input_activations: .*, expected null",
        ),
        (COMPRESSED, {"weights": {"num_bits": 2}}, "weights: num_bits: 2, expected 4 or 8"),
        (COMPRESSED, {"weights": {"type": "float"}}, "weights: type: 'float', expected int"),
        (COMPRESSED, {"weights": {"strategy": "tensor"}}, "strategy: 'tensor', expected group or"),
        (COMPRESSED, {"weights": {"actorder": "group"}}, "actorder: 'group', expected weight or"),
        (
            COMPRESSED,
            {"weights": {"num_bits": 8, "symmetric": False}},
            "symmetric: False, expected true with num_bits 8",
        ),
    ],
)
def test_what_is_not_served_is_refused_by_name(
    form: Form, edit: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_packed(tmp_path, form, packs=lambda _: False)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"quantization_config": edited(form, dict(edit))})
    )
    with pytest.raises(ModelError, match="^config.json: quantization_config: .*" + message):
        read_spec(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "int4"}, "quantize: int4, expected none: the checkpoint is packed already"),
        ({"numerics": "deterministic"}, "numerics: deterministic, expected fast for a packed"),
    ],
)
def test_what_cannot_be_had_with_it_is_refused(
    options: dict[str, str], message: str, tmp_path: Path
) -> None:
    write_packed(tmp_path, GPTQ)
    with pytest.raises(ValueError, match=message):
        TorchRunner(tmp_path, num_blocks=4, **options)  # type: ignore[arg-type]
