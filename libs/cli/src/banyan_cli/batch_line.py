"""One line of a file of prompts, and the line that answers it.

A line is what OpenAI's batch files have (`{"custom_id": ..., "url": ..., "body": {...}}`), or the
body alone, with `messages` or with `prompt`. The body is checked by the gateway's own code and
answered in its words, so that a file and a client of the mesh are told the same.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from banyan_core.hashing import derive
from banyan_core.types import ModelCard
from banyan_gateway.auth import DEFAULT_TENANT
from banyan_gateway.chat_format import ChatFormatter
from banyan_gateway.errors import ApiError, invalid
from banyan_gateway.grammar_trials import GrammarTrials
from banyan_gateway.model_formats import ModelFormats
from banyan_gateway.openai_format import (
    AnswerHead,
    CollectedChoice,
    CompletionFormatter,
    Formatter,
)
from banyan_gateway.ports import Usage
from banyan_gateway.prepare import Arrival, Prepared, Preparer
from banyan_gateway.served_models import ServedModels
from banyan_text.tokenizer import Tokenizer
from banyan_worker.offline_engine import OfflineAnswer, OfflineRequest

CUSTOM_ID_CHARS_MAX = 512
_URLS = {"/v1/chat/completions": "messages", "/v1/completions": "prompt"}
_ENVELOPE = ("custom_id", "method", "url", "body")


@dataclass(frozen=True, slots=True)
class Line:
    """`key` is its `custom_id`, or its place in the file."""

    key: str
    body: dict[str, Any]


def read_line(data: bytes, number: int) -> Line:
    """Raises ApiError, which names the field."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the line is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the line must hold a JSON object", code="invalid_json")
    key = _key(value.get("custom_id"), number)
    if "body" not in value:
        value.pop("custom_id", None)
        return Line(key, value)
    for name in value:
        if name not in _ENVELOPE:
            raise invalid(name, f"is unknown: expected {', '.join(_ENVELOPE)}")
    body = value["body"]
    if not isinstance(body, dict):
        raise invalid("body", "expected a JSON object")
    _check_url(value.get("url"), body)
    return Line(key, body)


def place(number: int) -> str:
    """The key of a line that has no (usable) name."""
    return f"line-{number}"


def _key(custom_id: object, number: int) -> str:
    if custom_id is None:
        return place(number)
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= CUSTOM_ID_CHARS_MAX:
        raise invalid("custom_id", f"expected text of 1 to {CUSTOM_ID_CHARS_MAX} characters")
    return custom_id


def _check_url(url: object, body: dict[str, Any]) -> None:
    if url is None:
        return
    wanted = _URLS.get(url) if isinstance(url, str) else None
    if wanted is None:
        raise invalid("url", f"expected one of {', '.join(_URLS)}")
    if wanted not in body:
        raise invalid(f"body.{wanted}", f"is missing: {url} needs it")


class Batch:
    """Turns lines into requests, and what became of those into lines."""

    def __init__(self, card: ModelCard, tokenizer: Tokenizer, formats: ModelFormats) -> None:
        self._card = card
        self._tokenizer = tokenizer
        models = ServedModels(card, int(time.time()))
        trials = GrammarTrials(tokenizer, card.end_token_ids)  # its process ends with it
        self._preparer = Preparer(tokenizer, card, models, trials, formats)

    def open(self, line: Line) -> OpenLine:
        """Raises ApiError."""
        body = {"model": self._card.name} | line.body
        if ("messages" in body) == ("prompt" in body):
            raise invalid("messages", "give either messages or prompt")
        if body.get("stream"):
            raise invalid("stream", "expected false: a file is answered by whole lines")
        is_chat = "messages" in body
        prepare = self._preparer.chat if is_chat else self._preparer.completion
        seed = derive(0, line.key)  # its own, and the same when the work is taken up again
        arrival = Arrival(f"batch-{seed:016x}", DEFAULT_TENANT, 0, seed, None)
        prepared = prepare(json.dumps(body).encode(), arrival)
        return OpenLine(line.key, prepared, is_chat, self)

    def whole(self, opened: OpenLine, answers: Sequence[OfflineAnswer]) -> dict[str, Any]:
        """The answer's body, as the gateway would have sent it."""
        first = opened.requests[0]
        answer_id = first.request_id if len(answers) == 1 else first.request_id.rpartition("-")[0]
        fingerprint = f"fp_{self._card.digest.hex()[:12]}"
        head = AnswerHead(answer_id, int(time.time()), self._card.name, fingerprint)
        formatter = self._formatter(opened, head)
        choices = [
            CollectedChoice([each.text], each.tokens, each.finish_reason, answer.prompt_logprobs)
            for answer in answers
            for each in answer.choices
        ]
        usage = Usage(
            sum(len(answer.prompt_token_ids) for answer in answers),
            sum(each.num_output_tokens for answer in answers for each in answer.choices),
            sum(answer.num_cached_tokens for answer in answers),
        )
        body: dict[str, Any] = json.loads(formatter.whole(choices, usage))
        return body

    def _formatter(self, opened: OpenLine, head: AnswerHead) -> Formatter:
        prepared, sampling = opened.prepared, opened.requests[0].sampling
        if opened.is_chat:
            return ChatFormatter(head, self._tokenizer, sampling.logprobs, False, prepared.parts)
        logprobs = sampling.num_top_logprobs if sampling.logprobs else None
        view = prepared.prompt_view
        return CompletionFormatter(head, self._tokenizer, logprobs, False, view)


class OpenLine:
    """A line whose prompts are being answered."""

    def __init__(self, key: str, prepared: Prepared, is_chat: bool, batch: Batch) -> None:
        self.key = key
        self.requests = prepared.requests
        self.prepared = prepared
        self.is_chat = is_chat
        self._batch = batch
        self._answers: dict[str, OfflineAnswer] = {}

    def offline_requests(self) -> list[OfflineRequest]:
        return [
            OfflineRequest(
                request_id=each.request_id,
                prompt_token_ids=each.prompt_token_ids,
                sampling=each.sampling,
                n=each.n,
                stop=each.stop,
                include_stop=each.include_stop,
                shown=each.shown,
                priority=each.priority,
                salt=each.cache_salt.encode(),
            )
            for each in self.requests
        ]

    def take(self, answer: OfflineAnswer) -> dict[str, Any] | None:
        """The line to write, once all prompts of this one are answered."""
        self._answers[answer.request_id] = answer
        if len(self._answers) < len(self.requests):
            return None
        answers = [self._answers[each.request_id] for each in self.requests]
        failures = [each.error for each in answers if each.error]
        if failures:
            return error_line(self.key, ApiError(500, failures[0], code="failed"))
        body = self._batch.whole(self, answers)
        return {
            "custom_id": self.key,
            "response": {"status_code": 200, "request_id": body["id"], "body": body},
            "error": None,
        }


def error_line(key: str, error: ApiError) -> dict[str, Any]:
    detail = {"message": error.message, "param": error.param, "code": error.code}
    return {"custom_id": key, "response": None, "error": detail}
