"""The engine loop driven from a plain `for`: no mesh, no event loop, no clock but the machine's.

A worker serves gateways that may leave, and leases that may run out. Whoever has a file of prompts
has none of that: requests go in, a bounded number at a time, and answers come out as they end. The
engine loop and the runner are the worker's own, and so are the seeds of choices, so the answers are
those of a mesh with the same model.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from banyan_core.engine_loop import EngineLoop
from banyan_core.engine_messages import Cancel, EngineFact, Report, RunStep, StepDone, StepFailed
from banyan_core.engine_messages import Submit as SubmitFact
from banyan_core.hashing import derive
from banyan_core.runner import Runner, StepPlan
from banyan_core.scheduler import EngineLimits
from banyan_core.types import (
    Adapter,
    Finish,
    ModelCard,
    OutputToken,
    SamplingParams,
    SequenceReport,
    SequenceSpec,
)
from banyan_text.choice_text import ChoiceText
from banyan_text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineRequest:
    """One prompt and its `n` choices; choice i draws with H(seed, i), as in the mesh.

    `request_id` is unique among the requests of one run. `shown` are special tokens that the text
    spells out.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    n: int = 1
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    priority: int = 0
    salt: bytes = b""
    adapter: Adapter | None = None
    shown: tuple[str, ...] = ()


@dataclass(slots=True)
class OfflineChoice:
    """`text` ends before a stop string; `tokens` are those whose text it is.

    `num_output_tokens` counts the token that completed a stop string, too.
    """

    text: str = ""
    tokens: list[OutputToken] = field(default_factory=list)
    finish_reason: str = ""
    num_output_tokens: int = 0

    @property
    def token_ids(self) -> list[int]:
        return [token.token_id for token in self.tokens]


@dataclass(slots=True)
class OfflineAnswer:
    """`error`, unless empty, says why there is no whole answer."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    choices: list[OfflineChoice]
    num_cached_tokens: int = 0
    error: str = ""
    prompt_logprobs: tuple[OutputToken, ...] = ()


class OfflineEngine:
    """Owns an engine loop and a runner. One run at a time; blocks stay cached between runs."""

    def __init__(
        self, runner: Runner, card: ModelCard, tokenizer: Tokenizer, limits: EngineLimits
    ) -> None:
        self._runner = runner
        self._card = card
        self._tokenizer = tokenizer
        self._engine = EngineLoop(card, runner.num_blocks, limits)
        self._max_open = limits.max_running + limits.max_waiting
        self._open: dict[str, _Open] = {}
        self._facts: list[EngineFact] = []

    def answers(self, requests: Iterable[OfflineRequest]) -> Iterator[OfflineAnswer]:
        """Answers as they end. Requests are taken from the iterable as there is room for them.

        An iterator that is closed early ends what still runs.
        """
        source: Iterator[OfflineRequest] | None = iter(requests)
        try:
            while source is not None or self._open:
                while source is not None and self._num_sequences < self._max_open:
                    request = next(source, None)
                    if request is None:
                        source = None
                    else:
                        self._begin(request)
                yield from self._step()
        finally:
            self._end_all()

    @property
    def _num_sequences(self) -> int:
        return sum(len(each.texts) for each in self._open.values())

    def _begin(self, request: OfflineRequest) -> None:
        if request.request_id in self._open:
            raise ValueError(f"request_id: {request.request_id!r} is open already")
        opened = _Open(request, self._tokenizer)
        self._open[request.request_id] = opened
        for choice in range(request.n):  # the engine computes their prompt once
            self._submit(opened, choice)

    def _submit(self, opened: _Open, choice: int) -> None:
        request = opened.request
        spec = SequenceSpec(
            sequence_id=f"{request.request_id}/{choice}/0",
            gateway_id="",
            gateway_epoch=0,
            card_digest=self._card.digest,
            prompt_token_ids=request.prompt_token_ids,
            output_token_ids=(),
            sampling=replace(request.sampling, seed=derive(request.sampling.seed, choice)),
            salt=request.salt,
            priority=request.priority,
            adapter=request.adapter,
        )
        self._facts.append(SubmitFact(spec, hold=False))

    def _step(self) -> list[OfflineAnswer]:
        """One turn of the loop. Returns the answers that ended with it."""
        facts, self._facts = self._facts, []
        ended: list[OfflineAnswer] = []
        for command in self._engine.step(time.monotonic_ns(), facts).commands:
            match command:
                case Report():
                    for report in command.sequences:
                        ended += self._take(report)
                case RunStep(plan):
                    # First, so that what is reported meanwhile meets a loop whose step is over.
                    self._facts.insert(0, self._run(plan))
        return ended

    def _run(self, plan: StepPlan) -> EngineFact:
        started_ns = time.monotonic_ns()
        try:
            result = self._runner.run(plan, lambda layer: None)
        except Exception as error:  # guard: it fails the sequences of this step, not the run
            return StepFailed(plan.number, f"the step failed: {error}")
        except BaseException:  # Ctrl-C: the loop must not wait for this step when it is closed
            self._facts.insert(0, StepFailed(plan.number, "interrupted"))
            raise
        return StepDone(result, time.monotonic_ns() - started_ns)

    def _take(self, report: SequenceReport) -> list[OfflineAnswer]:
        request_id, choice, _ = report.sequence_id.rsplit("/", 2)
        opened = self._open.get(request_id)
        if opened is None:
            return []  # one of the choices of a request that failed
        if opened.take(int(choice), report) and report.finish is None:
            self._facts.append(Cancel((report.sequence_id,)))
        if not opened.is_over():
            return []
        del self._open[request_id]
        if opened.answer.error:
            self._cancel(opened)
        return [opened.answer]

    def _cancel(self, opened: _Open) -> None:
        ids = (f"{opened.request.request_id}/{choice}/0" for choice in range(opened.request.n))
        self._facts.append(Cancel(tuple(ids)))

    def _end_all(self) -> None:
        for opened in self._open.values():
            self._cancel(opened)
        self._open.clear()
        while self._facts or not self._engine.idle:
            self._step()


class _Open:
    """A request on its way: its answer so far, and what its text still holds back."""

    def __init__(self, request: OfflineRequest, tokenizer: Tokenizer) -> None:
        self.request = request
        silent = request.sampling.stop_token_ids
        self.texts = [
            ChoiceText(tokenizer, request.stop, request.include_stop, silent, request.shown)
            for _ in range(request.n)
        ]
        choices = [OfflineChoice() for _ in self.texts]
        self.answer = OfflineAnswer(request.request_id, request.prompt_token_ids, choices)

    def is_over(self) -> bool:
        return bool(self.answer.error) or all(each.finish_reason for each in self.answer.choices)

    def take(self, index: int, report: SequenceReport) -> bool:
        """News of a choice. True when a stop string has ended it just now."""
        choice, text, answer = self.answer.choices[index], self.texts[index], self.answer
        if report.figures is not None and index == 0:
            answer.num_cached_tokens = report.figures.num_cached_tokens
        answer.prompt_logprobs = answer.prompt_logprobs or report.prompt_logprobs
        if choice.finish_reason:
            return False
        piece = text.push(report.tokens)
        choice.text += piece.text
        choice.tokens += piece.tokens
        if piece.stopped or report.finish is not None:
            self._end(index, report, piece.stopped)
        choice.num_output_tokens = text.num_output_tokens
        return piece.stopped

    def _end(self, index: int, report: SequenceReport, stopped: bool) -> None:
        choice = self.answer.choices[index]
        rest = self.texts[index].finish()
        choice.text += rest.text
        choice.tokens += rest.tokens
        if stopped or report.finish is Finish.STOP:
            choice.finish_reason = "stop"
        elif report.finish is Finish.LENGTH:
            choice.finish_reason = "length"
        else:
            self.answer.error = report.error or f"the engine ended it: {report.finish}"
