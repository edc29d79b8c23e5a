"""What a router knows of who has a prompt's blocks: from the index, from the bus, from neither."""

from __future__ import annotations

import asyncio

from tests.core.clusters import query
from tests.kvstore.stored import blocks_removed, blocks_snapshot, blocks_stored
from tests.router.routed import Routed, SlowIndex, two_and_two, virtually

from banyan_core.placement import Decision, Placement
from banyan_core.policies.draw import Draws
from banyan_core.policies.routing import PrefixCost
from banyan_core.policies.routing_view import Routed as RoutedTo
from banyan_core.policies.routing_view import RoutingView
from banyan_router.prefixes import ROUND_S
from banyan_runtime.bus import KV_EVENTS, EventProducer

H = query().block_hashes
SETTLED_S = 0.3
TWO_ROUNDS_S = 2 * ROUND_S + SETTLED_S


class MostCached:
    """Wherever most of the prompt is, whatever else is there."""

    def place(self, view: RoutingView, draws: Draws) -> RoutedTo:
        best = max(view.cluster.workers, key=view.num_cached_tokens)
        placement = Placement(best.ref, None, view.num_cached_tokens(best))
        return RoutedTo(placement, Decision("most_cached", draws.number))


async def cached(routed: Routed) -> dict[str, int]:
    """The worker that has most of the prompt's blocks, and how many; nothing when nobody has."""
    outcome, _ = await routed.place(query())
    assert isinstance(outcome, Placement)
    count = outcome.num_expected_cached_tokens // 16
    return {outcome.decode.worker_id: count} if count else {}


async def begin(routed: Routed) -> None:
    await two_and_two(routed)
    await routed.start(MostCached())
    await asyncio.sleep(SETTLED_S)


def lose(routed: Routed, producer: EventProducer, *events: object) -> None:
    """The producer says it, and nobody hears."""
    routed.workers_bus.is_full = True
    for event in events:
        producer.emit(KV_EVENTS, event)  # type: ignore[arg-type] # events of stored.py
    routed.workers_bus.is_full = False


def test_a_cached_prefix_decides() -> None:
    async def test(routed: Routed) -> None:
        for holder, count in (("p1", 10), ("kvstore-a", 20), ("stranger", 20)):
            await routed.index_has(holder, H[:count])
        await two_and_two(routed)
        await routed.start(PrefixCost())
        await asyncio.sleep(SETTLED_S)
        outcome, decision = await routed.place(query())
        assert isinstance(outcome, Placement)
        assert outcome.prefill is not None
        assert outcome.prefill.worker_id == "p1"
        assert outcome.num_expected_cached_tokens == 160
        assert "index" not in decision.reason

    virtually(test)


# ---------------------------------------------------------------- the copy


def test_once_copied_the_index_is_not_asked() -> None:
    async def test(routed: Routed) -> None:
        await routed.index_has("p1", H[:10])
        await begin(routed)
        routed.index_server.down(lose_content=True)
        assert await cached(routed) == {"p1": 10}
        await asyncio.sleep(60)
        assert await cached(routed) == {"p1": 10}
        assert routed.figure("prefix_lookups_total", source="copy") == 2
        assert routed.figure("index_unavailable_total") == 0

    virtually(test)


def test_the_copy_goes_on_with_what_the_bus_says() -> None:
    async def test(routed: Routed) -> None:
        worker = routed.producer("p1")
        worker.emit(KV_EVENTS, blocks_stored(H[:10]))
        await routed.index_has("p1", H[:10], seq=1)
        await begin(routed)
        routed.index_server.down()
        worker.emit(KV_EVENTS, blocks_stored(H[10:15]))
        await asyncio.sleep(SETTLED_S)
        assert await cached(routed) == {"p1": 15}
        worker.emit(KV_EVENTS, blocks_removed(H[5:6]))
        await asyncio.sleep(SETTLED_S)
        assert await cached(routed) == {"p1": 5}
        routed.producer("p1", epoch=2).emit(KV_EVENTS, blocks_stored(H[:1]))
        await asyncio.sleep(SETTLED_S)
        assert await cached(routed) == {"p1": 1}

    virtually(test)


def test_a_hole_has_the_index_asked_until_the_copy_is_healed_from_it() -> None:
    async def test(routed: Routed) -> None:
        worker = routed.producer("p1")
        worker.emit(KV_EVENTS, blocks_stored(H[:10]))
        await routed.index_has("p1", H[:10], seq=1)
        await begin(routed)
        lose(routed, worker, blocks_removed(H[3:4]))
        worker.emit(KV_EVENTS, blocks_stored(H[12:13]))
        await routed.index_has("p1", H[:3], seq=2)  # its writer heard what was lost here
        await asyncio.sleep(SETTLED_S)
        assert await cached(routed) == {"p1": 3}
        assert routed.figure("prefix_lookups_total", source="index") == 1
        await asyncio.sleep(ROUND_S)
        assert await cached(routed) == {"p1": 3}
        assert routed.figure("prefix_lookups_total", source="copy") == 1

    virtually(test)


def test_without_the_index_a_hole_is_closed_by_the_producers_snapshot() -> None:
    async def test(routed: Routed) -> None:
        worker = routed.producer("p1")
        worker.emit(KV_EVENTS, blocks_stored(H[:10]))
        await routed.index_has("p1", H[:10], seq=1)
        await begin(routed)
        routed.index_server.down()
        lose(routed, worker, blocks_removed(H[3:4]))
        worker.emit(KV_EVENTS, blocks_stored(H[12:13]))
        await asyncio.sleep(SETTLED_S)
        assert await cached(routed) == {"p1": 10}, "the copy as it is: better than nothing"
        worker.emit(KV_EVENTS, blocks_snapshot(H[:3]))
        await asyncio.sleep(SETTLED_S)
        assert await cached(routed) == {"p1": 3}
        assert routed.figure("prefix_lookups_total", source="copy") == 1

    virtually(test)


def test_without_the_bus_the_copy_follows_the_index() -> None:
    async def test(routed: Routed) -> None:
        await routed.index_has("p1", H[:10], seq=1)
        routed.broker.down()
        await begin(routed)
        assert await cached(routed) == {"p1": 10}
        await routed.index_has("p1", H[:4], seq=2)
        await asyncio.sleep(TWO_ROUNDS_S)
        assert await cached(routed) == {"p1": 4}
        await routed.index_has("p1", H[:2], epoch=2)
        await routed.index_has("p0", H[:6])
        await asyncio.sleep(TWO_ROUNDS_S)
        assert await cached(routed) == {"p0": 6}

    virtually(test)


def test_without_both_the_copy_just_ages() -> None:
    async def test(routed: Routed) -> None:
        await routed.index_has("p1", H[:10])
        await begin(routed)
        routed.broker.down()
        routed.index_server.down()
        await asyncio.sleep(600)
        assert await cached(routed) == {"p1": 10}

    virtually(test)


# ---------------------------------------------------------------- no copy


def test_until_it_is_copied_the_index_is_asked() -> None:
    async def test(routed: Routed) -> None:
        await two_and_two(routed)
        await routed.index_has("p1", H[:10])
        index = SlowIndex(routed.index_server)
        index.slow_lookups = False
        await routed.start(MostCached(), index=index)
        await asyncio.sleep(SETTLED_S)
        assert await cached(routed) == {"p1": 10}
        assert routed.figure("prefix_lookups_total", source="index") == 1

    virtually(test)


def test_without_index_and_copy_it_still_places_and_says_so() -> None:
    async def test(routed: Routed) -> None:
        await two_and_two(routed)
        await routed.index_has("p1", H[:10])
        routed.index_server.down()
        await routed.start(PrefixCost())
        await asyncio.sleep(SETTLED_S)
        outcome, decision = await routed.place(query())
        assert isinstance(outcome, Placement)
        assert outcome.prefill is not None
        assert outcome.prefill.worker_id == "p0"
        assert "the index did not answer" in decision.reason
        assert routed.figure("index_unavailable_total") == 1
        routed.index_server.up()
        await asyncio.sleep(ROUND_S)
        _, decision = await routed.place(query())
        assert "index" not in decision.reason

    virtually(test)


def test_a_slow_index_costs_no_more_than_its_bound() -> None:
    async def test(routed: Routed) -> None:
        await two_and_two(routed)
        await routed.start(PrefixCost(), index=SlowIndex(routed.index_server))
        await asyncio.sleep(SETTLED_S)
        before = routed.clock.now_ns()
        _, decision = await routed.place(query())
        assert routed.clock.now_ns() - before < 60_000_000
        assert "the index did not answer" in decision.reason

    virtually(test)


def test_what_is_no_event_is_skipped() -> None:
    async def test(routed: Routed) -> None:
        await begin(routed)
        routed.workers_bus.publish(KV_EVENTS, "p1", b"\xff not protobuf")
        routed.producer("p1").emit(KV_EVENTS, blocks_stored(H[:2]))
        await asyncio.sleep(SETTLED_S)
        assert await cached(routed) == {"p1": 2}

    virtually(test)
