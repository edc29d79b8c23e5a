"""Where the time went: parts add up, and a delay at one hop shows in that hop's part alone."""

from __future__ import annotations

import pytest
from tests.mesh.asking import Question, ask, assert_right, prompt_of

from banyan_runtime.virtual_loop import run_virtual
from banyan_sim.mesh import SimMesh, Topology

DELAY_MS = 50.0
SLACK_MS = 2.0


async def ledger(delays: tuple[tuple[str, str, str], ...] = ()) -> dict[str, float]:
    """Milliseconds by part, with 50 ms on these (source, target, method) links."""
    mesh = SimMesh(Topology())
    await mesh.start()
    for source, target, method in delays:
        mesh.wires.set_delay(
            round(DELAY_MS * 1e6), source=source, target=target, method=f"/banyan.v1.{method}"
        )
    question = Question("q", prompt_of(200), 100)
    assert_right(question, await ask(mesh, question))
    view = mesh.gateway.request_view("q")
    assert view is not None
    parts: dict[str, float] = view["ledger_ms"]
    assert sum(parts.values()) == pytest.approx(view["e2e_ms"], abs=1e-6)
    await mesh.stop()
    return parts


@pytest.mark.parametrize(
    ("part", "links"),
    [
        ("place", (("gateway-0", "router-0", "Router/Place"),)),
        ("dispatch", (("gateway-0", "prefill-0", "Worker/Prefill"),)),
        ("handover", (("prefill-0", "decode-0", "Worker/Pull"),)),
        ("decode_transit", (("decode-0", "gateway-0", "Worker/Tokens"),)),
        # The first token finds another way: the decode worker has it with the KV.
        ("none", (("prefill-0", "gateway-0", "Worker/Tokens"),)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_delay_at_one_hop_moves_exactly_its_part(
    part: str, links: tuple[tuple[str, str, str], ...]
) -> None:
    calm = run_virtual(ledger)
    slowed = run_virtual(lambda: ledger(links))
    for name in sorted({*calm, *slowed}):
        moved = slowed.get(name, 0.0) - calm.get(name, 0.0)
        expected = DELAY_MS if name == part else 0.0
        assert moved == pytest.approx(expected, abs=SLACK_MS), f"{name}: {calm} {slowed}"
