"""What the gateway tells an operator of its requests: open ones, ended ones, how legs ended."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry
from pytest import approx
from tests.mesh.asking import Answer, Question, ask, assert_right, prompt_of

from banyan_core.journey_limits import JourneyLimits
from banyan_core.queue import QueueLimits
from banyan_runtime.virtual_loop import run_virtual
from banyan_sim.builders import Shared
from banyan_sim.mesh import SimMesh, Topology

LABELS = {"model_name": "echo"}


class Figures:
    def __init__(self, mesh: SimMesh) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(mesh.gateway.metrics)

    def __call__(self, name: str) -> float | None:
        return self._registry.get_sample_value(f"vllm:{name}", LABELS)

    def open(self) -> tuple[float | None, float | None]:
        return self("num_requests_running"), self("num_requests_waiting")


def test_a_request_waits_then_runs_then_is_counted() -> None:
    async def main() -> None:
        mesh = SimMesh(Topology())
        await mesh.start()
        figures = Figures(mesh)
        mesh.crash("router-0")
        seen: list[tuple[float | None, float | None]] = []

        def look(_: Answer) -> None:
            seen.append(figures.open())

        question = Question("q", prompt_of(100), max_tokens=20)
        asking = asyncio.ensure_future(ask(mesh, question, on_news=look))
        await asyncio.sleep(0.1)
        assert figures.open() == (0, 1)
        await mesh.restart("router-0")
        assert_right(question, await asking)
        assert seen[0] == (1, 0)
        assert figures.open() == (0, 0)
        assert figures("time_to_first_token_seconds_count") == 1
        assert figures("e2e_request_latency_seconds_count") == 1
        assert figures("inter_token_latency_seconds_count") == 19
        view = mesh.gateway.request_view("q")
        assert view is not None
        assert figures("time_to_first_token_seconds_sum") == approx(view["ttft_ms"] / 1000)
        assert figures("e2e_request_latency_seconds_sum") == approx(view["e2e_ms"] / 1000)
        await mesh.stop()

    run_virtual(main)


def test_who_waits_is_told_behind_how_many_and_what_was_shed_is_counted() -> None:
    async def main() -> None:
        limits = JourneyLimits(queue=QueueLimits(max_waiting=2))
        mesh = SimMesh(Topology(shared=Shared(journey=limits)))
        await mesh.start()
        mesh.crash("router-0")
        asking = []
        for number in range(3):
            question = Question(f"q{number}", prompt_of(50), max_tokens=5, priority=-number)
            asking.append(asyncio.ensure_future(ask(mesh, question)))
            await asyncio.sleep(0.01)
        waiting = {name: mesh.gateway.request_view(name) for name in ("q1", "q2")}
        assert [view and view["queue"] for view in waiting.values()] == [
            {"num_ahead": 1, "expected_wait_ms": None},
            {"num_ahead": 0, "expected_wait_ms": None},
        ]
        first = await asking[0]
        assert first.failure is not None
        assert (first.failure.code, first.failure.http_status) == ("pushed_out", 503)
        await mesh.restart("router-0")
        await asyncio.gather(*asking)
        view = mesh.gateway.request_view("q1")
        assert view is not None
        assert "queued: 0 ahead" in view["placements"][0]["reason"]
        registry = CollectorRegistry()
        registry.register(mesh.gateway.metrics)
        counted = {
            reason: registry.get_sample_value(
                "banyan_gateway_shed_requests_total", {**LABELS, "reason": reason}
            )
            for reason in ("pushed_out", "queue_full", "too_many_open")
        }
        assert counted == {"pushed_out": 1, "queue_full": 0, "too_many_open": 0}
        assert registry.get_sample_value("banyan_gateway_retry_budget_requests", LABELS) == 256
        await mesh.stop()

    run_virtual(main)


def test_who_waits_for_its_begin_longer_than_anybody_should_is_turned_away_and_counted() -> None:
    async def main() -> None:
        mesh = SimMesh(Topology())
        await mesh.start()
        longest_ns = 2 * QueueLimits().max_wait_ns
        assert mesh.gateway.refusal(longest_ns) is None
        refusal = mesh.gateway.refusal(longest_ns + 1)
        assert refusal is not None
        assert (refusal.code, refusal.http_status, str(refusal)) == (
            "overloaded",
            429,
            "overloaded: it waited 1.0 s to be read",
        )
        registry = CollectorRegistry()
        registry.register(mesh.gateway.metrics)
        labels = {**LABELS, "reason": "begun_too_late"}
        assert registry.get_sample_value("banyan_gateway_shed_requests_total", labels) == 1
        await mesh.stop()

    run_virtual(main)


def test_a_prefill_leg_that_did_its_part_is_told_so() -> None:
    async def main() -> None:
        mesh = SimMesh(Topology())
        await mesh.start()
        for question in (
            Question("split", prompt_of(200)),
            Question("one", prompt_of(200, start=7), max_tokens=1),
        ):
            assert_right(question, await ask(mesh, question))
        ends = {}
        for request_id in ("split", "one"):
            view = mesh.gateway.request_view(request_id)
            assert view is not None
            ends[request_id] = [(leg["verb"], leg["end"]) for leg in view["workers"]]
        assert ends == {
            "split": [("prefill", "handed over"), ("decode", "length")],
            "one": [("prefill", "length")],
        }
        await mesh.stop()

    run_virtual(main)
