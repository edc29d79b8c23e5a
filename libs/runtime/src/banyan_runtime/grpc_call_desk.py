"""The server's half of `Calls`: a port's unary handlers behind one stream per caller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial

import grpc

from banyan.v1 import calls_pb2
from banyan_runtime import wire
from banyan_runtime.grpc_terms import encode, status_of
from banyan_runtime.rpc import Code, Handler, RpcError, Unary, serve_bidi
from banyan_runtime.rpc_bounds import MAX_MESSAGE_BYTES
from banyan_runtime.trace_context import enter_trace

MAX_RUNNING = 1024
"""Calls of one stream at once: twice what a caller allows itself."""

_BATCH_BYTES = 256 * 1024
_ANSWER_BYTES_MAX = MAX_MESSAGE_BYTES - 1024  # beside it in a batch: number, status, lengths


class CallDesk:
    """Of one server. `stop` ends its streams when the calls that run have been answered."""

    def __init__(self, handlers: Sequence[Handler], traced: bool) -> None:
        self._handlers = {
            handler.method.path: handler
            for handler in handlers
            if isinstance(handler.method, Unary)
        }
        self._traced = traced
        self._talks: dict[_Talk, None] = {}
        self._is_stopping = False

    def handler(self) -> Handler:
        return serve_bidi(wire.CONVERSE, self._converse)

    def stop(self) -> None:
        self._is_stopping = True
        for talk in self._talks:
            talk.stop()

    async def _converse(
        self, batches: AsyncIterator[calls_pb2.CallBatch]
    ) -> AsyncGenerator[calls_pb2.AnswerBatch, None]:
        talk = _Talk(self._handlers, self._traced)
        if self._is_stopping:
            talk.stop()
        self._talks[talk] = None
        try:
            async with aclosing(talk.run(batches)) as answers:
                async for batch in answers:
                    yield batch
        finally:
            del self._talks[talk]


class _Talk:
    """One stream: a task per call, so that a slow one holds up no other."""

    def __init__(self, handlers: Mapping[str, Handler], traced: bool) -> None:
        self._handlers = handlers
        self._traced = traced
        self._running: dict[int, asyncio.Task[None]] = {}
        self._answers: list[calls_pb2.Answer] = []
        self._changed = asyncio.Event()
        self._is_ending = False

    def stop(self) -> None:
        self._is_ending = True
        self._changed.set()

    async def run(
        self, batches: AsyncIterator[calls_pb2.CallBatch]
    ) -> AsyncGenerator[calls_pb2.AnswerBatch, None]:
        reader = asyncio.ensure_future(self._read(batches))
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                while self._answers:
                    yield self._batch()
                if self._is_ending and not self._running:
                    return
        finally:
            tasks = (reader, *self._running.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, batches: AsyncIterator[calls_pb2.CallBatch]) -> None:
        try:
            async for batch in batches:
                for call in batch.calls:
                    self._begin(call)
                for number in batch.cancelled:
                    if number in self._running:
                        self._running[number].cancel()
        finally:
            self.stop()

    def _begin(self, call: calls_pb2.Call) -> None:
        if self._is_ending:
            self._refuse(call, grpc.StatusCode.UNAVAILABLE, "the server is stopping")
        elif len(self._running) >= MAX_RUNNING:
            message = f"{MAX_RUNNING} calls of this stream are running"
            self._refuse(call, grpc.StatusCode.RESOURCE_EXHAUSTED, message)
        elif call.method not in self._handlers:
            message = f"method {call.method} is not served here"
            self._refuse(call, grpc.StatusCode.UNIMPLEMENTED, message)
        else:
            task = asyncio.get_running_loop().create_task(self._serve(call))
            self._running[call.number] = task
            task.add_done_callback(partial(self._ended, call.number))

    async def _serve(self, call: calls_pb2.Call) -> None:
        handler = self._handlers[call.method]
        if self._traced:
            enter_trace(call.traceparent)
        try:
            request = handler.method.request.FromString(call.request)
            response = encode(await handler.function(request))
            if len(response) > _ANSWER_BYTES_MAX:
                raise RpcError(Code.EXHAUSTED, f"an answer of {len(response)} bytes is too long")
        except Exception as error:
            self._refuse(call, *status_of(call.method, error))
        else:
            self._answer(calls_pb2.Answer(number=call.number, response=response))

    def _ended(self, number: int, _: asyncio.Task[None]) -> None:
        del self._running[number]
        if self._is_ending:
            self._changed.set()

    def _refuse(self, call: calls_pb2.Call, status: grpc.StatusCode, message: str) -> None:
        self._answer(calls_pb2.Answer(number=call.number, status=status.value[0], message=message))

    def _answer(self, answer: calls_pb2.Answer) -> None:
        self._answers.append(answer)
        self._changed.set()

    def _batch(self) -> calls_pb2.AnswerBatch:
        """At least one answer, and as many more as are short."""
        num_bytes = num_taken = 0
        for answer in self._answers:
            num_bytes += len(answer.response)
            if num_taken and num_bytes > _BATCH_BYTES:
                break
            num_taken += 1
        taken, self._answers = self._answers[:num_taken], self._answers[num_taken:]
        return calls_pb2.AnswerBatch(answers=taken)
