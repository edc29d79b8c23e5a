"""Where the time went: parts add up, and a delay at one hop shows in that hop's part alone."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import pytest
from tests.mesh.asking import Question, ask, assert_right, prompt_of

from banyan_core.types import NS_PER_MS
from banyan_runtime.virtual_loop import run_virtual
from banyan_sim.mesh import SimMesh, Topology

DELAY_MS = 50
SLACK_MS = 2.0


@dataclass(frozen=True)
class Hop:
    """Links (source, target, method) of one hop, and the one part that a delay on it moves.

    `only_stored`: the prompt was answered before, and only the KV store still has its blocks.
    """

    part: str
    links: tuple[tuple[str, str, str], ...]
    max_tokens: int = 100
    num_prefill: int = 1
    only_stored: bool = False


async def ledger(hop: Hop, delay_ms: int = 0, age_ms: int = 0) -> dict[str, float]:
    """Milliseconds by part, with a delay on each of the hop's links."""
    mesh = SimMesh(Topology(num_prefill=hop.num_prefill))
    await mesh.start()
    question = Question("q", prompt_of(200), hop.max_tokens, age_ns=age_ms * NS_PER_MS)
    if hop.only_stored:
        await forget_all_but_the_store(mesh, question)
    for source, target, method in hop.links:
        mesh.wires.set_delay(
            delay_ms * NS_PER_MS, source=source, target=target, method=f"/banyan.v1.{method}"
        )
    assert_right(question, await ask(mesh, question))
    view = mesh.gateway.request_view("q")
    assert view is not None
    parts: dict[str, float] = view["ledger_ms"]
    assert sum(parts.values()) == pytest.approx(view["e2e_ms"], abs=1e-6)
    await mesh.stop()
    return parts


async def forget_all_but_the_store(mesh: SimMesh, question: Question) -> None:
    before = replace(question, request_id="before")
    assert_right(before, await ask(mesh, before))
    await asyncio.sleep(2.0)
    for host_id in ("prefill-0", "decode-0"):
        await mesh.restart(host_id)
    await mesh.wait_ready()


def assert_moved(calm: dict[str, float], slowed: dict[str, float], part: str, by_ms: int) -> None:
    for name in sorted({*calm, *slowed}):
        moved = slowed.get(name, 0.0) - calm.get(name, 0.0)
        expected = by_ms if name == part else 0.0
        assert moved == pytest.approx(expected, abs=SLACK_MS), f"{name}: {calm} {slowed}"


PREFILL_TOKENS = ("prefill-0", "gateway-0", "Worker/Tokens")
DECODE_TOKENS = ("decode-0", "gateway-0", "Worker/Tokens")
HOPS = {
    "place": Hop("place", (("gateway-0", "router-0", "Router/Place"),)),
    "dispatch": Hop("dispatch", (("gateway-0", "prefill-0", "Worker/Prefill"),)),
    "handover": Hop("handover", (("prefill-0", "decode-0", "Worker/Pull"),)),
    "decode_transit": Hop("decode_transit", (DECODE_TOKENS,)),
    # The first token finds another way: the decode worker has it with the KV.
    "none": Hop("none", (PREFILL_TOKENS,)),
    "one_token": Hop("prefill_transit", (PREFILL_TOKENS,), max_tokens=1),
    "unsplit": Hop("prefill_transit", (DECODE_TOKENS,), num_prefill=0),
    "store_has": Hop(
        "prefill_fetch", (("prefill-0", "kvstore-0", "KvStore/Has"),), only_stored=True
    ),
    "store_get": Hop(
        "prefill_fetch", (("kvstore-0", "prefill-0", "KvStore/Get"),), only_stored=True
    ),
}


@pytest.mark.parametrize("name", HOPS)
def test_a_delay_at_one_hop_moves_exactly_its_part(name: str) -> None:
    hop = HOPS[name]
    calm = run_virtual(lambda: ledger(hop))
    slowed = run_virtual(lambda: ledger(hop, DELAY_MS))
    assert_moved(calm, slowed, hop.part, DELAY_MS)


def test_time_before_the_gateway_took_it_is_the_time_to_tokenise() -> None:
    hop = Hop("tokenize", ())
    calm = run_virtual(lambda: ledger(hop))
    aged = run_virtual(lambda: ledger(hop, age_ms=DELAY_MS))
    assert_moved(calm, aged, "tokenize", DELAY_MS)
    assert aged["tokenize"] == pytest.approx(DELAY_MS)
