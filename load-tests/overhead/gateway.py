"""The gateway beside a bare FastAPI endpoint that emits the same text at the same pace.

Time to the first token with one client, asked in turn, so that both see the same machine; CPU of
the gateway's process with 64 clients, in turn as well: per token of long streams, and per request
of one token. The mesh's first token has crossed a router and a prefill worker; the bare endpoint's
only the pace of such a worker.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from statistics import mean

from banyan_core.slo import nearest_rank
from overhead.client import Client, Target, keep_asking
from overhead.processes import Server, bare, mesh

PROMPT = "The amber key opens door 4821; the silver key opens door 1937. "
NUM_PAIRS = 300
NUM_CLIENTS = 64
STREAM_TOKENS = 1024
NUM_TURNS = 3
ANSWERS_OF_ONE_TOKEN = 10
"""Per client and turn; of long streams it is one."""


def measure() -> dict[str, object]:
    with bare() as bare_server, mesh() as our_mesh:
        gateway = our_mesh.server("gateway")
        return asyncio.run(_measure(gateway, bare_server))


async def _measure(gateway: Server, bare_server: Server) -> dict[str, object]:
    return {
        "added_ttft": await _added_ttft(gateway.port, bare_server.port),
        "cpu_per_token": await _cpu(gateway, bare_server, STREAM_TOKENS, 1),
        "cpu_per_request": await _cpu(gateway, bare_server, 1, ANSWERS_OF_ONE_TOKEN),
    }


async def _added_ttft(gateway: int, bare_port: int) -> dict[str, object]:
    """Milliseconds, from the request's last byte written to the first text read."""
    ours: list[int] = []
    theirs: list[int] = []
    async with (
        Client(Target(gateway, "echo", PROMPT, 8)) as our_client,
        Client(Target(bare_port, "echo", PROMPT, 8)) as bare_client,
    ):
        for number in range(NUM_PAIRS + 20):
            pair = (await our_client.ask(), await bare_client.ask())
            if number >= 20:  # the first ones find cold code
                ours.append(pair[0].ttft_ns)
                theirs.append(pair[1].ttft_ns)
    return {
        "num_clients": 1,
        "num_pairs": NUM_PAIRS,
        "gateway_ms": percentiles_ms(ours),
        "bare_ms": percentiles_ms(theirs),
        "added_p50_ms": round((_rank(ours, 0.5) - _rank(theirs, 0.5)) / 1e6, 3),
    }


async def _cpu(
    gateway: Server, bare_server: Server, num_tokens: int, num_answers: int
) -> dict[str, object]:
    """Microseconds of the serving process, all its answers' costs spread over their tokens."""
    ours: list[Turn] = []
    theirs: list[Turn] = []
    for _ in range(NUM_TURNS):
        ours.append(await _turn(gateway, num_tokens, num_answers))
        theirs.append(await _turn(bare_server, num_tokens, num_answers))
    return {
        "num_clients": NUM_CLIENTS,
        "tokens_per_answer": num_tokens,
        "gateway_us": _summary(ours),
        "bare_us": _summary(theirs),
    }


@dataclass(frozen=True, slots=True)
class Turn:
    """What all clients together showed."""

    cpu_us: float
    tokens_per_s: float
    tokens_per_event: float
    client_cores: float


async def _turn(server: Server, max_tokens: int, num_answers: int) -> Turn:
    target = Target(server.port, "echo", PROMPT, max_tokens)
    started, cpu_s, client_cpu_s = time.monotonic(), server.cpu_s(), time.process_time()
    answers = await keep_asking([target] * NUM_CLIENTS, num_answers)
    cpu_s, elapsed_s = server.cpu_s() - cpu_s, time.monotonic() - started
    num_tokens = len(answers) * max_tokens
    return Turn(
        cpu_us=cpu_s / num_tokens * 1e6,
        tokens_per_s=num_tokens / elapsed_s,
        tokens_per_event=num_tokens / sum(len(answer.text) for answer in answers),
        client_cores=(time.process_time() - client_cpu_s) / elapsed_s,
    )


def _summary(turns: list[Turn]) -> dict[str, object]:
    return {
        "mean": round(mean(turn.cpu_us for turn in turns), 1),
        "turns": [round(turn.cpu_us, 1) for turn in turns],
        "tokens_per_s": round(mean(turn.tokens_per_s for turn in turns)),
        "tokens_per_event": round(mean(turn.tokens_per_event for turn in turns), 2),
        "client_cores": round(mean(turn.client_cores for turn in turns), 2),
    }


def percentiles_ms(values_ns: list[int]) -> dict[str, float]:
    return {f"p{q}": round(_rank(values_ns, q / 100) / 1e6, 3) for q in (50, 99)}


def _rank(values: list[int], share: float) -> int:
    return nearest_rank(values, share) or 0
