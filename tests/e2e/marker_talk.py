"""A client that says the marker in every way there is: in what works, and in every mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx2
from tests.e2e.marker import IDS, KEY, PROMPT, SALT, WRONG_KEY
from tests.e2e.running import RunningMesh

MODEL = "echo"
LONG_CHARS = 1_000_000
CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
ARGUMENTS = json.dumps({"word": PROMPT})
SCHEMA = {"type": "object", "properties": {PROMPT: {"enum": [PROMPT]}}}
TOOL = {
    "type": "function",
    "function": {"name": PROMPT, "description": PROMPT, "parameters": SCHEMA},
}
CALL = {"id": "call12345", "type": "function", "function": {"name": PROMPT, "arguments": ARGUMENTS}}
# The echo says it again, so it is an answer that calls a tool.
CALLING = f'<tool_call>{{"name": "{PROMPT}", "arguments": {ARGUMENTS}}}</tool_call>'
GREEDY = {"temperature": 0}
"""The echo then says exactly what it was told."""
HEADERS = ("user-agent", "openai-organization", "cookie", "baggage", "tracestate", "referer")


def chat_body(text: str = PROMPT, **more: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": text}, {"role": "user", "content": f"say {text}"}]
    body = {"model": MODEL, "messages": messages, "max_tokens": 60, "cache_salt": SALT}
    return body | GREEDY | {"user": PROMPT} | more


def plain_body(**more: Any) -> dict[str, Any]:
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 40, "cache_salt": SALT}
    return body | GREEDY | more


class Talk:
    """A client with a key, that says the marker in every way."""

    def __init__(self, mesh: RunningMesh, client: httpx2.Client) -> None:
        self._mesh = mesh
        self._client = client

    def post(self, path: str, body: Any, **options: Any) -> httpx2.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json"} | options.pop("headers", {})
        return self._client.post(path, content=content, headers=headers, **options)

    def chat(self, **more: Any) -> str:
        """A long answer, streamed to its end; the id."""
        return self._stream(lambda _: None, more)

    def chat_and_kill(self) -> str:
        """A still longer answer, whose worker dies and comes back."""
        killed: list[str] = []

        def kill(num_lines: int) -> None:
            if num_lines == 20:
                killed.append(self._mesh.streaming_worker())
                self._mesh.kill(killed[0])

        answer_id = self._stream(kill, {"max_tokens": 2000})
        self._mesh.wait_restarted(killed[0], 0)
        return answer_id

    def chat_and_leave(self) -> None:
        class Left(Exception):
            pass

        def leave(num_lines: int) -> None:
            if num_lines == 10:
                raise Left

        with suppress(Left):
            self._stream(leave, {})

    def _stream(self, on_line: Callable[[int], None], more: dict[str, Any]) -> str:
        body = chat_body(stream=True, max_tokens=300, ignore_eos=True) | more
        answer_id = ""
        with self._client.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.status_code == 200, response.read()
            for number, line in enumerate(response.iter_lines()):
                if line.startswith("data: {"):
                    answer_id = str(json.loads(line[6:])["id"])
                on_line(number)
        return answer_id

    def ask_for_everything(self) -> dict[str, int]:
        """The status of each."""
        answers = {name: self.post(path, body) for name, (path, body) in WISHES.items()}
        silent = {name for name, answer in answers.items() if PROMPT not in answer.text}
        assert silent == {"bad words", "tokenize"}, "the others' answers hold the marker"
        (choice,) = answers["calls"].json()["choices"]
        assert choice["message"]["tool_calls"][0]["function"]["name"] == PROMPT
        headers = dict.fromkeys(HEADERS, f"a={PROMPT}")
        answers["headers"] = self.post(f"{CHAT}?api_key={KEY}", chat_body(), headers=headers)
        return {name: answer.status_code for name, answer in answers.items()}

    def make_every_mistake(self) -> dict[str, int]:
        """The status of each."""
        answered = {
            name: self.post(path, body).status_code for name, (path, body) in MISTAKES.items()
        }
        for header, value in WRONG_HEADERS.items():
            response = self.post(CHAT, chat_body(), headers={header: value})
            answered[f"wrong {header}"] = response.status_code
        for path in (f"/v1/requests/{PROMPT}", f"/v1/models/{PROMPT}"):
            answered[path] = self._client.get(path).status_code
        return answered

    def want_it_too_soon(self) -> int:
        return self.post(CHAT, chat_body(), headers={"x-request-timeout-ms": "1"}).status_code


CONVERSATION = [
    {"role": "user", "content": [{"type": "text", "text": PROMPT}]},
    {"role": "assistant", "content": PROMPT, "reasoning_content": PROMPT, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call12345", "content": PROMPT},
    {"role": "user", "content": CALLING},
]
SAID = {"role": "assistant", "content": PROMPT}
NAMED = {"type": "function", "function": {"name": PROMPT}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
WISHES: dict[str, tuple[str, Any]] = {
    "several prompts": (PLAIN, plain_body(prompt=[PROMPT, PROMPT], logprobs=1)),
    "token ids": (PLAIN, plain_body(prompt=list(IDS))),
    "echo": (PLAIN, plain_body(echo=True, logprobs=2, stream=True)),
    "scoring": (PLAIN, plain_body(echo=True, logprobs=1, max_tokens=0)),
    "prompt logprobs": (CHAT, chat_body(prompt_logprobs=2, logprobs=True)),
    "calls": (CHAT, chat_body(messages=CONVERSATION, tools=[TOOL], max_tokens=400)),
    "forced call": (CHAT, chat_body(tools=[TOOL], tool_choice=NAMED)),
    "schema": (CHAT, chat_body(response_format=FORMAT)),
    "choice": (CHAT, chat_body(structured_outputs={"choice": [PROMPT]})),
    "regex": (CHAT, chat_body(structured_outputs={"regex": PROMPT})),
    "bad words": (CHAT, chat_body(bad_words=[PROMPT], stop=[PROMPT])),
    "template": (CHAT, chat_body(chat_template_kwargs={"note": PROMPT})),
    "notes": (CHAT, chat_body(metadata={PROMPT: PROMPT}, prediction=PROMPT)),
    "going on": (
        CHAT,
        chat_body(messages=[CONVERSATION[0], SAID], continue_final_message=True),
    ),
    "tokenize": ("/tokenize", {"model": MODEL, "prompt": PROMPT}),
    "detokenize": ("/detokenize", {"model": MODEL, "tokens": list(IDS)}),
}
MISTAKES: dict[str, tuple[str, Any]] = {
    "no JSON": (CHAT, b'{"messages": [' + PROMPT.encode()),
    "no UTF-8": (CHAT, b'{"messages": "\xff' + PROMPT.encode() + b'"}'),
    "wrong type": (CHAT, chat_body(temperature=PROMPT)),
    "wrong stop": (CHAT, chat_body(stop=[PROMPT] * 99)),
    "unknown field": (CHAT, chat_body() | {PROMPT: 1}),
    "unknown role": (CHAT, chat_body(messages=[{"role": PROMPT, "content": PROMPT}])),
    "wrong content": (CHAT, chat_body(messages=[{"role": "user", "content": {"a": PROMPT}}])),
    "unknown model": (CHAT, chat_body(model=PROMPT)),
    "wrong bias": (CHAT, chat_body(logit_bias={PROMPT: 1})),
    "too long": (CHAT, chat_body(PROMPT * (LONG_CHARS // len(PROMPT)))),
    "too long, plain": (PLAIN, plain_body(max_tokens=10**7)),
    "wrong ids": (PLAIN, plain_body(prompt=[10**6])),
    "scoring without echo": (PLAIN, plain_body(max_tokens=0)),
    "no regex": (CHAT, chat_body(structured_outputs={"regex": f"({PROMPT}"})),
    "no grammar": (CHAT, chat_body(structured_outputs={"grammar": PROMPT})),
    "no schema": (
        CHAT,
        chat_body(
            response_format=FORMAT | {"json_schema": {"name": "a", "schema": {"type": PROMPT}}}
        ),
    ),
    "unknown tool": (
        CHAT,
        chat_body(tools=[TOOL], tool_choice={"type": "function", "function": {"name": PROMPT[1:]}}),
    ),
    "no arguments": (
        CHAT,
        chat_body(
            messages=[
                SAID | {"tool_calls": [CALL | {"function": {"name": PROMPT, "arguments": PROMPT}}]}
            ]
        ),
    ),
    "template's own": (CHAT, chat_body(chat_template_kwargs={"messages": PROMPT})),
    "no such field yet": (PLAIN, plain_body(suffix=PROMPT)),
    "no route": (f"/v1/{PROMPT}", {}),
}
WRONG_HEADERS = {
    "authorization": f"Bearer {WRONG_KEY}",
    "x-request-id": f"{PROMPT} {PROMPT}",
    "x-request-timeout-ms": PROMPT,
    "content-type": PROMPT,
    "content-encoding": PROMPT,
}


def talk_of_everything(talk: Talk) -> dict[str, str]:
    """Ids of answers, by what happened to them."""
    answers = {
        "whole": talk.chat(),
        "several": talk.chat(n=2, logprobs=True, top_logprobs=2, stop=[PROMPT + "!"]),
        "again": talk.chat(),
    }
    granted = talk.ask_for_everything()
    assert set(granted.values()) == {200}, granted
    refused = talk.make_every_mistake()
    assert set(refused.values()) <= {400, 401, 404, 415}, refused
    assert talk.want_it_too_soon() == 503
    talk.chat_and_leave()
    answers["recovered"] = talk.chat_and_kill()
    return answers
