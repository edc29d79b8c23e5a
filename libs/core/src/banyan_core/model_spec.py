"""What a decoder is: sizes and flags, nothing that computes.

The engine builds weights and mathematics from a spec, and the model card takes the shape of KV
from it, so that both come from one description. Families differ in these values only; which
family has which stands in `model_config`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from banyan_core.types import KvLayer, KvLayout

DETERMINISTIC = "deterministic"


class Quantize(StrEnum):
    """How the matrices of layers are packed."""

    INT8 = "int8"
    INT4 = "int4"


class KvDtype(StrEnum):
    """What K and V can be kept in; int8 with a scale per token and head."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"


class ModelError(ValueError):
    """A model folder that cannot be served; the text names the field and what was expected."""


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """How positions turn into rotation angles of the first `num_dims` channels of a head.

    `type` says which of the other fields count. Cosines and sines are multiplied by `scale`.
    """

    num_dims: int
    theta: float
    type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 1.0
    original_context_tokens: int = 0  # llama3, yarn, longrope
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0
    truncate: bool = True
    factors: tuple[float, ...] = ()  # longrope: one per pair of channels
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class ExpertsSpec:
    """A mixture of experts. `renormalise` makes the weights of the chosen ones add up to 1."""

    num_experts: int
    num_chosen: int
    intermediate_size: int
    renormalise: bool
    shared_intermediate_size: int = 0  # of one more that every token uses; 0: there is none


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """What may differ from layer to layer.

    A token sees the last `window` tokens, itself among them; None: all. `rope` is an index into
    the model's ropes. `experts` None is a plain MLP.
    """

    window: int | None = None
    rope: int = 0
    experts: ExpertsSpec | None = None


@dataclass(frozen=True, slots=True)
class TensorNames:
    """How a family's files name and pack their tensors."""

    fused_qkv: bool = False  # one tensor for q, k, v and one for gate, up
    experts: str = "mlp"  # the module that holds router and experts
    gate: str = "gate_proj"  # the three matrices of an expert
    up: str = "up_proj"
    down: str = "down_proj"


@dataclass(frozen=True, slots=True)
class Packing:
    """How the matrices of a checkpoint are packed on disk: whole numbers of `bits`, and a scale for
    each `group_size` input channels of an output channel; None: one scale for all.

    `zero_shift` is to be added to a zero point as it stands in the file.
    """

    layout: str  # "compressed-tensors", "gptq" or "awq"
    bits: int
    group_size: int | None
    zero_shift: int = 0


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Shape of a decoder. `context_tokens` is the longest sequence that it was made for."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    layers: tuple[LayerSpec, ...]
    ropes: tuple[RopeSpec, ...]
    tied_embeddings: bool
    context_tokens: int
    end_token_ids: tuple[int, ...]
    attention_scale: float  # of q·k, before the soft cap
    activation: str = "silu"  # or "gelu_tanh"
    attention_soft_cap: float | None = None
    logits_soft_cap: float | None = None
    embedding_scale: float = 1.0
    norm_offset: float = 0.0  # norms multiply by this plus their weight
    post_norms: bool = False  # norms after attention and MLP too
    qk_norms: bool = False  # norms of each head's q and k
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    names: TensorNames = TensorNames()
    packing: Packing | None = None

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.layers)


def kv_layout(spec: ModelSpec, dtype: str) -> KvLayout:
    """What one token leaves in the cache.

    The type becomes a plain word: a card's digest must be the same before and after the wire.
    """
    return KvLayout(
        tuple(
            KvLayer(spec.num_kv_heads, spec.head_dim, spec.head_dim, layer.window)
            for layer in spec.layers
        ),
        str(dtype),
    )


def kv_dtype(numerics: str) -> str:
    """The type of K and V in blocks.

    It must not depend on the machine, because blocks move between machines.
    """
    return "float32" if numerics == DETERMINISTIC else "bfloat16"
