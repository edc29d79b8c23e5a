"""Says how one version of the wire breaks another, by comparing their descriptor sets.

A peer of the older version must still understand and be understood: nothing that it can name may
go away, and no field may change its number, its type, or whether it repeats. Additions are fine.
A field's name is part of it as well: JSON and logs use it.
"""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)


def breaks(old: FileDescriptorSet, new: FileDescriptorSet) -> list[str]:
    """One sentence per break, in the order of the old set; empty when there is none."""
    return [*_message_breaks(old, new), *_enum_breaks(old, new), *_service_breaks(old, new)]


def _message_breaks(old: FileDescriptorSet, new: FileDescriptorSet) -> Iterator[str]:
    known = dict(_messages(new))
    for name, message in _messages(old):
        if name not in known:
            yield f"message {name} is gone"
            continue
        fields = {field.number: field for field in known[name].field}
        for field in message.field:
            where = f"field {field.number} of {name}"
            if field.number not in fields:
                yield f"{where} ({field.name}) is gone"
            else:
                yield from _field_breaks(
                    where, _Field(message, field), _Field(known[name], fields[field.number])
                )


class _Field:
    """What peers rely on in a field, each part in words."""

    def __init__(self, message: DescriptorProto, field: FieldDescriptorProto) -> None:
        kinds = FieldDescriptorProto
        one_of = ""
        if field.HasField("oneof_index") and not field.proto3_optional:
            one_of = message.oneof_decl[field.oneof_index].name
        self.parts = {
            "name": field.name,
            "type": field.type_name or kinds.Type.Name(field.type),
            "label": kinds.Label.Name(field.label),
            "presence": "optional" if field.proto3_optional else "plain",
            "oneof": one_of or "none",
        }


def _field_breaks(where: str, old: _Field, new: _Field) -> Iterator[str]:
    for part, was in old.parts.items():
        if new.parts[part] != was:
            yield f"{where}: its {part} was {was} and is {new.parts[part]}"


def _enum_breaks(old: FileDescriptorSet, new: FileDescriptorSet) -> Iterator[str]:
    known = dict(_enums(new))
    for name, enum in _enums(old):
        if name not in known:
            yield f"enum {name} is gone"
            continue
        numbers = {value.name: value.number for value in known[name].value}
        for value in enum.value:
            if value.name not in numbers:
                yield f"value {value.name} of enum {name} is gone"
            elif numbers[value.name] != value.number:
                now = numbers[value.name]
                yield f"value {value.name} of enum {name} was {value.number} and is {now}"


def _service_breaks(old: FileDescriptorSet, new: FileDescriptorSet) -> Iterator[str]:
    known = dict(_services(new))
    for name, service in _services(old):
        if name not in known:
            yield f"service {name} is gone"
            continue
        methods = {method.name: method for method in known[name].method}
        for method in service.method:
            if method.name not in methods:
                yield f"rpc {name}.{method.name} is gone"
            elif methods[method.name] != method:
                yield f"rpc {name}.{method.name} has another signature"


# ---------------------------------------------------------------- names


def _prefix(file: FileDescriptorProto) -> str:
    return f"{file.package}." if file.package else ""


def _messages(files: FileDescriptorSet) -> Iterator[tuple[str, DescriptorProto]]:
    for file in files.file:
        for message in file.message_type:
            yield from _nested(_prefix(file) + message.name, message)


def _nested(name: str, message: DescriptorProto) -> Iterator[tuple[str, DescriptorProto]]:
    yield name, message
    for inner in message.nested_type:
        yield from _nested(f"{name}.{inner.name}", inner)


def _enums(files: FileDescriptorSet) -> Iterator[tuple[str, EnumDescriptorProto]]:
    for file in files.file:
        for enum in file.enum_type:
            yield _prefix(file) + enum.name, enum
    for name, message in _messages(files):
        for enum in message.enum_type:
            yield f"{name}.{enum.name}", enum


def _services(files: FileDescriptorSet) -> Iterator[tuple[str, ServiceDescriptorProto]]:
    for file in files.file:
        for service in file.service:
            yield _prefix(file) + service.name, service
