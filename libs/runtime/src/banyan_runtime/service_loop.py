"""The event loop of a service: uvloop's, in which gRPC's wake-ups do not pile up.

For each event that is complete, gRPC's thread queues it and writes a byte to a pair of sockets; the
loop's reader of that pair takes one byte and all events (grpcio 1.85). With more than one event in
a turn, bytes are left over, and once they fill the pair (278 where `wmem_default` is 208 KiB), the
thread blocks in its write until three quarters are read. In those 208 turns nothing arrives over
gRPC: 0.4 s in a gateway whose turns take 2 ms.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVarTuple

import uvloop
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # compiled, without stubs

_WAKEUPS_MAX = 512
_FEW = 32
"""They may stay: with none left a token took 7 to 8 % more CPU (2026-11-30)."""
Ts = TypeVarTuple("Ts")


class ServiceLoop(uvloop.Loop):
    """Knows gRPC's reader by its type; any other is added as it is."""

    def add_reader(self, fd: Any, callback: Callable[[*Ts], Any], *args: *Ts) -> None:
        if _is_of_grpc(callback):
            super().add_reader(fd, partial(_take_wakeups, fd, callback))
        else:
            super().add_reader(fd, callback, *args)


def _is_of_grpc(callback: Callable[..., Any]) -> bool:
    handler = getattr(callback, "func", None)
    return isinstance(getattr(handler, "__self__", None), cygrpc.PollerCompletionQueue)


def _take_wakeups(pair: socket.socket, handle: Callable[..., Any]) -> None:
    """When many wait, all but one, which `handle` takes itself."""
    num_waiting = len(pair.recv(_WAKEUPS_MAX, socket.MSG_PEEK))
    if num_waiting > _FEW:
        pair.recv(num_waiting - 1)
    handle()
