"""The router's decider: bursts, what it counts as placed, equal facts and equal decisions."""

from __future__ import annotations

from tests.core.clusters import query, seen

from banyan_core.cluster import LoadReported
from banyan_core.placement import Placement
from banyan_core.placer import PlaceDecided, Placer, PlaceWanted
from banyan_core.policies.routing import (
    LeastTokens,
    PrefixCost,
    Random,
)
from banyan_core.policies.routing_view import Holdings
from banyan_core.types import Role, WorkerLoad


def decisions(placer: Placer, *facts: object, now: int = 0) -> list[PlaceDecided]:
    commands = placer.step(now, facts).commands  # type: ignore[arg-type] # the test's own facts
    return [command for command in commands if isinstance(command, PlaceDecided)]


def full_mesh() -> tuple[object, ...]:
    ready = WorkerLoad(num_free_blocks=64)
    ids = (("p0", Role.PREFILL), ("p1", Role.PREFILL), ("d0", Role.DECODE), ("d1", Role.DECODE))
    return tuple(
        fact
        for worker_id, role in ids
        for fact in (seen(worker_id, role), LoadReported(worker_id, 1, ready))
    )


def test_a_burst_is_spread_before_any_report() -> None:
    placer = Placer("router-0", LeastTokens(), seed=1)
    asks = [PlaceWanted(n, query(request_id=f"r{n}"), Holdings()) for n in range(4)]
    outcomes = [decided.outcome for decided in decisions(placer, *full_mesh(), *asks)]
    pairs = [
        (o.prefill and o.prefill.worker_id, o.decode.worker_id)
        for o in outcomes
        if isinstance(o, Placement)
    ]
    assert pairs == [("p0", "d0"), ("p1", "d1"), ("p0", "d0"), ("p1", "d1")]


def test_shares_name_the_tokens_where_they_are_computed() -> None:
    placer = Placer("router-0", PrefixCost(), seed=1)
    held = Holdings((("p1", 10),))
    decisions(placer, *full_mesh(), PlaceWanted(1, query(320), held))
    view = placer.snapshot(0)
    tokens = {w.ref.worker_id: w.num_placed_tokens for w in view.workers}
    blocks = {w.ref.worker_id: w.num_placed_blocks for w in view.workers}
    assert tokens == {"p0": 0, "p1": 160, "d0": 0, "d1": 0}
    assert blocks == {"p0": 0, "p1": 11, "d0": 21, "d1": 0}


def test_one_token_adds_nothing_to_decode() -> None:
    placer = Placer("router-0", PrefixCost(), seed=1)
    decisions(placer, *full_mesh(), PlaceWanted(1, query(320, max_tokens=1), Holdings()))
    decisions(placer, PlaceWanted(2, query(8, request_id="r2", max_tokens=1), Holdings()))
    placed = {w.ref.worker_id: w.num_placed_sequences for w in placer.snapshot(0).workers}
    assert placed == {"p0": 1, "p1": 0, "d0": 1, "d1": 0}


def test_a_prefill_that_goes_on_is_not_counted_again() -> None:
    placer = Placer("router-0", PrefixCost(), seed=1)
    again = query(320, kept_prefill="p0", attempt=3)
    decisions(placer, *full_mesh(), PlaceWanted(1, again, Holdings()))
    tokens = {w.ref.worker_id: w.num_placed_tokens for w in placer.snapshot(0).workers}
    placed = {w.ref.worker_id: w.num_placed_sequences for w in placer.snapshot(0).workers}
    assert placed == {"p0": 0, "p1": 0, "d0": 1, "d1": 0}
    assert set(tokens.values()) == {0}


def test_equal_facts_give_equal_decisions() -> None:
    asks = [PlaceWanted(n, query(request_id=f"r{n}"), Holdings()) for n in range(20)]
    once, again = (
        decisions(Placer("router-0", Random(), seed=3), *full_mesh(), *asks) for _ in range(2)
    )
    other = decisions(Placer("router-1", Random(), seed=3), *full_mesh(), *asks)
    assert once == again
    assert [d.outcome for d in other] != [d.outcome for d in once]
    assert [d.decision.number for d in once] == list(range(1, 21))
