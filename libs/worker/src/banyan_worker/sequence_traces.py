"""What a worker tells of its part in a request's trace: one span a sequence, one a fetch of KV.

A sequence's span runs from admission to its end and says what the engine reported of it. Nothing
is done per step or per token.
"""

from __future__ import annotations

from collections.abc import Awaitable

from banyan_core.types import NS_PER_S, LeasedKv, SequenceFigures, SequenceReport, SequenceSpec
from banyan_runtime.trace_context import TraceContext, current_trace, in_trace
from banyan_runtime.tracing import Attribute, Kind, Span, Tracing, spanning
from banyan_worker.importer import Onboarded


class SequenceTraces:
    """The open spans by sequence id; empty when tracing is off or nobody asked in a trace."""

    def __init__(self, tracing: Tracing, worker_id: str) -> None:
        self._tracing = tracing
        self._worker_id = worker_id
        self._open: dict[str, Span] = {}

    def admitted(self, spec: SequenceSpec, verb: str) -> TraceContext | None:
        """The trace in which its work goes on."""
        asked: dict[str, Attribute] = {
            "banyan.worker.id": self._worker_id,
            "banyan.sequence.id": spec.sequence_id,
            "banyan.num_prompt_tokens": len(spec.prompt_token_ids),
            "banyan.num_known_output_tokens": len(spec.output_token_ids),
        }
        span = self._tracing.under(current_trace(), f"{verb} sequence", asked)
        if span is None:
            return None
        self._open[spec.sequence_id] = span
        return span.context

    def ended(self, report: SequenceReport) -> None:
        """Call it with each sequence's last report."""
        span = self._open.pop(report.sequence_id, None)
        if span is None or report.finish is None:
            return
        span.set({"banyan.finish": report.finish.value, **_figures(report.figures)})
        span.end(report.finish.value if report.error else "")

    async def fetched(self, source: LeasedKv | None, fetch: Awaitable[Onboarded]) -> Onboarded:
        """The outcome of `fetch`. One that had nothing to bring leaves no span."""
        span = self._tracing.under(current_trace(), "kv fetch", {}, Kind.INTERNAL)
        if span is None:
            return await fetch
        with spanning(span) as ending, in_trace(span.context):
            onboarded = await fetch
            span.set(
                {
                    "banyan.worker.id": self._worker_id,
                    "banyan.source": "kvstore" if source is None else source.worker.worker_id,
                    "banyan.num_fetched_blocks": onboarded.num_fetched_blocks,
                    "banyan.num_rejected_pages": onboarded.num_rejected_pages,
                }
            )
            ending.is_news = source is not None or onboarded.num_fetched_blocks > 0
        return onboarded


def _figures(figures: SequenceFigures | None) -> dict[str, Attribute]:
    if figures is None:
        return {}
    return {
        "banyan.num_cached_tokens": figures.num_cached_tokens,
        "banyan.num_computed_tokens": figures.num_computed_tokens,
        "banyan.num_preemptions": figures.num_preemptions,
        "banyan.queue_s": figures.queue_ns / NS_PER_S,
        "banyan.compute_s": figures.compute_ns / NS_PER_S,
        "banyan.transfer_s": figures.fetch_ns / NS_PER_S,
    }
