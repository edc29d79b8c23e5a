"""Workers, snapshots and queries for tests of the view and of placement."""

from __future__ import annotations

from dataclasses import replace

from banyan_core.cluster import ClusterSnapshot, WorkerSeen, WorkerView
from banyan_core.placement import PlaceQuery
from banyan_core.policies.routing_view import Holdings, RoutingView
from banyan_core.types import BlockHash, Role, WorkerLoad, WorkerRef

CARD = b"card" * 4
BLOCK_SIZE = 16


def ref(worker_id: str, role: Role = Role.DECODE, epoch: int = 1) -> WorkerRef:
    return WorkerRef(worker_id, epoch, f"{worker_id}:1", role)


def seen(worker_id: str, role: Role = Role.DECODE, epoch: int = 1) -> WorkerSeen:
    return WorkerSeen(ref(worker_id, role, epoch), CARD, "demo", 64, BLOCK_SIZE)


def worker(worker_id: str, role: Role = Role.DECODE, **load: object) -> WorkerView:
    """An idle, live worker of 64 blocks, but for what `load` says."""
    idle = WorkerLoad(num_free_blocks=64)
    loaded = replace(idle, **load)  # type: ignore[arg-type] # a wrong name or type fails the test
    return WorkerView(ref(worker_id, role), CARD, "demo", 64, BLOCK_SIZE, loaded, 0, True)


def hashes(count: int, salt: int = 0) -> tuple[BlockHash, ...]:
    return tuple(bytes([salt]) * 8 + n.to_bytes(8, "big") for n in range(count))


def query(num_prompt_tokens: int = 320, **fields: object) -> PlaceQuery:
    plain = PlaceQuery(
        request_id="r1",
        choice=0,
        attempt=1,
        card_digest=CARD,
        block_hashes=hashes(num_prompt_tokens // BLOCK_SIZE),
        num_prompt_tokens=num_prompt_tokens,
        num_output_tokens=0,
        max_tokens=100,
    )
    return replace(plain, **fields)  # type: ignore[arg-type] # as above


def routing_view(*workers: WorkerView, asked: PlaceQuery | None = None, **held: int) -> RoutingView:
    """`held`: blocks by holder, with `_` for `-` in the ids."""
    in_order = tuple(sorted(workers, key=lambda w: w.ref.worker_id))
    num_blocks = tuple(sorted((name.replace("_", "-"), n) for name, n in held.items()))
    return RoutingView(ClusterSnapshot(0, in_order), asked or query(), Holdings(num_blocks))
