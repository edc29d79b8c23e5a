"""What a fetch of KV brought, as the engine and the token stream are told of it."""

from __future__ import annotations

from dataclasses import replace

from banyan_core.engine_messages import Submit
from banyan_core.types import OutputToken, SequenceReport, SequenceSpec
from banyan_worker.importer import Onboarded


def submission(
    spec: SequenceSpec, onboarded: Onboarded, hold: bool
) -> tuple[Submit, SequenceReport | None]:
    """A sequence for the engine, and news of a token that came with its KV."""
    # With logprobs the engine samples a fetched token again: the fetch has only its id.
    report, sampling = None, spec.sampling
    told_more = sampling.logprobs or sampling.num_prompt_logprobs is not None
    if onboarded.new_token_ids and not told_more:
        new = tuple(OutputToken(token_id) for token_id in onboarded.new_token_ids)
        report = SequenceReport(spec.sequence_id, len(spec.output_token_ids), new)
        output = (*spec.output_token_ids, *onboarded.new_token_ids)
        spec = replace(spec, output_token_ids=output)
    submit = Submit(
        spec=spec,
        hold=hold,
        import_id=onboarded.import_id,
        fetch_ns=onboarded.fetch_ns,
        num_fetched_blocks=onboarded.num_fetched_blocks,
        num_rejected_pages=onboarded.num_rejected_pages,
    )
    return submit, report
