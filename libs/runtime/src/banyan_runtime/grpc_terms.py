"""What both ends of a gRPC call agree on: how much it may carry at once, what a status means."""

from __future__ import annotations

import grpc
from google.protobuf.message import Message

from banyan_runtime.rpc import Code, RpcError
from banyan_runtime.rpc_bounds import (
    MAX_MESSAGE_BYTES,
    MAX_UNREAD_BYTES,
    report_handler_failure,
)

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


FROM_STATUS = {status: code for code, status in TO_STATUS.items()} | {
    # Not by this client's will, or its task would be cancelled: the server is going away.
    grpc.StatusCode.CANCELLED: Code.UNAVAILABLE,
}


def status_of(path: str, error: Exception) -> tuple[grpc.StatusCode, str]:
    """What a caller of `path` is told of a handler's exception; a mistake of ours is reported."""
    if isinstance(error, RpcError):
        return TO_STATUS[error.code], error.message
    report_handler_failure(path, error)
    return grpc.StatusCode.INTERNAL, f"{path}: {type(error).__name__}: {error}"


def encode(message: Message) -> bytes:
    return message.SerializeToString()
