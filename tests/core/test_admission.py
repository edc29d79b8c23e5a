from __future__ import annotations

from dataclasses import replace

import pytest
from tests.core.engines import card, spec

from banyan_core.admission import LONGEST_RETRY_NS, SHORTEST_RETRY_NS, AdmissionView, refuse
from banyan_core.scheduler import EngineLimits
from banyan_core.types import NS_PER_S, WorkerLoad

LIMITS = EngineLimits(max_running=6, max_waiting=4, max_waiting_tokens=100, max_waiting_s=5.0)
ROOM = 50


def view(load: WorkerLoad) -> AdmissionView:
    return AdmissionView(card(), num_blocks=50, limits=LIMITS, load=load)


def test_an_idle_worker_takes_whatever_fits() -> None:
    assert refuse(spec("a", tuple(range(150))), view(WorkerLoad())) is None


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        (WorkerLoad(draining=True), "draining"),
        (WorkerLoad(num_running=6, num_waiting=4, num_free_blocks=ROOM), "4 sequences wait"),
        (WorkerLoad(num_running=2, num_waiting=4, num_free_blocks=0), "4 sequences wait"),
        (WorkerLoad(num_waiting=1, num_waiting_tokens=98), "98 tokens wait"),
    ],
)
def test_a_full_or_leaving_worker_says_which(load: WorkerLoad, reason: str) -> None:
    refusal = refuse(spec("a", (1, 2, 3)), view(load))
    assert refusal is not None and refusal.reason == reason


def test_those_with_a_free_slot_are_not_counted_as_waiting() -> None:
    """Sequences whose KV is on its way to a decode worker wait as well, and for nothing here."""
    load = WorkerLoad(num_running=2, num_waiting=7, num_free_blocks=ROOM)
    assert refuse(spec("a", (1, 2, 3)), view(load)) is None
    assert refuse(spec("a", (1, 2, 3)), view(replace(load, num_waiting=8))) is not None


@pytest.mark.parametrize(("rate", "taken"), [(0.0, True), (13.0, True), (12.0, False)])
def test_prompt_tokens_that_wait_are_bounded_by_their_time(rate: float, taken: bool) -> None:
    load = WorkerLoad(
        num_waiting=1, num_waiting_tokens=60, num_free_blocks=ROOM, prefill_tokens_per_s=rate
    )
    assert (refuse(spec("a", (1, 2, 3)), view(load)) is None) == taken


def test_a_prompt_that_another_worker_computes_costs_no_time_here() -> None:
    load = WorkerLoad(
        num_waiting=1, num_waiting_tokens=60, num_free_blocks=ROOM, prefill_tokens_per_s=1.0
    )
    assert refuse(spec("a", (1, 2, 3)), view(load)) is not None
    assert refuse(spec("a", (1, 2, 3)), view(load), prefilled_elsewhere=True) is None


@pytest.mark.parametrize(
    ("num_waiting_tokens", "rate", "retry_after_ns"),
    [
        (800, 0.0, SHORTEST_RETRY_NS),  # nothing measured
        (800, 100.0, 2 * NS_PER_S),  # one of four shares of 8 s
        (8, 1000.0, SHORTEST_RETRY_NS),
        (100_000, 10.0, LONGEST_RETRY_NS),
    ],
)
def test_the_time_to_ask_again_is_one_places_share(
    num_waiting_tokens: int, rate: float, retry_after_ns: int
) -> None:
    load = WorkerLoad(
        num_waiting=4, num_waiting_tokens=num_waiting_tokens, prefill_tokens_per_s=rate
    )
    refusal = refuse(spec("a", (1,)), view(load))
    assert refusal is not None and refusal.retry_after_ns == retry_after_ns


def test_prompts_that_others_compute_are_not_in_a_prompts_way() -> None:
    """Else an unsplit request finds no worker at all when the prefill workers have enough."""
    load = WorkerLoad(num_waiting=2, num_free_blocks=ROOM, prefill_tokens_per_s=0.1)
    assert refuse(spec("a", (1, 2, 3)), replace(view(load), num_awaiting_kv=2)) is None
    assert refuse(spec("a", (1, 2, 3)), replace(view(load), num_awaiting_kv=1)) is not None
