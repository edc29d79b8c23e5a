"""A marker that a client says in every way, and the search for it in all that a mesh tells."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx2
import redis
from tests.e2e.running import RunningMesh

from banyan_text.tokenizer import ByteTokenizer

PROMPT = "vexillum-quokka-9137-zephyr"
KEY = "sk-marker-lacustrine-5521"
WRONG_KEY = "sk-wrong-obsidian-7788"
SALT = "salt-peregrine-4410"
MODEL = "echo"
LONG_CHARS = 1_000_000


def spellings() -> dict[str, bytes]:
    """How the secrets would look where they leaked, by name."""
    found: dict[str, bytes] = {}
    for name, text in {"prompt": PROMPT, "key": KEY, "wrong key": WRONG_KEY, "salt": SALT}.items():
        found[name] = text.encode()
        found[f"{name}, a part"] = text.encode()[4:-4]
        found[f"{name} in base64"] = base64.b64encode(text.encode())[:-4]
        found[f"{name} in hex"] = text.encode().hex().encode()
    ids = ByteTokenizer().encode(PROMPT, False)
    found["token ids as JSON"] = ",".join(map(str, ids)).encode()
    found["token ids as a list"] = ", ".join(map(str, ids)).encode()
    found["token ids in 4 bytes each"] = struct.pack(f"<{len(ids)}i", *ids)
    found["token ids in 8 bytes each"] = struct.pack(f"<{len(ids)}q", *ids)
    return found


@dataclass
class Told:
    """Everything that was written or sent, piece by piece, under a name to find it by."""

    pieces: dict[str, bytes]

    def leaks(self) -> list[str]:
        return [
            f"{spelling} in {where}"
            for where, piece in self.pieces.items()
            for spelling, secret in spellings().items()
            if secret in piece
        ]

    def places_of(self, text: str) -> set[str]:
        return {name.split(" ")[0] for name, piece in self.pieces.items() if text.encode() in piece}


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

    def make_every_mistake(self) -> dict[str, int]:
        """The status of each."""
        chat, plain = "/v1/chat/completions", "/v1/completions"
        bad_role = {"messages": [{"role": PROMPT, "content": PROMPT}]}
        bad_order = {"messages": [{"role": "assistant", "content": {"a": PROMPT}}]}
        mistakes: dict[str, tuple[str, Any]] = {
            "no JSON": (chat, b'{"messages": [' + PROMPT.encode()),
            "no UTF-8": (chat, b'{"messages": "\xff' + PROMPT.encode() + b'"}'),
            "wrong type": (chat, chat_body(temperature=PROMPT)),
            "wrong stop": (chat, chat_body(stop=[PROMPT] * 99)),
            "unknown field": (chat, chat_body() | {PROMPT: 1}),
            "unknown role": (chat, chat_body() | bad_role),
            "wrong content": (chat, chat_body() | bad_order),
            "unknown model": (chat, chat_body(model=PROMPT)),
            "wrong bias": (chat, chat_body(logit_bias={PROMPT: 1})),
            "too long": (chat, chat_body(PROMPT * (LONG_CHARS // len(PROMPT)))),
            "too long, plain": (plain, {"model": MODEL, "prompt": PROMPT, "max_tokens": 10**7}),
            "wrong ids": (plain, {"model": MODEL, "prompt": [10**6]}),
            "no route": (f"/v1/{PROMPT}", {}),
        }
        answered = {
            name: self.post(path, body).status_code for name, (path, body) in mistakes.items()
        }
        wrong = {"authorization": f"Bearer {WRONG_KEY}"}
        answered["wrong key"] = self.post(chat, chat_body(), headers=wrong).status_code
        answered["no request"] = self._client.get(f"/v1/requests/{PROMPT}").status_code
        return answered


def chat_body(text: str = PROMPT, **more: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": text}, {"role": "user", "content": f"say {text}"}]
    return {"model": MODEL, "messages": messages, "cache_salt": SALT, "user": PROMPT} | more


def talk_of_everything(talk: Talk) -> dict[str, str]:
    """Ids of answers, by what happened to them."""
    answers = {
        "whole": talk.chat(),
        "several": talk.chat(n=2, logprobs=True, top_logprobs=2, stop=[PROMPT + "!"]),
        "again": talk.chat(),
    }
    plain = {"model": MODEL, "prompt": [PROMPT, PROMPT], "max_tokens": 40, "logprobs": 1}
    assert talk.post("/v1/completions", plain).status_code == 200
    assert talk.post("/tokenize", {"model": MODEL, "prompt": PROMPT}).status_code == 200
    statuses = talk.make_every_mistake()
    assert set(statuses.values()) <= {400, 401, 404}, statuses
    talk.chat_and_leave()
    answers["recovered"] = talk.chat_and_kill()
    return answers


def stored(mesh: RunningMesh) -> dict[str, bytes]:
    """Every key of the index and the bus, and what it holds."""
    pieces: dict[str, bytes] = {}
    host, _, port = mesh.process("valkey")["address"].rpartition(":")
    readers: dict[bytes, Callable[[redis.Redis, bytes], Any]] = {
        b"string": lambda server, key: server.get(key),
        b"hash": lambda server, key: server.hgetall(key),
        b"set": lambda server, key: server.smembers(key),
        b"zset": lambda server, key: server.zrange(key, 0, -1, withscores=True),
        b"list": lambda server, key: server.lrange(key, 0, -1),
        b"stream": lambda server, key: server.xrange(key),
    }
    with redis.Redis(host=host, port=int(port)) as server:
        for key in server.scan_iter(count=1000):
            kind = server.type(key)
            pieces[f"{kind.decode()} {key!r}"] = key + b"\n" + flat(readers[kind](server, key))
    return pieces


def flat(value: Any) -> bytes:
    """All bytes in a reply, one after the other."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict):
        return b"\n".join(flat(each) for pair in value.items() for each in pair)
    if isinstance(value, list | tuple | set):
        return b"\n".join(map(flat, value))
    return str(value).encode()
