"""Old and new versions of the services together, over real gRPC: theirs at either end."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.e2e.running import RunningMesh
from tests.kvstore.stored import block, pages_of
from tests.versions.peer import PROMPT, TIMEOUT_S, Peer
from tests.versions.relay import serve_relay
from tests.versions.stubs import LATER_VALUE, next_version

from banyan_core.hashing import block_hashes, pack, page_digest
from banyan_core.types import BlockHash
from banyan_runtime.grpc_network import GrpcNetwork
from banyan_runtime.rpc import Code, RpcError

BIN = Path(sys.executable).parent


# ---------------------------------------------------------------- their client, our servers


async def test_their_gateway_places_and_decodes(peer: Peer) -> None:
    view = await peer.call("Router", "View")
    assert {worker.worker.worker_id for worker in view.workers} == {"prefill-0", "decode-0"}
    placed = await peer.call(
        "Router",
        "Place",
        request_id="r",
        card_digest=view.workers[0].card_digest,
        num_prompt_tokens=len(PROMPT),
        max_tokens=5,
    )
    assert placed.WhichOneof("outcome") == "placement", placed
    assert placed.decision.reason
    tokens, finish = await decoded(peer, await peer.sequence("decode"))
    assert (tokens, finish) == (PROMPT[:5], 2)


async def decoded(peer: Peer, sequence: dict[str, Any], **source: Any) -> tuple[list[int], int]:
    """What the decode worker's stream says of a sequence, and how it ends."""
    method = peer.stubs.method("Worker", "Tokens")
    who = {"gateway_id": sequence["gateway_id"], "gateway_epoch": 7}
    ended = asyncio.Event()

    async def requests() -> AsyncIterator[Any]:
        yield peer.stubs.message("TokensRequest", hello=who)
        await ended.wait()
        ack = {"sequence_ids": [sequence["sequence_id"]]}
        yield peer.stubs.message("TokensRequest", ack=ack)

    tokens: list[int] = []
    async with aclosing(peer.channel("decode").bidi(method, requests())) as reports:
        await anext(reports)  # the stream stands
        admitted = await peer.call("Worker", "Decode", "decode", sequence=sequence, **source)
        assert admitted.accepted, admitted.reason
        async with asyncio.timeout(TIMEOUT_S):
            async for report in reports:
                for said in report.sequences:
                    tokens += [token.token_id for token in said.tokens]
                    if said.finish:
                        ended.set()
                        return tokens, said.finish
    raise AssertionError("the stream ended before the sequence")


async def test_their_decode_pulls_from_our_prefill(peer: Peer) -> None:
    report = await peer.first("Worker", "Watch", "prefill")
    assert report.card.block_size and report.worker.worker_id == "prefill-0"
    sequence = await peer.sequence("prefill")
    admitted = await peer.call(
        "Worker", "Prefill", "prefill", sequence=sequence, lease_ns=10_000_000_000
    )
    assert admitted.accepted, admitted.reason
    lease = sequence["sequence_id"]
    wanted = block_hashes(PROMPT, report.card.block_size, b"")
    pulled = await peer.hears(
        "Worker", "Pull", "prefill", lease_id=lease, block_hashes=pack(wanted)
    )
    assert pulled[-1].output_token_ids == PROMPT[:1]
    assert {page.block_hash for message in pulled for page in message.pages} == set(wanted)
    assert wanted
    pages = [page for message in pulled for page in message.pages]
    assert all(page_digest(page.data) == page.digest for page in pages)
    released = await peer.call("Worker", "Release", "prefill", lease_ids=[lease])
    assert released.num_released == 1


async def test_their_worker_uses_our_store(peer: Peer) -> None:
    wanted = BlockHash(peer.stubs.name.encode().ljust(16, b"."))
    pages = [
        {
            "block_hash": page.block_hash,
            "layer": page.layer,
            "num_layers": page.num_layers,
            "digest": page.digest,
            "data": page.data,
        }
        for page in pages_of([block(wanted)])
    ]

    async def upload() -> AsyncIterator[Any]:
        yield peer.stubs.message("KvPages", pages=pages)

    put = peer.stubs.method("KvStore", "Put")
    stored = await peer.channel("kvstore").upload(put, upload(), TIMEOUT_S)
    assert (stored.num_stored_blocks, stored.num_rejected_pages) == (1, 0)
    has = await peer.call("KvStore", "Has", block_hashes=pack([wanted]))
    assert has.num_prefix_blocks == 1
    (got,) = await peer.hears("KvStore", "Get", block_hashes=pack([wanted]))
    assert [(page.digest, page.data) for page in got.pages] == [
        (page["digest"], page["data"]) for page in pages
    ]
    assert (await peer.call("KvStore", "Stats")).tiers[0].num_blocks >= 1


@pytest.mark.parametrize("service", ["Router", "Worker", "KvStore"])
async def test_verb_that_we_lack_is_refused_in_words(
    mesh: RunningMesh, network: GrpcNetwork, service: str
) -> None:
    later = Peer(mesh, network, next_version())
    with pytest.raises(RpcError, match=r"(?i)method") as refused:
        await later.call(service, "Later", "decode" if service == "Worker" else "")
    assert refused.value.code in (Code.INTERNAL, Code.INVALID, Code.NOT_FOUND)


# ---------------------------------------------------------------- our gateway, their servers


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def our_gateway(mesh: RunningMesh, router: str) -> AsyncIterator[httpx2.AsyncClient]:
    """A gateway process that knows no other router than this one."""
    port = free_port()
    valkey = mesh.process("valkey")["address"]
    settings = {
        "BANYAN_GATEWAY_ID": "gateway-of-two-versions",
        "BANYAN_GATEWAY_ADDRESS": f"127.0.0.1:{port}",
        "BANYAN_GATEWAY_RUNNER": "echo",
        "BANYAN_BUS_URL": f"redis://{valkey}",
        "BANYAN_DIRECTORY": f"static:router={router}",
    }
    process = await asyncio.create_subprocess_exec(
        str(BIN / "banyan-gateway"), env=os.environ | settings, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx2.AsyncClient(base_url=url, timeout=30.0) as client:
            async with asyncio.timeout(30.0):
                while not await is_ready(client):  # noqa: ASYNC110  # a process has no event
                    await asyncio.sleep(0.05)
            yield client
    finally:
        process.terminate()
        async with asyncio.timeout(20.0):
            await process.wait()


async def is_ready(client: httpx2.AsyncClient) -> bool:
    try:
        return (await client.get("/ready")).status_code == 200
    except httpx2.TransportError:
        return False


@asynccontextmanager
async def relayed(
    peer: Peer, network: GrpcNetwork, change: Callable[[Any], None] = lambda _: None
) -> AsyncIterator[str]:
    """The address of a router of that version, that lists workers of that version.

    `change` may make any answer of theirs strange.
    """
    relays = {
        peer.address(role): await serve_relay(
            network, peer.stubs, "Worker", peer.address(role), change
        )
        for role in ("prefill", "decode")
    }

    def edit(answer: Any) -> None:
        if answer.DESCRIPTOR.name == "PlaceResponse":
            for worker in (answer.placement.prefill, answer.placement.decode):
                if worker.address:
                    worker.address = relays[worker.address].address
        change(answer)

    router = await serve_relay(network, peer.stubs, "Router", peer.address("router"), edit)
    yield router.address
    for server in (router, *relays.values()):
        await server.stop(0.0)


async def test_our_gateway_serves_through_their_router_and_workers(
    mesh: RunningMesh, network: GrpcNetwork, peer: Peer
) -> None:
    prompt = "a prompt that is long enough to be split between two workers " * 4
    body = {"model": "echo", "prompt": prompt, "max_tokens": 40, "temperature": 0}
    async with relayed(peer, network) as router, our_gateway(mesh, router) as client:
        answer = await client.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        said = answer.json()
        assert said["choices"][0]["text"] == prompt[:40]
        explained = (await client.get(f"/v1/requests/{said['id']}")).text
        assert "prefill-0" in explained and "decode-0" in explained, "it was split"


class Strange:
    """Makes one answer of a later version one that we cannot read, and lets all others be."""

    def __init__(self, change: Callable[[Any], bool]) -> None:
        self._change = change
        self.num_changed = 0

    def __call__(self, answer: Any) -> None:
        if self.num_changed == 0:
            self.num_changed += self._change(answer)


def place_with_an_unknown_role(answer: Any) -> bool:
    if answer.DESCRIPTOR.name != "PlaceResponse":
        return False
    answer.placement.decode.role = LATER_VALUE
    return True


def end_in_an_unknown_way(answer: Any) -> bool:
    if answer.DESCRIPTOR.name != "TokensReport" or not answer.sequences:
        return False
    answer.sequences[0].finish = LATER_VALUE
    return True


@pytest.mark.parametrize("change", [place_with_an_unknown_role, end_in_an_unknown_way])
async def test_our_gateway_survives_an_answer_that_it_cannot_read(
    mesh: RunningMesh, network: GrpcNetwork, change: Callable[[Any], bool]
) -> None:
    strange = Strange(change)
    later = Peer(mesh, network, next_version())
    body = {"model": "echo", "prompt": "hello", "max_tokens": 5, "temperature": 0}
    async with relayed(later, network, strange) as router, our_gateway(mesh, router) as client:
        answer = await client.post("/v1/completions", json=body)
        assert strange.num_changed == 1
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["text"] == "hello"
