"""The router's decider: the cluster view and a routing policy behind one `step`.

Placements go through the same queue of facts as the workers' reports, so that each placement sees
those before it, and a record of the facts replays to equal decisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from banyan_core.cluster import (
    ClusterFact,
    ClusterSnapshot,
    ClusterView,
    LivenessChanged,
    PlacedHere,
    Share,
)
from banyan_core.machine import Stepped
from banyan_core.placement import Decision, Placement, PlaceQuery
from banyan_core.policies.draw import Draws
from banyan_core.policies.routing_view import Holdings, Routed, RoutingPolicy, RoutingView
from banyan_core.types import Refusal


@dataclass(frozen=True, slots=True)
class PlaceWanted:
    """A gateway asks; `ask` tells the answers apart. The index has been asked already."""

    ask: int
    query: PlaceQuery
    holdings: Holdings


@dataclass(frozen=True, slots=True)
class PlaceDecided:
    ask: int
    outcome: Placement | Refusal
    decision: Decision


PlacerFact = ClusterFact | PlaceWanted
PlacerCommand = LivenessChanged | PlaceDecided


class Placer:
    """Every draw comes from (seed, router, number of the decision)."""

    def __init__(self, router_id: str, policy: RoutingPolicy, seed: int) -> None:
        self._router_id = router_id
        self._policy = policy
        self._seed = seed
        self._number = 0
        self._view = ClusterView()

    def snapshot(self, now: int) -> ClusterSnapshot:
        """What the next placement would see."""
        return self._view.snapshot(now)

    def step(self, now: int, facts: Sequence[PlacerFact]) -> Stepped[PlacerCommand]:
        commands: list[PlacerCommand] = []
        for fact in facts:
            if isinstance(fact, PlaceWanted):
                commands.append(self._decide(now, fact))
            else:
                commands.extend(self._view.step(now, (fact,)).commands)
        stepped = self._view.step(now, ())
        commands.extend(stepped.commands)
        return Stepped(commands, stepped.next_wake)

    def _decide(self, now: int, wanted: PlaceWanted) -> PlaceDecided:
        self._number += 1
        view = RoutingView(self._view.snapshot(now), wanted.query, wanted.holdings)
        routed = self._policy.place(view, Draws(self._seed, self._router_id, self._number))
        if isinstance(routed.outcome, Placement):
            query = wanted.query
            shares = _shares(view, routed)
            self._view.step(now, (PlacedHere(f"{query.request_id}/{query.choice}", shares),))
        return PlaceDecided(wanted.ask, routed.outcome, routed.decision)


def _shares(view: RoutingView, routed: Routed) -> tuple[Share, ...]:
    """What the placement adds to each worker; a prefill that goes on is in its report already."""
    placement = routed.outcome
    if not isinstance(placement, Placement):
        return ()
    refs = []
    if placement.prefill is not None and not view.query.kept_prefill:
        refs.append(placement.prefill)
    if not refs or view.query.max_tokens != 1:  # a lone token is sampled by prefill
        refs.append(placement.decode)
    shares = []
    for ref in refs:
        worker = view.cluster.worker(ref.worker_id)
        if worker is None:
            continue
        computes = ref == (placement.prefill or placement.decode)
        tokens = view.num_uncached_tokens(worker) if computes else 0
        held = view.num_cached_tokens(worker) // worker.block_size
        shares.append(Share(ref.worker_id, tokens, view.num_needed_blocks(worker) - held))
    return tuple(shares)
