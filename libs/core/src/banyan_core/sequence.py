"""One request's token state inside one engine: what is known, what is computed, where it lies.

A sequence never asks whether it is in prefill or decode. It has tokens (prompt, then output) and
a count of how many of them have their KV in its blocks; whatever is missing is computed next.
After a preemption the count falls to what the cache still has, and the same rule goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from banyan_core.hashing import block_hash
from banyan_core.types import (
    BlockHash,
    Finish,
    ModelCard,
    OutputToken,
    SequenceFigures,
    SequenceSpec,
)


@dataclass(slots=True, eq=False)
class Sequence:
    """Mutable; owned by the engine loop. `arrival` numbers submissions and breaks ties.

    `ending` is set while the step that computes it is out: how it ends when that is back.
    `order` says who goes first; it ends at `num_max_tokens` at the latest. `num_told_blocks` is
    how much of the block table the runner knows; None when it knows nothing of the sequence.
    """

    spec: SequenceSpec
    hold: bool
    arrival: int
    submitted_ns: int
    block_size: int
    import_id: str = ""
    fetch_ns: int = 0
    num_fetched_blocks: int = 0
    num_rejected_pages: int = 0
    tokens: list[int] = field(init=False)
    num_prompt_tokens: int = field(init=False)
    num_max_tokens: int = field(init=False)
    order: tuple[int, int] = field(init=False)
    request_id: str = field(init=False)
    deadline_ns: int | None = field(init=False)
    is_running: bool = False
    block_table: list[int] = field(default_factory=list)
    num_told_blocks: int | None = None
    num_computed: int = 0
    num_stepped_tokens: int = 0
    num_preemptions: int = 0
    compute_ns: int = 0
    ending: tuple[Finish, str] | None = None
    _hashes: list[BlockHash] = field(default_factory=list)
    _prompt_stepped: bytearray = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = [*self.spec.prompt_token_ids, *self.spec.output_token_ids]
        self.num_prompt_tokens = len(self.spec.prompt_token_ids)
        self.num_max_tokens = self.num_prompt_tokens + self.spec.sampling.max_tokens
        self.order = (self.submitted_ns, self.arrival)
        self.request_id = self.spec.request_id
        remaining_ns = self.spec.remaining_ns
        self.deadline_ns = self.submitted_ns + remaining_ns if remaining_ns else None
        self._prompt_stepped = bytearray(self.num_prompt_tokens)

    @property
    def sequence_id(self) -> str:
        return self.spec.sequence_id

    @property
    def num_output_tokens(self) -> int:
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def output_token_ids(self) -> tuple[int, ...]:
        return tuple(self.tokens[self.num_prompt_tokens :])

    @property
    def num_uncomputed(self) -> int:
        return len(self.tokens) - self.num_computed

    @property
    def wants_prompt_logprobs(self) -> bool:
        """They go out with the first token: whoever has tokens has had them."""
        wanted = self.spec.sampling.num_prompt_logprobs is not None
        return wanted and len(self.tokens) == self.num_prompt_tokens

    @property
    def num_blocks_needed(self) -> int:
        """Blocks for the KV of every token known now."""
        return -(-len(self.tokens) // self.block_size)

    def full_block_hashes(self) -> list[BlockHash]:
        """Addresses of all full blocks of the tokens known now, in order."""
        size = self.block_size
        while (len(self._hashes) + 1) * size <= len(self.tokens):
            start = len(self._hashes) * size
            parent = self._hashes[-1] if self._hashes else b""
            block = self.tokens[start : start + size]
            self._hashes.append(block_hash(parent, block, self.spec.salt))
        return self._hashes

    def reusable_hashes(self) -> list[BlockHash]:
        """Full blocks that a cache hit may cover: the last token is always computed, for its
        logits, and so is every one whose logits are asked for."""
        if self.wants_prompt_logprobs:
            return []
        return self.full_block_hashes()[: (len(self.tokens) - 1) // self.block_size]

    def advance(self, num_tokens: int, elapsed_ns: int) -> range:
        """A step computed the next `num_tokens`. Returns the indices of blocks it filled."""
        start, end = self.num_computed, self.num_computed + num_tokens
        in_prompt = min(end, self.num_prompt_tokens)
        if start < in_prompt:
            self._prompt_stepped[start:in_prompt] = b"\1" * (in_prompt - start)
        self.num_computed = end
        self.num_stepped_tokens += num_tokens
        self.compute_ns += elapsed_ns
        return range(start // self.block_size, end // self.block_size)

    def finish_now(self, card: ModelCard) -> Finish | None:
        """Whether the tokens known now end the sequence.

        `max_tokens` and `min_tokens` count from the request's first output token, those that
        were already sent by another worker included.
        """
        num_output = self.num_output_tokens
        if num_output and self.tokens[-1] in self.ending_ids(card, num_output):
            return Finish.STOP
        if num_output >= self.spec.sampling.max_tokens or len(self.tokens) >= card.context_tokens:
            return Finish.LENGTH
        return None

    def ending_ids(self, card: ModelCard, num_output: int) -> tuple[int, ...]:
        """Tokens that end the sequence if they are number `num_output` of its output."""
        sampling = self.spec.sampling
        if num_output < sampling.min_tokens:
            return ()
        if sampling.ignore_eos:
            return sampling.stop_token_ids
        return (*sampling.stop_token_ids, *card.end_token_ids)

    def append(self, token: OutputToken) -> None:
        self.tokens.append(token.token_id)

    def figures(self, now: int) -> SequenceFigures:
        """Durations partition the time since submission: in steps, or waiting for one."""
        return SequenceFigures(
            num_cached_tokens=self._prompt_stepped.count(0),
            num_computed_tokens=self.num_stepped_tokens,
            fetch_ns=self.fetch_ns,
            queue_ns=max(0, now - self.submitted_ns - self.compute_ns),
            compute_ns=self.compute_ns,
            num_preemptions=self.num_preemptions,
            num_fetched_blocks=self.num_fetched_blocks,
            num_rejected_pages=self.num_rejected_pages,
        )
