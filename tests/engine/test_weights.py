"""Weights are taken only whole: nothing missing, nothing surplus, no wrong shape, no damage."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from banyan_engine import tiny_families
from banyan_engine.checkpoint import INDEX_NAME, SINGLE_NAME
from banyan_engine.random_model import TINY_CONFIG, write_random_model
from banyan_engine.spec import ModelError, read_spec
from banyan_engine.weights import load_weights

MakeFolder = Callable[..., Path]


def load(folder: Path) -> None:
    load_weights(folder, read_spec(folder), torch.float32)


def rewrite(folder: Path, target: Path, tensors: dict[str, Tensor]) -> Path:
    (target / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file(tensors, target / SINGLE_NAME)
    return target


def test_missing_tensors_are_named(model_folder: MakeFolder, tmp_path: Path) -> None:
    tensors = load_file(model_folder() / SINGLE_NAME)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    rewrite(model_folder(), tmp_path, tensors)
    with pytest.raises(ModelError, match=r"missing model\.layers\.1\.mlp\.up_proj\.weight$"):
        load(tmp_path)


def test_surplus_tensors_are_named_and_counted(model_folder: MakeFolder, tmp_path: Path) -> None:
    tensors = load_file(model_folder() / SINGLE_NAME)
    tensors |= {f"extra.{n}": torch.zeros(1) for n in range(6)}
    rewrite(model_folder(), tmp_path, tensors)
    with pytest.raises(ModelError, match=r"surplus extra\.0, .*, extra\.3 and 2 more$"):
        load(tmp_path)


def test_a_head_beside_tied_embeddings_is_surplus(model_folder: MakeFolder, tmp_path: Path) -> None:
    tensors = load_file(model_folder("one head each, tied") / SINGLE_NAME)
    tensors["lm_head.weight"] = torch.zeros(97, 32)
    rewrite(model_folder("one head each, tied"), tmp_path, tensors)
    with pytest.raises(ModelError, match=r"surplus lm_head\.weight"):
        load(tmp_path)


def test_wrong_shapes_are_named(model_folder: MakeFolder, tmp_path: Path) -> None:
    tensors = load_file(model_folder() / SINGLE_NAME)
    tensors["model.layers.0.self_attn.k_proj.weight"] = torch.zeros(32, 32)
    rewrite(model_folder(), tmp_path, tensors)
    with pytest.raises(ModelError, match=r"k_proj\.weight: shape \[32, 32\], expected \[16, 32\]"):
        load(tmp_path)


def test_integers_are_no_weights(model_folder: MakeFolder, tmp_path: Path) -> None:
    tensors = load_file(model_folder() / SINGLE_NAME)
    tensors["model.norm.weight"] = torch.ones(32, dtype=torch.int32)
    rewrite(model_folder(), tmp_path, tensors)
    with pytest.raises(ModelError, match=r"model\.norm\.weight: dtype torch\.int32, expected"):
        load(tmp_path)


def test_no_weights_at_all(model_folder: MakeFolder, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((model_folder() / "config.json").read_bytes())
    with pytest.raises(ModelError, match=r"model\.safetensors: expected a whole safetensors file"):
        load(tmp_path)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(share=st.floats(0.0, 1.0, exclude_max=True))
def test_a_file_cut_anywhere_is_refused(
    share: float, model_folder: MakeFolder, tmp_path: Path
) -> None:
    content = (model_folder() / SINGLE_NAME).read_bytes()
    (tmp_path / "config.json").write_bytes((model_folder() / "config.json").read_bytes())
    (tmp_path / SINGLE_NAME).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError, match="expected a whole safetensors file"):
        load(tmp_path)


@pytest.mark.parametrize("damage", [b"\xff" * 8, b"\x00" * 8, b"\x10" + b"\x00" * 7])
def test_a_damaged_header_is_refused(
    damage: bytes, model_folder: MakeFolder, tmp_path: Path
) -> None:
    content = (model_folder() / SINGLE_NAME).read_bytes()
    (tmp_path / "config.json").write_bytes((model_folder() / "config.json").read_bytes())
    (tmp_path / SINGLE_NAME).write_bytes(damage + content[8:])
    with pytest.raises(ModelError, match="expected a whole safetensors file"):
        load(tmp_path)


def shard(folder: Path, target: Path) -> dict[str, str]:
    """Write the folder's tensors as two files with an index; the index's map."""
    tensors = load_file(folder / SINGLE_NAME)
    (target / "config.json").write_bytes((folder / "config.json").read_bytes())
    halves = {"a.safetensors": sorted(tensors)[::2], "b.safetensors": sorted(tensors)[1::2]}
    for name, names in halves.items():
        save_file({each: tensors[each] for each in names}, target / name)
    return {each: name for name, names in halves.items() for each in names}


def test_shards_give_the_same_model(model_folder: MakeFolder, tmp_path: Path) -> None:
    index = {"metadata": {}, "weight_map": shard(model_folder(), tmp_path)}
    (tmp_path / INDEX_NAME).write_text(json.dumps(index), encoding="utf-8")
    spec = read_spec(tmp_path)
    found = load_weights(tmp_path, spec, torch.float32)
    wanted = load_weights(model_folder(), spec, torch.float32)
    for ours, theirs in ((found.head, wanted.head), (found.layers[1].qkv, wanted.layers[1].qkv)):
        everything = slice(None), torch.float32
        assert torch.equal(ours.unpack(*everything), theirs.unpack(*everything))


@pytest.mark.parametrize(
    "weight_map, message",
    [
        ({}, "weight_map: expected an object"),
        ({"x": "../model.safetensors"}, "expected a name without folder"),
        ({"x": "absent.safetensors"}, "absent.safetensors: expected a whole safetensors file"),
        ({"x": "a.safetensors"}, "missing "),
    ],
)
def test_a_wrong_index_is_refused(
    weight_map: dict[str, str], message: str, model_folder: MakeFolder, tmp_path: Path
) -> None:
    shard(model_folder(), tmp_path)
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        load(tmp_path)


def test_a_tensor_in_two_shards_is_refused(model_folder: MakeFolder, tmp_path: Path) -> None:
    index = {"weight_map": shard(model_folder(), tmp_path)}
    (tmp_path / INDEX_NAME).write_text(json.dumps(index), encoding="utf-8")
    both = load_file(tmp_path / "a.safetensors") | load_file(tmp_path / "b.safetensors")
    save_file(both, tmp_path / "b.safetensors")
    with pytest.raises(ModelError, match="expected in one file only"):
        load(tmp_path)


def test_bfloat16_checkpoints_are_computed_in_float32(tmp_path: Path) -> None:
    """Rounded once, on disk, and nowhere else."""
    folder = write_random_model(tmp_path, TINY_CONFIG, seed=9)
    tensors = load_file(folder / SINGLE_NAME)
    save_file({name: value.bfloat16() for name, value in tensors.items()}, folder / SINGLE_NAME)
    rounded = load_weights(folder, read_spec(folder), torch.float32)
    assert torch.equal(rounded.norm, tensors["model.norm.weight"].bfloat16().float())


@pytest.mark.parametrize(
    "name, lost",
    [
        ("mixtral-0", "model.layers.1.block_sparse_moe.experts.3.w2.weight"),
        ("qwen2_moe-0", "model.layers.0.mlp.shared_expert_gate.weight"),
        ("qwen3-0", "model.layers.1.self_attn.k_norm.weight"),
        ("qwen2-0", "model.layers.0.self_attn.q_proj.bias"),
        ("gemma3-0", "model.layers.0.post_feedforward_layernorm.weight"),
        ("phi3-0", "model.layers.0.mlp.gate_up_proj.weight"),
    ],
)
def test_a_familys_own_tensors_are_missed_and_surplus_in_others(
    name: str, lost: str, tmp_path: Path
) -> None:
    folder = write_random_model(tmp_path, tiny_families.config_of(name), seed=1)
    tensors = load_file(folder / SINGLE_NAME)
    taken = tensors.pop(lost)
    save_file(tensors, folder / SINGLE_NAME)
    with pytest.raises(ModelError, match=f"weights: missing {re.escape(lost)}$"):
        load(folder)
    save_file(
        tensors | {lost: taken, "model.layers.0.extra.bias": taken.clone()}, folder / SINGLE_NAME
    )
    with pytest.raises(ModelError, match=r"weights: surplus model\.layers\.0\.extra\.bias$"):
        load(folder)


_PEAK = """
import sys
from pathlib import Path

import torch

from banyan_engine.spec import read_spec
from banyan_engine.weights import load_weights


def peak_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


folder, before = Path(sys.argv[1]), peak_bytes()
weights = load_weights(folder, read_spec(folder), torch.float32)
print(peak_bytes() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for its peak memory")
def test_loading_takes_the_memory_of_the_weights_once(tmp_path: Path) -> None:
    sizes = {"vocab_size": 4000, "hidden_size": 512, "intermediate_size": 2048}
    folder = write_random_model(tmp_path, TINY_CONFIG | sizes | {"num_hidden_layers": 6}, seed=0)
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(folder)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 1.5 * (folder / "model.safetensors").stat().st_size
