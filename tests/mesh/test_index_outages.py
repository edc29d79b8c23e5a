"""The index, the bus, or both go away or lose all they hold: requests are answered with
recomputation, and afterwards prefixes count again, without a hand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from tests.mesh.asking import Question, ask, assert_right, prompt_of

from banyan_core.hashing import block_hashes, cache_salt
from banyan_core.types import BlockHash
from banyan_runtime.virtual_loop import run_virtual
from banyan_sim.builders import MESH_SECRET
from banyan_sim.mesh import SimMesh, Topology

SETTLED_S = 3.0
REPAIRED_S = 40.0
"""Every producer says all that it holds at least every 30 s: afterwards no hole is left."""
AWAY_S = 60.0

QUESTION = Question("first", prompt_of(1000))
NUM_REUSED = 999 // 16 * 16


async def both_down(mesh: SimMesh, *, lose_content: bool) -> None:
    for part in ("bus", "index"):
        mesh.take_down(part, lose_content=lose_content)
    await asyncio.sleep(AWAY_S)
    for part in ("bus", "index"):
        mesh.bring_up(part)


async def away(mesh: SimMesh, part: str, *, lose_content: bool) -> None:
    mesh.take_down(part, lose_content=lose_content)
    await asyncio.sleep(AWAY_S)
    mesh.bring_up(part)


async def flushed(mesh: SimMesh) -> None:
    mesh.take_down("index", lose_content=True)
    mesh.bring_up("index")


async def writer_restarted(mesh: SimMesh) -> None:
    await mesh.restart("kvstore-0")


async def all_of_it(mesh: SimMesh) -> None:
    """The one server of a small mesh, with bus and index in it, starts empty; so does the store."""
    await both_down(mesh, lose_content=True)
    await mesh.restart("kvstore-0")


Outage = Callable[[SimMesh], Awaitable[None]]
OUTAGES: dict[str, Outage] = {
    "index flushed": flushed,
    "index away": lambda mesh: away(mesh, "index", lose_content=False),
    "index restarted empty": lambda mesh: away(mesh, "index", lose_content=True),
    "bus away": lambda mesh: away(mesh, "bus", lose_content=False),
    "bus restarted empty": lambda mesh: away(mesh, "bus", lose_content=True),
    "both away": lambda mesh: both_down(mesh, lose_content=False),
    "both restarted empty": lambda mesh: both_down(mesh, lose_content=True),
    "writer restarted": writer_restarted,
    "all of it": all_of_it,
}


async def num_cached(mesh: SimMesh, question: Question) -> int:
    """Of a right answer."""
    answer = await ask(mesh, question)
    assert_right(question, answer)
    assert answer.usage is not None
    return answer.usage.num_cached_tokens


def hashes_of(mesh: SimMesh, question: Question) -> tuple[BlockHash, ...]:
    shared = mesh.topology.shared
    salt = cache_salt(MESH_SECRET, "tenant", "", shared.card.digest)
    return block_hashes(question.prompt, shared.block_size, salt)


async def known_to(mesh: SimMesh, question: Question) -> list[dict[str, int]]:
    """Who has the prompt's blocks: as each router believes, and as the index says."""
    hashes = hashes_of(mesh, question)
    beliefs = [
        dict((await one.find_prefixes(hashes)).num_blocks) for one in mesh.routers().values()
    ]
    return [*beliefs, dict(await mesh.hosts["router-0"].index.lookup(hashes))]


@pytest.mark.parametrize("outage", OUTAGES.values(), ids=OUTAGES.keys())
def test_reuse_comes_back_without_a_hand(outage: Outage) -> None:
    async def main() -> None:
        mesh = SimMesh(Topology(num_prefill=2, num_decode=2, num_routers=2))
        await mesh.start()
        assert await num_cached(mesh, QUESTION) == 0
        await asyncio.sleep(SETTLED_S)
        assert await num_cached(mesh, replace(QUESTION, request_id="warm")) == NUM_REUSED

        harm = asyncio.ensure_future(outage(mesh))
        unheard = Question("unheard", prompt_of(1000, start=30))
        await asyncio.sleep(0.5)
        assert await num_cached(mesh, unheard) == 0
        await harm
        await asyncio.sleep(REPAIRED_S)

        for question in (QUESTION, unheard):
            beliefs = await known_to(mesh, question)
            assert beliefs[0], "nobody knows of it"
            assert beliefs[1:] == beliefs[:1] * 2, "not all believe the same"
            again = replace(question, request_id=f"{question.request_id} again")
            assert await num_cached(mesh, again) == NUM_REUSED
        await mesh.stop()

    run_virtual(main)


def test_a_new_router_knows_at_once_what_the_mesh_holds() -> None:
    """From the index: the events that say it were before its time."""

    async def main() -> None:
        mesh = SimMesh(Topology(num_prefill=2))
        await mesh.start()
        await num_cached(mesh, QUESTION)
        await asyncio.sleep(SETTLED_S)
        await mesh.restart("router-0")
        await mesh.wait_ready()
        await asyncio.sleep(0.1)
        mesh.take_down("index", lose_content=True)
        beliefs = await mesh.routers()["router-0"].find_prefixes(hashes_of(mesh, QUESTION))
        assert dict(beliefs.num_blocks)["kvstore-0"] >= NUM_REUSED // 16
        await mesh.stop()

    run_virtual(main)
