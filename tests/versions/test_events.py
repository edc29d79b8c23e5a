"""Records of one version read by another: a topic holds both while a mesh is being updated."""

from __future__ import annotations

import pytest
from tests.versions.stubs import LATER_FIELD, LATER_VALUE, Stubs, next_version, released

from banyan.v1 import events_pb2
from banyan_core.events import (
    Event,
    GatewayAlive,
    Payload,
    RequestAccepted,
    RequestEnded,
    ScaleDecided,
    WorkerAlive,
    WorkerGone,
)
from banyan_core.types import Outcome, Role, WorkerLoad, WorkerRef
from banyan_runtime.event_codec import event_from_pb, payload_to_pb

WORKER = WorkerRef("decode-0", 3, "decode-0:1", Role.DECODE)
PAYLOADS: list[Payload] = [
    RequestAccepted("r", "t", "m", 12, True),
    RequestEnded("r", "t", "m", Outcome.FINISHED, "", 12, 4, 30, 5_000, 9_000, (1, 2, 3)),
    GatewayAlive(2, 10),
    WorkerAlive(WORKER, "m", 64, WorkerLoad(num_running=3, draining=True), 30),
    WorkerGone(WORKER, "drained"),
    ScaleDecided(Role.DECODE, 1, 2, "fixed", "fixed at 2", "dry-run", False),
]
VERSIONS = [*released(), next_version()]


def ours(payload: Payload) -> events_pb2.Event:
    message = payload_to_pb(payload)
    message.producer, message.epoch, message.seq, message.time_unix_ns = "p", 1, 2, 3
    return message


def theirs(version: Stubs, payload: Payload) -> bytes:
    """The same event as that version would write it: only what it knows, and all that it adds."""
    read = type(version.message("Event")).FromString(ours(payload).SerializeToString())
    read.DiscardUnknownFields()
    fields = {field.name: value for field, value in read.ListFields()}
    return bytes(version.message("Event", **fields).SerializeToString())


@pytest.mark.parametrize("version", VERSIONS, ids=repr)
@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda p: type(p).__name__)
def test_their_records_are_read_by_us(version: Stubs, payload: Payload) -> None:
    event = event_from_pb(events_pb2.Event.FromString(theirs(version, payload)))
    assert event == Event("p", 1, 2, 3, payload)


@pytest.mark.parametrize("version", VERSIONS, ids=repr)
@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda p: type(p).__name__)
def test_our_records_are_read_by_them_and_passed_on_whole(version: Stubs, payload: Payload) -> None:
    written = ours(payload)
    read = type(version.message("Event")).FromString(written.SerializeToString())
    kind = read.WhichOneof("payload")
    assert kind == written.WhichOneof("payload")
    known = getattr(read, kind)
    for field in known.DESCRIPTOR.fields:
        if field.name != LATER_FIELD:
            mine = getattr(getattr(written, kind), field.name)
            assert str(getattr(known, field.name)) == str(mine), field.name
    assert events_pb2.Event.FromString(read.SerializeToString()) == written


def test_a_kind_of_event_that_we_do_not_know_is_passed_over() -> None:
    assert event_from_pb(events_pb2.Event.FromString(b"\xca\x3e\x02\x0a\x00")) is None


@pytest.mark.parametrize(
    ("kind", "name", "field"),
    [
        ("request_ended", "RequestEnded", "outcome"),
        ("scale_decided", "ScaleDecided", "role"),
    ],
)
def test_a_value_that_we_do_not_know_is_refused_by_name(kind: str, name: str, field: str) -> None:
    """Those who listen pass over a record that raises ValueError, and say so in their log."""
    later = next_version()
    event = later.message("Event", **{kind: later.message(name, **{field: LATER_VALUE})})
    with pytest.raises(ValueError, match=field):
        event_from_pb(events_pb2.Event.FromString(event.SerializeToString()))
