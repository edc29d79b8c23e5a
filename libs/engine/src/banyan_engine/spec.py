"""What a model is, read from its `config.json`: sizes and flags, nothing that computes.

A family is a row of data (`ARCHITECTURES`), not a file of code: the decoder in `model` reads the
flags. A value that the decoder would silently ignore must not get past this file, so whatever
changes the mathematics is either understood here or refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ARCHITECTURES = ("LlamaForCausalLM",)
ROPE_TYPES = ("default", "linear", "llama3")
ACTIVATIONS = ("silu", "swish")


class ModelError(ValueError):
    """A model folder that cannot be served; the text names the field and what was expected."""


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """How positions turn into rotation angles. The last three matter to `llama3` only."""

    theta: float
    type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_context_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Shape of a decoder. `context_tokens` is the longest sequence that it was made for."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeSpec
    tied_embeddings: bool
    context_tokens: int
    end_token_ids: tuple[int, ...]


def read_spec(folder: Path) -> ModelSpec:
    """The spec of a Hugging Face model folder. Raises ModelError."""
    config = _Fields(read_json(folder / "config.json"), "config.json")
    architecture = _known_architecture(config)
    _refuse_unknown_mathematics(config)
    hidden_size = config.integer("hidden_size")
    num_heads = config.integer("num_attention_heads")
    num_kv_heads = config.integer("num_key_value_heads", num_heads)
    head_dim = config.integer("head_dim", hidden_size // num_heads)
    if num_heads % num_kv_heads:
        raise ModelError(
            f"config.json: num_key_value_heads: {num_kv_heads}, "
            f"expected a divisor of num_attention_heads {num_heads}"
        )
    if head_dim % 2 or not head_dim:
        raise ModelError(f"config.json: head_dim: {head_dim}, expected an even number")
    context_tokens = config.integer("max_position_embeddings")
    return ModelSpec(
        architecture=architecture,
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=config.integer("intermediate_size"),
        num_layers=config.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rms_norm_eps=config.number("rms_norm_eps"),
        rope=_read_rope(config, context_tokens),
        tied_embeddings=config.flag("tie_word_embeddings", False),
        context_tokens=context_tokens,
        end_token_ids=_read_end_token_ids(folder, config),
    )


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file of a model folder. Raises ModelError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path.name}: not found in {path.parent}, expected a file") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path.name}: expected a JSON object: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path.name}: expected a JSON object, got {type(content).__name__}")
    return content


def _known_architecture(config: _Fields) -> str:
    named = config.values.get("architectures")
    for known in ARCHITECTURES:
        if named == [known]:
            return known
    raise ModelError(
        f"config.json: architectures: {named}, expected a list of one of {', '.join(ARCHITECTURES)}"
    )


def _refuse_unknown_mathematics(config: _Fields) -> None:
    """Name the first field whose value would need code that is not there."""
    if (activation := config.values.get("hidden_act", "silu")) not in ACTIVATIONS:
        raise ModelError(f"config.json: hidden_act: {activation!r}, expected 'silu'")
    for name in ("attention_bias", "mlp_bias"):
        if config.flag(name, False):
            raise ModelError(f"config.json: {name}: true, expected false")
    for name in ("quantization_config", "sliding_window"):
        if config.values.get(name) is not None:
            raise ModelError(f"config.json: {name}: is set, expected null or no such field")


def _read_rope(config: _Fields, context_tokens: int) -> RopeSpec:
    """Both spellings: `rope_parameters` of transformers 5, and `rope_theta` + `rope_scaling`."""
    name = "rope_parameters" if config.values.get("rope_parameters") else "rope_scaling"
    values = config.values.get(name) or {}
    if not isinstance(values, dict):
        raise ModelError(f"config.json: {name}: {values!r}, expected an object or null")
    rope = _Fields(
        {"rope_theta": config.values.get("rope_theta"), **values}, f"config.json: {name}"
    )
    rope_type = values.get("rope_type", values.get("type", "default"))
    if rope_type not in ROPE_TYPES:
        raise ModelError(
            f"config.json: {name}.rope_type: {rope_type!r}, expected one of {', '.join(ROPE_TYPES)}"
        )
    if rope.number("partial_rotary_factor", 1.0) != 1.0:
        raise ModelError(f"config.json: {name}.partial_rotary_factor: expected 1")
    theta = rope.number("rope_theta", 10_000.0)
    if rope_type == "default":
        return RopeSpec(theta)
    if rope_type == "linear":
        return RopeSpec(theta, rope_type, rope.number("factor"))
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if low >= high:
        raise ModelError(f"config.json: {name}.high_freq_factor: {high}, expected more than {low}")
    original = rope.integer("original_max_position_embeddings", context_tokens)
    return RopeSpec(theta, rope_type, rope.number("factor"), low, high, original)


def _read_end_token_ids(folder: Path, config: _Fields) -> tuple[int, ...]:
    """`eos_token_id` of generation_config.json, which wins, or of config.json."""
    found = config.values.get("eos_token_id")
    if (folder / "generation_config.json").exists():
        found = read_json(folder / "generation_config.json").get("eos_token_id", found)
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        raise ModelError(f"eos_token_id: {found!r}, expected an integer or a list of integers")
    return tuple(ids)


@dataclass(frozen=True, slots=True)
class _Fields:
    """Typed access to a JSON object; `null` means absent, an error names file and field."""

    values: Mapping[str, object]
    place: str

    def integer(self, name: str, default: int | None = None) -> int:
        value = self._get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ModelError(f"{self.place}: {name}: {value!r}, expected a positive integer")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self._get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e30:
            raise ModelError(f"{self.place}: {name}: {value!r}, expected a positive number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise ModelError(f"{self.place}: {name}: {value!r}, expected true or false")
        return value

    def _get(self, name: str, default: object) -> object:
        value = self.values.get(name)
        return default if value is None else value
