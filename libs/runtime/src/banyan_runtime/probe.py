"""`python -m banyan_runtime.probe SERVICE`: exit code 0 when this container's service is ready.

What a container's health check runs, again and again, beside the service. Importing gRPC for one
call takes ten times as long as all of this, so the call is written out: HTTP/2 needs four frames
for it. It finds the address and the channels where the service itself does, in the environment.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Mapping

TIMEOUT_S = 2.0
_PATH = b"/grpc.health.v1.Health/Check"
_SERVING = b"\x00\x00\x00\x00\x02\x08\x01"  # not compressed, 2 bytes: field 1 is SERVING
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_STREAM, _END_HEADERS = 1, 4
_MAX_ANSWER_BYTES = 1 << 16


def main() -> int:
    service = sys.argv[1]
    try:
        ready = is_ready(service, os.environ)
    except OSError as error:
        print(f"{service} does not answer: {error}", file=sys.stderr)
        return 1
    if not ready:
        print(f"{service} is not ready", file=sys.stderr)
    return 0 if ready else 1


def is_ready(service: str, env: Mapping[str, str]) -> bool:
    """Raises OSError when nothing answers in time."""
    host, _, port = env[f"BANYAN_{service.upper()}_ADDRESS"].rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "[::]": "::1"}.get(host, host.strip("[]"))
    with socket.create_connection((host, int(port)), TIMEOUT_S) as link:
        if service == "gateway":
            return _http_is_ready(link)
        return _grpc_is_serving(_secured(link, env.get("BANYAN_CHANNELS", "plain")))


def _secured(link: socket.socket, channels: str) -> socket.socket:
    kind, _, files = channels.partition(":")
    if kind != "mtls":
        return link
    import ssl  # half of this program's time, and most meshes do not need it

    key, certificate, authority = files.split(",")
    context = ssl.create_default_context(cafile=authority)
    context.check_hostname = False  # the certificate names the service and not the loopback
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2"])
    return context.wrap_socket(link)


def _http_is_ready(link: socket.socket) -> bool:
    link.sendall(b"GET /ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    return _received(link, 12) == b"HTTP/1.1 200"


def _grpc_is_serving(link: socket.socket) -> bool:
    headers = _frame(_HEADERS, _END_HEADERS, 1, b"\x83\x86" + _literal(4, _PATH) + _GRPC_HEADERS)
    request = _frame(_DATA, _END_STREAM, 1, bytes(5))  # an empty message
    link.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, b"") + headers + request)
    return any(kind == _DATA and body == _SERVING for kind, body in _frames(link))


def _literal(name: int | bytes, value: bytes) -> bytes:
    """A header that is not to be indexed; the name is one of HPACK's first 15, or spelt out."""
    head = bytes([name]) if isinstance(name, int) else bytes([0, len(name)]) + name
    return head + bytes([len(value)]) + value


_GRPC_HEADERS = (
    _literal(1, b"localhost")
    + _literal(b"content-type", b"application/grpc")
    + _literal(b"te", b"trailers")
)


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


def _frames(link: socket.socket) -> Iterator[tuple[int, bytes]]:
    """Kind and body of what comes, until the answer ends."""
    while True:
        head = _received(link, 9)
        size = int.from_bytes(head[:3], "big")
        if len(head) < 9 or size > _MAX_ANSWER_BYTES:
            return
        yield head[3], _received(link, size)
        if head[3] == _HEADERS and head[4] & _END_STREAM:
            return


def _received(link: socket.socket, size: int) -> bytes:
    """So many bytes, or what there was before the end."""
    found = b""
    while len(found) < size and (more := link.recv(size - len(found))):
        found += more
    return found


if __name__ == "__main__":
    sys.exit(main())
