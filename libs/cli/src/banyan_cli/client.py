"""A small HTTP client of the gateway and of the metrics service, for people's commands."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

from banyan_cli.errors import CommandError

TIMEOUT_S = 10.0
STREAM_TIMEOUT_S = 120.0
"""Between two pieces of a stream; the gateway sends keep-alive comments well within."""

Message = Mapping[str, str]


@dataclass(slots=True)
class Answer:
    """What is known of a streamed answer when it has ended."""

    request_id: str = ""
    text: str = ""
    finish_reason: str = ""
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0


class HttpClient:
    """Calls one base address. Raises CommandError (exit code 1) when it does not answer."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._http = httpx2.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False)

    def __enter__(self) -> HttpClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.close()

    def get(self, path: str) -> dict[str, Any]:
        """The JSON object at `path`, whatever its status was."""
        try:
            content = self._http.get(path).json()
        except (httpx2.HTTPError, ValueError) as error:
            raise self._unanswered(error) from None
        return dict(content)

    def find(self, path: str) -> dict[str, Any] | None:
        """The JSON object at `path`; None when there is none."""
        try:
            response = self._http.get(path)
            return dict(response.json()) if response.status_code == 200 else None
        except (httpx2.HTTPError, ValueError) as error:
            raise self._unanswered(error) from None

    def model(self) -> str:
        """The name of the first model that is served."""
        return str(self.get("/v1/models")["data"][0]["id"])

    def chat(self, body: Mapping[str, Any], messages: Sequence[Message]) -> Iterator[str | Answer]:
        """Stream a chat completion: pieces of text as they come, then one `Answer`."""
        options = {"stream": True, "stream_options": {"include_usage": True}}
        request = {**body, **options, "messages": list(messages)}
        answer = Answer()
        try:
            path = "/v1/chat/completions"
            with self._http.stream(
                "POST", path, json=request, timeout=STREAM_TIMEOUT_S
            ) as response:
                if response.status_code != 200:
                    raise _refused(response.read())
                for event in _events(response.iter_lines()):
                    yield from _news(answer, event)
        except httpx2.HTTPError as error:
            raise self._unanswered(error) from None
        yield answer

    def _unanswered(self, error: Exception) -> CommandError:
        return CommandError(f"{self._url} does not answer as it should: {error!r}.", 1)


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects of an event stream. A stream that ends without its last word is broken."""
    for line in lines:
        if line == "data: [DONE]":
            return
        if line.startswith("data: "):
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise _refused(json.dumps(event).encode())
            yield event
    raise CommandError("The gateway's stream broke off before its end.", 1)


def _news(answer: Answer, event: Mapping[str, Any]) -> Iterator[str]:
    """Put what an event says into `answer`; yield the text that it brings."""
    answer.request_id = event["id"]
    for choice in event["choices"]:
        answer.finish_reason = choice["finish_reason"] or answer.finish_reason
        piece = choice["delta"].get("content")
        if piece:
            answer.text += piece
            yield piece
    if usage := event.get("usage"):
        answer.num_prompt_tokens = usage["prompt_tokens"]
        answer.num_output_tokens = usage["completion_tokens"]
        answer.num_cached_tokens = usage["prompt_tokens_details"]["cached_tokens"]


def _refused(body: bytes) -> CommandError:
    try:
        words = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        words = body.decode(errors="replace")[:200]
    return CommandError(f"The gateway refused: {words}", 1)
