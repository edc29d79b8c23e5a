"""Stubs of other versions of the wire, made at run time from their descriptor sets.

`released()` are the frozen sets of proto/released; `next_version()` is ours with something added
everywhere, as any later version may do. Each version has its own pool, so that its messages are
other classes than ours: they meet as bytes only, as between two processes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from banyan_runtime.rpc import BidiStream, ClientStream, Method, ServerStream, Unary

PROTO = Path(__file__).parents[2] / "proto"
LATER_FIELD = "from_later"
LATER_VALUE = 100
_LATER_NUMBER = 1000
_KINDS: dict[tuple[bool, bool], Any] = {
    (False, False): Unary,
    (False, True): ServerStream,
    (True, False): ClientStream,
    (True, True): BidiStream,
}


class Stubs:
    """One version's message classes and methods."""

    def __init__(self, name: str, files: FileDescriptorSet) -> None:
        self.name = name
        self._pool = DescriptorPool()
        for file in files.file:
            self._pool.Add(file)
        self._services = {
            service.name: self._pool.FindServiceByName(f"{file.package}.{service.name}")
            for file in files.file
            for service in file.service
        }

    def __repr__(self) -> str:
        return self.name

    def message(self, name: str, **fields: Any) -> Any:
        """A message of this version; in a later one with what it added, at every level."""
        made = GetMessageClass(self._pool.FindMessageTypeByName(f"banyan.v1.{name}"))(**fields)
        fill_later(made)
        return made

    def method(self, service: str, verb: str) -> Any:
        return _method(self._services[service].methods_by_name[verb])

    def methods(self, service: str) -> dict[str, Method]:
        return {m.name: _method(m) for m in self._services[service].methods}


def released() -> list[Stubs]:
    """Oldest first."""
    paths = sorted((PROTO / "released").glob("*.binpb"), key=lambda p: _number(p.stem))
    return [Stubs(p.stem, FileDescriptorSet.FromString(p.read_bytes())) for p in paths]


def next_version() -> Stubs:
    """A string in every message, a value in every enum, a verb in every service."""
    files = FileDescriptorSet.FromString((PROTO / "banyan.v1.binpb").read_bytes())
    for file in files.file:
        for message in file.message_type:
            _add_field(message)
        for enum in file.enum_type:
            enum.value.add(name=f"{enum.name.upper()}_LATER", number=LATER_VALUE)
        for service in file.service:
            known = service.method[0].input_type
            service.method.add(name="Later", input_type=known, output_type=known)
    return Stubs("next", files)


def _add_field(message: DescriptorProto) -> None:
    if not message.options.map_entry:
        field = message.field.add(name=LATER_FIELD, number=_LATER_NUMBER)
        field.type = FieldDescriptorProto.TYPE_STRING
        field.label = FieldDescriptorProto.LABEL_OPTIONAL
    for inner in message.nested_type:
        _add_field(inner)


def fill_later(message: Message) -> None:
    """Set what the next version added, at every level; nothing in a message of another one."""
    if LATER_FIELD in message.DESCRIPTOR.fields_by_name:
        setattr(message, LATER_FIELD, "unheard of")
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for inner in value if field.is_repeated else [value]:
            fill_later(inner)


def _method(method: MethodDescriptor) -> Method:
    kind = _KINDS[method.client_streaming, method.server_streaming]
    path = f"/{method.containing_service.full_name}/{method.name}"
    made: Method = kind(
        path, GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    )
    return made


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
