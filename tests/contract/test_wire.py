"""`wire.py` against the proto files: every verb is there, with its types and its kind."""

from __future__ import annotations

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from banyan.v1 import calls_pb2, kv_pb2, router_pb2, worker_pb2
from banyan_runtime import wire
from banyan_runtime.rpc import BidiStream, ClientStream, Method, ServerStream, Unary

KINDS: dict[tuple[bool, bool], type[Method]] = {
    (False, False): Unary,
    (False, True): ServerStream,
    (True, False): ClientStream,
    (True, True): BidiStream,
}


def declared(method: MethodDescriptor) -> Method:
    kind = KINDS[method.client_streaming, method.server_streaming]
    path = f"/{method.containing_service.full_name}/{method.name}"
    return kind(path, GetMessageClass(method.input_type), GetMessageClass(method.output_type))


def test_the_wire_is_what_the_proto_files_declare() -> None:
    modules = (worker_pb2, router_pb2, kv_pb2, calls_pb2)
    services = [s for module in modules for s in module.DESCRIPTOR.services_by_name.values()]
    expected = {m.path: m for s in services for m in map(declared, s.methods)}
    listed: list[Method] = [
        value
        for value in vars(wire).values()
        if isinstance(value, (Unary, ServerStream, ClientStream, BidiStream))
    ]
    assert len(expected) == 14
    assert {method.path: method for method in listed} == expected
    assert len(listed) == len(expected)
