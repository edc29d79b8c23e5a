"""Steps that begin by themselves: which do, that they are the very steps that the loop would have
planned, and what becomes of one that was prepared when something comes up."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.engines import END_TOKEN, PROMPT, Bench, echoed, spec

from banyan_core.engine_messages import (
    BlocksEvicted,
    Cancel,
    DrainNow,
    EngineFact,
    ImportWanted,
    Prepare,
    Release,
    Report,
    Revoke,
    RunStep,
    StepBegun,
    StepFailed,
    Submit,
)
from banyan_core.next_step import NextItem, NextStep
from banyan_core.runner import PlanItem, Sampled, StepPlan, StepResult
from banyan_core.scheduler import EngineLimits
from banyan_core.types import Finish, OutputToken, SamplingParams, SequenceSpec


def started(
    *specs: SequenceSpec, num_blocks: int = 64, limits: EngineLimits | None = None
) -> Bench:
    """All of these submitted, the first step outstanding."""
    bench = Bench(num_blocks, limits)
    bench.feed(*(Submit(one, hold=False) for one in specs))
    return bench


def test_where_all_decode_every_step_after_the_first_begins_by_itself() -> None:
    asked = [spec(f"r{n}/0/0", PROMPT[n:], max_tokens=20) for n in range(4)]
    bench = started(*asked)
    bench.run()
    assert all(bench.output(one.sequence_id) == echoed(one) for one in asked)
    assert len(bench.plans) == 20 and bench.num_begun == 19


def test_the_next_step_is_prepared_before_the_last_is_heard_of_and_told_after() -> None:
    bench = started(spec("a", PROMPT, max_tokens=20))
    assert isinstance(bench.commands[-1], Prepare)
    bench.compute()
    assert bench.plan is not None and bench.plan.number == 2
    kinds = [type(command) for command in bench.hear()]
    assert kinds[0] is StepBegun and Report in kinds and RunStep not in kinds


def test_who_ends_is_left_out_and_the_others_go_on() -> None:
    short, long = spec("short", PROMPT, max_tokens=3), spec("long", PROMPT[1:], max_tokens=12)
    stops = SamplingParams(temperature=0, max_tokens=12, stop_token_ids=(PROMPT[6],))
    stopping = replace(spec("stopping", PROMPT[2:]), sampling=stops)
    bench = started(short, long, stopping)
    bench.run()
    assert bench.num_begun == len(bench.plans) - 1 == 11
    assert bench.output("short") == echoed(short) and bench.output("long") == echoed(long)
    assert bench.output("stopping") == list(PROMPT[2:7])
    closed = [sequence_id for plan in bench.plans for sequence_id in plan.closed]
    assert closed == ["short", "stopping"], "told once, with the next plan that can"


def test_where_someone_waits_an_end_is_room_for_him() -> None:
    first, last = spec("first", PROMPT, max_tokens=5), spec("last", PROMPT[1:], max_tokens=5)
    bench = started(first, last, limits=EngineLimits(max_running=1))
    bench.run()
    assert bench.output("last") == echoed(last)
    assert [plan.items[0].sequence_id for plan in bench.plans] == ["first"] * 5 + ["last"] * 5
    begun = [plan.number for plan in bench.plans if StepBegun(plan) in bench.commands]
    assert begun == [2, 3, 4, 5, 7, 8, 9, 10], "all but those that begin a sequence"


def test_who_waits_for_blocks_has_them_in_the_step_after_they_are_free() -> None:
    bench = Bench(num_blocks=10)
    bench.feed(Submit(spec("held", PROMPT), hold=True))
    bench.run()
    bench.feed(Submit(spec("a", (1, 2, 3), max_tokens=9), hold=False))
    bench.feed(Submit(spec("b", tuple(range(30, 50)), max_tokens=2), hold=False))
    bench.finish_step()
    bench.finish_step()
    assert bench.num_begun == 0 and bench.loop.load(0).num_waiting == 1
    bench.feed(Release(("held",)))
    bench.finish_step()
    assert [item.sequence_id for item in bench.plans[-1].items] == ["a", "b"]


def test_an_arrival_is_in_the_very_next_step() -> None:
    bench = started(spec("a", PROMPT, max_tokens=20))
    bench.finish_step()
    commands = bench.feed(Submit(spec("b", PROMPT[3:]), hold=False))
    assert commands == [Revoke(3)]
    bench.finish_step()
    assert [item.sequence_id for item in bench.plans[-1].items] == ["a", "b"]
    assert bench.commands.count(Revoke(3)) == 1


def test_chunks_have_no_step_prepared() -> None:
    limits = EngineLimits(max_step_tokens=8, max_running=2)
    bench = started(spec("a", PROMPT, max_tokens=4), limits=limits)
    assert bench.next_step is None
    bench.run()
    assert len(bench.plans) == 3 + 3 and bench.num_begun == 3


@pytest.mark.parametrize("fact", [Cancel(("a",)), DrainNow()])
def test_who_is_to_end_is_computed_no_more(fact: EngineFact) -> None:
    bench = started(spec("a", PROMPT, max_tokens=20))
    bench.finish_step()
    assert bench.feed(fact) == [Revoke(3)]
    bench.finish_step()
    assert bench.plan is None and len(bench.plans) == 2
    assert bench.finish("a") in (Finish.CANCELLED, Finish.DRAINED)
    assert bench.loop.idle and bench.loop.num_used_blocks == 0


def test_a_deadline_takes_back_what_was_prepared() -> None:
    bench = started(spec("a", PROMPT, max_tokens=100, remaining_ns=2_000_000))
    bench.now = 2_000_000
    assert bench.feed() == [Revoke(2)]


@pytest.mark.parametrize("fact", [Cancel(("a",)), DrainNow()])
def test_what_comes_too_late_for_the_step_that_began_ends_with_that(fact: EngineFact) -> None:
    """No token that was sampled meanwhile is lost or said twice, and no block is left."""
    bench = started(spec("a", PROMPT, max_tokens=20), spec("b", PROMPT[1:], max_tokens=20))
    bench.finish_step()
    bench.compute()
    bench.feed(fact)
    bench.hear()
    assert "a" not in bench.finished and bench.output("a") == list(PROMPT[:2])
    bench.finish_step()
    assert bench.finish("a") in (Finish.CANCELLED, Finish.DRAINED)
    assert bench.output("a") == list(PROMPT[:2])
    bench.run()
    assert bench.loop.idle and bench.loop.num_used_blocks == 0


def test_a_step_that_began_and_failed_fails_its_sequences() -> None:
    bench = started(spec("a", PROMPT, max_tokens=20))
    bench.finish_step()
    assert bench.plan is not None and bench.num_begun == 1
    number, bench.plan = bench.plan.number, None
    bench.feed(StepFailed(number, "out of memory"))
    assert bench.finished["a"].error == "out of memory" and bench.output("a") == [PROMPT[0]]
    assert bench.loop.idle and bench.loop.num_used_blocks == 0


def test_what_was_prepared_for_a_step_that_failed_is_not_run() -> None:
    bench = started(spec("a", PROMPT, max_tokens=20))
    assert bench.next_step is not None
    bench.plan = None
    bench.feed(StepFailed(1, "out of memory"))
    again = spec("b", PROMPT, max_tokens=5)
    bench.feed(Submit(again, hold=False))
    bench.run()
    assert bench.output("b") == echoed(again) and bench.loop.num_used_blocks == 0


def test_without_a_block_for_every_token_nothing_is_prepared() -> None:
    asked = [spec(f"r{n}/0/0", tuple(range(n, n + 8)), max_tokens=16) for n in range(3)]
    bench = started(*asked, num_blocks=9)
    bench.run()
    assert all(bench.output(one.sequence_id) == echoed(one) for one in asked)
    assert bench.loop.totals.num_preemptions > 0 and bench.num_begun > 0


def test_what_a_prepared_step_evicts_is_told_before_it_can_begin() -> None:
    bench = Bench(num_blocks=7)
    bench.feed(Submit(spec("old", PROMPT[:17], max_tokens=1), hold=False))
    bench.run()
    num_before = len(bench.commands)
    bench.feed(Submit(spec("new", tuple(range(8)), max_tokens=20), hold=False))
    bench.run()
    after = bench.commands[num_before:]
    evictions = [place for place, one in enumerate(after) if isinstance(one, BlocksEvicted)]
    assert any(isinstance(after[place + 1], Prepare) for place in evictions)


def test_imports_and_releases_do_not_disturb() -> None:
    bench = started(spec("a", PROMPT, max_tokens=20))
    bench.feed(ImportWanted("import", (b"h",)))
    bench.feed(Release(("import",)))
    bench.run()
    assert bench.num_begun == 19


def test_no_drafts_are_passed_over() -> None:
    """Where a draft may pay the loop plans: the steps are those of a loop that always does."""
    params = SamplingParams(temperature=0.8, seed=4, max_tokens=80)
    asked = [spec(f"s{n}", tuple(range(n, n + 9)), sampling=params) for n in range(2)]
    plans = []
    for goes_on in (True, False):
        bench = Bench(limits=EngineLimits(max_draft_tokens=4), goes_on=goes_on)
        bench.feed(*(Submit(one, hold=False) for one in asked))
        bench.run()
        assert all(bench.output(one.sequence_id) == echoed(one) for one in asked)
        plans.append([replace(plan, closed=()) for plan in bench.plans])
        assert any(item.num_draft_tokens for plan in bench.plans for item in plan.items)
        assert (bench.num_begun > 0) is goes_on
    assert plans[0] == plans[1]


def next_step(*, someone_waits: bool) -> NextStep:
    """After step 7: `a` ends with token 5, `b` may be drafted after token 6."""
    items = (NextItem("a", 10, (), (5,), ()), NextItem("b", 4, (3,), (), (6,)))
    return NextStep(8, items, ("gone",), someone_waits)


def sampled(name: str, token_id: int, *, finished: bool = False) -> Sampled:
    return Sampled(name, (OutputToken(token_id),), finished=finished)


def test_a_plan_has_the_tokens_put_in() -> None:
    result = StepResult(7, (sampled("b", 2), sampled("a", 1)))
    items = (PlanItem("a", (1,), 10, True), PlanItem("b", (2,), 4, True, (3,)))
    for someone_waits in (True, False):
        plan = next_step(someone_waits=someone_waits).plan(result)
        assert plan == StepPlan(8, items, (), ("gone",))


@pytest.mark.parametrize(
    "ended", [sampled("a", 5), sampled("a", 1, finished=True), Sampled("a", (), "NaN")]
)
def test_a_plan_is_without_those_that_end_unless_someone_waits(ended: Sampled) -> None:
    result = StepResult(7, (ended, sampled("b", 2)))
    plan = next_step(someone_waits=False).plan(result)
    assert plan is not None and [item.sequence_id for item in plan.items] == ["b"]
    assert next_step(someone_waits=True).plan(result) is None


@pytest.mark.parametrize(
    "result",
    [
        StepResult(6, (sampled("a", 1), sampled("b", 2))),
        StepResult(7, (sampled("a", 1), sampled("b", 6))),
        StepResult(7, ()),
    ],
    ids=["another step", "a draft may pay", "all have ended"],
)
def test_there_is_no_plan(result: StepResult) -> None:
    assert next_step(someone_waits=False).plan(result) is None


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_step_that_begins_by_itself_is_the_one_that_would_be_planned(data: st.DataObject) -> None:
    """Against a copy of the loop that is not told that the next step has begun."""
    limits = EngineLimits(
        max_step_tokens=data.draw(st.integers(4, 40)), max_running=data.draw(st.integers(1, 4))
    )
    bench = Bench(data.draw(st.integers(8, 24)), limits)
    num_compared = 0
    for number in range(data.draw(st.integers(1, 6))):
        ends = (END_TOKEN,) if data.draw(st.booleans()) else ()
        num = data.draw(st.integers(1, 12))
        prompt = (*range(10 * number, 10 * number + num), *ends)
        one = spec(f"r{number}/0/0", prompt, max_tokens=data.draw(st.integers(1, 20)))
        bench.feed(Submit(one, hold=False))
        for _ in range(data.draw(st.integers(0, 12))):
            if bench.plan is None:
                break
            bench.compute()
            assert bench.done is not None
            if bench.done.went_on:
                planning = copy.deepcopy(bench.loop)
                told = replace(bench.done, went_on=False)
                run = planning.step(bench.now, (told,)).commands[-1]
                assert isinstance(run, RunStep) and bench.plan is not None
                assert replace(run.plan, closed=()) == replace(bench.plan, closed=())
                num_compared += 1
            bench.hear()
    bench.run()
    assert bench.loop.idle and bench.loop.num_used_blocks == 0
    assert num_compared <= bench.num_begun
