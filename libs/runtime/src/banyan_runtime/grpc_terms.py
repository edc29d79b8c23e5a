"""What both ends of a gRPC call agree on: how much it may carry at once, what a status means."""

from __future__ import annotations

import grpc
from google.protobuf.message import Message

from banyan_runtime.rpc import Code
from banyan_runtime.rpc_bounds import MAX_MESSAGE_BYTES, MAX_UNREAD_BYTES

COMMON_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A window that follows the measured delay has no bound where a busy machine is the delay.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", MAX_UNREAD_BYTES // 4),  # up to twice that is under way
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
