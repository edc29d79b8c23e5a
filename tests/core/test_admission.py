from __future__ import annotations

import pytest
from tests.core.engines import card, spec

from banyan_core.admission import LONGEST_RETRY_NS, SHORTEST_RETRY_NS, AdmissionView, refuse
from banyan_core.scheduler import EngineLimits
from banyan_core.types import NS_PER_S, WorkerLoad

LIMITS = EngineLimits(max_waiting=4, max_waiting_tokens=100)


def view(load: WorkerLoad) -> AdmissionView:
    return AdmissionView(card(), num_blocks=50, limits=LIMITS, load=load)


def test_an_idle_worker_takes_whatever_fits() -> None:
    assert refuse(spec("a", tuple(range(150))), view(WorkerLoad())) is None


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        (WorkerLoad(draining=True), "draining"),
        (WorkerLoad(num_waiting=4), "4 sequences wait"),
        (WorkerLoad(num_waiting=1, num_waiting_tokens=98), "98 tokens wait"),
    ],
)
def test_a_full_or_leaving_worker_says_which(load: WorkerLoad, reason: str) -> None:
    refusal = refuse(spec("a", (1, 2, 3)), view(load))
    assert refusal is not None and refusal.reason == reason


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
