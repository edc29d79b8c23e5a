"""The outermost layer: every request gets an id, a tenant, an access log line and a count.

Everything but `/health` and `/ready` needs a key where there are keys, routes that do not exist
included. What goes wrong further in and is nobody's refusal ends here as a 500 in OpenAI's shape.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from banyan_core.types import NS_PER_MS
from banyan_gateway.auth import KeyRing
from banyan_gateway.errors import ApiError, internal
from banyan_runtime.clock import Clock

OPEN_PATHS: Final = ("/health", "/ready")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_NOT_SENT = 499  # in logs and counts: the client went away before a status was sent


class Edge:
    """ASGI middleware. Leaves `request_id`, `tenant`, `received_ns` and `send_body` in
    `scope["state"]`; the last is for parts of a body, which no layer needs to see."""

    def __init__(
        self,
        app: ASGIApp,
        keys: KeyRing,
        new_id: Callable[[], str],
        clock: Clock,
        logger: logging.Logger,
        registry: CollectorRegistry,
    ) -> None:
        self._app = app
        self._keys = keys
        self._new_id = new_id
        self._clock = clock
        self._logger = logger
        self._counter = Counter(
            "banyan_gateway_http_requests",
            "HTTP requests answered",
            ("route", "status"),
            registry=registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        waited_ns: int = scope.get("state", {}).get("waited_ns", 0)  # for its start, in a crowd
        received_ns = self._clock.now_ns() - waited_ns
        response = _Response(send, self._new_id())
        await self._respond(scope, receive, response, received_ns)
        self._record(scope, response, received_ns)
        # The server's response has this scope, and the state its `send`: cut, or only a garbage
        # collection would end the two, and all that hangs on them.
        scope["state"].clear()

    async def _respond(
        self, scope: Scope, receive: Receive, response: _Response, received_ns: int
    ) -> None:
        headers = Headers(scope=scope)
        state = scope.setdefault("state", {})
        try:
            response.request_id = _request_id(headers, response.request_id)
            if scope["path"] not in OPEN_PATHS:
                state["tenant"] = self._keys.tenant_of(_raw(headers, "authorization"))
            state["request_id"] = response.request_id
            state["received_ns"] = received_ns
            state["send_body"] = response.send_body
            await self._app(scope, receive, response.send)
        except ApiError as error:
            await error.response()(scope, receive, response.send)
        except ClientDisconnect:
            pass
        except Exception:  # guard: the last one before the server
            self._logger.exception("request failed", extra={"request_id": response.request_id})
            if response.status == _NOT_SENT:
                await internal().response()(scope, receive, response.send)

    def _record(self, scope: Scope, response: _Response, received_ns: int) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        self._counter.labels(route, str(response.status)).inc()
        tenant = scope["state"].get("tenant")
        level = logging.DEBUG if scope["path"] in OPEN_PATHS else logging.INFO
        self._logger.log(
            level,
            "http request",
            extra={
                "request_id": response.request_id,
                "answer_id": scope["state"].get("answer_id"),
                "tenant": tenant.name if tenant else None,
                "method": scope["method"],
                "route": route,
                "status": response.status,
                "duration_ms": (self._clock.now_ns() - received_ns) // NS_PER_MS,
            },
        )


class _Response:
    """Watches what is sent: adds the request id, remembers the status."""

    def __init__(self, send: Send, request_id: str) -> None:
        self.send_body = send
        self.request_id = request_id
        self.status = _NOT_SENT

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["x-request-id"] = self.request_id
        await self.send_body(message)


def _request_id(headers: Headers, made: str) -> str:
    given = headers.get("x-request-id")
    if given is None:
        return made
    if not _REQUEST_ID.fullmatch(given):
        expected = "expected 1 to 128 letters, digits or . _ : -"
        raise ApiError(400, f"x-request-id: {expected}", "x-request-id")
    return given


def _raw(headers: Headers, name: str) -> bytes | None:
    value = headers.get(name)
    return None if value is None else value.encode("latin-1")
