"""Why a worker cannot take a sequence at all. Each filter answers a reason, or nothing."""

from __future__ import annotations

from collections.abc import Callable

from banyan_core.cluster import WorkerView
from banyan_core.policies.routing_view import RoutingView
from banyan_core.types import NS_PER_MS

Filter = Callable[[RoutingView, WorkerView], str]


def live(_: RoutingView, worker: WorkerView) -> str:
    if worker.live:
        return ""
    return f"not live: last heard {worker.age_ns // NS_PER_MS} ms ago"


def card(view: RoutingView, worker: WorkerView) -> str:
    wanted, has = view.query.card_digest, worker.card_digest
    return "" if wanted == has else f"model card {has.hex()[:8]} is not {wanted.hex()[:8]}"


def draining(_: RoutingView, worker: WorkerView) -> str:
    return "draining" if worker.load.draining else ""


def excluded(view: RoutingView, worker: WorkerView) -> str:
    return "excluded by the gateway" if worker.ref.worker_id in view.query.excluded else ""


def room(view: RoutingView, worker: WorkerView) -> str:
    needed = view.num_needed_blocks(worker)
    if needed <= worker.num_blocks:
        return ""
    return f"no room: needs {needed} blocks, has {worker.num_blocks} in all"


FILTERS: tuple[Filter, ...] = (live, card, draining, excluded, room)
"""In this order; the first reason is the one given."""


TOO_LARGE = "no room"
LASTING = (TOO_LARGE, "model card")
"""How reasons begin that waiting alone does not cure."""


def first_reason(view: RoutingView, worker: WorkerView) -> str:
    for check in FILTERS:
        reason = check(view, worker)
        if reason:
            return reason
    return ""
