"""Tracing of one process: what is recorded, what a missing collector costs, what off means."""

from __future__ import annotations

import io
import json
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from banyan_core.types import Role
from banyan_runtime.clock import SystemClock
from banyan_runtime.otel_tracing import OtelTracing, otlp_tracing
from banyan_runtime.telemetry import json_logger
from banyan_runtime.trace_context import TraceContext, current_trace, in_trace, trace_of
from banyan_runtime.tracing import NO_TRACING, Kind, spanning
from banyan_worker.main import run as run_worker

PARENT = TraceContext(0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7)
TEXT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
IDS = TEXT[3:-3]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TEXT, PARENT),
        (f"00-{IDS}-00", TraceContext(PARENT.trace_id, PARENT.span_id, sampled=False)),
        (f"00-{IDS}-03", PARENT),
        (f"cc-{IDS}-01-what-the-future-brings", PARENT),
        (f"00-{IDS}-01-more", None),
        (f"ff-{IDS}-01", None),
        (f"00-{IDS.upper()}-01", None),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", None),
        (f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01", None),
        (TEXT + "\n", None),
        ("", None),
        ("01", None),
    ],
)
def test_traceparent(text: str, expected: TraceContext | None) -> None:
    assert TraceContext.parse(text) == expected


def test_traceparent_is_written_as_it_is_read() -> None:
    assert str(PARENT) == TEXT
    assert trace_of((("other", b"x"), ("traceparent", TEXT.encode()))) == PARENT
    assert trace_of((("traceparent", b"\xff"),)) is None


def test_a_task_is_in_the_trace_that_it_was_started_in() -> None:
    assert current_trace() is None
    with in_trace(PARENT):
        assert current_trace() == PARENT
    assert current_trace() is None


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def tracing_to(exporter: InMemorySpanExporter, ratio: float = 1) -> OtelTracing:
    return OtelTracing(SystemClock(), "router", "router-0", SimpleSpanProcessor(exporter), ratio)


def test_the_ratio_holds_where_traces_begin_only(exporter: InMemorySpanExporter) -> None:
    tracing = tracing_to(exporter, ratio=0)
    assert tracing.begin("mine", 0, None) is None
    span = tracing.begin("the client's", 0, TEXT)
    assert span is not None
    span.end()
    assert [span.name for span in exporter.get_finished_spans()] == ["the client's"]


def test_a_failure_marks_its_span(exporter: InMemorySpanExporter) -> None:
    tracing = tracing_to(exporter)
    with (
        pytest.raises(KeyError),
        spanning(tracing.under(PARENT, "broken", {}, Kind.INTERNAL)),
    ):
        raise KeyError("a secret")
    with spanning(tracing.under(PARENT, "dull", {})) as ending:
        ending.is_news = False
    (span,) = exporter.get_finished_spans()
    assert span.attributes == {"error.type": "KeyError"}
    assert span.events == () and "secret" not in span.to_json()


def test_the_global_provider_is_left_alone(exporter: InMemorySpanExporter) -> None:
    tracing_to(exporter)
    assert type(trace.get_tracer_provider()).__name__ == "ProxyTracerProvider"


def test_outside_of_a_trace_nothing_is_recorded(exporter: InMemorySpanExporter) -> None:
    assert tracing_to(exporter).under(current_trace(), "Place", {}) is None
    assert NO_TRACING.begin("chat m", 0, TEXT) is None
    assert NO_TRACING.under(PARENT, "Place", {}) is None


def test_off_loads_no_exporter_and_starts_no_thread() -> None:
    code = (
        "import sys, threading, banyan_gateway.main, banyan_worker.main, banyan_metrics.main\n"
        "LOADED = ('opentelemetry.exporter', 'banyan_runtime.otel_tracing')\n"
        "assert threading.active_count() == 1\n"
        "print([name for name in sys.modules if name.startswith(LOADED)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of this machine where nobody answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


async def test_without_a_collector_spans_are_lost_and_one_line_is_logged(closed_port: int) -> None:
    said = io.StringIO()
    logger = json_logger("router", "unheard", said)
    endpoint = f"http://127.0.0.1:{closed_port}"
    tracing = otlp_tracing(endpoint, 1.0, SystemClock(), "router", "unheard", logger)
    for _ in range(20_000):
        with spanning(tracing.under(PARENT, "Place", {})):
            pass
    await tracing.close()
    lines = [json.loads(line)["message"] for line in said.getvalue().splitlines()]
    assert lines == ["traces are not taken: spans are dropped until they are"]
    assert not [each for each in threading.enumerate() if each.name == "traces end"]
    assert logging.getLogger("opentelemetry").getEffectiveLevel() == logging.CRITICAL


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317", "http://HOST:PORT or https://HOST:PORT"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector", "http://HOST:PORT or https://HOST"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.5", "a number from 0 to 1"),
    ],
)
def test_wrong_settings(
    key: str, value: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {
        "BANYAN_DECODE_ADDRESS": "127.0.0.1:0",
        "BANYAN_DECODE_METRICS_ADDRESS": "127.0.0.1:0",
        "BANYAN_DECODE_RUNNER": "echo",
        "BANYAN_BUS_URL": "redis://127.0.0.1:1",
        "BANYAN_DIRECTORY": "static:",
    }
    assert run_worker(Role.DECODE, good | {key: value}) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"{key}={value}: expected {expected}")
    assert said.count("\n") == 1


def test_what_libraries_say_is_json_too() -> None:
    code = (
        "import asyncio, logging, warnings\n"
        "from banyan_runtime.telemetry import json_logger, log_everything_as_json\n"
        "json_logger('router', 'r').info('ours', extra={'request_id': 'x'})\n"
        "log_everything_as_json('router', 'r')\n"
        "for name in ('uvicorn.error', 'grpc._cython', 'asyncio', 'aiokafka.conn', 'redis'):\n"
        "    logging.getLogger(name).warning('of %s\\nin two lines', name)\n"
        "logging.getLogger('uvicorn.access').info('not for us')\n"
        "warnings.warn('old')\n"
        "try:\n"
        "    1 / 0\n"
        "except ZeroDivisionError:\n"
        "    logging.getLogger('asyncio').exception('failed')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line.get("logger") for line in lines] == [
        None,
        *("uvicorn.error", "grpc._cython", "asyncio", "aiokafka.conn", "redis"),
        *("py.warnings", "asyncio"),
    ]
    assert lines[0]["request_id"] == "x"
    assert "ZeroDivisionError" in lines[-1]["error"]
    assert {line["service"] for line in lines} == {"router"} and done.stdout == ""
