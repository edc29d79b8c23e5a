"""The HTTP face through a real port, and wrong settings."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from tests.metrics.heard import TARGETS, GatewayVoice, WorkerVoice

from banyan_core.events import ScaleDecided
from banyan_core.types import Role
from banyan_metrics.http import HttpServer, build_app
from banyan_metrics.main import run
from banyan_metrics.service import MetricsService
from banyan_runtime.bus import SCALE_EVENTS, EventProducer
from banyan_runtime.clock import SystemClock
from banyan_runtime.event_codec import payload_to_pb
from banyan_runtime.memory_bus import MemoryBroker, MemoryBus

CLOCK = SystemClock()


@dataclass
class Live:
    service: MetricsService
    client: httpx2.AsyncClient
    bus: MemoryBus

    def speak(self) -> None:
        gateway = GatewayVoice(EventProducer(self.bus, CLOCK, "gateway-0", 1))
        gateway.accepted("a")
        gateway.ended("a")
        gateway.ended("b", ttft_ms=900)
        WorkerVoice(EventProducer(self.bus, CLOCK, "decode-0", 1), "decode-0", 1).alive()
        decided = ScaleDecided(Role.DECODE, 1, 2, "fixed", "because", "local", True)
        EventProducer(self.bus, CLOCK, "autoscaler-0", 1).emit(SCALE_EVENTS, payload_to_pb(decided))

    async def get(self, path: str) -> dict[str, Any]:
        response = await self.client.get(path)
        assert response.status_code == 200, response.text
        body = response.json()
        assert isinstance(body, dict)
        return body


@pytest.fixture
async def live() -> AsyncIterator[Live]:
    registry, broker = CollectorRegistry(), MemoryBroker()
    listening, speaking = MemoryBus(broker), MemoryBus(broker)
    logger = logging.getLogger("test")
    service = MetricsService("metrics-0", listening, CLOCK, TARGETS, registry, logger)
    http = HttpServer(build_app(service, registry), "127.0.0.1:0")
    await http.start()
    assert not http.address.endswith(":0")
    async with httpx2.AsyncClient(base_url=f"http://{http.address}") as client:
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/ready")).status_code == 503
        await service.start()
        yield Live(service, client, speaking)
    await service.stop(0.0)
    await http.close()
    await speaking.close()
    await listening.close()


async def heard(live: Live) -> None:
    """Speak, and wait until the last thing said has been heard."""
    live.speak()
    for _ in range(1_000):
        body = await live.get("/v1/scale")
        if body["decisions"] and len(live.service.recent()) == 2 and live.service.workers():
            return
    raise AssertionError("the events never came")


async def test_slo(live: Live) -> None:
    await heard(live)
    body = await live.get("/v1/slo?window_s=60")
    (pair,) = body["by_tenant_and_model"]
    assert (pair["tenant"], pair["model"]) == ("t", "m")
    assert pair["ttft_s"]["num_values"] == 2
    assert pair["ttft_s"]["p50"] == pytest.approx(0.1, rel=0.011)
    assert pair["ttft_s"]["p99"] == pytest.approx(0.9, rel=0.011)
    assert pair["tpot_s"]["p90"] == pytest.approx(0.02, rel=0.011)
    assert pair["slo_attainment"] == 0.5
    assert pair["goodput_requests_per_s"] > 0
    assert pair["outcomes"] == {"finished": 2}
    assert pair["prefix_hit_rate"] == 0.4
    assert pair["ledger_s"] == {"decode": 0.5, "queue": 0.1}
    assert body["total"] == {**pair, "tenant": "*", "model": "*"}
    assert body["num_open"] == 0


async def test_lists(live: Live) -> None:
    await heard(live)
    (worker,) = (await live.get("/v1/workers"))["workers"]
    assert (worker["worker_id"], worker["state"], worker["kv_usage"]) == ("decode-0", "alive", 0.75)
    (decision,) = (await live.get("/v1/scale"))["decisions"]
    assert (decision["num_replicas_wanted"], decision["reason"]) == (2, "because")
    recent = (await live.get("/v1/requests/recent?limit=1"))["requests"]
    assert [request["request_id"] for request in recent] == ["b"]
    assert (await live.get("/ready"))["ready"] is True


async def test_prometheus_text_parses(live: Live) -> None:
    await heard(live)
    response = await live.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    names = {family.name for family in text_string_to_metric_families(response.text)}
    assert {
        "vllm:time_to_first_token_seconds",
        "vllm:inter_token_latency_seconds",
        "vllm:request_time_per_output_token_seconds",
        "vllm:e2e_request_latency_seconds",
        "vllm:prompt_tokens",
        "vllm:generation_tokens",
        "vllm:request_success",
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "banyan_slo_attainment_ratio",
        "banyan_goodput_requests_per_second",
        "banyan_events_missing",
    } <= names


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/slo?window_s=0", "window_s"),
        ("/v1/slo?window_s=601", "window_s"),
        ("/v1/slo?window_s=x", "window_s"),
        ("/v1/requests/recent?limit=0", "limit"),
    ],
)
async def test_bad_query_names_the_field(live: Live, path: str, field: str) -> None:
    response = await live.client.get(path)
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["query", field]


async def test_taken_port_is_an_os_error(live: Live) -> None:
    taken = f"127.0.0.1:{live.client.base_url.port}"
    with pytest.raises(OSError, match="in use"):
        await HttpServer(build_app(live.service, CollectorRegistry()), taken).start()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"BANYAN_METRICS_ADDRESS": None}, "BANYAN_METRICS_ADDRESS is not set"),
        ({"BANYAN_METRICS_GRACE_S": "x"}, "BANYAN_METRICS_GRACE_S=x: expected 0 or more seconds"),
        ({"BANYAN_POLICIES": "/nowhere.toml"}, "/nowhere.toml"),
        ({"slo": "[slo]\ndefault = { ttft = 1 }"}, "slo.default.ttft: unknown"),
    ],
)
def test_wrong_setting_is_one_sentence_and_exit_2(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str | None],
    words: str,
) -> None:
    policies = tmp_path / "policies.toml"
    policies.write_text(change.pop("slo", "") or "")
    env = {
        "BANYAN_METRICS_ID": "metrics-0",
        "BANYAN_METRICS_ADDRESS": "127.0.0.1:0",
        "BANYAN_METRICS_METRICS_ADDRESS": "127.0.0.1:0",
        "BANYAN_BUS_URL": "redis://127.0.0.1:1",
        "BANYAN_POLICIES": str(policies),
        **change,
    }
    assert run({key: text for key, text in env.items() if text is not None}) == 2
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    assert words in sentence
