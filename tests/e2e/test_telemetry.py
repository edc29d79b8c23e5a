"""A marker goes through a whole mesh, and is looked for in all that the mesh tells anybody.

Prompts, answers, token ids, keys and salts belong to the client and to the KV cache. They must not
be in a log line, an event, a span, a metric, an index key or a file's name, whatever goes wrong.
Not searched: the KV itself (a page of the echo runner is token ids, as any KV is made of them) and
records for replays, which are off unless asked for and hold a decider's whole input.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator

import httpx2
import pytest
from tests.e2e.marker import KEY, PROMPT, Told, told_by
from tests.e2e.marker_talk import Talk, talk_of_everything
from tests.e2e.otlp_sink import OtlpSink, running_sink
from tests.e2e.running import RunningMesh
from tests.metrics.test_rules import names_in_dashboard, names_in_rules

TELL_S = 60.0
SERVICES = ("gateway", "router", "prefill", "decode", "metrics")


@pytest.fixture(scope="module")
def sink() -> Iterator[OtlpSink]:
    with running_sink() as running:
        yield running


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, sink: OtlpSink) -> Iterator[RunningMesh]:
    folder = tmp_path_factory.mktemp("told")
    keys = folder / "keys"
    keys.write_text(f"tenant:{hashlib.sha256(KEY.encode()).hexdigest()}\n")
    with pytest.MonkeyPatch.context() as env:
        env.setenv("BANYAN_GATEWAY_KEY_FILE", str(keys))
        env.setenv("BANYAN_MESH_SECRET", "0123456789abcdef0123456789abcdef")
        env.setenv("BANYAN_GATEWAY_TOOL_FORMAT", "hermes")
        env.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.endpoint)
        running = RunningMesh.start(folder / "mesh", "--runner", "echo", "--decode", "2")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def talked(mesh: RunningMesh) -> dict[str, str]:
    """Ids of answers, by what happened to them. Everything was said when this returns."""
    with httpx2.Client(
        base_url=mesh.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60
    ) as client:
        return talk_of_everything(Talk(mesh, client))


@pytest.fixture(scope="module")
def told(mesh: RunningMesh, sink: OtlpSink, talked: dict[str, str]) -> Told:
    wait_for_spans(sink, talked)
    pieces = {
        f"span {number} of {who}": span.SerializeToString()
        for number, (who, span) in enumerate(sink.spans())
    }
    return Told(pieces | told_by(mesh).pieces)


def wait_for_spans(sink: OtlpSink, talked: dict[str, str]) -> None:
    """Until both who tell of the last answer's end have: the gateway and the metrics service."""
    until = time.monotonic() + TELL_S
    while not {"gateway", "metrics"} <= {
        who for who, span in sink.spans() if talked["recovered"] in str(span)
    }:
        assert time.monotonic() < until, "the spans of the last answer do not come"
        time.sleep(0.1)


def test_nothing_of_the_clients_is_told(told: Told) -> None:
    assert told.leaks() == []


def test_the_search_finds_what_is_told(told: Told, talked: dict[str, str]) -> None:
    """A request's id is in logs, events and spans: the search looks in the right places."""
    assert told.places_of(talked["whole"]) == {"log", "stream", "span"}
    kinds = {name.split(" ")[0] for name in told.pieces}
    assert {"log", "stream", "span", "metrics", "path"} < kinds
    assert any(name.startswith("path mesh/kvstore/") or "kvstore" in name for name in told.pieces)
    assert Told({"place": b"..." + PROMPT.encode()}).leaks()


def test_rules_and_dashboard_ask_for_what_is_there(told: Told) -> None:
    families = {
        line.split()[2]
        for name, piece in told.pieces.items()
        if name.startswith("metrics of ")
        for line in piece.decode().splitlines()
        if line.startswith("# TYPE ")
    }
    histogram_parts = {
        f"{family}_{part}" for family in families for part in ("bucket", "sum", "count")
    }
    wanted = names_in_rules() | names_in_dashboard()
    assert len(wanted) > 30
    assert wanted - families - histogram_parts == set()


def test_every_log_line_is_json_and_names_its_request(
    mesh: RunningMesh, talked: dict[str, str]
) -> None:
    services = [one["name"] for one in mesh.state()["processes"] if one["service"] != "valkey"]
    assert len(services) == 8
    lines = [
        json.loads(line)
        for name in services
        for line in (mesh.folder / "logs" / f"{name}.log").read_text().splitlines()
    ]
    assert lines
    for line in lines:
        assert {"time", "level", "service", "instance", "message"} <= line.keys(), line
    ended = {line["request_id"]: line for line in lines if line["message"] == "request ended"}
    assert ended[talked["whole"]]["outcome"] == "finished"
    assert len(ended[talked["whole"]]["trace_id"]) == 32


def test_one_trace_runs_through_all_services(sink: OtlpSink, talked: dict[str, str]) -> None:
    whole = talked["whole"]
    until = time.monotonic() + TELL_S
    while True:
        spans = sink.spans()
        (trace_id,) = {
            span.trace_id
            for who, span in spans
            if who == "gateway" and whole in str(span.attributes)
        }
        found = {who for who, span in spans if span.trace_id == trace_id}
        if set(SERVICES) <= found:
            break
        assert time.monotonic() < until, f"only {found} told of it"
        time.sleep(0.1)
    assert len([span for _, span in spans if span.trace_id == trace_id]) < 20


def test_the_lost_worker_is_told_of(sink: OtlpSink, talked: dict[str, str]) -> None:
    (root,) = [
        span
        for who, span in sink.spans()
        if who == "gateway" and talked["recovered"] in str(span.attributes)
    ]
    assert [event.name for event in root.events] == ["worker lost"]
