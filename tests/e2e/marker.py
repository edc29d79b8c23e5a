"""What belongs to a client, how it would look where it leaked, and the search for it."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Sequence
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
IDS = tuple(ByteTokenizer().encode(PROMPT, False))


def spellings(ids: Sequence[int] = IDS) -> dict[str, bytes]:
    """How the secrets would look where they leaked, by name; `ids` are the prompt's tokens."""
    found: dict[str, bytes] = {}
    for name, text in {"prompt": PROMPT, "key": KEY, "wrong key": WRONG_KEY, "salt": SALT}.items():
        found[name] = text.encode()
        found[f"{name}, a part"] = text.encode()[4:-4]
        found[f"{name} in base64"] = base64.b64encode(text.encode())[:-4]
        found[f"{name} in hex"] = text.encode().hex().encode()
    found["token ids as JSON"] = ",".join(map(str, ids)).encode()
    found["token ids as a list"] = ", ".join(map(str, ids)).encode()
    found["token ids in 4 bytes each"] = struct.pack(f"<{len(ids)}i", *ids)
    found["token ids in 8 bytes each"] = struct.pack(f"<{len(ids)}q", *ids)
    return found


@dataclass
class Told:
    """Everything that was written or sent, piece by piece, under a name to find it by."""

    pieces: dict[str, bytes]

    def leaks(self, ids: Sequence[int] = IDS) -> list[str]:
        return [
            f"{spelling} in {where}"
            for where, piece in self.pieces.items()
            for spelling, secret in spellings(ids).items()
            if secret in piece
        ]

    def places_of(self, text: str) -> set[str]:
        return {name.split(" ")[0] for name, piece in self.pieces.items() if text.encode() in piece}


def told_by(mesh: RunningMesh) -> Told:
    """All that a mesh has written and shows: logs, names of files, figures, index and bus."""
    pieces = {f"log {log.name}": log.read_bytes() for log in mesh.folder.glob("logs/*.log")}
    for path in mesh.folder.rglob("*"):
        pieces[f"path {path.relative_to(mesh.folder)}"] = str(path).encode()
    for process in mesh.state()["processes"]:
        address = process.get("metrics_address")
        if process["service"] != "valkey" and address:
            text = httpx2.get(f"http://{address}/metrics", timeout=60).content
            pieces[f"metrics of {process['name']}"] = text
    return Told(pieces | stored(mesh))


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
