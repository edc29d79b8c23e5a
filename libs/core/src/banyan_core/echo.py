"""A runner without a model that still cannot lie about its KV.

The KV of a token is the token itself, written per layer with a mark of that layer and position.
Output token i is a prompt token read back *out of the KV blocks* of all layers, never out of the
plan: so a block that is wrong, missing, misplaced or half transferred gives a wrong answer. Greedy
takes prompt token i mod n; with a temperature the seed and i choose which. Time is modelled, not
spent: whoever runs it sleeps `modelled_ns`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from banyan_core.hashing import derive
from banyan_core.runner import Opening, PlanItem, Sampled, StepPlan, StepResult
from banyan_core.types import NS_PER_MS, KvLayout, OutputToken, equal_layers

ECHO_LAYOUT = equal_layers(num_layers=2, num_kv_heads=1, head_dim=1, dtype="uint32")
GARBAGE = 0
"""The token that a damaged KV block turns into."""

_WORD = 1 << 32


@dataclass(frozen=True, slots=True)
class EchoLatency:
    """A step takes base + num_tokens * per_token + num_sequences * per_sequence."""

    base_ns: int = NS_PER_MS
    token_ns: int = 20_000
    sequence_ns: int = 50_000

    def of(self, plan: StepPlan) -> int:
        num_tokens = sum(len(item.token_ids) for item in plan.items)
        return self.base_ns + num_tokens * self.token_ns + len(plan.items) * self.sequence_ns


def _mark(layer: int, slot: int, token_id: int) -> int:
    """What stands in V beside the token in K: differs per layer and slot."""
    return (token_id * 2_654_435_761 + layer * 40_503 + slot * 97 + 1) % _WORD


@dataclass(slots=True)
class _State:
    """What the runner knows of one sequence between steps."""

    opening: Opening
    block_table: list[int] = field(init=False)
    num_output: int = field(init=False)

    def __post_init__(self) -> None:
        self.block_table = list(self.opening.block_table)
        self.num_output = len(self.opening.output_token_ids)


class EchoRunner:
    """A `Runner` over `num_blocks` blocks; a page is K then V, `block_size` uint32 each."""

    def __init__(self, num_blocks: int, block_size: int, latency: EchoLatency) -> None:
        self._num_blocks = num_blocks
        self._block_size = block_size
        self._latency = latency
        num_words = 2 * block_size
        self._pages = [
            [array("I", bytes(4 * num_words)) for _ in range(ECHO_LAYOUT.num_layers)]
            for _ in range(num_blocks)
        ]
        self._states: dict[str, _State] = {}

    @property
    def layout(self) -> KvLayout:
        return ECHO_LAYOUT

    @property
    def num_blocks(self) -> int:
        return self._num_blocks

    @property
    def block_size(self) -> int:
        return self._block_size

    @property
    def num_open(self) -> int:
        """Sequences that it knows of."""
        return len(self._states)

    def run(self, plan: StepPlan, on_layer: Callable[[int], None]) -> StepResult:
        for sequence_id in plan.closed:
            self._states.pop(sequence_id, None)
        for source, target in plan.copies:
            self._pages[target] = [page[:] for page in self._pages[source]]
        for item in plan.items:
            if item.opening is not None:
                self._states[item.sequence_id] = _State(item.opening)
            self._states[item.sequence_id].block_table += item.new_block_ids
        for layer in range(ECHO_LAYOUT.num_layers):
            for item in plan.items:
                self._write(item, layer)
            on_layer(layer)
        sampled = tuple(self._sample(item) for item in plan.items if item.sample)
        return StepResult(plan.number, sampled, self._latency.of(plan))

    def export_page(self, block_id: int, layer: int) -> bytes:
        return self._pages[block_id][layer].tobytes()

    def import_page(self, block_id: int, layer: int, data: bytes) -> None:
        page = self._pages[block_id][layer]
        if len(data) != 4 * len(page):
            raise ValueError(f"page: expected {4 * len(page)} bytes, got {len(data)}")
        self._pages[block_id][layer] = array("I", data)

    def _write(self, item: PlanItem, layer: int) -> None:
        block_table = self._states[item.sequence_id].block_table
        for position, token_id in enumerate(item.token_ids, item.start):
            index, slot = divmod(position, self._block_size)
            page = self._pages[block_table[index]][layer]
            page[slot] = token_id
            page[self._block_size + slot] = _mark(layer, slot, token_id)

    def _read(self, state: _State, position: int) -> int:
        """The token at `position`, if the KV of every layer says so."""
        index, slot = divmod(position, self._block_size)
        pages = self._pages[state.block_table[index]]
        token_id = pages[0][slot]
        for layer, page in enumerate(pages):
            intact = page[self._block_size + slot] == _mark(layer, slot, token_id)
            if page[slot] != token_id or not intact:
                return GARBAGE
        return token_id

    def _sample(self, item: PlanItem) -> Sampled:
        """A token, and another for each draft that proves right."""
        state = self._states[item.sequence_id]
        drafts = item.token_ids[len(item.token_ids) - item.num_draft_tokens :]
        likely = self._prompt_logprobs(state)
        tokens = [self._next_token(state)]
        for draft in drafts:
            if tokens[-1].token_id != draft:
                break
            tokens.append(self._next_token(state))
        return Sampled(item.sequence_id, tuple(tokens), prompt_logprobs=likely)

    def _prompt_logprobs(self, state: _State) -> tuple[OutputToken, ...]:
        """Of the prompt's tokens after the first, as its KV has them, if they are due."""
        sampling, prompt = state.opening.sampling, state.opening.prompt_token_ids
        if sampling.num_prompt_logprobs is None or state.num_output:
            return ()
        read = (self._read(state, position) for position in range(1, len(prompt)))
        return tuple(_certain(each, sampling.num_prompt_logprobs) for each in read)

    def _next_token(self, state: _State) -> OutputToken:
        sampling, index = state.opening.sampling, state.num_output
        state.num_output += 1
        place = index if sampling.temperature == 0 else derive(sampling.seed, index)
        token_id = self._read(state, place % len(state.opening.prompt_token_ids))
        if not sampling.logprobs:
            return OutputToken(token_id)
        return _certain(token_id, sampling.num_top_logprobs)


def _certain(token_id: int, num_top: int) -> OutputToken:
    """A token that nothing else could have been."""
    return OutputToken(token_id, 0.0, ((token_id, 0.0),) if num_top else ())
