"""Every payload comes back from the wire as it went; what breaks a rule is refused by name."""

from __future__ import annotations

import pytest

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

REF = WorkerRef("w", 2**63, "w:1", Role.PREFILL)
LOAD = WorkerLoad(1, 2, 3, 4, 5.5, 0.25, True, ("a/0/0", "b/0/0"))


@pytest.mark.parametrize(
    "payload",
    [
        RequestAccepted("r", "t", "m", 7, True),
        RequestAccepted("", "", ""),
        *(RequestEnded("r", "t", "m", outcome) for outcome in Outcome),
        RequestEnded(
            "r",
            "t",
            "m",
            Outcome.FINISHED,
            "why",
            1,
            2,
            3,
            0,
            5,
            (6, 7),
            8,
            (("queue", 9), ("decode", 10)),
            "p",
            "d",
            ("stop", "length"),
        ),
        GatewayAlive(3, 5_000_000_000),
        WorkerAlive(REF, "m", 64, LOAD, 3_000_000_000),
        WorkerGone(REF, "drained"),
        ScaleDecided(Role.DECODE, 1, 2, "fixed", "why", "local", True),
    ],
    ids=lambda payload: type(payload).__name__,
)
def test_round_trip(payload: Payload) -> None:
    message = payload_to_pb(payload)
    message.producer, message.epoch, message.seq, message.time_unix_ns = "x", 2, 3, 4
    read = events_pb2.Event.FromString(message.SerializeToString())
    assert event_from_pb(read) == Event("x", 2, 3, 4, payload)


@pytest.mark.parametrize("kind", ["blocks_stored", "blocks_removed", "blocks_snapshot", None])
def test_news_of_blocks_is_for_another_fold(kind: str | None) -> None:
    message = events_pb2.Event(producer="x")
    if kind is not None:
        getattr(message, kind).SetInParent()
    assert event_from_pb(message) is None


@pytest.mark.parametrize(
    ("kind", "field"),
    [("request_ended", "outcome"), ("worker_alive", "role"), ("scale_decided", "role")],
)
def test_unset_enum_is_named(kind: str, field: str) -> None:
    message = events_pb2.Event()
    getattr(message, kind).SetInParent()
    with pytest.raises(ValueError, match=field):
        event_from_pb(message)
