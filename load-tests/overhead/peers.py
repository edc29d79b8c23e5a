"""Other front ends beside ours: sglang-router (Rust) and litellm's proxy (Python).

Each stands in front of the same echo back end, the bare endpoint, and is asked like the mesh, whose
own back end are its echo workers at the same pace. What a front end adds to the first token is the
difference to the back end asked directly. CPU is that of the front end alone: of the proxy's
processes, or of our gateway and router. The mesh does more on the way (placement by cache, a
prefill and a decode worker, KV between them), and its workers do what the bare back end does.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from banyan_core.slo import nearest_rank
from overhead.client import Answer, Target, keep_asking
from overhead.processes import Server, bare, free_port, mesh, running

ENVIRONMENTS = Path(__file__).parents[2] / ".peers"
PROMPT = "The amber key opens door 4821. "
NUM_TOKENS = 64
CLIENTS = {1: 60, 64: 5}
"""How many answers each client asks for, by the number of clients."""


class NotHere(Exception):
    """A peer that cannot be had on this machine."""


@dataclass(frozen=True, slots=True)
class Peer:
    """`serve` runs it in front of the back end at a port."""

    name: str
    requirement: str
    serve: Callable[[Path, int], AbstractContextManager[Server]]

    @property
    def environment(self) -> Path:
        return ENVIRONMENTS / self.name


@contextmanager
def _sglang_router(environment: Path, back_end: int) -> Iterator[Server]:
    port = free_port()
    command = [str(environment / "bin" / "sglang-router"), "launch", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--prometheus-port", str(free_port())]
    command += ["--worker-urls", f"http://127.0.0.1:{back_end}"]
    command += ["--policy", "round_robin", "--log-level", "error"]
    with running(command, port, "/readiness") as server:
        yield server


@contextmanager
def _litellm(environment: Path, back_end: int) -> Iterator[Server]:
    port = free_port()
    config = environment / "banyan-echo.yaml"
    config.write_text(
        "model_list:\n"
        "  - model_name: echo\n"
        "    litellm_params:\n"
        "      model: text-completion-openai/echo\n"
        f"      api_base: http://127.0.0.1:{back_end}/v1\n"
        "      api_key: none\n"
    )
    command = ["env", "LITELLM_LOCAL_MODEL_COST_MAP=True", "LITELLM_LOG=ERROR"]
    # Without keys, as our gateway in this measure.
    command += ["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY=true"]
    command += [str(environment / "bin" / "litellm"), "--config", str(config), "--telemetry"]
    command += ["False", "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    with running(command, port, "/health/readiness") as server:
        yield server


PEERS = (
    Peer("sglang-router", "sglang-router==0.3.2", _sglang_router),
    Peer("litellm", "litellm[proxy]==1.106.2", _litellm),
)


def measure() -> dict[str, object]:
    for peer in PEERS:
        _install(peer)
    with ExitStack() as opened:
        back_end = opened.enter_context(bare())
        our_mesh = opened.enter_context(mesh())
        servers = {"back_end": back_end, "banyan": our_mesh.server("gateway", "router")}
        for peer in PEERS:
            servers[peer.name] = opened.enter_context(peer.serve(peer.environment, back_end.port))
        rows = {str(number): _row(servers, number) for number in CLIENTS}
    versions = {peer.name: peer.requirement for peer in PEERS}
    return {"tokens_per_answer": NUM_TOKENS, "peers": versions, "by_num_clients": rows}


def _install(peer: Peer) -> None:
    """An environment of its own, once. Raises NotHere when the package cannot be had."""
    if (peer.environment / "installed").exists():
        return
    print(f"  installing {peer.requirement}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", peer.environment], check=True)
    pip = [str(peer.environment / "bin" / "pip"), "install", "--quiet", peer.requirement]
    result = subprocess.run(pip, capture_output=True, text=True, check=False)
    if result.returncode:
        words = result.stderr.strip().splitlines() or ["pip said nothing"]
        raise NotHere(f"{peer.requirement} cannot be installed: {words[-1]}")
    (peer.environment / "installed").touch()


def _row(servers: dict[str, Server], num_clients: int) -> dict[str, dict[str, float]]:
    """One after the other, so that each has the machine; the first answers are not counted."""
    taken = {name: asyncio.run(_ask(server, num_clients)) for name, server in servers.items()}
    direct = taken["back_end"]
    for name, figures in taken.items():
        if name != "back_end":
            figures["added_ttft_p50_ms"] = round(figures["ttft_p50_ms"] - direct["ttft_p50_ms"], 2)
            figures["added_ttft_p99_ms"] = round(figures["ttft_p99_ms"] - direct["ttft_p99_ms"], 2)
    return taken


async def _ask(server: Server, num_clients: int) -> dict[str, float]:
    target = Target(server.port, "echo", PROMPT, NUM_TOKENS)
    await keep_asking([target] * num_clients, 2)
    cpu_s, started = server.cpu_s(), time.monotonic()
    answers = await keep_asking([target] * num_clients, CLIENTS[num_clients])
    elapsed_s = time.monotonic() - started
    cpu_ms = (server.cpu_s() - cpu_s) * 1e3 / len(answers)
    return {
        "ttft_p50_ms": _ttft_ms(answers, 0.5),
        "ttft_p99_ms": _ttft_ms(answers, 0.99),
        "cpu_ms_per_request": round(cpu_ms, 2),
        "cpu_us_per_token": round(cpu_ms * 1e3 / NUM_TOKENS, 1),
        "requests_per_s": round(len(answers) / elapsed_s, 1),
    }


def _ttft_ms(answers: list[Answer], share: float) -> float:
    ttft_ns = nearest_rank([answer.ttft_ns for answer in answers], share) or 0
    return round(ttft_ns / 1e6, 2)
