"""The smallest good bodies, and the one shape that errors have."""

from typing import Any

import httpx2

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
PLAIN = {"model": "echo", "prompt": "hi", "max_tokens": 2}


def error_of(response: httpx2.Response) -> dict[str, Any]:
    body = response.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    assert body["error"]["message"]
    assert response.headers["x-request-id"]
    error: dict[str, Any] = body["error"]
    return error
