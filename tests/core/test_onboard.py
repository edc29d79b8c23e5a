from __future__ import annotations

import pytest

from banyan_core.policies import ONBOARD, BadParameter, PolicyChoice, make
from banyan_core.policies.onboard import OnboardView


def view(**changes: float) -> OnboardView:
    base: dict[str, float] = {
        "num_tokens": 1000,
        "num_bytes": 1_000_000,
        "store_latency_s": 0.01,
        "store_bytes_per_s": 10_000_000.0,
        "prefill_tokens_per_s": 5000.0,
    }
    return OnboardView(**(base | changes))  # type: ignore[arg-type]  # counts are whole here


@pytest.mark.parametrize(
    ("policy", "seen", "fetch"),
    [
        ("never", view(), False),
        ("always", view(), True),
        ("always", view(num_tokens=0), False),
        ("cheapest", view(), True),  # 110 ms against 200 ms
        ("cheapest", view(prefill_tokens_per_s=10_000.0), False),  # against 100 ms
        ("cheapest", view(store_latency_s=0.2), False),
        ("cheapest", view(num_tokens=0), False),
        ("cheapest", view(store_bytes_per_s=0.0), True),  # tried, to be measured
    ],
)
def test_decisions(policy: str, seen: OnboardView, fetch: bool) -> None:
    decision = make("onboard", ONBOARD, PolicyChoice(policy, {})).decide(seen)
    assert decision.fetch is fetch and decision.reason


def test_the_margin_asks_for_more_than_a_draw() -> None:
    picky = make("onboard", ONBOARD, PolicyChoice("cheapest", {"margin": 0.5}))
    assert not picky.decide(view()).fetch
    with pytest.raises(BadParameter, match="margin must be above 0"):
        make("onboard", ONBOARD, PolicyChoice("cheapest", {"margin": 0.0}))
