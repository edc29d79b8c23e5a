"""The response to a generation request: runs it, and writes its answer as it comes or at once."""

from __future__ import annotations

import logging
from contextlib import aclosing
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from banyan_gateway import sse
from banyan_gateway.connection import while_connected
from banyan_gateway.errors import ApiError, failed, internal
from banyan_gateway.news import news_of
from banyan_gateway.openai_format import CollectedChoice, Formatter
from banyan_gateway.ports import Delta, GatewayPort, RequestFailed, Usage
from banyan_gateway.prepare import Prepared
from banyan_gateway.writer import SlowClient, Writer


@dataclass(frozen=True, slots=True)
class ReplyOptions:
    """`keep_alive_s`: silence after which a stream gets a comment, so that no proxy ends it.
    `write_timeout_s`: how long a client may leave written bytes unread."""

    keep_alive_s: float = 10.0
    write_timeout_s: float = 30.0


class Reply(Response):
    """An ASGI response that drives the gateway. A client that goes away cancels the work at once.

    The status is decided by the first news, or by the first keep-alive: what fails before that is
    an HTTP error, what fails later an error event.
    """

    def __init__(
        self,
        gateway: GatewayPort,
        prepared: Prepared,
        formatter: Formatter,
        options: ReplyOptions,
        logger: logging.Logger,
    ) -> None:
        super().__init__()
        self._gateway = gateway
        self._prepared = prepared
        self._formatter = formatter
        self._options = options
        self._logger = logger
        self._request_id = prepared.requests[0].request_id
        self._extra_headers: list[tuple[bytes, bytes]] = []
        if prepared.ignored_fields:
            names = ", ".join(prepared.ignored_fields).encode()
            self._extra_headers.append((b"x-banyan-ignored-fields", names))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = Writer(send, scope["state"]["send_body"], self._options.write_timeout_s)
        try:
            await while_connected(receive, self._answer(writer))
        except SlowClient as error:
            # Returning with the response unfinished makes the server close the connection.
            self._logger.warning(str(error), extra={"request_id": self._request_id})

    async def _answer(self, writer: Writer) -> None:
        async with writer.in_time():
            try:
                if self._prepared.stream:
                    await self._stream(writer)
                else:
                    await self._whole(writer)
            except RequestFailed as error:
                await self._fail(writer, failed(error))
            except Exception:  # guard: a mistake of ours must not end a stream in silence
                self._logger.exception("answer failed", extra={"request_id": self._request_id})
                await self._fail(writer, internal())

    async def _fail(self, writer: Writer, error: ApiError) -> None:
        if writer.started:
            await writer.end(sse.error_event(error))
            return
        response = error.response()
        await writer.start(error.status, [*response.raw_headers, *self._extra_headers])
        await writer.end(bytes(response.body))

    async def _stream(self, writer: Writer) -> None:
        frames = _Frames(self._prepared, self._formatter)
        headers = [*sse.HEADERS, *self._extra_headers]
        async with (
            writer.kept_alive(self._options.keep_alive_s, headers, sse.KEEP_ALIVE),
            aclosing(news_of(self._gateway, self._prepared.requests)) as stream,
        ):
            async for request, items in stream:
                data = frames.of(request, items)
                if not writer.started:
                    await writer.start(200, headers)
                if data:
                    await writer.write(data)
        await writer.end(frames.ending())

    async def _whole(self, writer: Writer) -> None:
        requests = self._prepared.requests
        n = requests[0].n
        choices = [CollectedChoice() for _ in range(n * len(requests))]
        usage = Usage(0, 0, 0)
        async with aclosing(news_of(self._gateway, requests)) as stream:
            async for request, items in stream:  # the gateway keeps the deadline
                for item in items:
                    if isinstance(item, Usage):
                        usage = _sum(usage, item)
                    else:
                        choices[request * n + item.choice].add(item)
        body = self._formatter.whole(choices, usage)
        length = str(len(body)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", length)]
        await writer.start(200, [*headers, *self._extra_headers])
        await writer.end(body)


class _Frames:
    """News to SSE frames; keeps what a usage chunk needs."""

    def __init__(self, prepared: Prepared, formatter: Formatter) -> None:
        self._formatter = formatter
        self._num_choices = prepared.requests[0].n
        self._include_usage = prepared.include_usage
        self._continuous_usage = prepared.continuous_usage
        self._usage = Usage(0, 0, 0)
        num_prompt_tokens = sum(len(each.prompt_token_ids) for each in prepared.requests)
        self._so_far = Usage(num_prompt_tokens, 0, 0)

    def of(self, request: int, items: list[Delta | Usage]) -> bytes:
        first = request * self._num_choices
        chunks: list[bytes] = []
        for item in items:
            if isinstance(item, Usage):
                self._usage = _sum(self._usage, item)
            else:
                chunks += self._formatter.chunks(first + item.choice, item, self._usage_with(item))
        return sse.frames(chunks)

    def _usage_with(self, delta: Delta) -> Usage | None:
        if not self._continuous_usage:
            return None
        self._so_far = _sum(self._so_far, Usage(0, len(delta.tokens), 0))
        return self._so_far

    def ending(self) -> bytes:
        if not self._include_usage:
            return sse.DONE
        return sse.frames([self._formatter.usage_chunk(self._usage)]) + sse.DONE


def _sum(one: Usage, other: Usage) -> Usage:
    return Usage(
        one.num_prompt_tokens + other.num_prompt_tokens,
        one.num_output_tokens + other.num_output_tokens,
        one.num_cached_tokens + other.num_cached_tokens,
    )
