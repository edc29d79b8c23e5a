"""The engine loop driven with the echo runner: equal tokens whatever the schedule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from tests.core.engines import BLOCK_SIZE, CONTEXT, END_TOKEN, Bench, echoed, spec

from banyan_core.engine_messages import (
    BlocksEvicted,
    BlocksFilled,
    Cancel,
    DrainNow,
    Held,
    ImportDone,
    ImportReady,
    ImportRefused,
    ImportWanted,
    Pinned,
    PinWanted,
    Release,
    Report,
    RunStep,
    StepFailed,
    Submit,
)
from banyan_core.hashing import block_hashes
from banyan_core.policies.batching import BatchingPolicy, Chunked, DecodeFirst, PrefillFirst
from banyan_core.policies.engine_admission import EngineAdmissionPolicy, PastFuture, Watermark
from banyan_core.scheduler import EngineLimits
from banyan_core.types import Adapter, Finish, SamplingParams, SequenceSpec

PROMPT = tuple(range(100, 121))


def hashes_of(prompt: tuple[int, ...]) -> tuple[bytes, ...]:
    return block_hashes(prompt, BLOCK_SIZE, b"salt")


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
    bench = Bench()
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


# ---------------------------------------------------------------- choices of one request


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
    plans = [command.plan for command in bench.commands if isinstance(command, RunStep)]
    assert sum(len(plan.copies) for plan in plans) == 0, "a last block of one token has no copy"


@pytest.mark.parametrize("num_prompt", [2, 3, 7, 8, 20])
def test_a_choice_copies_the_block_in_which_its_prompt_ends(num_prompt: int) -> None:
    bench = Bench()
    asked = [spec(f"r/{choice}/0", PROMPT[:num_prompt], max_tokens=12) for choice in range(3)]
    bench.feed(*(Submit(one, hold=False) for one in asked))
    bench.run()
    plans = [command.plan for command in bench.commands if isinstance(command, RunStep)]
    assert sum(len(plan.copies) for plan in plans) == 2
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
    assert not any(c.plan.copies for c in bench.commands if isinstance(c, RunStep))


# ---------------------------------------------------------------- prompt logprobs


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


# ---------------------------------------------------------------- preemption


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


# ---------------------------------------------------------------- hold, pins, imports


def test_a_held_sequence_keeps_its_blocks_until_release() -> None:
    bench = Bench()
    bench.feed(Submit(spec("a", PROMPT), hold=True))
    commands = bench.finish_step()
    assert Held("a", (PROMPT[0],)) in commands
    assert bench.output("a") == [PROMPT[0]] and bench.finish("a") is Finish.LENGTH
    assert bench.loop.num_used_blocks == 6 and bench.loop.lease_ids() == ("a",)
    bench.feed(Release(("a",)))
    assert bench.loop.num_used_blocks == 0


def test_a_cancel_gives_back_what_is_held() -> None:
    bench = Bench()
    bench.feed(Submit(spec("a", PROMPT), hold=True))
    bench.run()
    bench.feed(Cancel(("a",)))
    assert bench.loop.num_used_blocks == 0


def test_a_cancel_that_comes_with_the_end_of_the_step_leaves_nothing_held() -> None:
    bench = Bench()
    bench.feed(Submit(spec("a", PROMPT), hold=True))
    bench.finish_step(Cancel(("a",)))
    assert not bench.loop.is_held("a") and bench.loop.num_used_blocks == 0


def test_an_import_leaves_a_block_for_each_that_runs() -> None:
    bench = Bench(num_blocks=11)
    bench.feed(Submit(spec("a", PROMPT, max_tokens=6), hold=False))
    (refused,) = bench.feed(ImportWanted("import", hashes_of(tuple(range(20)))))
    assert isinstance(refused, ImportRefused)
    (ready,) = bench.feed(ImportWanted("import", hashes_of(tuple(range(16)))))
    assert isinstance(ready, ImportReady)


def test_imports_of_those_who_wait_go_before_anyone_is_preempted() -> None:
    bench = Bench(num_blocks=8, limits=EngineLimits(max_running=1))
    bench.feed(ImportWanted("import", hashes_of(tuple(range(8)))))
    bench.feed(
        ImportDone("import", hashes_of(tuple(range(8)))),
        Submit(spec("a", PROMPT, max_tokens=10), hold=False),
        Submit(spec("b", tuple(range(9))), hold=False, import_id="import"),
    )
    bench.run()
    assert bench.figures("a").num_preemptions == 0
    assert bench.output("b") == echoed(spec("b", tuple(range(9))))


def test_pins_keep_cached_blocks_from_eviction() -> None:
    bench = Bench(num_blocks=8)
    bench.feed(Submit(spec("a", PROMPT, max_tokens=1), hold=False))
    bench.run()
    hashes = hashes_of(PROMPT)
    (pinned,) = bench.feed(PinWanted("pin", (*hashes, b"absent")))
    assert isinstance(pinned, Pinned) and pinned.hashes == hashes
    other = spec("b", tuple(range(9)), max_tokens=2)
    bench.feed(Submit(other, hold=False))
    bench.run()
    assert bench.output("b") == echoed(other)
    assert all(bench.loop.block_of(one) is not None for one in hashes)
    bench.feed(Release(("pin",)))
    bench.feed(Submit(spec("c", tuple(range(50, 80)), max_tokens=2), hold=False))
    bench.run()
    gone = [h for c in bench.commands if isinstance(c, BlocksEvicted) for h in c.hashes]
    assert hashes[4] in gone


def imported(
    source: Bench, target: Bench, prompt: tuple[int, ...], num: int, import_id: str = "import"
) -> str:
    """Move the first `num` absent blocks of a prompt; what was reserved beyond is given back.

    Returns the import's id, empty when it was refused.
    """
    commands = target.feed(ImportWanted(import_id, hashes_of(prompt)))
    ready = next((one for one in commands if isinstance(one, ImportReady)), None)
    if ready is None:
        return ""
    for block_hash, block_id in zip(ready.hashes[:num], ready.block_ids[:num], strict=True):
        origin = source.loop.block_of(block_hash)
        assert origin is not None
        for layer in range(2):
            target.runner.import_page(block_id, layer, source.runner.export_page(origin, layer))
    target.feed(ImportDone(import_id, ready.hashes[:num]))
    return import_id


def engine_with(prompt: tuple[int, ...]) -> Bench:
    """An engine that holds the KV of this prompt."""
    bench = Bench()
    bench.feed(Submit(spec("p", prompt), hold=True))
    bench.run()
    return bench


@pytest.mark.parametrize("num_blocks", [0, 2, 5])
def test_a_sequence_goes_on_with_imported_blocks(num_blocks: int) -> None:
    prefill, decode = engine_with(PROMPT), Bench()
    import_id = imported(prefill, decode, PROMPT, num_blocks)
    asked = spec("d", PROMPT, output=(prefill.output("p")[0],))
    decode.feed(Submit(asked, hold=False, import_id=import_id))
    decode.run()
    assert decode.output("d") == echoed(asked)
    assert decode.figures("d").num_cached_tokens == num_blocks * BLOCK_SIZE
    assert decode.loop.lease_ids() == () and decode.loop.num_used_blocks == 0


def test_an_import_without_room_is_refused_and_the_sequence_recomputes() -> None:
    bench = Bench(num_blocks=7)
    bench.feed(Submit(spec("a", PROMPT, max_tokens=4), hold=True))
    bench.run()
    (refused,) = bench.feed(ImportWanted("import", hashes_of(tuple(range(8)))))
    assert isinstance(refused, ImportRefused)
    bench.feed(Release(("a",)), Submit(spec("b", tuple(range(8))), False, import_id="import"))
    bench.run()
    assert bench.output("b") == echoed(spec("b", tuple(range(8))))


def test_a_fill_is_announced_before_its_block_is_taken_again() -> None:
    bench = Bench(num_blocks=6)
    bench.feed(Submit(spec("a", PROMPT, max_tokens=1), hold=False))
    commands = bench.finish_step(ImportWanted("import", hashes_of(tuple(range(24)))))
    kinds = [type(command) for command in commands]
    assert kinds.index(BlocksFilled) < kinds.index(BlocksEvicted) < kinds.index(ImportReady)


def test_imports_of_those_who_wait_do_not_stop_the_engine() -> None:
    bench = Bench(num_blocks=10)
    bench.feed(ImportWanted("one", hashes_of(PROMPT)))
    bench.feed(ImportWanted("two", hashes_of(tuple(range(20)))))
    bench.feed(
        ImportDone("one", hashes_of(PROMPT)),
        ImportDone("two", hashes_of(tuple(range(20)))),
        Submit(spec("a", PROMPT), hold=False, import_id="one"),
        Submit(spec("b", tuple(range(21))), hold=False, import_id="two"),
    )
    bench.run()
    assert set(bench.finished) == {"a", "b"} and bench.loop.num_used_blocks == 0


# ---------------------------------------------------------------- everything at random

PROMPTS = st.builds(
    lambda shared, own, n: tuple([*range(200, 200 + shared), *range(300 + own, 300 + own + n)]),
    st.integers(0, 12),
    st.integers(0, 3),
    st.integers(1, 12),
)


BATCHINGS: st.SearchStrategy[BatchingPolicy] = st.sampled_from(
    (Chunked(), PrefillFirst(), DecodeFirst())
)
ADMISSIONS: st.SearchStrategy[EngineAdmissionPolicy] = st.sampled_from(
    (Watermark(), PastFuture(min_lengths=1))
)


def check_addresses(bench: Bench, asked: Iterable[SequenceSpec]) -> None:
    """No block has the address of tokens that were never said: rejected drafts, above all."""
    true = {h for one in asked for h in hashes_of((*one.prompt_token_ids, *echoed(one)))}
    filled = {h for c in bench.commands if isinstance(c, BlocksFilled) for h in c.hashes}
    assert filled <= true


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_mix_gives_the_expected_tokens_and_leaves_nothing(data: st.DataObject) -> None:
    budget = data.draw(st.integers(4, 40))
    limits = EngineLimits(
        max_step_tokens=budget,
        max_running=data.draw(st.integers(1, 4)),
        max_draft_tokens=data.draw(st.sampled_from((0, 3))),
        batching=data.draw(BATCHINGS),
        admission=data.draw(ADMISSIONS),
    )
    bench = Bench(num_blocks=data.draw(st.integers(12, 24)), limits=limits)
    asked = {}
    cancelled: set[str] = set()
    prompts: dict[int, tuple[int, ...]] = {}
    for number in range(data.draw(st.integers(1, 10))):
        name = f"r{number // 3}/{number % 3}/0"
        prompt = prompts.setdefault(
            number // data.draw(st.sampled_from((1, 3))), data.draw(PROMPTS)
        )
        seed = data.draw(st.integers(0, 3))
        sampling = SamplingParams(
            temperature=float(seed), seed=seed, max_tokens=data.draw(st.integers(1, 20))
        )
        asked[name] = spec(name, prompt, sampling=sampling, priority=data.draw(st.integers(0, 2)))
        import_id = ""
        if data.draw(st.integers(0, 2)) == 0:
            num = data.draw(st.integers(0, 5))
            import_id = imported(engine_with(prompt), bench, prompt, num, f"import-{name}")
        hold = data.draw(st.integers(0, 4)) == 0
        bench.feed(Submit(asked[name], hold=hold, import_id=import_id))
        for _ in range(data.draw(st.integers(0, 4))):
            if bench.plan is not None:
                bench.finish_step()
        if data.draw(st.integers(0, 3)) == 0:
            target = data.draw(st.sampled_from(sorted(asked)))
            cancelled.add(target)
            bench.feed(Cancel((target,)))
        if data.draw(st.integers(0, 3)) == 0 and bench.loop.lease_ids():
            bench.feed(Release(bench.loop.lease_ids()[:1]))
    for _ in range(len(asked) + 1):
        bench.run()
        bench.feed(Release(bench.loop.lease_ids()))
    for name, one in asked.items():
        expected = echoed(one)
        assert bench.output(name) == expected[: len(bench.output(name))]
        failed = bench.finish(name) is Finish.FAILED
        assert name in cancelled or failed or bench.output(name) in (expected, expected[:1])
        computed = {p for span in bench.stepped.get(name, []) for p in range(*span)}
        num_prompt = len(one.prompt_token_ids)
        num_cached = num_prompt - len(computed & set(range(num_prompt)))
        assert bench.figures(name).num_cached_tokens == num_cached
    assert bench.loop.idle and bench.loop.num_used_blocks == 0
    check_addresses(bench, asked.values())
