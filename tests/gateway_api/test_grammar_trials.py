"""Grammars that would compile for long: a 400 in time, while others are served; and the process
that they are tried in ends when it should."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.gateway_api.conftest import app_of
from tests.gateway_api.echo_gateway import EchoGateway
from tests.gateway_api.test_process import GOOD, start
from tests.gateway_api.test_response_format import CHAT, IN_SCHEMA, format_of

from banyan_core.types import Grammar, GrammarKind
from banyan_gateway.auth import KeyRing
from banyan_gateway.errors import ApiError
from banyan_gateway.grammar_trials import TOO_SLOW, GrammarTrials
from banyan_runtime.offload import ThreadOffload
from banyan_text.tokenizer import ByteTokenizer

END = 257
SLOW_MULTIPLE = {"type": "integer", "multipleOf": 1_000_003}
SLOW_PATTERNS = {
    "type": "object",
    "patternProperties": {f"^p{index:03}.*$": {"type": "integer"} for index in range(400)},
}
CHAIN: dict[str, Any] = {
    "$defs": {
        **{f"a{i}": {"properties": {"x": {"$ref": f"#/$defs/a{i + 1}"}}} for i in range(1000)},
        "a1000": {},
    },
    "$ref": "#/$defs/a0",
}


def schema(text: object) -> Grammar:
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(text))


@pytest.fixture
async def threaded(gateway: EchoGateway) -> AsyncIterator[httpx2.AsyncClient]:
    offload = ThreadOffload(4)
    transport = httpx2.ASGITransport(app=app_of(gateway, KeyRing(), grammar_offload=offload))
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client
    await offload.close()


@pytest.mark.parametrize("bad", [SLOW_MULTIPLE, SLOW_PATTERNS], ids=["multiple", "patterns"])
async def test_a_schema_that_compiles_for_long_is_refused_while_others_are_served(
    threaded: httpx2.AsyncClient, bad: dict[str, Any]
) -> None:
    post = threaded.post("/v1/chat/completions", json=CHAT | format_of(bad))
    refused = asyncio.create_task(post)
    num_served = 0
    while not refused.done():
        served = await threaded.post("/v1/chat/completions", json=CHAT)
        assert served.status_code == 200
        num_served += 1
        await asyncio.sleep(0)  # nothing else in here waits, so the other would get no turn
    assert num_served > 20
    response = refused.result()
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == IN_SCHEMA
    assert TOO_SLOW in error["message"]
    good = await threaded.post("/v1/chat/completions", json=CHAT | format_of({"type": "null"}))
    assert good.status_code == 200


async def test_a_chain_of_a_thousand_references_is_followed(threaded: httpx2.AsyncClient) -> None:
    served = await threaded.post("/v1/chat/completions", json=CHAT | format_of(CHAIN))
    assert served.status_code == 200


async def test_what_was_tried_is_not_tried_again() -> None:
    trials = GrammarTrials(ByteTokenizer(), (END,))
    tried = [schema({"type": "objekt"}), schema({}), schema(SLOW_MULTIPLE)]
    reasons = [trials.refusal(each) for each in tried]
    await trials.close()
    assert reasons == [trials.refusal(each) for each in tried]
    assert reasons[0] is not None
    assert reasons[1:] == [None, TOO_SLOW]
    with pytest.raises(ApiError) as refused:
        trials.refusal(schema({"type": "null"}))
    assert refused.value.status == 503


async def test_no_room_for_a_process_is_for_later() -> None:
    trials = GrammarTrials(ByteTokenizer(), (END,))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        with pytest.raises(ApiError) as refused:
            trials.refusal(schema({}))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert refused.value.status == 503
    assert refused.value.retry_after_s
    assert trials.refusal(schema({})) is None
    await trials.close()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("bad", [None, SLOW_PATTERNS], ids=["idle", "compiling"])
async def test_the_process_ends_with_the_gateway(how: signal.Signals, bad: object) -> None:
    process = await start(GOOD | {"BANYAN_GATEWAY_GRACE_S": "0"})
    try:
        assert process.stderr is not None
        url = f"http://{json.loads(await process.stderr.readline())['address']}"
        async with httpx2.AsyncClient(base_url=url, timeout=20) as client:
            await client.post("/v1/chat/completions", json=CHAT | format_of({"type": "objekt"}))
            (child,) = children(process.pid)
            if bad is not None:
                body = CHAT | format_of(bad)
                sent = asyncio.create_task(client.post("/v1/chat/completions", json=body))
                await asyncio.sleep(0.3)
            process.send_signal(how)
            await process.wait()
            if bad is not None:
                await asyncio.gather(sent, return_exceptions=True)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
    for _ in range(100):
        if not is_running(child):
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"process {child} is still there")


def children(pid: int) -> list[int]:
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for each in lists for child in each.read_text().split()]


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
