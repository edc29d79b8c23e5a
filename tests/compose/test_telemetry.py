"""What arrives at a real collector and a real Prometheus, and what is written to the logs."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import httpx2
from tests.compose.running import SERVICES, ComposeMesh, wait_until

NUM_TOKENS = 100
IN_EVERY_TRACE = {"gateway", "router", "prefill", "decode", "metrics"}


def test_one_request_is_one_trace_through_all_services(mesh: ComposeMesh, tmp_path: Path) -> None:
    """Over HTTP from the client, over gRPC to router and workers, over Kafka to metrics."""
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    prompt = f"The {secrets.token_hex(4)} key opens no door. " * 8  # in no cache, so it is split
    body = {"model": "banyan-demo", "prompt": prompt, "max_tokens": NUM_TOKENS, "ignore_eos": True}
    headers = {"traceparent": f"00-{trace_id}-{span_id}-01"}
    answer = httpx2.post(f"{mesh.url}/v1/completions", json=body, headers=headers, timeout=60)
    assert answer.json()["usage"]["completion_tokens"] == NUM_TOKENS

    def spans() -> list[dict[str, Any]]:
        return [span for span in exported(mesh, tmp_path) if span["traceId"] == trace_id]

    wait_until(lambda: {span["service"] for span in spans()} >= IN_EVERY_TRACE, "all have told")
    seen = spans()
    (root,) = [span for span in seen if span["parentSpanId"] == span_id]
    assert root["service"] == "gateway"
    known = {span["spanId"] for span in seen} | {span_id}
    assert all(span["parentSpanId"] in known for span in seen)
    assert len(seen) < NUM_TOKENS / 2  # none per token


def exported(mesh: ComposeMesh, folder: Path) -> list[dict[str, Any]]:
    """All spans of the collector's file, with the service that sent each."""
    file = folder / "traces.json"
    mesh.compose("cp", "otel-collector:/traces/traces.json", str(file))
    spans: list[dict[str, Any]] = []
    for line in file.read_text().splitlines():
        for sent in json.loads(line)["resourceSpans"]:
            about = {one["key"]: one["value"] for one in sent["resource"]["attributes"]}
            service = about["service.name"]["stringValue"].removeprefix("banyan-")
            spans += [
                {"service": service, "parentSpanId": "", **span}
                for scope in sent["scopeSpans"]
                for span in scope["spans"]
            ]
    return spans


def test_prometheus_reaches_every_service_and_knows_the_alerts(mesh: ComposeMesh) -> None:
    def told(path: str) -> Any:
        url = f"http://127.0.0.1:{mesh.prometheus_port}/api/v1/{path}"
        return httpx2.get(url, timeout=10).json()["data"]

    def up() -> set[str]:
        targets = told("targets")["activeTargets"]
        return {target["labels"]["job"] for target in targets if target["health"] == "up"}

    wait_until(lambda: up() == set(SERVICES), "all targets are up")
    rules = [rule for group in told("rules")["groups"] for rule in group["rules"]]
    assert rules
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}  # unknown: not evaluated yet
    requests = told("query?query=sum(vllm:request_success_total{job='gateway'})")["result"]
    assert float(requests[0]["value"][1]) >= 1


def test_every_line_of_the_logs_is_json_that_names_its_service(mesh: ComposeMesh) -> None:
    for service in SERVICES:
        text = mesh.compose("logs", "--no-log-prefix", "--no-color", service)
        lines = [json.loads(line) for line in text.splitlines()]
        assert {line["service"] for line in lines} == {service}
        if service == "gateway":
            ended = [line for line in lines if line["message"] == "request ended"]
            assert ended and all(line["request_id"] for line in ended)
