"""Sampling by its definition: each knob alone, what order they act in, and that it is pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from banyan_core.types import OutputToken, SamplingParams
from banyan_engine.sampler import (
    Logits,
    SamplingError,
    candidates,
    draw_uniform,
    is_plain_greedy,
    sample,
)

GREEDY = SamplingParams(temperature=0.0)
END = 3


def row(*values: float) -> Logits:
    return np.array(values, dtype=np.float32)


def pick(
    logits: Logits,
    params: SamplingParams = GREEDY,
    prompt: tuple[int, ...] = (),
    output: tuple[int, ...] = (),
) -> int:
    return sample(logits, params, prompt, output, (END,)).token_id


def kept(logits: Logits, **values: Any) -> list[int]:
    token_ids, _ = candidates(logits.astype(np.float64), SamplingParams(**values))
    return [int(token_id) for token_id in token_ids]


# ---------------------------------------------------------------- greedy, bias, penalties


def test_temperature_0_takes_the_largest_and_the_lowest_id_of_equals() -> None:
    assert pick(row(1, 5, 2, 0)) == 1
    assert pick(row(1, 5, 5, 5)) == 1


def test_logit_bias_is_added_and_can_ban() -> None:
    assert pick(row(1, 5, 2, 0), replace(GREEDY, logit_bias=((0, 4.5),))) == 0
    assert pick(row(1, 5, 2, 0), replace(GREEDY, logit_bias=((1, -100.0),))) == 2


def test_logit_bias_outside_the_vocabulary_is_an_error_of_this_row() -> None:
    with pytest.raises(SamplingError, match="logit_bias: token 4, expected 0 to 3"):
        pick(row(1, 5, 2, 0), replace(GREEDY, logit_bias=((4, 1.0),)))


@pytest.mark.parametrize("seen", [{"prompt": (1,)}, {"output": (1,)}, {"output": (1, 1, 1)}])
def test_repetition_penalty_looks_at_prompt_and_output_once(seen: Any) -> None:
    params = replace(GREEDY, repetition_penalty=2.0)
    assert pick(row(1, 5, 2.6, 0), params, **seen) == 2
    assert pick(row(1, 5, 2.4, 0), params, **seen) == 1


def test_repetition_penalty_makes_negative_logits_smaller_too() -> None:
    params = replace(GREEDY, repetition_penalty=2.0)
    assert pick(row(-9, -3, -5, -9), params, prompt=(1,)) == 2


def test_presence_penalty_counts_output_once_and_not_the_prompt() -> None:
    params = replace(GREEDY, presence_penalty=2.0)
    assert pick(row(0, 5, 3.5, 0), params, prompt=(1, 1)) == 1
    assert pick(row(0, 5, 3.5, 0), params, output=(1,)) == 2
    assert pick(row(0, 5, 2.5, 0), params, output=(1, 1, 1)) == 1


def test_frequency_penalty_counts_each_time() -> None:
    params = replace(GREEDY, frequency_penalty=1.0)
    assert pick(row(0, 5, 2.5, 0), params, output=(1, 1)) == 1
    assert pick(row(0, 5, 2.5, 0), params, output=(1, 1, 1)) == 2


def test_bias_acts_before_the_repetition_penalty() -> None:
    params = replace(GREEDY, repetition_penalty=2.0, logit_bias=((1, 4.0),))
    assert pick(row(0, 2, 3.5, 0), params, output=(1,)) == 2  # (2 + 4) / 2, not 2 / 2 + 4


def test_end_and_stop_tokens_wait_for_min_tokens() -> None:
    params = replace(GREEDY, min_tokens=2, stop_token_ids=(1,))
    assert pick(row(0, 8, 1, 9), params) == 2
    assert pick(row(0, 8, 1, 9), params, output=(0,)) == 2
    assert pick(row(0, 8, 1, 9), params, output=(0, 0)) == END


def test_nothing_left_to_draw_is_an_error() -> None:
    with pytest.raises(SamplingError, match="every token is masked"):
        pick(row(0, 1), replace(GREEDY, min_tokens=1, stop_token_ids=(0, 1)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_an_error(bad: float) -> None:
    with pytest.raises(SamplingError, match="not finite"):
        pick(row(0, bad, 1, 2))


# ---------------------------------------------------------------- what may be drawn


def test_top_k_keeps_exactly_k_even_of_equals() -> None:
    logits = row(1, 3, 3, 3, 2)
    assert kept(logits, top_k=0) == [1, 2, 3, 4, 0]
    assert kept(logits, top_k=2) == [1, 2]
    assert kept(logits, top_k=99) == [1, 2, 3, 4, 0]


def test_top_p_keeps_the_shortest_head_that_reaches_it() -> None:
    logits = np.log(row(0.1, 0.5, 0.3, 0.1))
    assert kept(logits, top_p=0.0) == [1]
    assert kept(logits, top_p=0.49) == [1]
    assert kept(logits, top_p=0.51) == [1, 2]
    assert kept(logits, top_p=0.79) == [1, 2]
    assert kept(logits, top_p=0.81) == [1, 2, 0]
    assert kept(logits, top_p=1.0) == [1, 2, 0, 3]


def test_top_p_is_a_share_of_what_top_k_left() -> None:
    logits = np.log(row(0.1, 0.5, 0.3, 0.1))
    assert kept(logits, top_k=2, top_p=0.6) == [1]  # 0.5 of the 0.8 left is 0.625


def test_min_p_is_relative_to_the_most_likely() -> None:
    logits = np.log(row(0.1, 0.5, 0.3, 0.1))
    assert kept(logits, min_p=0.21) == [1, 2]
    assert kept(logits, min_p=0.19) == [1, 2, 0, 3]
    assert kept(logits, min_p=1.0) == [1]


def test_temperature_acts_before_top_p_and_min_p() -> None:
    logits = np.log(row(0.1, 0.5, 0.3, 0.1))
    assert kept(logits, top_p=0.6, temperature=0.1) == [1]
    assert kept(logits, min_p=0.59, temperature=0.5) == [1]
    assert kept(logits, min_p=0.59, temperature=2.0) == [1, 2]


# ---------------------------------------------------------------- the draw


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.6),
        SamplingParams(temperature=1.7, top_k=5),
        SamplingParams(top_p=0.8),
        SamplingParams(temperature=1.3, min_p=0.2),
    ],
)
def test_draws_follow_the_distribution(params: SamplingParams) -> None:
    """Pearson's chi square, with seeds that are fixed: the bound holds or it does not."""
    generator = np.random.default_rng(5)
    logits = generator.normal(size=9).astype(np.float32)
    num_draws = 4000
    counts = Counter(pick(logits, replace(params, seed=seed)) for seed in range(num_draws))
    token_ids, weights = candidates(logits.astype(np.float64), params)
    wanted = dict(zip(token_ids.tolist(), weights / weights.sum() * num_draws, strict=True))
    assert set(counts) <= set(wanted)
    chi_square = sum((counts[token] - mean) ** 2 / mean for token, mean in wanted.items())
    assert chi_square < 26.1  # the 99.9 % point of 8 degrees of freedom


def test_the_indices_of_one_seed_are_as_good_as_seeds() -> None:
    draws = [draw_uniform(11, index) for index in range(4000)]
    assert all(0 <= draw < 1 for draw in draws)
    counts = np.histogram(draws, bins=10, range=(0, 1))[0]
    assert ((counts - 400) ** 2 / 400).sum() < 27.9  # 99.9 % of 9 degrees of freedom


def test_a_tiny_temperature_is_greedy() -> None:
    logits = row(0.1, 0.5, 0.4, 0.2)
    tokens = [pick(logits, SamplingParams(temperature=1e-6, seed=seed)) for seed in range(50)]
    assert tokens == [1] * 50


sampling_params = st.builds(
    SamplingParams,
    temperature=st.sampled_from((0.0, 0.5, 1.0, 2.0)),
    top_p=st.floats(0.0, 1.0),
    top_k=st.integers(0, 12),
    min_p=st.floats(0.0, 1.0),
    presence_penalty=st.floats(-2.0, 2.0),
    frequency_penalty=st.floats(-2.0, 2.0),
    repetition_penalty=st.floats(0.1, 3.0),
    logit_bias=st.lists(st.tuples(st.integers(0, 9), st.floats(-100, 100)), max_size=3).map(tuple),
    seed=st.integers(0, 2**63 - 1),
    min_tokens=st.integers(0, 3),
    logprobs=st.booleans(),
    num_top_logprobs=st.integers(0, 12),
)
rows = st.lists(st.floats(-30, 30, width=32), min_size=10, max_size=10).map(lambda v: row(*v))
histories = st.lists(st.integers(0, 9), max_size=8).map(tuple)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(logits=rows, params=sampling_params, prompt=histories, output=histories)
def test_it_is_pure_and_always_gives_a_token(
    logits: Logits, params: SamplingParams, prompt: tuple[int, ...], output: tuple[int, ...]
) -> None:
    before = logits.copy()
    first = sample(logits, params, prompt, output, (END,))
    assert first == sample(logits, params, prompt, output, (END,))
    assert (logits == before).all()
    assert 0 <= first.token_id < 10
    assert not (len(output) < params.min_tokens and first.token_id == END)
    assert len(first.top) == (min(params.num_top_logprobs, 10) if params.logprobs else 0)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    logits=rows,
    params=st.builds(
        SamplingParams,
        temperature=st.just(0.0),
        top_p=st.floats(0.0, 1.0),
        top_k=st.integers(0, 12),
        min_p=st.floats(0.0, 1.0),
        stop_token_ids=histories,
        num_top_logprobs=st.integers(0, 3),
        seed=st.integers(0, 9),
    ),
)
def test_a_plain_greedy_row_is_its_argmax(logits: Logits, params: SamplingParams) -> None:
    assert is_plain_greedy(params)
    assert sample(logits, params, (1, 2), (2,), (END,)) == OutputToken(int(logits.argmax()))


def test_plain_greedy_is_found() -> None:
    assert is_plain_greedy(GREEDY)
    changed: list[dict[str, Any]] = [
        {"temperature": 1.0},
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.1},
        {"frequency_penalty": -0.1},
        {"logit_bias": ((1, 1.0),)},
        {"min_tokens": 1},
        {"logprobs": True},
    ]
    assert not any(is_plain_greedy(replace(GREEDY, **change)) for change in changed)


# ---------------------------------------------------------------- log probabilities


def test_logprobs_are_the_models_own_before_any_knob() -> None:
    logits = np.random.default_rng(3).normal(size=20).astype(np.float32) * 4
    params = SamplingParams(
        temperature=0.3,
        top_k=3,
        repetition_penalty=2.0,
        logit_bias=((4, 50.0),),
        logprobs=True,
        num_top_logprobs=5,
    )
    token = sample(logits, params, (1, 2, 3), (4,), (END,))
    wanted = torch.log_softmax(torch.from_numpy(logits).double(), dim=-1)
    assert token.token_id == 4
    assert token.logprob == pytest.approx(float(wanted[4]), abs=1e-12)
    values, token_ids = wanted.topk(5)
    assert [token_id for token_id, _ in token.top] == token_ids.tolist()
    assert [value for _, value in token.top] == pytest.approx(values.tolist(), abs=1e-12)


def test_logprobs_without_top_and_top_longer_than_the_vocabulary() -> None:
    params = replace(GREEDY, logprobs=True)
    token = sample(row(0, 0, 0, 0), params, (), (), (END,))
    assert token.logprob == pytest.approx(-np.log(4))
    assert token.top == ()
    token = sample(row(0, 1, 0, 0), replace(params, num_top_logprobs=20), (), (), (END,))
    assert [token_id for token_id, _ in token.top] == [1, 0, 2, 3]
