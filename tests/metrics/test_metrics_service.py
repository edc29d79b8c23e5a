"""Events in, figures out, on virtual time: verdicts, losses, restarts, a bus that leaves."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from tests.metrics.heard import Mesh, virtually

from banyan.v1 import events_pb2
from banyan_core.events import ScaleDecided
from banyan_core.request_fold import END_NOT_HEARD, GATEWAY_LOST
from banyan_core.types import NS_PER_S, Outcome, Role
from banyan_runtime.bus import KV_EVENTS, REQUEST_EVENTS, EventProducer

WINDOW = 300 * NS_PER_S


def scraped(registry: CollectorRegistry) -> dict[str, float]:
    """`name{labels}` to value, as a scraper reads it."""
    text = generate_latest(registry).decode()
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    return scraped(registry)[f"{name}{sorted(labels.items())}"]


PAIR = {"model_name": "m", "tenant": "t"}


def test_figures_of_ended_requests() -> None:
    async def test(mesh: Mesh) -> None:
        service, registry = await mesh.metrics()
        gateway = mesh.gateway()
        for name, ttft_ms in (("a", 100), ("b", 150), ("c", 900)):
            gateway.accepted(name)
            gateway.ended(name, ttft_ms=ttft_ms)
        gateway.accepted("d", tenant="other")
        gateway.ended("d", Outcome.CANCELLED, tenant="other")
        gateway.accepted("e")
        await asyncio.sleep(1.0)

        total, pairs = service.slo(WINDOW)
        assert [(p.tenant, p.model) for p in pairs] == [("other", "m"), ("t", "m")]
        mine = pairs[1]
        assert (mine.tally.num_met, mine.tally.num_judged) == (2, 3)
        assert mine.attainment == pytest.approx(2 / 3)
        assert total.tally.ttft.percentile(0.5) == pytest.approx(150e6, rel=0.011)
        assert total.tally.tpot.percentile(0.99) == pytest.approx(20e6, rel=0.011)
        assert total.tally.itl.num_values == 30
        assert pairs[0].attainment is None
        assert [o.accepted.request_id for o in service.open_requests()] == ["e"]
        assert [r.ended.request_id for r in service.recent()] == ["d", "c", "b", "a"]
        assert [r.met for r in service.recent()] == [None, False, True, True]

        assert value(registry, "vllm:time_to_first_token_seconds_count", **PAIR) == 3
        assert value(registry, "vllm:time_to_first_token_seconds_bucket", **PAIR, le="0.25") == 2
        assert value(registry, "vllm:inter_token_latency_seconds_sum", **PAIR) == pytest.approx(0.6)
        assert value(registry, "vllm:request_time_per_output_token_seconds_count", **PAIR) == 3
        assert value(registry, "vllm:e2e_request_latency_seconds_count", **PAIR) == 3
        assert value(registry, "vllm:prompt_tokens_total", **PAIR) == 30
        assert value(registry, "vllm:prompt_tokens_cached_total", **PAIR) == 12
        assert value(registry, "vllm:generation_tokens_total", **PAIR) == 33
        success = value(registry, "vllm:request_success_total", **PAIR, finished_reason="length")
        assert success == 3
        assert value(registry, "banyan_requests_total", **PAIR, outcome="finished") == 3
        assert value(registry, "banyan_request_recoveries_total", **PAIR) == 3
        ledger = value(registry, "banyan_request_ledger_seconds_total", **PAIR, part="queue")
        assert ledger == pytest.approx(0.15)
        assert value(registry, "banyan_slo_attainment_ratio", **PAIR) == pytest.approx(2 / 3)
        assert value(registry, "banyan_goodput_requests_per_second", **PAIR) > 0
        assert value(registry, "banyan_requests_open") == 1

    virtually(test)


def test_gateway_that_dies_loses_its_requests() -> None:
    async def test(mesh: Mesh) -> None:
        service, registry = await mesh.metrics()
        gateway, worker = mesh.gateway(), mesh.worker()
        gateway.accepted("a")
        gateway.alive(1)
        for _ in range(5):
            await asyncio.sleep(1.0)
            worker.alive()
        await asyncio.sleep(0.1)
        assert [(r.ended.reason, r.ended.outcome) for r in service.recent()] == [
            (GATEWAY_LOST, Outcome.FAILED)
        ]
        assert service.slo(WINDOW)[0].attainment == 0.0
        assert value(registry, "banyan_requests_total", **PAIR, outcome="failed") == 1
        assert service.open_requests() == []

    virtually(test)


def test_restarted_gateway_loses_its_requests_at_once() -> None:
    async def test(mesh: Mesh) -> None:
        service, _ = await mesh.metrics()
        mesh.gateway(epoch=1).accepted("a")
        await asyncio.sleep(0.1)
        mesh.gateway(epoch=2).alive(0)
        await asyncio.sleep(0.1)
        assert [r.ended.reason for r in service.recent()] == [GATEWAY_LOST]

    virtually(test)


def test_bus_that_leaves_pauses_figures_and_fails_nobody() -> None:
    async def test(mesh: Mesh) -> None:
        service, _ = await mesh.metrics()
        gateway, worker = mesh.gateway(), mesh.worker()
        gateway.accepted("a")
        gateway.alive(1)
        await asyncio.sleep(0.1)
        mesh.broker.down()
        for _ in range(30):
            await asyncio.sleep(1.0)
            worker.alive()
            gateway.alive(1)
        assert service.recent() == []
        assert service.silence_s == pytest.approx(30, abs=0.2)
        gateway.ended("a")
        mesh.broker.up()
        await asyncio.sleep(1.0)
        assert [r.ended.outcome for r in service.recent()] == [Outcome.FINISHED]

    virtually(test)


def test_losses_are_counted_per_topic() -> None:
    async def test(mesh: Mesh) -> None:
        service, registry = await mesh.metrics()
        await asyncio.sleep(0.1)
        voice = EventProducer(mesh.bus(), mesh.clock, "gateway-0", 1)
        for seq in range(1, 6):
            event = events_pb2.Event(
                producer="gateway-0",
                epoch=1,
                seq=seq,
                time_unix_ns=mesh.clock.unix_ns(),
                request_accepted=events_pb2.RequestAccepted(request_id=f"r{seq}"),
            )
            if seq not in (2, 3):
                mesh.broker.append(REQUEST_EVENTS, "gateway-0", event.SerializeToString())
                mesh.broker.append(REQUEST_EVENTS, "gateway-0", event.SerializeToString())
        voice.emit(KV_EVENTS, events_pb2.Event(blocks_stored=events_pb2.BlocksStored()))
        await asyncio.sleep(0.1)
        assert service.missing_events()[REQUEST_EVENTS] == 2
        assert service.missing_events()[KV_EVENTS] == 0
        assert len(service.open_requests()) == 3
        alive = events_pb2.Event(
            producer="gateway-0",
            epoch=1,
            seq=6,
            time_unix_ns=mesh.clock.unix_ns(),
            gateway_alive=events_pb2.GatewayAlive(),
        )
        mesh.broker.append(REQUEST_EVENTS, "gateway-0", alive.SerializeToString())
        await asyncio.sleep(0.1)
        assert {(r.ended.reason, r.told) for r in service.recent()} == {(END_NOT_HEARD, False)}
        assert service.slo(WINDOW)[0].tally.outcomes == {}, "what is not known is no outcome"
        labels = {"model_name": "", "tenant": ""}
        assert value(registry, "banyan_requests_end_not_heard_total", **labels) == 3
        assert value(registry, "banyan_events_missing_total", topic=REQUEST_EVENTS) == 2

    virtually(test)


def test_records_that_break_a_rule_are_counted_and_passed_over() -> None:
    async def test(mesh: Mesh) -> None:
        service, _ = await mesh.metrics()
        no_outcome = events_pb2.Event(producer="g", epoch=1, seq=1)
        no_outcome.request_ended.SetInParent()
        mesh.broker.append(REQUEST_EVENTS, "g", no_outcome.SerializeToString())
        mesh.broker.append(REQUEST_EVENTS, "g", b"\xff\xff")
        mesh.gateway().ended("a")
        await asyncio.sleep(0.1)
        assert service.num_unreadable == 2
        assert len(service.recent()) == 1

    virtually(test)


def test_restart_rebuilds_windows_but_counts_nothing_twice() -> None:
    async def test(mesh: Mesh) -> None:
        first, _ = await mesh.metrics()
        gateway = mesh.gateway()
        gateway.ended("a")
        await asyncio.sleep(5.0)
        await first.stop(0.0)
        second, registry = await mesh.metrics()
        await asyncio.sleep(0.1)
        gateway.ended("b")
        await asyncio.sleep(0.1)
        assert second.slo(WINDOW)[0].tally.num_judged == 2
        assert value(registry, "banyan_requests_total", **PAIR, outcome="finished") == 1

    virtually(test)


def test_workers_and_scale() -> None:
    async def test(mesh: Mesh) -> None:
        service, registry = await mesh.metrics()
        one, two = mesh.worker("decode-0"), mesh.worker("decode-1")
        one.alive(num_running=3)
        two.alive()
        mesh.decide(ScaleDecided(Role.DECODE, 1, 2, "fixed", "because", "dry-run"))
        await asyncio.sleep(1.0)
        assert [(w.said.worker.worker_id, w.state) for w in service.workers()] == [
            ("decode-0", "alive"),
            ("decode-1", "alive"),
        ]
        labels = {"model_name": "m", "worker_id": "decode-0", "role": "decode"}
        assert value(registry, "vllm:num_requests_running", **labels) == 3
        assert value(registry, "vllm:num_requests_waiting", **labels) == 1
        assert value(registry, "vllm:kv_cache_usage_perc", **labels) == 0.75
        assert value(registry, "banyan_scale_wanted_replicas", role="decode") == 2
        assert [r.decided.reason for r in service.scale_decisions()] == ["because"]
        one.gone("drained")
        await asyncio.sleep(4.0)
        assert [(w.state, w.reason) for w in service.workers()] == [
            ("gone", "drained"),
            ("silent", ""),
        ]
        assert not any("vllm:num_requests_running" in name for name in scraped(registry))
        mesh.worker("decode-0", epoch=2).alive()
        await asyncio.sleep(0.1)
        assert service.workers()[0].state == "alive"

    virtually(test)


def test_many_tenants_share_a_label() -> None:
    async def test(mesh: Mesh) -> None:
        _, registry = await mesh.metrics()
        gateway = mesh.gateway()
        for i in range(100):
            gateway.ended(f"r{i}", tenant=f"t{i}")
        await asyncio.sleep(0.5)
        counts = [n for name, n in scraped(registry).items() if "banyan_requests_total" in name]
        assert (len(counts), sum(counts)) == (33, 100)

    virtually(test)


def test_long_replay_neither_starves_nor_overflows() -> None:
    async def test(mesh: Mesh) -> None:
        gateway = mesh.gateway()
        for i in range(5_000):
            gateway.ended(f"r{i}")
        await asyncio.sleep(0.1)
        service, _ = await mesh.metrics()
        await asyncio.sleep(0.1)
        assert service.slo(WINDOW)[0].tally.num_judged == 5_000

    virtually(test)
