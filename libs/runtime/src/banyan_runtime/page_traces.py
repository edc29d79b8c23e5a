"""A span around KV pages on their way, from whoever serves them: how many, how large, how long."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from banyan.v1 import kv_pb2
from banyan_runtime.kv_pages import num_bytes, num_pages
from banyan_runtime.trace_context import current_trace
from banyan_runtime.tracing import Attributes, Span, Tracing, spanning


def traced_pages(
    tracing: Tracing,
    name: str,
    attributes: Attributes,
    pages: AsyncGenerator[kv_pb2.KvPages, None],
) -> AsyncGenerator[kv_pb2.KvPages, None]:
    """`pages`, told of in the trace of the call that this answers, if it has one."""
    span = tracing.under(current_trace(), name, attributes)
    return pages if span is None else _counted(span, pages)


async def _counted(
    span: Span, pages: AsyncGenerator[kv_pb2.KvPages, None]
) -> AsyncGenerator[kv_pb2.KvPages, None]:
    pages_sent = transfer_bytes = 0
    with spanning(span):
        try:
            async with aclosing(pages):
                async for message in pages:
                    pages_sent += num_pages(message)
                    transfer_bytes += num_bytes(message)
                    yield message
        finally:
            span.set({"banyan.num_pages": pages_sent, "banyan.transfer_bytes": transfer_bytes})
