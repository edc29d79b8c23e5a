"""Placement: what is filtered and why, how policies prefer, when a prompt is not split."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.clusters import query, routing_view, worker

from banyan_core.cluster import WorkerView
from banyan_core.placement import Placement, PlaceQuery
from banyan_core.policies import ROUTING, BadParameter, PolicyChoice, UnknownPolicy, make
from banyan_core.policies.draw import Draws
from banyan_core.policies.routing import (
    RETRY_LATE_NS,
    RETRY_SOON_NS,
    LeastTokens,
    PrefixCost,
    Random,
)
from banyan_core.policies.routing_view import Holdings, Routed, RoutingPolicy, RoutingView
from banyan_core.types import Refusal, Role, WorkerLoad

DRAWS = Draws(seed=1, decider="router-0", number=1)
P0, P1 = worker("p0", Role.PREFILL), worker("p1", Role.PREFILL)
D0, D1 = worker("d0"), worker("d1")


def chosen(view: RoutingView, policy: RoutingPolicy | None = None) -> tuple[str | None, str]:
    """(prefill id or None, decode id)."""
    outcome = (policy or PrefixCost()).place(view, DRAWS).outcome
    assert isinstance(outcome, Placement), outcome
    prefill = None if outcome.prefill is None else outcome.prefill.worker_id
    return prefill, outcome.decode.worker_id


def refused(view: RoutingView) -> Refusal:
    outcome = PrefixCost().place(view, DRAWS).outcome
    assert isinstance(outcome, Refusal), outcome
    return outcome


def filtered(routed: Routed, worker_id: str) -> str:
    return next(c.filtered for c in routed.decision.candidates if c.worker_id == worker_id)


# ---------------------------------------------------------------- filters

OUT: list[tuple[WorkerView, PlaceQuery, str]] = [
    (replace(D0, live=False, age_ns=3_200_000_000), query(), "not live: last heard 3200 ms ago"),
    (replace(D0, card_digest=b"other card 12345"), query(), "model card 6f746865 is not 63617264"),
    (worker("d0", draining=True), query(), "draining"),
    (D0, query(excluded=("d0",)), "excluded by the gateway"),
    (D0, query(64 * 16), "no room: needs 65 blocks, has 64 in all"),
    (D0, query(1000, num_output_tokens=24), "no room: needs 65 blocks, has 64 in all"),
]


@pytest.mark.parametrize(("out", "asked", "reason"), OUT)
def test_a_filtered_worker_says_why(out: WorkerView, asked: PlaceQuery, reason: str) -> None:
    large = replace(D1, num_blocks=1000, load=WorkerLoad(num_free_blocks=1000))
    view = routing_view(out, large, asked=asked)
    routed = PrefixCost().place(view, DRAWS)
    assert filtered(routed, "d0") == reason
    assert chosen(view) == (None, "d1")


def test_a_prompt_that_just_fits_is_placed() -> None:
    assert chosen(routing_view(D0, asked=query(64 * 16 - 1))) == (None, "d0")


def test_a_refusal_names_every_kind_of_reason() -> None:
    gone = replace(P0, live=False)
    refusal = refused(routing_view(gone, worker("d0", draining=True), worker("d1", draining=True)))
    assert refusal.reason == "no worker can take it: 2 draining, 1 not live"
    assert refusal.retry_after_ns == RETRY_SOON_NS


def test_what_waiting_cannot_change_is_asked_again_later() -> None:
    assert refused(routing_view(D0, asked=query(5000))).retry_after_ns == RETRY_LATE_NS


def test_an_empty_mesh_refuses() -> None:
    assert refused(routing_view()) == Refusal("no worker is known", RETRY_SOON_NS)


# ---------------------------------------------------------------- split or not


def test_a_long_prompt_is_split_between_roles() -> None:
    assert chosen(routing_view(P0, D0)) == ("p0", "d0")


def test_a_short_uncached_prompt_is_not_split() -> None:
    assert chosen(routing_view(P0, D0, asked=query(32))) == (None, "d0")
    assert chosen(routing_view(P0, D0, asked=query(33))) == ("p0", "d0")


def test_a_prompt_cached_on_decode_is_not_split() -> None:
    view = routing_view(P0, D0, d0=20)
    assert chosen(view) == (None, "d0")
    outcome = PrefixCost().place(view, DRAWS).outcome
    assert isinstance(outcome, Placement)
    # 20 blocks are 320 tokens, and the last one is always computed.
    assert outcome.num_expected_cached_tokens == 319


def test_splitting_can_be_forced() -> None:
    assert chosen(routing_view(P0, D0, asked=query(1)), PrefixCost(split_above_tokens=0)) == (
        "p0",
        "d0",
    )


@pytest.mark.parametrize("policy", [Random(), LeastTokens(), PrefixCost()])
def test_without_a_role_one_worker_does_both(policy: RoutingPolicy) -> None:
    for only, missing in ((D0, "prefill"), (P0, "decode")):
        routed = policy.place(routing_view(only), DRAWS)
        assert isinstance(routed.outcome, Placement)
        assert (routed.outcome.prefill, routed.outcome.decode) == (None, only.ref)
        assert f"no {missing} worker can take it" in routed.decision.reason


def test_only_decode_is_placed_again() -> None:
    view = routing_view(P0, D0, D1, asked=query(kept_prefill="p0", excluded=("d0",)))
    assert chosen(view) == ("p0", "d1")
    routed = PrefixCost().place(view, DRAWS)
    assert {c.role for c in routed.decision.candidates} == {Role.DECODE}
    assert "p0 goes on with prefill" in routed.decision.reason


def test_decode_again_falls_back_to_any_worker() -> None:
    view = routing_view(P0, P1, asked=query(kept_prefill="p0", excluded=("p0",)))
    assert chosen(view) == ("p0", "p1")
    assert "any worker may" in PrefixCost().place(view, DRAWS).decision.reason


def test_a_kept_prefill_that_is_unknown_is_not_named() -> None:
    assert chosen(routing_view(D0, asked=query(kept_prefill="p7"))) == (None, "d0")


# ---------------------------------------------------------------- preferences


def test_prefill_goes_where_the_prompt_is_cached() -> None:
    assert chosen(routing_view(P0, P1, D0, p1=10)) == ("p1", "d0")


def test_a_long_queue_outweighs_a_cached_prompt() -> None:
    busy = worker("p1", Role.PREFILL, num_waiting_tokens=4000)
    assert chosen(routing_view(P0, busy, D0, p1=10)) == ("p0", "d0")


def test_a_faster_worker_with_the_same_queue_is_preferred() -> None:
    slow = worker("p0", Role.PREFILL, num_waiting_tokens=1000, prefill_tokens_per_s=1000.0)
    fast = worker("p1", Role.PREFILL, num_waiting_tokens=1000, prefill_tokens_per_s=4000.0)
    assert chosen(routing_view(slow, fast, D0)) == ("p1", "d0")


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_replaced(rate: float) -> None:
    odd = worker("p0", Role.PREFILL, prefill_tokens_per_s=rate)
    busy = worker("p1", Role.PREFILL, num_waiting_tokens=1)
    assert chosen(routing_view(odd, busy, D0)) == ("p0", "d0")


def test_what_a_store_holds_counts_less_than_what_is_there() -> None:
    policy = PrefixCost(room_weight=0.0)

    def total(view: RoutingView) -> float:
        candidates = policy.place(view, DRAWS).decision.candidates
        return next(c.total for c in candidates if c.worker_id == "p0" and not c.filtered)

    nothing = total(routing_view(P0, D0))
    stored = total(routing_view(P0, D0, kvstore_a=16))
    cached = total(routing_view(P0, D0, p0=16))
    assert nothing < stored < cached


def test_whoever_computes_skips_the_store_only_when_none_has_more() -> None:
    def skips(view: RoutingView) -> bool:
        outcome = PrefixCost().place(view, DRAWS).outcome
        assert isinstance(outcome, Placement)
        return outcome.skip_store

    assert skips(routing_view(P0, D0))
    assert skips(routing_view(P0, D0, p0=8, kvstore_a=8))
    assert not skips(routing_view(P0, D0, p0=8, kvstore_a=9))
    unknown = replace(routing_view(P0, D0), holdings=Holdings(known=False))
    assert not skips(unknown)


def test_decode_prefers_fewer_sequences_then_room() -> None:
    assert chosen(routing_view(P0, worker("d0", num_running=4), D1)) == ("p0", "d1")
    assert chosen(routing_view(P0, worker("d0", num_free_blocks=30), D1)) == ("p0", "d1")


def test_least_tokens_counts_own_placements() -> None:
    placed = replace(P0, num_placed_tokens=10)
    assert chosen(routing_view(placed, P1, D0), LeastTokens()) == ("p1", "d0")


def test_ties_go_to_the_smaller_id() -> None:
    for policy in (LeastTokens(), PrefixCost()):
        assert chosen(routing_view(P1, P0, D1, D0), policy) == ("p0", "d0")


def test_random_reaches_every_worker_and_repeats_itself() -> None:
    view = routing_view(P0, P1, D0, D1)

    def pick(number: int) -> object:
        outcome = Random().place(view, Draws(7, "router-0", number)).outcome
        assert isinstance(outcome, Placement) and outcome.prefill is not None
        return outcome.prefill.worker_id, outcome.decode.worker_id

    picks = [pick(number) for number in range(64)]
    assert picks == [pick(number) for number in range(64)]
    assert len(set(picks)) == 4  # all four pairs


def test_an_unknown_index_is_said_and_counts_for_nothing() -> None:
    view = replace(routing_view(P0, D0), holdings=Holdings(known=False))
    routed = PrefixCost().place(view, DRAWS)
    assert chosen(view) == ("p0", "d0")
    assert "the index did not answer" in routed.decision.reason


figures = st.fixed_dictionaries(
    {
        "num_running": st.integers(0, 10_000),
        "num_waiting": st.integers(0, 10_000),
        "num_free_blocks": st.integers(0, 100_000),
        "num_waiting_tokens": st.integers(0, 10**9),
        "prefill_tokens_per_s": st.floats(),
    }
)


@settings(max_examples=60, deadline=None)
@given(loads=st.lists(figures, min_size=2, max_size=5), held=st.integers(0, 500))
def test_scores_stay_in_bounds_and_the_best_total_wins(
    loads: list[dict[str, float]], held: int
) -> None:
    roles = [Role.PREFILL, Role.DECODE]
    workers = [worker(f"w{i}", roles[i % 2], **load) for i, load in enumerate(loads)]
    routed = PrefixCost().place(routing_view(*workers, w0=held, kvstore_a=held), DRAWS)
    outcome = routed.outcome
    assert isinstance(outcome, Placement)
    for candidate in routed.decision.candidates:
        assert all(0.0 <= score.value <= 1.0 for score in candidate.scores)
    fit = [c for c in routed.decision.candidates if c.role is Role.DECODE and not c.filtered]
    best = max(candidate.total for candidate in fit)
    winner = next(c for c in fit if c.worker_id == outcome.decode.worker_id)
    assert winner.total == best
    assert winner.worker_id == min(c.worker_id for c in fit if c.total == best)


# ---------------------------------------------------------------- the table


def test_an_unknown_policy_lists_the_known_ones() -> None:
    with pytest.raises(UnknownPolicy, match="known are: least_tokens, prefix_cost, random"):
        make("routing", ROUTING, PolicyChoice("best", {}))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"spilt": 1}, "has no parameter 'spilt'; it takes: split_above_tokens"),
        ({"split_above_tokens": 1.5}, "split_above_tokens must be a whole number, not 1.5"),
        ({"split_above_tokens": True}, "split_above_tokens must be a whole number, not True"),
        ({"half_time_s": "fast"}, "half_time_s must be a number, not 'fast'"),
        ({"half_time_s": 0}, "half_time_s must be more than 0"),
        ({"room_weight": -1}, "room_weight must not be negative"),
        ({"stored_token_cost": 2}, "stored_token_cost must be in"),
    ],
)
def test_a_bad_parameter_is_named(parameters: dict[str, object], message: str) -> None:
    with pytest.raises(BadParameter, match=message):
        make("routing", ROUTING, PolicyChoice("prefix_cost", parameters))


def test_parameters_reach_the_policy() -> None:
    made = make("routing", ROUTING, PolicyChoice("prefix_cost", {"half_time_s": 2}))
    assert made == PrefixCost(half_time_s=2.0)
