"""The load generator against a server whose timing is known."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType

import pytest

from banyan_core.slo import SloTarget

GAP_S = 0.03


def load_run() -> ModuleType:
    """`load-tests/run.py` is a script: its folder's name is no package's."""
    path = Path(__file__).parents[2] / "load-tests" / "run.py"
    spec = importlib.util.spec_from_file_location("banyan_load_run", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


run = load_run()


def chunk(text: str) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": text}}]}


Send = Callable[[str], None]
Answer = Callable[[Send], Awaitable[None]]
USAGE = {"choices": [], "usage": {"completion_tokens": 3}}


async def whole(send: Send) -> None:
    send(json.dumps({"choices": [{"index": 0, "delta": {"role": "assistant"}}]}))
    for text in "abc":
        await asyncio.sleep(GAP_S)
        send(json.dumps(chunk(text)))
    send(json.dumps(USAGE))
    send("[DONE]")


async def cut(send: Send) -> None:
    send(json.dumps(chunk("a")))


async def error(send: Send) -> None:
    send(json.dumps({"error": {"message": "worker lost"}}))


@asynccontextmanager
async def gateway(
    answers: list[Answer],
) -> AsyncIterator[str]:
    """Speaks just enough HTTP; gives these answers in turn, then refuses."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET /v1/models"):
            respond(writer, 200, json.dumps({"data": [{"id": "demo"}]}))
        elif answers:
            writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
            await answers.pop(0)(lambda data: writer.write(f"data: {data}\n\n".encode()))
        else:
            respond(writer, 503, '{"error": {"message": "full"}}')
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()


def respond(writer: asyncio.StreamWriter, status: int, body: str) -> None:
    head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    writer.write((head + body).encode())


async def measured(answers: list[Answer]) -> dict[str, object]:
    load = run.Load(50.0, 0.2, 5, 2, 3, seed=1)
    async with gateway(answers) as url:
        result: dict[str, object] = await run.run(url, load, SloTarget(ttft_s=30.0))
    return result


async def test_measures_what_the_server_did() -> None:
    result = await measured([whole] * 20)
    ttft, itl = result["ttft_s"], result["itl_s"]
    assert isinstance(ttft, dict) and isinstance(itl, dict)
    assert result["results"] == {"finished": result["num_requests"]}
    assert ttft["p50"] >= GAP_S
    assert itl["num_values"] == 2 * int(str(result["num_requests"]))
    assert GAP_S * 0.9 <= itl["mean"] < 1.0
    assert result["slo_attainment"] == 1.0
    assert {"date", "commit", "command"} <= set(result)


async def test_only_done_is_finished() -> None:
    result = await measured([whole, cut, error])
    results = result["results"]
    assert isinstance(results, dict)
    assert (results["finished"], results["cut"], results["failed"]) == (1, 1, 1)
    assert results["refused"] == int(str(result["num_requests"])) - 3
    assert result["slo_attainment"] == pytest.approx(1 / int(str(result["num_requests"])))
    errors = result["errors"]
    assert isinstance(errors, dict) and "worker lost" in errors


def test_arrivals_are_poisson_and_seeded() -> None:
    load = run.Load(20.0, 200.0, 5, 2, 3, seed=3)
    instants = run.arrivals(load)
    assert instants == run.arrivals(load) == sorted(instants)
    assert len(instants) == pytest.approx(4_000, rel=0.06)
    gaps = [b - a for a, b in itertools.pairwise(instants)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert variance == pytest.approx(mean**2, rel=0.15), "exponential gaps"


def test_prompts_share_their_start_only() -> None:
    load = run.Load(1.0, 1.0, 40, 10, 3, seed=3)
    one, two = run.prompt(load, 1).split(), run.prompt(load, 2).split()
    assert one[:10] == two[:10]
    assert one[10:] != two[10:]
    assert len(one) == len(two) == 40
    assert run.prompt(load, 1).split() == one


def test_rate_must_be_positive(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run.parse(["--url", "http://x", "--rate", "0"])
    assert stopped.value.code == 2
    assert "--rate and --duration must be above 0" in capsys.readouterr().err
