"""The figures over HTTP: Prometheus text, and JSON for people and the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Query, Response
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from banyan_core.sketch import Sketch
from banyan_core.slo_windows import MAX_WINDOW_NS, SloFigures
from banyan_core.types import NS_PER_S
from banyan_metrics.service import MetricsService, RecentRequest, ScaleRecord
from banyan_metrics.workers import WorkerFigures
from banyan_runtime.lifespan import Tasks
from banyan_runtime.listening import listen

MAX_WINDOW_S = MAX_WINDOW_NS // NS_PER_S
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def build_app(service: MetricsService, registry: CollectorRegistry) -> FastAPI:
    """Routes over a service that somebody else starts and stops."""
    app = FastAPI(title="Banyan metrics", docs_url=None, redoc_url=None)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "live"}

    @app.get("/ready")
    async def ready() -> JSONResponse:
        body = {"ready": service.is_ready, "bus_silence_s": service.silence_s}
        return JSONResponse(body, 200 if service.is_ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/slo")
    async def slo(
        window_s: Annotated[int, Query(ge=1, le=MAX_WINDOW_S)] = 300,
    ) -> dict[str, Any]:
        total, pairs = service.slo(window_s * NS_PER_S)
        return {
            "window_s": total.window_ns / NS_PER_S,
            "total": slo_json(total),
            "by_tenant_and_model": [slo_json(pair) for pair in pairs],
            "num_open": len(service.open_requests()),
            "missing_events": service.missing_events(),
        }

    @app.get("/v1/workers")
    async def workers() -> dict[str, Any]:
        return {"workers": [worker_json(worker) for worker in service.workers()]}

    @app.get("/v1/scale")
    async def scale() -> dict[str, Any]:
        return {"decisions": [scale_json(record) for record in service.scale_decisions()]}

    @app.get("/v1/requests/recent")
    async def recent(limit: Annotated[int, Query(ge=1, le=500)] = 50) -> dict[str, Any]:
        return {"requests": [request_json(r) for r in service.recent()[:limit]]}

    return app


# ---------------------------------------------------------------- JSON


def _percentiles(sketch: Sketch) -> dict[str, float | int | None]:
    """Seconds, and how many values they stand for."""
    answer: dict[str, float | int | None] = {"num_values": sketch.num_values}
    for name, share in PERCENTILES.items():
        value = sketch.percentile(share)
        answer[name] = None if value is None else round(value / NS_PER_S, 6)
    return answer


def slo_json(figures: SloFigures) -> dict[str, Any]:
    """One pair (or `*`) over the window; durations in seconds."""
    tally = figures.tally
    prompt = tally.num_prompt_tokens
    return {
        "tenant": figures.tenant,
        "model": figures.model,
        "ttft_s": _percentiles(tally.ttft),
        "itl_s": _percentiles(tally.itl),
        "tpot_s": _percentiles(tally.tpot),
        "e2e_s": _percentiles(tally.e2e),
        "slo_attainment": figures.attainment,
        "goodput_requests_per_s": figures.goodput,
        "num_judged": tally.num_judged,
        "num_met": tally.num_met,
        "outcomes": {outcome.value: tally.outcomes[outcome] for outcome in sorted(tally.outcomes)},
        "num_prompt_tokens": prompt,
        "num_cached_tokens": tally.num_cached_tokens,
        "prefix_hit_rate": tally.num_cached_tokens / prompt if prompt else None,
        "num_output_tokens": tally.num_output_tokens,
        "num_recoveries": tally.num_recoveries,
        "ledger_s": {part: ns / NS_PER_S for part, ns in sorted(tally.ledger_ns.items())},
    }


def worker_json(worker: WorkerFigures) -> dict[str, Any]:
    said = worker.said
    return {
        "worker_id": said.worker.worker_id,
        "role": said.worker.role.value,
        "address": said.worker.address,
        "epoch": said.worker.epoch,
        "model": said.model,
        "state": worker.state,
        "reason": worker.reason,
        "age_s": worker.age_ns / NS_PER_S,
        "draining": said.load.draining,
        "num_running": said.load.num_running,
        "num_waiting": said.load.num_waiting,
        "num_waiting_tokens": said.load.num_waiting_tokens,
        "num_blocks": said.num_blocks,
        "num_free_blocks": said.load.num_free_blocks,
        "kv_usage": worker.kv_usage,
        "prefill_tokens_per_s": said.load.prefill_tokens_per_s,
        "step_s": said.load.step_s,
    }


def scale_json(record: ScaleRecord) -> dict[str, Any]:
    decided = record.decided
    return {
        "time_unix_s": record.time_unix_ns / NS_PER_S,
        "role": decided.role.value,
        "num_replicas_now": decided.num_replicas_now,
        "num_replicas_wanted": decided.num_replicas_wanted,
        "policy": decided.policy,
        "reason": decided.reason,
        "actuator": decided.actuator,
        "applied": decided.applied,
    }


def request_json(recent: RecentRequest) -> dict[str, Any]:
    """Lengths, durations (seconds) and reasons; there is no text here to leak."""
    ended = recent.ended
    return {
        "request_id": ended.request_id,
        "gateway_id": recent.gateway_id,
        "time_unix_s": recent.time_unix_ns / NS_PER_S,
        "tenant": ended.tenant,
        "model": ended.model,
        "outcome": ended.outcome.value if recent.told else "unknown",
        "reason": ended.reason,
        "met_slo": recent.met,
        "num_prompt_tokens": ended.num_prompt_tokens,
        "num_cached_tokens": ended.num_cached_tokens,
        "num_output_tokens": ended.num_output_tokens,
        "ttft_s": None if ended.ttft_ns is None else ended.ttft_ns / NS_PER_S,
        "e2e_s": ended.e2e_ns / NS_PER_S,
        "num_recoveries": ended.num_recoveries,
        "ledger_s": {part: ns / NS_PER_S for part, ns in ended.ledger},
        "prefill_worker_id": ended.prefill_worker_id,
        "decode_worker_id": ended.decode_worker_id,
        "finish_reasons": list(ended.finish_reasons),
    }


# ---------------------------------------------------------------- server


class _Uvicorn(uvicorn.Server):
    """Leaves signals to the process's own lifespan."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """Uvicorn inside the running loop. `address` has the real port once it is started."""

    def __init__(self, app: FastAPI, address: str) -> None:
        config = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False)
        self._server = _Uvicorn(config)
        self._tasks = Tasks()
        self.address = address

    async def start(self) -> None:
        """Bind and serve. Raises OSError when the address cannot be had."""
        listener = listen(self.address)
        self.address = f"{self.address.rpartition(':')[0]}:{listener.getsockname()[1]}"
        self._serving = self._tasks.spawn_brief("metrics http", self._server.serve([listener]))

    async def close(self) -> None:
        self._server.should_exit = True
        await self._serving
