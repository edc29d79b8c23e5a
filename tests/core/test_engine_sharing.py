"""Sequences of one engine beside each other: choices of a request, caches, preemption."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.core.engines import PROMPT, Bench, echoed, spec

from banyan_core.engine_messages import Submit
from banyan_core.scheduler import EngineLimits
from banyan_core.types import Adapter, SamplingParams


def test_choices_compute_their_prompt_once() -> None:
    bench = Bench(limits=EngineLimits(max_step_tokens=8, max_running=4))
    asked = [
        spec(f"r/{choice}/0", PROMPT, sampling=SamplingParams(seed=choice, max_tokens=9))
        for choice in range(3)
    ]
    other = spec("other/0/0", PROMPT[::-1], max_tokens=2)
    bench.feed(*(Submit(one, hold=False) for one in asked), Submit(other, hold=False))
    bench.run()
    for one in (*asked, other):
        assert bench.output(one.sequence_id) == echoed(one)
    assert [bench.figures(one.sequence_id).num_cached_tokens for one in asked] == [0, 20, 20]
    assert [bench.figures(one.sequence_id).num_computed_tokens for one in asked] == [29, 9, 9]
    assert sum(len(plan.copies) for plan in bench.plans) == 0, (
        "a last block of one token has no copy"
    )


@pytest.mark.parametrize("num_prompt", [2, 3, 7, 8, 20])
def test_a_choice_copies_the_block_in_which_its_prompt_ends(num_prompt: int) -> None:
    bench = Bench()
    asked = [spec(f"r/{choice}/0", PROMPT[:num_prompt], max_tokens=12) for choice in range(3)]
    bench.feed(*(Submit(one, hold=False) for one in asked))
    bench.run()
    assert sum(len(plan.copies) for plan in bench.plans) == 2
    for one in asked:
        assert bench.output(one.sequence_id) == echoed(one)
    cached = [bench.figures(one.sequence_id).num_cached_tokens for one in asked]
    assert cached == [0, num_prompt - 1, num_prompt - 1]


def test_another_prompt_salt_or_adapter_is_no_sibling() -> None:
    bench = Bench()
    base = spec("r/0/0", PROMPT[:7], max_tokens=8)
    others = [
        replace(base, sequence_id="r/1/0", salt=b"other"),
        replace(base, sequence_id="r/2/0", adapter=Adapter("a", b"d")),
        replace(base, sequence_id="r/3/0", prompt_token_ids=PROMPT[1:8]),
    ]
    bench.feed(*(Submit(one, hold=False) for one in (base, *others)))
    assert bench.plan is not None and len(bench.plan.items) == 4
    bench.run()
    assert not any(plan.copies for plan in bench.plans)


def test_a_prompt_with_logprobs_is_computed_whole_in_small_chunks() -> None:
    bench = Bench()
    prompt = tuple(range(100, 250))
    bench.feed(Submit(spec("warm", prompt, max_tokens=1), hold=False))
    bench.run()
    params = SamplingParams(temperature=0, max_tokens=3, num_prompt_logprobs=1)
    bench.feed(Submit(spec("a", prompt, sampling=params), hold=False))
    bench.run()
    assert bench.stepped["a"][:3] == [(0, 64), (64, 128), (128, 150)]
    again = spec("b", prompt, output=(prompt[0],), sampling=params)
    bench.feed(Submit(again, hold=False))
    bench.run()
    assert bench.figures("b").num_cached_tokens == 148, "they went out with the first token"


def test_the_last_to_arrive_is_preempted_and_says_the_same() -> None:
    bench = Bench(num_blocks=9, limits=EngineLimits(max_running=4))
    asked = [spec(name, tuple(range(i, i + 8)), max_tokens=16) for i, name in enumerate("abc")]
    bench.feed(*(Submit(one, hold=False) for one in asked))
    bench.run()
    assert all(bench.output(one.sequence_id) == echoed(one) for one in asked)
    assert bench.figures("a").num_preemptions == 0
    assert bench.figures("c").num_preemptions > 0
    assert bench.loop.totals.num_preemptions > 0
    assert bench.loop.num_used_blocks == 0


def test_priority_goes_before_arrival() -> None:
    bench = Bench(limits=EngineLimits(max_running=1))
    bench.feed(
        Submit(spec("late", PROMPT, priority=5), hold=False),
        Submit(spec("early", PROMPT, priority=-1), hold=False),
    )
    bench.run()
    assert list(bench.finished) == ["early", "late"]
