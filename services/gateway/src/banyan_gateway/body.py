"""Reading a request's JSON body: bounded in bytes and in time."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from banyan_gateway.errors import ApiError


async def read_json_body(request: Request, max_bytes: int, timeout_s: float) -> bytes:
    """The raw body. Raises ApiError 408, 413 or 415; ClientDisconnect when the client is gone."""
    _check_kind(request)
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise _too_large(max_bytes)
    chunks: list[bytes] = []
    num_bytes = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                num_bytes += len(chunk)
                if num_bytes > max_bytes:
                    raise _too_large(max_bytes)
                chunks.append(chunk)
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {timeout_s} s") from None
    return b"".join(chunks)


def _check_kind(request: Request) -> None:
    kind = request.headers.get("content-type", "application/json").partition(";")[0]
    if kind.strip().lower() != "application/json":
        raise ApiError(415, "content-type: expected application/json", "content-type")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "content-encoding: expected none", "content-encoding")


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(413, f"the body exceeds {max_bytes} bytes", code="body_too_large")
