"""A request's trace over all services: one tree, no span per token, nothing when tracing is off."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.mesh.asking import Answer, Question, ask, assert_right, prompt_of
from tests.mesh.test_crashes import Killer

from banyan_core.policies.onboard import Always
from banyan_core.types import NS_PER_MS
from banyan_gateway.ports import RequestFailed
from banyan_runtime.clock import Clock
from banyan_runtime.otel_tracing import OtelTracing
from banyan_runtime.trace_context import TraceContext
from banyan_runtime.tracing import Tracing
from banyan_runtime.virtual_loop import run_virtual
from banyan_sim.builders import Shared
from banyan_sim.mesh import SimMesh, Topology
from banyan_worker.options import WorkerOptions

PARENT = TraceContext(0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7)
QUESTION = Question("traced", prompt_of(70), 24)
HEARD_S = 0.5
OFFLOAD_S = 2.0


class Sink:
    """Every span of every service, with who made it."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()

    def tracing(self, host_id: str, clock: Clock) -> Tracing:
        service = host_id.rpartition("-")[0]
        return OtelTracing(clock, service, host_id, SimpleSpanProcessor(self.exporter))

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def root(self) -> ReadableSpan:
        (root,) = self.named("chat echo")
        return root

    def names(self) -> Counter[tuple[str, str]]:
        return Counter((service_of(span), span.name) for span in self.spans)


def service_of(span: ReadableSpan) -> str:
    return str(span.resource.attributes["service.name"]).removeprefix("banyan-")


def attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


@pytest.fixture
def sink() -> Iterator[Sink]:
    yield Sink()


async def asked(
    topology: Topology,
    question: Question,
    kill_at: int | None = None,
    victim: str | None = None,
) -> tuple[Answer, dict[str, object]]:
    """The answer, and what the gateway tells of the request."""
    mesh = SimMesh(topology)
    await mesh.start()
    killer = None
    if kill_at is not None:
        killer = Killer(mesh, question.request_id, kill_at, victim, restart=False)
    answer = await ask(mesh, question, on_news=killer)
    view = mesh.gateway.request_view(question.request_id)
    assert view is not None
    mesh.later(HEARD_S, lambda: None)
    await mesh.stop()
    return answer, view


def run(
    sink: Sink | None,
    question: Question = QUESTION,
    traceparent: str | None = None,
    kill_at: int | None = None,
    victim: str | None = None,
    topology: Topology | None = None,
) -> tuple[Answer, dict[str, object]]:
    shared = Shared() if sink is None else Shared(tracing=sink.tracing)
    question = replace(question, traceparent=traceparent)
    topology = replace(topology or Topology(), shared=shared)
    return run_virtual(partial(asked, topology, question, kill_at, victim), seed=1)


def test_all_services_tell_of_one_request_in_the_clients_trace(sink: Sink) -> None:
    answer, view = run(sink, traceparent=str(PARENT))
    assert_right(QUESTION, answer)
    assert view["trace_id"] == PARENT.trace_id_hex
    assert {span.context.trace_id for span in sink.spans if span.context} == {PARENT.trace_id}
    assert sink.names() == {
        ("gateway", "chat echo"): 1,
        ("gateway", "place"): 1,
        ("gateway", "dispatch"): 1,
        ("gateway", "prefill"): 1,
        ("gateway", "handover"): 1,
        ("gateway", "decode"): 1,
        ("router", "Place"): 1,
        ("prefill", "prefill sequence"): 1,
        ("prefill", "kv export"): 1,
        ("decode", "decode sequence"): 1,
        ("decode", "kv fetch"): 1,
        ("metrics", "process request.events"): 1,
    }


def test_the_tree(sink: Sink) -> None:
    run(sink, traceparent=str(PARENT))
    names = {id_of(span): span.name for span in sink.spans} | {PARENT.span_id: "client"}
    parents = {span.name: names[span.parent.span_id] for span in sink.spans if span.parent}
    stages = ("place", "dispatch", "prefill", "handover", "decode")
    assert parents == {
        "chat echo": "client",
        **dict.fromkeys(stages, "chat echo"),
        "Place": "chat echo",
        "prefill sequence": "chat echo",
        "decode sequence": "chat echo",
        "kv fetch": "decode sequence",
        "kv export": "kv fetch",
        "process request.events": "chat echo",
    }


def test_the_stages_add_up_to_the_request(sink: Sink) -> None:
    run(sink)
    root = sink.root()
    stages = [span for span in sink.spans if span.parent and span.parent.span_id == id_of(root)]
    stages = [span for span in stages if service_of(span) == "gateway"]
    assert sum(length(span) for span in stages) == length(root)
    ordered = sorted(stages, key=lambda span: span.start_time or 0)
    assert [span.name for span in ordered] == [
        *("place", "dispatch", "prefill", "handover", "decode"),
    ]


def length(span: ReadableSpan) -> int:
    assert span.start_time is not None and span.end_time is not None
    return span.end_time - span.start_time


def test_what_the_spans_say(sink: Sink) -> None:
    run(sink)
    said = attributes(sink.root())
    assert said["gen_ai.operation.name"] == "chat"
    assert said["gen_ai.request.model"] == said["gen_ai.response.model"] == "echo"
    assert said["gen_ai.request.max_tokens"] == 24
    assert said["gen_ai.usage.input_tokens"] == 70
    assert said["gen_ai.usage.output_tokens"] == 24
    assert said["gen_ai.response.finish_reasons"] == ("length",)
    assert said["gen_ai.response.id"] == "traced"
    assert said["banyan.outcome"] == "finished"
    (place,) = sink.named("Place")
    assert attributes(place)["banyan.prefill.worker.id"] == "prefill-0"
    assert attributes(place)["banyan.reason"]
    (decode,) = sink.named("decode sequence")
    assert attributes(decode)["banyan.worker.id"] == "decode-0"
    assert attributes(decode)["banyan.finish"] == "length"
    assert attributes(decode)["banyan.num_cached_tokens"] == 64
    (export,) = sink.named("kv export")
    (fetch,) = sink.named("kv fetch")
    assert attributes(fetch)["banyan.source"] == "prefill-0"
    assert int(str(attributes(export)["banyan.transfer_bytes"])) > 0


def test_any_seed_can_be_sent(sink: Sink) -> None:
    run(sink, question=replace(QUESTION, seed=2**64 - 5))
    assert attributes(sink.root())["gen_ai.request.seed"] == -5
    assert encode_spans(sink.spans).resource_spans


def test_more_tokens_make_no_more_spans(sink: Sink) -> None:
    run(sink)
    few = sink.names()
    sink.exporter.clear()
    run(sink, question=Question("longer", prompt_of(70), 240))
    assert sink.names() == few


@pytest.mark.parametrize("traceparent", [None, "", "00-nonsense", str(PARENT)[:-3]])
def test_without_a_clients_trace_one_begins_here(sink: Sink, traceparent: str | None) -> None:
    _, view = run(sink, traceparent=traceparent)
    root = sink.root()
    assert root.parent is None and root.context is not None
    assert view["trace_id"] == f"{root.context.trace_id:032x}"
    assert len({span.context.trace_id for span in sink.spans if span.context}) == 1


def test_a_client_that_does_not_record_is_obeyed(sink: Sink) -> None:
    answer, view = run(sink, traceparent=str(replace(PARENT, sampled=False)))
    assert_right(QUESTION, answer)
    assert sink.spans == ()
    assert view["trace_id"] is None


def test_off_there_are_no_spans() -> None:
    answer, view = run(None, traceparent=str(PARENT))
    assert_right(QUESTION, answer)
    assert view["trace_id"] is None


def test_a_workers_death_and_the_recovery_are_seen(sink: Sink) -> None:
    topology = Topology(num_prefill=2, num_decode=2)
    answer, view = run(sink, kill_at=10, topology=topology)
    assert_right(QUESTION, answer)
    root = sink.root()
    (lost,) = [event for event in root.events if event.name == "worker lost"]
    assert lost.attributes is not None
    assert str(lost.attributes["banyan.worker.id"]).startswith("decode-")
    assert root.start_time is not None and root.end_time is not None
    assert root.start_time < lost.timestamp < root.end_time
    assert attributes(root)["banyan.num_recoveries"] == view["num_recoveries"] == 1
    assert sink.names()["router", "Place"] == 2
    assert sink.names()["gateway", "place"] == 2
    (known,) = [
        attributes(span)["banyan.num_known_output_tokens"]
        for span in sink.spans
        if service_of(span) == "decode" and span.name == "decode sequence"
    ]
    assert int(str(known)) >= 10


def test_a_request_that_is_shed_is_a_failed_span(sink: Sink) -> None:
    question = replace(QUESTION, deadline_ns=NS_PER_MS // 100)
    answer, _ = run(sink, question=question)
    assert isinstance(answer.failure, RequestFailed)
    root = sink.root()
    assert not root.status.is_ok
    assert attributes(root)["error.type"] == answer.failure.code


def test_what_the_store_gives_is_in_the_trace(sink: Sink) -> None:
    """Workers that know nothing any more find the prompt's blocks in the store."""
    answer = run_virtual(partial(asked_twice, Shared(tracing=sink.tracing)), seed=1)
    assert_right(QUESTION, answer)
    (get,) = sink.named("kvstore get")
    fetches = {id_of(span): attributes(span) for span in sink.named("kv fetch")}
    assert get.parent is not None
    assert fetches[get.parent.span_id]["banyan.source"] == "kvstore"
    assert fetches[get.parent.span_id]["banyan.num_fetched_blocks"] == 4
    assert int(str(attributes(get)["banyan.num_pages"])) >= 4


async def asked_twice(shared: Shared) -> Answer:
    mesh = SimMesh(Topology(shared=replace(shared, worker=WorkerOptions(onboard=Always()))))
    await mesh.start()
    assert_right(QUESTION, await ask(mesh, QUESTION))
    await mesh.wait_idle(60.0)
    await asyncio.sleep(OFFLOAD_S)
    for host_id in ("prefill-0", "decode-0"):
        await mesh.restart(host_id)
    await mesh.wait_ready()
    answer = await ask(mesh, replace(QUESTION, request_id="again"))
    await mesh.stop()
    return answer
