"""Drafts: what is proposed, when it pays, and that no token depends on it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.engines import BLOCK_SIZE, Bench, echoed, spec

from banyan_core.drafts import NUM_GRAM_TOKENS, Drafts, PromptLookup
from banyan_core.engine_messages import Submit
from banyan_core.runner import PlanItem
from banyan_core.scheduler import EngineLimits
from banyan_core.sequence import Sequence
from banyan_core.types import Grammar, GrammarKind, OutputToken, SamplingParams

PROMPT = (5, 6, 7, 8, 5, 6, 7)


def sequence_of(prompt: tuple[int, ...], **sampling: object) -> Sequence:
    params = SamplingParams(max_tokens=500, **sampling)  # type: ignore[arg-type]
    return Sequence(spec("s", prompt, sampling=params), False, 1, 0, BLOCK_SIZE)


def scanned(tokens: list[int], num_max: int) -> tuple[int, ...]:
    """What followed the latest earlier occurrence, found by looking everywhere."""
    last = tokens[-NUM_GRAM_TOKENS:]
    for end in range(len(tokens) - 1, NUM_GRAM_TOKENS - 1, -1):
        if len(last) == NUM_GRAM_TOKENS and tokens[end - NUM_GRAM_TOKENS : end] == last:
            return tuple((tokens[end:] * num_max)[:num_max])
    return ()


@settings(max_examples=200, deadline=None)
@given(
    prompt=st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple),
    output=st.lists(st.integers(0, 2), max_size=20),
    num_max=st.integers(1, 5),
)
def test_look_up_finds_what_a_scan_finds(
    prompt: tuple[int, ...], output: list[int], num_max: int
) -> None:
    lookup, sequence = PromptLookup(), sequence_of(prompt)
    for token in [*output, 0]:
        assert lookup.propose(sequence, num_max) == scanned(sequence.tokens, num_max)
        sequence.append(OutputToken(token))


@settings(max_examples=200, deadline=None)
@given(
    prompt=st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple),
    output=st.lists(st.integers(0, 2), max_size=20),
)
def test_what_would_find_something_is_known_before_the_token(
    prompt: tuple[int, ...], output: list[int]
) -> None:
    lookup, sequence = PromptLookup(), sequence_of(prompt)
    for token in [*output, 0]:
        followed = lookup.followed(sequence)
        sequence.append(OutputToken(token))
        assert (token in followed) is (lookup.propose(sequence, 1) != ())


def test_right_drafts_grow_and_wrong_ones_stop_for_a_while() -> None:
    drafts, sequence = Drafts(PromptLookup(), 8), sequence_of(PROMPT * 3)
    for num_tokens, elapsed in ((1, 1000), (2, 1300), (3, 1600)) * 20:
        drafts.cost.observe(num_tokens, elapsed)
    assert 0.15 < drafts.cost.token_share < 0.3

    def propose_and_check(num_right: int) -> int:
        proposed = drafts.propose(sequence, 100)
        item = PlanItem("s", (1, *proposed), 0, True, num_draft_tokens=len(proposed))
        drafts.checked(item, min(num_right, len(proposed)))
        return len(proposed)

    first = propose_and_check(100)
    assert 1 <= first < 8
    for _ in range(10):
        last = propose_and_check(100)
    assert last == 8
    tries = [propose_and_check(0) for _ in range(40)]
    assert tries == sorted(tries, reverse=True) and sum(tries[-20:]) == 0
    sequence.tokens += PROMPT * 20
    assert propose_and_check(100) == 1, "it tries one again, later"


def test_drafts_stop_where_a_token_costs_a_whole_step() -> None:
    drafts, sequence = Drafts(PromptLookup(), 8), sequence_of(PROMPT * 3)
    for num_tokens in (1, 2, 3, 4) * 20:
        drafts.cost.observe(num_tokens, 1000 * num_tokens)
    item = PlanItem("s", (1, 2), 0, True, num_draft_tokens=1)
    drafts.propose(sequence, 8)
    drafts.checked(item, 0)
    assert len(drafts.propose(sequence, 8)) <= 1


@pytest.mark.parametrize(
    ("sampling", "hold"),
    [({"grammar": Grammar(GrammarKind.JSON_OBJECT)}, False), ({}, True)],
)
def test_some_sequences_are_never_drafted(sampling: dict[str, object], hold: bool) -> None:
    sequence = sequence_of(PROMPT, **sampling)
    sequence.hold = hold
    assert Drafts(PromptLookup(), 8).propose(sequence, 8) == ()


def test_no_draft_goes_past_the_last_token() -> None:
    sequence = sequence_of(PROMPT)
    sequence.num_max_tokens = len(PROMPT) + 2
    assert len(Drafts(PromptLookup(), 8).propose(sequence, 8)) == 1


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_are_the_same_with_drafts_and_come_in_fewer_steps(temperature: float) -> None:
    params = SamplingParams(temperature=temperature, seed=3, max_tokens=60)
    asked = [spec(f"s{n}", tuple(range(n, n + 5)), sampling=params) for n in range(3)]
    num_steps = []
    for max_draft_tokens in (0, 4):
        bench = Bench(limits=EngineLimits(max_draft_tokens=max_draft_tokens))
        bench.feed(*(Submit(one, hold=False) for one in asked))
        bench.run()
        for one in asked:
            assert bench.output(one.sequence_id) == echoed(one)
        assert bench.runner.num_open <= 3 and bench.loop.num_used_blocks == 0
        num_steps.append(len(bench.plans))
    if temperature == 0:
        assert num_steps[1] < 0.6 * num_steps[0]


def test_drafts_end_where_the_sequence_ends() -> None:
    """A stop token in the middle of right drafts: nothing after it is said."""
    prompt = (1, 2, 3, 4, 9, 1, 2, 3, 4, 9, 1, 2, 3, 4, 9)
    params = SamplingParams(temperature=0, max_tokens=60, stop_token_ids=(9,), min_tokens=9)
    asked = spec("s", prompt, sampling=params)
    bench = Bench(limits=EngineLimits(max_draft_tokens=8))
    bench.feed(Submit(asked, hold=False))
    bench.run()
    assert bench.output("s") == list(prompt[:10])


def test_a_full_step_has_no_room_for_drafts() -> None:
    limits = EngineLimits(max_step_tokens=5, max_running=4, max_draft_tokens=4)
    bench = Bench(limits=limits)
    asked = [spec(f"s{n}", tuple(range(n, n + 5)), max_tokens=40) for n in range(4)]
    bench.feed(*(Submit(one, hold=False) for one in asked))
    bench.run()
    sizes = [sum(len(item.token_ids) for item in plan.items) for plan in bench.plans]
    assert max(sizes) == 5
    assert any(item.num_draft_tokens for plan in bench.plans for item in plan.items)
    assert all(bench.output(one.sequence_id) == echoed(one) for one in asked)
