"""Batching and admission policies: who goes first, who waits, and for how long."""

from __future__ import annotations

import pytest
from tests.core.engines import Bench, echoed, spec

from banyan_core.engine_messages import Submit
from banyan_core.policies import BATCHING, ENGINE_ADMISSION, PolicyChoice, UnknownPolicy, make
from banyan_core.policies.batching import BatchingPolicy, Chunked, DecodeFirst, PrefillFirst
from banyan_core.policies.engine_admission import (
    AdmissionView,
    Growing,
    OutputLengths,
    PastFuture,
    Watermark,
)
from banyan_core.scheduler import EngineLimits
from banyan_core.types import NS_PER_S


def steps_of(batching: BatchingPolicy) -> list[dict[str, int]]:
    """Tokens by sequence, step by step: `a` decodes when the long prompt `b` arrives."""
    limits = EngineLimits(max_step_tokens=8, max_running=4, batching=batching)
    bench = Bench(limits=limits)
    first = spec("a", tuple(range(4)), max_tokens=5)
    second = spec("b", tuple(range(50, 70)), max_tokens=2)
    bench.feed(Submit(first, hold=False))
    bench.feed(Submit(second, hold=False))
    bench.run()
    assert bench.output("a") == echoed(first) and bench.output("b") == echoed(second)
    return [{item.sequence_id: len(item.token_ids) for item in plan.items} for plan in bench.plans]


def test_chunked_gives_every_decode_its_token_and_prompts_the_rest() -> None:
    assert steps_of(Chunked())[1:4] == [{"a": 1, "b": 7}, {"a": 1, "b": 7}, {"a": 1, "b": 6}]


def test_prefill_first_lets_decodes_wait_for_prompts() -> None:
    assert steps_of(PrefillFirst())[1:4] == [{"b": 8}, {"b": 8}, {"b": 4, "a": 1}]


def test_decode_first_lets_prompts_wait_for_decodes() -> None:
    steps = steps_of(DecodeFirst())
    assert steps[1:5] == [{"a": 1}] * 4
    assert steps[5:8] == [{"b": 8}, {"b": 8}, {"b": 4}]


@pytest.mark.parametrize(("waited_s", "first"), [(1, "better"), (9, "patient"), (11, "patient")])
def test_a_better_class_goes_first_until_the_other_has_waited(waited_s: int, first: str) -> None:
    """Two steps of priority are worth twice `aging_s`."""
    limits = EngineLimits(max_running=1, batching=Chunked(aging_s=4.0))
    bench = Bench(limits=limits)
    bench.feed(Submit(spec("busy", (1, 2)), hold=False))
    bench.feed(Submit(spec("patient", (3, 4), priority=2), hold=False))
    bench.now += waited_s * NS_PER_S
    bench.feed(Submit(spec("better", (5, 6), priority=0), hold=False))
    bench.run()
    assert list(bench.finished)[1] == first


@pytest.mark.parametrize("table", [BATCHING, ENGINE_ADMISSION])
def test_an_unknown_name_lists_the_known_ones(table: dict[str, type[object]]) -> None:
    with pytest.raises(UnknownPolicy, match="known are: " + ", ".join(sorted(table))):
        make("kind", table, PolicyChoice("other", {}))


def test_bad_parameters_are_named() -> None:
    with pytest.raises(ValueError, match="aging_s: expected more than 0, got 0"):
        Chunked(aging_s=0)
    with pytest.raises(ValueError, match="margin: expected 0 to 1, got 1"):
        PastFuture(margin=1)


# ---------------------------------------------------------------- admission


def view(num_available: int, lengths: list[int], *running: Growing) -> AdmissionView:
    """A candidate of one block into a pool of 100 blocks of 10 tokens."""
    return AdmissionView(10, 100, num_available, 1, Growing(10, 0, 500), running, lengths)


def test_watermark_leaves_a_block_for_each_that_runs() -> None:
    one = Growing(10, 0, 500)
    assert Watermark().admits(view(3, [], one, one))
    assert not Watermark().admits(view(2, [], one, one))


def test_past_future_leaves_what_the_others_will_need() -> None:
    policy = PastFuture(margin=0.0)
    running = [Growing(100, 0, 500)] * 4
    short, long = [20] * 50, [200] * 50
    assert policy.admits(view(12, short, *running))
    assert not policy.admits(view(12, long, *running))
    assert policy.admits(view(101, long, *running)), "5 grow by 20 blocks each"
    assert not policy.admits(view(100, long, *running))
    assert policy.admits(view(12, long[:10], *running)), "too few lengths to go by"


def test_past_future_counts_what_those_who_end_give_back() -> None:
    policy = PastFuture(margin=0.0)
    nearly_done, fresh = Growing(300, 199, 500), Growing(100, 0, 500)
    lengths = [200] * 50
    assert policy.admits(view(21, lengths, nearly_done))
    assert not policy.admits(view(21, lengths, fresh))


def test_a_sequence_longer_than_all_before_is_feared_to_be_the_longest() -> None:
    policy = PastFuture(margin=0.0)
    beyond = Growing(300, 250, 900)
    assert not policy.admits(view(60, [200] * 50, beyond))


def test_lengths_are_a_sorted_window() -> None:
    lengths = OutputLengths(num_max=3)
    for length in (5, 1, 9, 4, 7):
        lengths.add(length)
    assert lengths.sorted == [4, 7, 9]
