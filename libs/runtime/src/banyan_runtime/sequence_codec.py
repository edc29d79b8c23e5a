"""Sequences between the wire and core: what to run, and the news of what ran."""

from __future__ import annotations

from functools import lru_cache

from banyan.v1 import common_pb2, worker_pb2
from banyan_core.types import (
    Adapter,
    Finish,
    Grammar,
    GrammarKind,
    LeasedKv,
    OutputToken,
    Refusal,
    SamplingParams,
    SequenceFigures,
    SequenceReport,
    SequenceSpec,
)
from banyan_runtime.worker_codec import require, worker_ref_from_pb, worker_ref_to_pb

_FINISH_TO_PB = {
    Finish.STOP: worker_pb2.FINISH_STOP,
    Finish.LENGTH: worker_pb2.FINISH_LENGTH,
    Finish.CANCELLED: worker_pb2.FINISH_CANCELLED,
    Finish.FAILED: worker_pb2.FINISH_FAILED,
    Finish.DRAINED: worker_pb2.FINISH_DRAINED,
    Finish.UNKNOWN: worker_pb2.FINISH_UNKNOWN,
}
_FINISH_FROM_PB = {number: finish for finish, number in _FINISH_TO_PB.items()}


def sampling_to_pb(params: SamplingParams) -> common_pb2.SamplingParams:
    return common_pb2.SamplingParams(
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=params.repetition_penalty,
        logit_bias=dict(params.logit_bias),
        seed=params.seed,
        max_tokens=params.max_tokens,
        min_tokens=params.min_tokens,
        ignore_eos=params.ignore_eos,
        stop_token_ids=params.stop_token_ids,
        logprobs=params.logprobs,
        num_top_logprobs=params.num_top_logprobs,
        typical_p=params.typical_p,
        bad_words=[common_pb2.TokenRun(token_ids=run) for run in params.bad_words],
        allowed_token_ids=params.allowed_token_ids,
        num_prompt_logprobs=params.num_prompt_logprobs,
        grammar=None if params.grammar is None else _grammar_to_pb(params.grammar),
    )


def _grammar_to_pb(grammar: Grammar) -> common_pb2.Grammar:
    return common_pb2.Grammar(kind=grammar.kind.value, text=grammar.text)


def _grammar_from_pb(message: common_pb2.Grammar) -> Grammar:
    try:
        return Grammar(GrammarKind(message.kind), message.text)
    except ValueError:
        known = ", ".join(GrammarKind)
        raise ValueError(f"grammar.kind: {message.kind!r}, expected one of {known}") from None


def sampling_from_pb(message: common_pb2.SamplingParams) -> SamplingParams:
    """The logit biases come back in the order of their token ids: a wire map has none."""
    return SamplingParams(
        temperature=message.temperature,
        top_p=message.top_p,
        top_k=message.top_k,
        min_p=message.min_p,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        repetition_penalty=message.repetition_penalty,
        logit_bias=tuple(sorted(message.logit_bias.items())),
        seed=message.seed,
        max_tokens=message.max_tokens,
        min_tokens=message.min_tokens,
        ignore_eos=message.ignore_eos,
        stop_token_ids=tuple(message.stop_token_ids),
        logprobs=message.logprobs,
        num_top_logprobs=message.num_top_logprobs,
        typical_p=message.typical_p if message.HasField("typical_p") else 1.0,
        bad_words=tuple([tuple(run.token_ids) for run in message.bad_words]),
        allowed_token_ids=tuple(message.allowed_token_ids),
        num_prompt_logprobs=(
            message.num_prompt_logprobs if message.HasField("num_prompt_logprobs") else None
        ),
        grammar=_grammar_from_pb(message.grammar) if message.HasField("grammar") else None,
    )


def sequence_spec_to_pb(spec: SequenceSpec) -> worker_pb2.SequenceSpec:
    return worker_pb2.SequenceSpec(
        sequence_id=spec.sequence_id,
        gateway_id=spec.gateway_id,
        gateway_epoch=spec.gateway_epoch,
        card_digest=spec.card_digest,
        prompt_token_ids=spec.prompt_token_ids,
        output_token_ids=spec.output_token_ids,
        sampling=sampling_to_pb(spec.sampling),
        salt=spec.salt,
        priority=spec.priority,
        remaining_ns=spec.remaining_ns,
        adapter=(
            None
            if spec.adapter is None
            else common_pb2.Adapter(name=spec.adapter.name, digest=spec.adapter.digest)
        ),
    )


def sequence_spec_from_pb(message: worker_pb2.SequenceSpec) -> SequenceSpec:
    require(message, "sampling")
    return SequenceSpec(
        sequence_id=message.sequence_id,
        gateway_id=message.gateway_id,
        gateway_epoch=message.gateway_epoch,
        card_digest=message.card_digest,
        prompt_token_ids=tuple(message.prompt_token_ids),
        output_token_ids=tuple(message.output_token_ids),
        sampling=sampling_from_pb(message.sampling),
        salt=message.salt,
        priority=message.priority,
        remaining_ns=message.remaining_ns,
        adapter=(
            Adapter(message.adapter.name, message.adapter.digest)
            if message.HasField("adapter")
            else None
        ),
    )


def leased_kv_to_pb(source: LeasedKv) -> worker_pb2.LeasedKv:
    return worker_pb2.LeasedKv(worker=worker_ref_to_pb(source.worker), lease_id=source.lease_id)


def leased_kv_from_pb(message: worker_pb2.LeasedKv) -> LeasedKv:
    require(message, "worker")
    return LeasedKv(worker_ref_from_pb(message.worker), message.lease_id)


def admission_to_pb(refusal: Refusal | None, epoch: int) -> worker_pb2.Admission:
    """None is a yes. `epoch` is the answering worker's."""
    if refusal is None:
        return worker_pb2.Admission(accepted=True, epoch=epoch)
    return worker_pb2.Admission(
        reason=refusal.reason, retry_after_ns=refusal.retry_after_ns, epoch=epoch
    )


def admission_from_pb(message: worker_pb2.Admission) -> Refusal | None:
    if message.accepted:
        return None
    return Refusal(message.reason, message.retry_after_ns)


def output_token_to_pb(token: OutputToken) -> worker_pb2.OutputToken:
    message = worker_pb2.OutputToken(token_id=token.token_id, logprob=token.logprob)
    for token_id, logprob in token.top:
        message.top.add(token_id=token_id, logprob=logprob)
    return message


@lru_cache(maxsize=1 << 16)
def _plain_token(token_id: int) -> OutputToken:
    """Tokens without figures are equal, so that one object serves all."""
    return OutputToken(token_id)


def output_token_from_pb(message: worker_pb2.OutputToken) -> OutputToken:
    if not message.HasField("logprob"):
        return _plain_token(message.token_id)
    logprob = message.logprob
    top = tuple((entry.token_id, entry.logprob) for entry in message.top)
    return OutputToken(message.token_id, logprob, top)


def figures_to_pb(figures: SequenceFigures) -> worker_pb2.SequenceFigures:
    return worker_pb2.SequenceFigures(
        num_cached_tokens=figures.num_cached_tokens,
        num_computed_tokens=figures.num_computed_tokens,
        fetch_ns=figures.fetch_ns,
        queue_ns=figures.queue_ns,
        compute_ns=figures.compute_ns,
        num_preemptions=figures.num_preemptions,
        num_fetched_blocks=figures.num_fetched_blocks,
        num_rejected_pages=figures.num_rejected_pages,
    )


def figures_from_pb(message: worker_pb2.SequenceFigures) -> SequenceFigures:
    return SequenceFigures(
        num_cached_tokens=message.num_cached_tokens,
        num_computed_tokens=message.num_computed_tokens,
        fetch_ns=message.fetch_ns,
        queue_ns=message.queue_ns,
        compute_ns=message.compute_ns,
        num_preemptions=message.num_preemptions,
        num_fetched_blocks=message.num_fetched_blocks,
        num_rejected_pages=message.num_rejected_pages,
    )


def sequence_report_to_pb(report: SequenceReport) -> worker_pb2.SequenceReport:
    finish = (
        worker_pb2.FINISH_UNSPECIFIED if report.finish is None else _FINISH_TO_PB[report.finish]
    )
    return worker_pb2.SequenceReport(
        sequence_id=report.sequence_id,
        first_index=report.first_index,
        tokens=[output_token_to_pb(token) for token in report.tokens],
        finish=finish,
        error=report.error,
        figures=None if report.figures is None else figures_to_pb(report.figures),
        prompt_logprobs=[output_token_to_pb(token) for token in report.prompt_logprobs],
    )


def sequence_report_from_pb(message: worker_pb2.SequenceReport) -> SequenceReport:
    """Read for every token: what only comes at the start or at the end is looked for, not read."""
    tokens = message.tokens
    number, error = message.finish, message.error
    has_more = number or error or message.prompt_logprobs or message.HasField("figures")
    if len(tokens) == 1 and not has_more:
        token = (output_token_from_pb(tokens[0]),)
        return SequenceReport(message.sequence_id, message.first_index, token)
    finish = None
    if number:
        if number not in _FINISH_FROM_PB:
            raise ValueError(f"finish: {number} is not a known end")
        finish = _FINISH_FROM_PB[number]
    return SequenceReport(
        message.sequence_id,
        message.first_index,
        tuple([output_token_from_pb(token) for token in tokens]),
        finish,
        error,
        figures_from_pb(message.figures) if message.HasField("figures") else None,
        tuple([output_token_from_pb(token) for token in message.prompt_logprobs]),
    )
