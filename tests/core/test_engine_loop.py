"""The engine loop driven with the echo runner: equal tokens whatever the schedule."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.core.engines import CONTEXT, END_TOKEN, PROMPT, Bench, echoed, spec

from banyan_core.engine_messages import (
    BlocksFilled,
    Cancel,
    DrainNow,
    Report,
    RunStep,
    StepFailed,
    Submit,
)
from banyan_core.scheduler import EngineLimits
from banyan_core.types import Finish, SamplingParams

# ---------------------------------------------------------------- tokens and ends


@pytest.mark.parametrize("budget", [1, 3, 7, 512])
def test_tokens_do_not_depend_on_the_chunking(budget: int) -> None:
    bench = Bench(limits=EngineLimits(max_step_tokens=budget, max_running=1))
    asked = spec("a", PROMPT, max_tokens=30)
    bench.feed(Submit(asked, hold=False))
    bench.run()
    assert bench.output("a") == echoed(asked)
    assert bench.finish("a") is Finish.LENGTH
    assert bench.loop.num_used_blocks == 0


def test_a_cache_hit_changes_the_work_but_not_the_tokens() -> None:
    bench = Bench()
    for name in ("a", "b"):
        bench.feed(Submit(spec(name, PROMPT), hold=False))
        bench.run()
    assert bench.output("a") == bench.output("b")
    assert bench.figures("a").num_cached_tokens == 0
    assert bench.figures("b").num_cached_tokens == 20
    assert bench.figures("b").num_computed_tokens == 1 + 7


def test_a_prompt_of_full_blocks_still_computes_its_last_token() -> None:
    bench = Bench()
    prompt = PROMPT[:8]
    for name in ("a", "b"):
        bench.feed(Submit(spec(name, prompt), hold=False))
        bench.run()
    assert bench.figures("b").num_cached_tokens == 4
    assert bench.output("b") == echoed(spec("b", prompt))


def test_another_salt_shares_nothing() -> None:
    bench = Bench()
    bench.feed(Submit(spec("a", PROMPT), hold=False))
    bench.run()
    bench.feed(Submit(replace(spec("b", PROMPT), salt=b"other"), hold=False))
    bench.run()
    assert bench.figures("b").num_cached_tokens == 0


def test_work_goes_on_from_given_output_tokens() -> None:
    whole = spec("whole", PROMPT, max_tokens=12)
    given_tokens = tuple(echoed(whole)[:5])
    bench = Bench()
    bench.feed(Submit(spec("rest", PROMPT, output=given_tokens, max_tokens=12), hold=False))
    bench.run()
    assert bench.output("rest") == echoed(whole)[5:]
    assert sorted(bench.tokens["rest"]) == list(range(5, 12))


ENDING_PROMPT = (1, 2, END_TOKEN, 4)


@pytest.mark.parametrize(
    ("sampling", "tokens", "finish"),
    [
        (SamplingParams(max_tokens=9), [1, 2, END_TOKEN], Finish.STOP),
        (SamplingParams(max_tokens=2), [1, 2], Finish.LENGTH),
        (SamplingParams(max_tokens=3), [1, 2, END_TOKEN], Finish.STOP),
        (SamplingParams(max_tokens=5, ignore_eos=True), [1, 2, END_TOKEN, 4, 1], Finish.LENGTH),
        (SamplingParams(max_tokens=9, stop_token_ids=(2,)), [1, 2], Finish.STOP),
        (
            SamplingParams(max_tokens=9, stop_token_ids=(4,), ignore_eos=True),
            [1, 2, END_TOKEN, 4],
            Finish.STOP,
        ),
        (SamplingParams(max_tokens=8, min_tokens=4), [1, 2, 999, 4, 1, 2, 999], Finish.STOP),
    ],
)
def test_ends(sampling: SamplingParams, tokens: list[int], finish: Finish) -> None:
    bench = Bench()
    asked = spec("a", ENDING_PROMPT, sampling=replace(sampling, temperature=0))
    bench.feed(Submit(asked, hold=False))
    bench.run()
    assert (bench.output("a"), bench.finish("a")) == (tokens, finish)


def test_the_context_limit_ends_with_length() -> None:
    bench = Bench()
    prompt = tuple(range(CONTEXT - 3))
    bench.feed(Submit(spec("a", prompt, max_tokens=50), hold=False))
    bench.run()
    assert len(bench.output("a")) == 3
    assert bench.finish("a") is Finish.LENGTH


def test_a_sequence_that_is_already_complete_ends_at_once() -> None:
    bench = Bench()
    bench.feed(Submit(spec("a", PROMPT, output=PROMPT[:4], max_tokens=4), hold=False))
    assert bench.finish("a") is Finish.LENGTH and bench.output("a") == []
    assert bench.loop.idle


def test_seeded_tokens_depend_on_prompt_seed_and_index_only() -> None:
    def run(seed: int, budget: int) -> list[int]:
        bench = Bench(limits=EngineLimits(max_step_tokens=budget, max_running=1))
        sampling = SamplingParams(temperature=0.7, seed=seed, max_tokens=20)
        asked = spec("a", PROMPT, sampling=sampling)
        bench.feed(Submit(asked, hold=False))
        bench.run()
        assert bench.output("a") == echoed(asked)
        return bench.output("a")

    assert run(1, 2) == run(1, 512) != run(2, 512)


def test_a_prompt_larger_than_the_pool_fails_and_says_why() -> None:
    bench = Bench(num_blocks=4)
    bench.feed(Submit(spec("a", PROMPT), hold=False))
    report = bench.finished["a"]
    assert report.finish is Finish.FAILED
    assert report.error == "21 tokens need 6 KV blocks; this worker has 4"


def test_a_sequence_that_outgrows_the_pool_fails_and_says_why() -> None:
    bench = Bench(num_blocks=4)
    bench.feed(Submit(spec("a", PROMPT[:14], max_tokens=30), hold=False))
    bench.run()
    report = bench.finished["a"]
    assert report.finish is Finish.FAILED and "this worker has 4" in report.error
    assert len(bench.output("a")) == 3, "up to the last slot it went on"
    assert bench.loop.num_used_blocks == 0


def test_a_runner_that_raises_fails_its_sequences_and_no_others() -> None:
    bench = Bench(limits=EngineLimits(max_running=1))
    bench.feed(Submit(spec("a", PROMPT), hold=False), Submit(spec("b", PROMPT), hold=False))
    assert bench.plan is not None
    number, bench.plan = bench.plan.number, None
    bench.feed(StepFailed(number, "out of memory"))
    assert bench.finished["a"].error == "out of memory"
    bench.run()
    assert bench.finish("b") is Finish.LENGTH and bench.loop.num_used_blocks == 0


def test_the_same_submission_twice_runs_once() -> None:
    bench = Bench()
    submit = Submit(spec("a", PROMPT), hold=False)
    bench.feed(submit, submit)
    bench.run()
    assert bench.output("a") == echoed(submit.spec)


# ---------------------------------------------------------------- steps, cancels, drain


def test_the_next_step_leaves_with_the_report_of_the_last() -> None:
    bench = Bench(goes_on=False)
    bench.feed(Submit(spec("a", PROMPT), hold=False))
    kinds = [type(command) for command in bench.finish_step()]
    assert kinds == [BlocksFilled, Report, RunStep]


def test_decodes_come_before_prompts_and_prompts_fill_the_budget() -> None:
    bench = Bench(limits=EngineLimits(max_step_tokens=8, max_running=4))
    bench.feed(Submit(spec("a", PROMPT[:4]), hold=False))
    bench.feed(Submit(spec("b", PROMPT), hold=False))
    bench.finish_step()
    assert bench.plan is not None
    assert [(i.sequence_id, len(i.token_ids)) for i in bench.plan.items] == [("a", 1), ("b", 7)]


def test_a_cancel_takes_effect_when_the_step_is_back() -> None:
    bench = Bench()
    bench.feed(Submit(spec("a", PROMPT), hold=False))
    bench.feed(Cancel(("a", "nobody")))
    assert "a" not in bench.finished and bench.loop.num_used_blocks == 6
    bench.finish_step()
    assert bench.finish("a") is Finish.CANCELLED and bench.output("a") == []
    assert bench.loop.idle and bench.loop.num_used_blocks == 0


def test_a_waiting_sequence_is_cancelled_at_once() -> None:
    bench = Bench(limits=EngineLimits(max_running=1))
    bench.feed(Submit(spec("a", PROMPT), hold=False), Submit(spec("b", PROMPT), hold=False))
    bench.feed(Cancel(("b",)))
    assert bench.finish("b") is Finish.CANCELLED


def test_a_deadline_cancels_and_is_the_next_wake() -> None:
    bench = Bench()
    bench.feed(Submit(spec("a", PROMPT, max_tokens=100, remaining_ns=5_000_000), hold=False))
    assert bench.wake == 5_000_000
    bench.run()
    report = bench.finished["a"]
    assert (report.finish, report.error) == (Finish.CANCELLED, "its deadline passed")
    assert 0 < len(bench.output("a")) < 100


def test_drain_ends_everything_as_drained_with_the_tokens_so_far() -> None:
    bench = Bench(limits=EngineLimits(max_running=1))
    bench.feed(Submit(spec("a", PROMPT), hold=False), Submit(spec("b", PROMPT), hold=False))
    bench.finish_step()
    bench.feed(DrainNow())
    assert bench.finish("b") is Finish.DRAINED
    bench.run()
    assert bench.finish("a") is Finish.DRAINED and bench.output("a") == [PROMPT[0]]
    assert bench.loop.num_used_blocks == 0


def test_figures_partition_the_time() -> None:
    bench = Bench(limits=EngineLimits(max_running=1))
    bench.feed(
        Submit(spec("a", PROMPT), hold=False, fetch_ns=77, num_fetched_blocks=2),
        Submit(spec("b", PROMPT), hold=False),
    )
    bench.run()
    first, second = bench.figures("a"), bench.figures("b")
    assert (first.fetch_ns, first.num_fetched_blocks, first.queue_ns) == (77, 2, 0)
    assert second.queue_ns == first.compute_ns
    assert second.queue_ns + second.compute_ns == bench.now


def test_load_counts_what_is_still_to_compute() -> None:
    bench = Bench(num_blocks=20, limits=EngineLimits(max_step_tokens=8, max_running=1))
    bench.feed(Submit(spec("a", PROMPT), hold=False), Submit(spec("b", PROMPT[:5]), hold=False))
    bench.finish_step()
    load = bench.loop.load(bench.now)
    assert (load.num_running, load.num_waiting) == (1, 1)
    assert load.num_waiting_tokens == 13 + 5
    assert load.num_free_blocks == 14
    assert load.step_s > 0 and load.prefill_tokens_per_s == pytest.approx(8 / load.step_s)
