"""A client of another version, and the mesh of ours that it speaks to."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import Any

from tests.e2e.running import RunningMesh
from tests.versions.stubs import Stubs

from banyan_runtime.grpc_network import GrpcNetwork

TIMEOUT_S = 10.0
PROMPT = [ord(letter) for letter in "the quick brown fox jumps over it"]


class Peer:
    """Speaks only through the stubs of its version. `kind` is the role of the worker to ask."""

    def __init__(self, mesh: RunningMesh, network: GrpcNetwork, stubs: Stubs) -> None:
        self.stubs = stubs
        self._network = network
        self._listed: dict[str, list[str]] = json.loads((mesh.folder / "mesh.json").read_text())

    def address(self, service: str) -> str:
        return self._listed[service][0]

    def channel(self, service: str) -> Any:
        return self._network.channel(self.address(service.lower()))

    async def call(self, service: str, verb: str, kind: str = "", **fields: Any) -> Any:
        method = self.stubs.method(service, verb)
        request = self.stubs.message(method.request.DESCRIPTOR.name, **fields)
        return await self.channel(kind or service).unary(method, request, TIMEOUT_S)

    async def hears(self, service: str, verb: str, kind: str = "", **fields: Any) -> list[Any]:
        method = self.stubs.method(service, verb)
        request = self.stubs.message(method.request.DESCRIPTOR.name, **fields)
        answers = self.channel(kind or service).stream(method, request, TIMEOUT_S)
        return [answer async for answer in answers]

    async def first(self, service: str, verb: str, kind: str) -> Any:
        method = self.stubs.method(service, verb)
        request = self.stubs.message(method.request.DESCRIPTOR.name)
        async with aclosing(self.channel(kind).stream(method, request, TIMEOUT_S)) as answers:
            return await anext(answers)

    async def sequence(self, name: str) -> dict[str, Any]:
        view = await self.call("Router", "View")
        return {
            "sequence_id": f"{name}-{self.stubs}/0/1",
            "gateway_id": f"peer-{self.stubs}",
            "gateway_epoch": 7,
            "card_digest": view.workers[0].card_digest,
            "prompt_token_ids": PROMPT,
            "sampling": {"max_tokens": 5, "seed": 1},
        }
