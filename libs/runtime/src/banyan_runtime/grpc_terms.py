"""What both ends of a gRPC call agree on: how large a message may be, and what a status means."""

from __future__ import annotations

import grpc
from google.protobuf.message import Message

from banyan_runtime.rpc import Code
from banyan_runtime.rpc_bounds import MAX_MESSAGE_BYTES

MESSAGE_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
]

TO_STATUS = {
    Code.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Code.DEADLINE: grpc.StatusCode.DEADLINE_EXCEEDED,
    Code.EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Code.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Code.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Code.CANCELLED: grpc.StatusCode.ABORTED,  # CANCELLED itself means that the transport did it
    Code.INTERNAL: grpc.StatusCode.INTERNAL,
}


def encode(message: Message) -> bytes:
    return message.SerializeToString()
