"""Our random models as GGUF, so that llama.cpp computes with the same weights.

    python -m engine_bench.gguf_file FOLDER FORMAT FILE.gguf

FORMAT is BF16, Q8_0 or Q4_0, for every matrix (norms stay float32). Runs in llama.cpp's
environment. Only Llama and Qwen3 shapes; the vocabulary is left out, token ids are all that counts.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf  # type: ignore[import-not-found]
import numpy as np

ARCHITECTURES = {"llama": "llama", "qwen3": "qwen3"}
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
Array = np.ndarray[Any, Any]


def write(folder: Path, kind: str, target: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(target, ARCHITECTURES[config["model_type"]])
    _describe(writer, config)
    quantization = gguf.GGMLQuantizationType[kind]
    for name, stored in _tensors(folder / "model.safetensors"):
        tensor = _rotated(name, stored, config) if config["model_type"] == "llama" else stored
        if tensor.ndim == 1:
            writer.add_tensor(_renamed(name), tensor)
        else:
            data = gguf.quants.quantize(tensor, quantization)
            writer.add_tensor(_renamed(name), data, raw_dtype=quantization)
    if config.get("rope_scaling"):
        writer.add_tensor("rope_freqs.weight", _llama3_factors(config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: Any, config: dict[str, Any]) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")


def _tensors(path: Path) -> Iterator[tuple[str, Array]]:
    """As float32. numpy has no bfloat16: its sixteen bits become the upper half of a float32."""
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_bytes))
    data = np.memmap(path, np.uint8, "r", offset=8 + header_bytes)
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        assert entry["dtype"] == "BF16", f"{name} is {entry['dtype']}, expected BF16"
        begin, end = entry["data_offsets"]
        halves = data[begin:end].view(np.uint16).astype(np.uint32)
        yield name, (halves << 16).view(np.float32).reshape(entry["shape"])


def _rotated(name: str, tensor: Array, config: dict[str, Any]) -> Array:
    """Rows of q and k in the order in which llama.cpp rotates a Llama: pairs side by side."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    for projection, key in heads.items():
        if projection in name:
            count = config[key]
            half = tensor.shape[0] // count // 2
            pairs = tensor.reshape(count, 2, half, tensor.shape[1]).swapaxes(1, 2)
            return np.ascontiguousarray(pairs.reshape(tensor.shape))
    return tensor


def _renamed(name: str) -> str:
    outer = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in outer:
        return outer[name]
    _, _, number, rest = name.split(".", 3)
    return f"blk.{number}.{NAMES[rest.removesuffix('.weight')]}.weight"


def _llama3_factors(config: dict[str, Any]) -> Array:
    """What each frequency is divided by."""
    scaling, dim = config["rope_scaling"], config["head_dim"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    context, factors = scaling["original_max_position_embeddings"], []
    for index in range(0, dim, 2):
        wavelength = 2 * math.pi * config["rope_theta"] ** (index / dim)
        smooth = (context / wavelength - low) / (high - low)
        if smooth >= 1:
            factors.append(1.0)
        elif smooth <= 0:
            factors.append(scaling["factor"])
        else:
            factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(factors, dtype=np.float32)


if __name__ == "__main__":
    write(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
