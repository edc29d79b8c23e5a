"""The least that FastAPI can do: the same text, as SSE, at the pace of the echo runner.

It is what the gateway is measured beside, and the back end that other proxies stand in front of.
Chunks are made before the first is sent; what is left is the framework, the loop and the socket.

    python load-tests/overhead/bare.py PORT
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from banyan_core.echo import EchoLatency

MODEL = "echo"
_NS = 1e9


class Pace:
    """The echo runner's modelled time, as if all open streams shared its steps."""

    def __init__(self) -> None:
        self._latency = EchoLatency()
        self.num_open = 0

    def prompt_s(self, num_tokens: int) -> float:
        latency = self._latency
        return (latency.base_ns + num_tokens * latency.token_ns + latency.sequence_ns) / _NS

    def step_s(self) -> float:
        latency = self._latency
        return (latency.base_ns + self.num_open * (latency.token_ns + latency.sequence_ns)) / _NS


def chunk(text: str, finish: str | None) -> bytes:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
    head = {"id": "cmpl-0", "object": "text_completion", "created": 0, "model": MODEL}
    body = json.dumps({**head, "choices": [choice]}, separators=(",", ":"))
    return f"data: {body}\n\n".encode()


async def stream(prompt: str, max_tokens: int, pace: Pace) -> AsyncGenerator[bytes, None]:
    chunks = [chunk(prompt[i % len(prompt)], None) for i in range(max_tokens)]
    pace.num_open += 1
    try:
        await asyncio.sleep(pace.prompt_s(len(prompt)))
        yield chunks[0]
        for data in chunks[1:]:
            await asyncio.sleep(pace.step_s())
            yield data
        yield chunk("", "length")
        yield b"data: [DONE]\n\n"
    finally:
        pace.num_open -= 1


def build() -> FastAPI:
    app = FastAPI()
    pace = Pace()

    @app.post("/v1/completions")
    async def completions(body: dict[str, Any]) -> StreamingResponse:
        answer = stream(body["prompt"], body["max_tokens"], pace)
        return StreamingResponse(answer, media_type="text/event-stream")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "bare"}]}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {}

    return app


if __name__ == "__main__":
    uvicorn.run(
        build(),
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
    )
