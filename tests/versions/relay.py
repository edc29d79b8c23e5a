"""A peer of another version on the way: each message is read and written again by its stubs.

Behind it stands a service of ours. What passes is what that version knows of the wire; what it
does not know is dropped, and a verb that it lacks is answered as by a server that lacks it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

from tests.versions.stubs import Stubs, fill_later

from banyan_runtime.rpc import (
    BidiStream,
    Channel,
    ClientStream,
    Handler,
    Method,
    Network,
    Server,
    ServerStream,
    Unary,
)

TIMEOUT_S = 10.0
Edit = Callable[[Any], None]


async def serve_relay(
    network: Network, stubs: Stubs, service: str, target: str, edit: Edit = lambda _: None
) -> Server:
    """`edit` may change an answer in place before it is written."""
    relay = _Relay(network.channel(target), edit)
    handlers = [relay.handler(method) for method in stubs.methods(service).values()]
    server = await network.serve("127.0.0.1:0", handlers)
    server.set_serving(True)
    return server


class _Relay:
    def __init__(self, channel: Channel, edit: Edit) -> None:
        self._channel = channel
        self._edit = edit

    def handler(self, method: Method) -> Handler:
        if isinstance(method, Unary):
            return Handler(method, partial(self._unary, method))
        if isinstance(method, ClientStream):
            return Handler(method, partial(self._upload, method))
        return Handler(method, partial(self._many, method))

    async def _unary(self, method: Unary[Any, Any], request: Any) -> Any:
        return self._answered(await self._channel.unary(method, _passed(request), TIMEOUT_S))

    async def _upload(self, method: ClientStream[Any, Any], requests: AsyncIterator[Any]) -> Any:
        return self._answered(await self._channel.upload(method, _all_passed(requests), TIMEOUT_S))

    async def _many(
        self, method: ServerStream[Any, Any] | BidiStream[Any, Any], request: Any
    ) -> AsyncIterator[Any]:
        if isinstance(method, BidiStream):
            answers = self._channel.bidi(method, _all_passed(request))
        else:
            answers = self._channel.stream(method, _passed(request))
        async with aclosing(answers):
            async for message in answers:
                yield self._answered(message)

    def _answered(self, message: Any) -> Any:
        self._edit(_passed(message))
        return message


async def _all_passed(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _passed(request)


def _passed(message: Any) -> Any:
    message.DiscardUnknownFields()
    fill_later(message)
    return message
