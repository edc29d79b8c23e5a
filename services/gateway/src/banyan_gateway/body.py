"""Reading requests' JSON bodies: each bounded in bytes and in time, all together in bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from starlette.requests import Request

from banyan_gateway.errors import ApiError


class _Class(msgspec.Struct):
    priority: int | None = None


def priority_of(body: bytes) -> int | None:
    """The class of a request by its raw body, all else skipped over unread: 1 us for a short one,
    0.4 ms per MB. None for what is no such body: what is wrong is told by whoever reads it."""
    try:
        return msgspec.json.decode(body, type=_Class).priority or 0
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class BodyReader:
    """Bodies count from their first byte until they have been made into something else."""

    def __init__(self, max_bytes: int, total_bytes_max: int, timeout_s: float) -> None:
        self._max_bytes = max_bytes
        self._total_bytes_max = total_bytes_max
        self._timeout_s = timeout_s
        self._num_bytes = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The raw body. Raises ApiError 408, 413, 415, or 503 when too much is being read;
        ClientDisconnect when the client is gone."""
        self._check_head(request)
        body = bytearray()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._fill(body, request)
            yield bytes(body)
        except TimeoutError:
            message = f"the body did not arrive within {self._timeout_s} s"
            raise ApiError(408, message) from None
        finally:
            self._num_bytes -= len(body)

    def _check_head(self, request: Request) -> None:
        kind = request.headers.get("content-type", "application/json").partition(";")[0]
        if kind.strip().lower() != "application/json":
            raise ApiError(415, "content-type: expected application/json", "content-type")
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise ApiError(415, "content-encoding: expected none", "content-encoding")
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self._max_bytes:
            raise self._too_large()

    async def _fill(self, body: bytearray, request: Request) -> None:
        async for chunk in request.stream():
            if len(body) + len(chunk) > self._max_bytes:
                raise self._too_large()
            if self._num_bytes + len(chunk) > self._total_bytes_max:
                message = "too many large bodies arrive at once"
                raise ApiError(503, message, code="overloaded", retry_after_s=1.0)
            self._num_bytes += len(chunk)
            body += chunk

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body exceeds {self._max_bytes} bytes", code="body_too_large")
