"""Sampling by its definition: each knob alone, what order they act in, and that it is pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from banyan_core.types import OutputToken, SamplingParams
from banyan_engine.draw import Logits
from banyan_engine.history import History
from banyan_engine.kernels import native
from banyan_engine.sampler import SamplingError, draw_uniform
from banyan_engine.sampler import sample as fast_sample
from banyan_engine.sampling_reference import candidates
from banyan_engine.sampling_reference import sample as slow_sample

GREEDY = SamplingParams(temperature=0.0)
END = 3


@pytest.fixture(scope="module", params=["helper", "numpy"], autouse=True)
def _by(request: pytest.FixtureRequest) -> Iterator[None]:
    """Everything here holds with the compiled helper and without it."""
    library = request.getfixturevalue("helper") if request.param == "helper" else None
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(native, "library", lambda: library)
        yield


def row(*values: float) -> Logits:
    return np.array(values, dtype=np.float32)


def sample(
    logits: Logits,
    params: SamplingParams,
    prompt: tuple[int, ...] = (),
    output: tuple[int, ...] = (),
    allowed: list[bool] | None = None,
) -> OutputToken:
    """By the sampler and by its judge: the same token, or the same error."""
    history = History(params, prompt, output)
    mask = None if allowed is None else np.array(allowed)
    try:
        slow = slow_sample(logits, params, prompt, output, (END,), allowed)
    except SamplingError as error:
        with pytest.raises(SamplingError, match=re.escape(str(error))):
            fast_sample(logits, params, history, (END,), mask)
        raise
    fast = fast_sample(logits, params, history, (END,), mask)
    assert fast.token_id == slow.token_id
    assert fast.logprob == pytest.approx(slow.logprob, abs=1e-12)
    assert [one for one, _ in fast.top] == [one for one, _ in slow.top]
    assert [v for _, v in fast.top] == pytest.approx([v for _, v in slow.top], abs=1e-12)
    return fast


def pick(
    logits: Logits,
    params: SamplingParams = GREEDY,
    prompt: tuple[int, ...] = (),
    output: tuple[int, ...] = (),
) -> int:
    return sample(logits, params, prompt, output).token_id


def kept(logits: Logits, **values: Any) -> list[int]:
    token_ids, _ = candidates(logits, SamplingParams(**values))
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


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_an_error(bad: float) -> None:
    with pytest.raises(SamplingError, match="not finite"):
        pick(row(0, bad, 1, 2))


@pytest.mark.parametrize("penalty", [5e-324, 1e-39])
def test_a_penalty_that_leaves_no_number_is_an_error_of_this_row(penalty: float) -> None:
    params = SamplingParams(repetition_penalty=penalty)
    with pytest.raises(SamplingError, match="not finite after penalties"):
        fast_sample(row(1, 2, 3, 0), params, History(params, (1,), ()), (END,))


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
    token_ids, weights = candidates(logits, params)
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


# ---------------------------------------------------------------- the sampler and its judge

words = st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple)
sampling_params = st.builds(
    SamplingParams,
    temperature=st.sampled_from((0.0, 1e-6, 0.01, 0.5, 1.0, 2.0, 50.0)),
    top_p=st.sampled_from((0.0, 0.1, 0.5, 0.9, 0.999, 1.0)) | st.floats(0.0, 1.0),
    top_k=st.integers(0, 12),
    min_p=st.sampled_from((0.0, 0.0, 0.05, 1.0)) | st.floats(0.0, 1.0),
    typical_p=st.sampled_from((1.0, 1.0, 0.2, 0.9)),
    presence_penalty=st.sampled_from((0.0, 0.5, -2.0)),
    frequency_penalty=st.sampled_from((0.0, 0.3, -2.0)),
    repetition_penalty=st.sampled_from((1.0, 1.0, 0.5, 1.3)),
    logit_bias=st.lists(st.tuples(st.integers(0, 9), st.floats(-100, 100)), max_size=3).map(tuple),
    seed=st.integers(0, 2**63 - 1),
    min_tokens=st.integers(0, 3),
    stop_token_ids=st.sampled_from(((), (1, 2))),
    logprobs=st.booleans(),
    num_top_logprobs=st.integers(0, 12),
    bad_words=st.lists(words, max_size=2).map(tuple),
    allowed_token_ids=st.sampled_from(((), (), (0, 4, 5, 7, 9))),
)
histories = st.lists(st.integers(0, 9), max_size=8).map(tuple)


@st.composite
def rows(draw: st.DrawFn) -> Logits:
    """Few and many tokens, likely and unlikely ones, with and without equals."""
    num_tokens = draw(st.sampled_from((10, 11, 500, 512, 1300)))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = generator.normal(size=num_tokens) * draw(st.sampled_from((0.0, 0.1, 3.0, 30.0)))
    if draw(st.booleans()):
        logits = logits.round()
    if draw(st.booleans()):
        logits[generator.integers(0, num_tokens, num_tokens // 3)] = -np.inf
        logits[0] = 0.0
    return logits.astype(np.float32)


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(
    logits=rows(),
    params=sampling_params,
    prompt=histories,
    output=histories,
    masked=st.sets(st.integers(0, 9), max_size=9),
)
def test_the_sampler_is_its_judge_whatever_is_asked(
    logits: Logits,
    params: SamplingParams,
    prompt: tuple[int, ...],
    output: tuple[int, ...],
    masked: set[int],
) -> None:
    before = logits.copy()
    allowed = [token not in masked for token in range(len(logits))] if masked else None
    try:
        first = sample(logits, params, prompt, output, allowed)
    except SamplingError as error:
        assert str(error) == "logits: every token is masked"
        return
    assert (logits == before).all()
    assert first == sample(logits, params, prompt, output, allowed)
    assert first.token_id not in masked
    assert not (len(output) < params.min_tokens and first.token_id == END)
    assert not params.allowed_token_ids or first.token_id in params.allowed_token_ids


def test_a_whole_vocabulary_is_drawn_as_the_judge_draws_it() -> None:
    """Many runs of sums, flat and peaked, with and without a head that reaches top-p."""
    generator = np.random.default_rng(8)
    for seed, scale in enumerate((0.01, 1.0, 4.0)):
        logits = (generator.normal(size=20_000) * scale).astype(np.float32)
        for params in (
            SamplingParams(seed=seed),
            SamplingParams(seed=seed, top_p=0.9),
            SamplingParams(seed=seed, top_p=0.3, top_k=5000),
            SamplingParams(seed=seed, typical_p=0.5, min_p=0.01),
        ):
            sample(logits, params)
            sample(logits.round(1), params)  # with many equals where a head ends


def test_bad_words_are_never_completed() -> None:
    params = replace(GREEDY, bad_words=((), (1,), (2, 0), (0, 2, 2)))
    assert pick(row(3, 9, 2, 1), params) == 0
    assert pick(row(3, 9, 2, 1), params, output=(2,)) == 2
    assert pick(row(0, 9, 2, 1), params, output=(0, 2)) == END
    assert pick(row(0, 9, 2, 1), params, prompt=(0, 2)) == 2, "the prompt may hold them"


def test_only_allowed_tokens_are_drawn() -> None:
    assert pick(row(3, 9, 2, 1), replace(GREEDY, allowed_token_ids=(0, 2))) == 0


def test_typical_p_keeps_the_tokens_of_usual_surprise() -> None:
    """Entropy 0.97 nats; the surprise of 0.3 is 1.20, of 0.6 it is 0.51, the rest is far off."""
    logits = np.log(row(0.6, 0.3, 0.05, 0.05))
    assert kept(logits, typical_p=0.2) == [1]
    assert kept(logits, typical_p=0.5) == [0, 1]
    assert kept(logits, typical_p=1.0) == [0, 1, 2, 3]


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
    token = sample(logits, params, (1, 2, 3), (4,))
    wanted = torch.log_softmax(torch.from_numpy(logits).double(), dim=-1)
    assert token.token_id == 4
    assert token.logprob == pytest.approx(float(wanted[4]), abs=1e-12)
    values, token_ids = wanted.topk(5)
    assert [token_id for token_id, _ in token.top] == token_ids.tolist()
    assert [value for _, value in token.top] == pytest.approx(values.tolist(), abs=1e-12)


def test_logprobs_without_top_and_top_longer_than_the_vocabulary() -> None:
    params = replace(GREEDY, logprobs=True)
    token = sample(row(0, 0, 0, 0), params)
    assert token.logprob == pytest.approx(-np.log(4))
    assert token.top == ()
    token = sample(row(0, 1, 0, 0), replace(params, num_top_logprobs=20))
    assert [token_id for token_id, _ in token.top] == [1, 0, 2, 3]
