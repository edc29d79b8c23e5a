"""The nouns that more than one part of the mesh speaks of.

All are frozen values. Times are integer nanoseconds on the caller's monotonic clock, lengths are
in tokens unless the name says otherwise. The wire has the same nouns in `proto/banyan/v1`;
`banyan_runtime.codec` translates at the door, so that protobuf types never reach this package.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000

BlockHash = bytes
"""16 bytes; names the content of a full block and of everything before it."""


class Role(StrEnum):
    """A preference that placement obeys, not a limit: any worker accepts both verbs."""

    PREFILL = "prefill"
    DECODE = "decode"


class Finish(StrEnum):
    """Why a worker stopped working on a sequence."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    FAILED = "failed"
    DRAINED = "drained"
    UNKNOWN = "unknown"


class Outcome(StrEnum):
    """The one terminal state of an accepted request."""

    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SHED = "shed"


class ShedReason(StrEnum):
    """Why a request was shed, for programs; people get a sentence."""

    QUEUE_FULL = "queue_full"  # its class, or the whole queue, waits too long already
    NO_CAPACITY = "no_capacity"  # the queue is full, and the mesh takes nothing
    PUSHED_OUT = "pushed_out"  # of the full queue, by a better class
    DEADLINE = "deadline"  # passed, or could not be kept
    QUEUE_TIMEOUT = "queue_timeout"
    TOO_MANY_LOSSES = "too_many_losses"
    TOO_LARGE = "too_large"  # for the KV pool of every worker that there is


@dataclass(frozen=True, slots=True)
class WorkerRef:
    """One life of one worker process: a restart keeps the id and raises the epoch."""

    worker_id: str
    epoch: int
    address: str
    role: Role


_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "uint32": 4}
_INT8_SCALE_BYTES = 4


@dataclass(frozen=True, slots=True)
class KvLayer:
    """One layer's share of a token's KV: per head a key and a value.

    `value_dim` 0 means that values are read out of the keys, as latent attention does (one head,
    `key_dim` the latent and rope channels). A token sees the last `window` tokens, None: all.
    """

    num_kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None = None


@dataclass(frozen=True, slots=True)
class KvLayout:
    """What one token leaves in each layer; a page is one block of one layer, K then V.

    With dtype int8, each head of each token has a float32 scale behind its key, and one behind
    its value.
    """

    layers: tuple[KvLayer, ...]
    dtype: str

    @property
    def num_layers(self) -> int:
        """Pages of one block."""
        return len(self.layers)

    @property
    def token_bytes(self) -> int:
        """Bytes of one token over all layers."""
        return sum(self.page_bytes(layer, 1) for layer in range(self.num_layers))

    def page_bytes(self, layer: int, block_size: int) -> int:
        """Bytes of one block in one layer."""
        shape, width = self.layers[layer], _DTYPE_BYTES[self.dtype]
        scale = _INT8_SCALE_BYTES if self.dtype == "int8" else 0
        rows = [dim * width + scale for dim in (shape.key_dim, shape.value_dim) if dim]
        return block_size * shape.num_kv_heads * sum(rows)


def equal_layers(num_layers: int, num_kv_heads: int, head_dim: int, dtype: str) -> KvLayout:
    """The layout of a model whose layers are alike, with keys and values of one size."""
    return KvLayout((KvLayer(num_kv_heads, head_dim, head_dim),) * num_layers, dtype)


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Processes whose cards have different digests must not share tokens or KV."""

    name: str
    weights_digest: bytes
    tokenizer_digest: bytes
    context_tokens: int
    end_token_ids: tuple[int, ...]
    block_size: int
    kv_layout: KvLayout
    numerics: str

    @property
    def digest(self) -> bytes:
        """16 bytes over every field."""
        return hashlib.sha256(repr(self).encode()).digest()[:16]


class GrammarKind(StrEnum):
    """How the text of a `Grammar` is to be read."""

    JSON_OBJECT = "json_object"  # any object; no text
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICE = "choice"  # a JSON list of strings
    LARK = "lark"  # in llguidance's dialect


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the output's text must match. Its state is rebuilt from the output's tokens alone."""

    kind: GrammarKind
    text: str = ""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter. The digest covers its config and weights, and is part of the block salt."""

    name: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn. Temperature 0 is greedy; `top_k` 0 is off; so are 1.0s.

    Token `index` of a sequence is a pure function of its logits, these values and the output so
    far: the only randomness is H(seed, index). `bad_words` are runs of tokens that the output
    never completes; `allowed_token_ids`, unless empty, are all that may be drawn.
    `num_prompt_logprobs` is None, or how many alternatives each prompt token is reported with.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    max_tokens: int = 16
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    logprobs: bool = False
    num_top_logprobs: int = 0
    typical_p: float = 1.0
    bad_words: tuple[tuple[int, ...], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    num_prompt_logprobs: int | None = None
    grammar: Grammar | None = None


@dataclass(frozen=True, slots=True)
class SequenceSpec:
    """All that a worker must know to run a sequence.

    `max_tokens` in the sampling counts from the request's first output token, so it stands
    unchanged when the work goes on elsewhere with `output_token_ids` already sent.
    """

    sequence_id: str
    gateway_id: str
    gateway_epoch: int
    card_digest: bytes
    prompt_token_ids: tuple[int, ...]
    output_token_ids: tuple[int, ...]
    sampling: SamplingParams
    salt: bytes
    priority: int = 0
    remaining_ns: int = 0
    adapter: Adapter | None = None

    @property
    def request_id(self) -> str:
        """Whose it is: a sequence id is `request/choice/attempt`."""
        return self.sequence_id.rsplit("/", 2)[0]


@dataclass(frozen=True, slots=True)
class OutputToken:
    """One sampled token; `logprob` is None, and `top` empty, unless they were asked for."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class SequenceFigures:
    """What one worker did for one sequence, durations on the worker's own clock."""

    num_cached_tokens: int = 0
    num_computed_tokens: int = 0
    fetch_ns: int = 0
    queue_ns: int = 0
    compute_ns: int = 0
    num_preemptions: int = 0
    num_fetched_blocks: int = 0
    num_rejected_pages: int = 0


@dataclass(slots=True)  # not frozen: one is made per token, and freezing makes that 1 us slower
class SequenceReport:
    """News of one sequence: new tokens, or its end, or both.

    `prompt_logprobs`, if they were asked for, come once, with the first token: one entry for each
    prompt token after the first.
    """

    sequence_id: str
    first_index: int
    tokens: tuple[OutputToken, ...] = ()
    finish: Finish | None = None
    error: str = ""
    figures: SequenceFigures | None = None
    prompt_logprobs: tuple[OutputToken, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """A worker's load as it reports it, at each change, at most every 50 ms."""

    num_waiting: int = 0
    num_running: int = 0
    num_free_blocks: int = 0
    num_waiting_tokens: int = 0
    prefill_tokens_per_s: float = 0.0
    step_s: float = 0.0
    draining: bool = False
    admitted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """A bounded no: what was full or missing, and when to ask again."""

    reason: str
    retry_after_ns: int = 0


@dataclass(frozen=True, slots=True)
class LeasedKv:
    """The right to pull a prefill's blocks while its lease lasts."""

    worker: WorkerRef
    lease_id: str
