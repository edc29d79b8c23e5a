"""The response to a generation request: runs it, and writes its answer as it comes or at once."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from banyan_gateway import sse
from banyan_gateway.connection import SlowClient, Writer, while_connected
from banyan_gateway.errors import ApiError, failed, internal
from banyan_gateway.news import Item, News
from banyan_gateway.openai_format import CollectedChoice, Formatter
from banyan_gateway.ports import Delta, GatewayPort, RequestFailed, Usage
from banyan_gateway.prepare import Prepared


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
        writer = Writer(send, self._options.write_timeout_s)
        try:
            await while_connected(receive, self._answer(writer))
        except SlowClient as error:
            # Returning with the response unfinished makes the server close the connection.
            self._logger.warning(str(error), extra={"request_id": self._request_id})

    async def _answer(self, writer: Writer) -> None:
        try:
            if self._prepared.stream:
                await self._stream(writer)
            else:
                await self._whole(writer)
        except RequestFailed as error:
            await self._fail(writer, failed(error))
        except SlowClient:
            raise
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
        async with News(self._gateway, self._prepared.requests) as news:
            while True:
                try:
                    items = await news.next(self._options.keep_alive_s)
                except TimeoutError:
                    data = sse.KEEP_ALIVE
                else:
                    if not items:
                        break
                    data = frames.of(items)
                if not writer.started:
                    await writer.start(200, [*sse.HEADERS, *self._extra_headers])
                if data:
                    await writer.write(data)
        await writer.end(frames.ending())

    async def _whole(self, writer: Writer) -> None:
        requests = self._prepared.requests
        n = requests[0].n
        choices = [CollectedChoice() for _ in range(n * len(requests))]
        usage = Usage(0, 0, 0)
        async with News(self._gateway, requests) as news:
            while items := await news.next(timeout_s=None):  # the gateway keeps the deadline
                for request, item in items:
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
        self._prepared = prepared
        self._formatter = formatter
        self._usage = Usage(0, 0, 0)
        num_prompt_tokens = sum(len(each.prompt_token_ids) for each in prepared.requests)
        self._so_far = Usage(num_prompt_tokens, 0, 0)

    def of(self, items: list[Item]) -> bytes:
        return b"".join(self._frames(request, item) for request, item in items)

    def _frames(self, request: int, item: Delta | Usage) -> bytes:
        if isinstance(item, Usage):
            self._usage = _sum(self._usage, item)
            return b""
        usage = None
        if self._prepared.continuous_usage:
            self._so_far = _sum(self._so_far, Usage(0, len(item.tokens), 0))
            usage = self._so_far
        index = request * self._prepared.requests[request].n + item.choice
        return b"".join(map(sse.frame, self._formatter.chunks(index, item, usage)))

    def ending(self) -> bytes:
        if not self._prepared.include_usage:
            return sse.DONE
        return sse.frame(self._formatter.usage_chunk(self._usage)) + sse.DONE


def _sum(one: Usage, other: Usage) -> Usage:
    return Usage(
        one.num_prompt_tokens + other.num_prompt_tokens,
        one.num_output_tokens + other.num_output_tokens,
        one.num_cached_tokens + other.num_cached_tokens,
    )
