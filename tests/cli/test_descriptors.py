"""The wire's promise: which changes of a descriptor set break peers, and which do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from descriptors import breaks
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

PROMISE = Path(__file__).parents[2] / "proto" / "banyan.v1.binpb"
Change = Callable[[FileDescriptorSet], object]


def promised() -> FileDescriptorSet:
    return FileDescriptorSet.FromString(PROMISE.read_bytes())


def file(files: FileDescriptorSet, name: str) -> FileDescriptorProto:
    return next(f for f in files.file if f.name == f"banyan/v1/{name}.proto")


def message(files: FileDescriptorSet, name: str) -> DescriptorProto:
    return next(m for f in files.file for m in f.message_type if m.name == name)


def field(files: FileDescriptorSet, owner: str, name: str) -> FieldDescriptorProto:
    return next(f for f in message(files, owner).field if f.name == name)


def remove(rows: object, name: str) -> None:
    row = next(r for r in rows if r.name == name)  # type: ignore[attr-defined]  # any named rows
    rows.remove(row)  # type: ignore[attr-defined]  # the same


BREAKS: dict[str, tuple[Change, str]] = {
    "message": (
        lambda fs: remove(file(fs, "kv").message_type, "KvPage"),
        "message banyan.v1.KvPage is gone",
    ),
    "field": (
        lambda fs: remove(message(fs, "WorkerRef").field, "epoch"),
        "field 2 of banyan.v1.WorkerRef (epoch) is gone",
    ),
    "number": (
        lambda fs: setattr(field(fs, "WorkerRef", "epoch"), "number", 9),
        "field 2 of banyan.v1.WorkerRef (epoch) is gone",
    ),
    "field's name": (
        lambda fs: setattr(field(fs, "WorkerRef", "epoch"), "name", "life"),
        "its name was epoch and is life",
    ),
    "type": (
        lambda fs: setattr(
            field(fs, "WorkerRef", "epoch"), "type", FieldDescriptorProto.TYPE_STRING
        ),
        "its type was TYPE_UINT64 and is TYPE_STRING",
    ),
    "message type": (
        lambda fs: setattr(field(fs, "Placement", "decode"), "type_name", ".banyan.v1.Score"),
        "its type was .banyan.v1.WorkerRef and is .banyan.v1.Score",
    ),
    "repeated": (
        lambda fs: setattr(
            field(fs, "PlaceRequest", "excluded_worker_ids"),
            "label",
            FieldDescriptorProto.LABEL_OPTIONAL,
        ),
        "its label was LABEL_REPEATED and is LABEL_OPTIONAL",
    ),
    "presence": (
        lambda fs: field(fs, "RequestEnded", "ttft_ns").ClearField("proto3_optional"),
        "its presence was optional and is plain",
    ),
    "oneof": (
        lambda fs: field(fs, "TokensRequest", "ack").ClearField("oneof_index"),
        "its oneof was message and is none",
    ),
    "enum value": (
        lambda fs: remove(file(fs, "common").enum_type[0].value, "ROLE_DECODE"),
        "value ROLE_DECODE of enum banyan.v1.Role is gone",
    ),
    "enum number": (
        lambda fs: setattr(file(fs, "common").enum_type[0].value[2], "number", 7),
        "value ROLE_DECODE of enum banyan.v1.Role was 2 and is 7",
    ),
    "enum": (
        lambda fs: remove(file(fs, "worker").enum_type, "Finish"),
        "enum banyan.v1.Finish is gone",
    ),
    "rpc": (
        lambda fs: remove(file(fs, "worker").service[0].method, "Drain"),
        "rpc banyan.v1.Worker.Drain is gone",
    ),
    "rpc's kind": (
        lambda fs: setattr(file(fs, "worker").service[0].method[0], "server_streaming", False),
        "rpc banyan.v1.Worker.Watch has another signature",
    ),
    "service": (
        lambda fs: remove(file(fs, "kv").service, "KvStore"),
        "service banyan.v1.KvStore is gone",
    ),
}


@pytest.mark.parametrize("what", BREAKS)
def test_break_is_found(what: str) -> None:
    change, sentence = BREAKS[what]
    changed = promised()
    change(changed)
    assert any(sentence in found for found in breaks(promised(), changed))


def test_additions_break_nothing() -> None:
    changed = promised()
    message(changed, "WorkerRef").field.add(name="zone", number=99, label=1, type=9)
    file(changed, "kv").message_type.add(name="KvHint")
    file(changed, "common").enum_type[0].value.add(name="ROLE_BOTH", number=3)
    file(changed, "kv").service[0].method.add(name="Hint", input_type="x", output_type="y")
    file(changed, "kv").service.add(name="KvHints")
    assert breaks(promised(), changed) == []


@pytest.mark.parametrize(
    "path", sorted(PROMISE.parent.glob("released/*.binpb")), ids=lambda p: p.stem
)
def test_no_released_version_is_broken(path: Path) -> None:
    assert breaks(FileDescriptorSet.FromString(path.read_bytes()), promised()) == []
