"""`banyan status`: the processes as the supervisor sees them, the workers as a router does."""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict
from typing import Any

import httpx2
from rich.console import Console, Group, RenderableType
from rich.table import Table

from banyan.v1 import common_pb2, router_pb2
from banyan_cli.health import grpc_is_serving, http_is_ok, valkey_answers
from banyan_cli.state import MeshState, ProcessState, StateFolder
from banyan_runtime.grpc_network import GrpcNetwork
from banyan_runtime.grpc_security import ChannelSecurity
from banyan_runtime.rpc import RpcError
from banyan_runtime.wire import VIEW

VIEW_TIMEOUT_S = 2.0
_ROLES = {common_pb2.ROLE_PREFILL: "prefill", common_pb2.ROLE_DECODE: "decode"}


def status(folder: StateFolder, console: Console, *, as_json: bool) -> int:
    """Print the mesh; 0 when everything answers, else 1. Raises CommandError without a mesh."""
    found = asyncio.run(look(folder.running()))
    if as_json:
        console.print_json(data=found)
    else:
        console.print(shown(found))
    return 0 if all(row["answers"] for row in found["processes"]) else 1


async def look(state: MeshState) -> dict[str, Any]:
    """Ask every process of the mesh at the same time. JSON-ready."""
    network = GrpcNetwork(ChannelSecurity.parse(os.environ.get("BANYAN_CHANNELS", "plain")))
    async with httpx2.AsyncClient(trust_env=False) as http:
        try:
            asked = [_answers(network, http, process) for process in state.processes]
            answers = await asyncio.gather(*asked)
            workers = await view_workers(network, state)
        finally:
            await network.close()
    rows = [{**asdict(process), "answers": answers[i]} for i, process in enumerate(state.processes)]
    return {
        "ready": state.ready,
        "gateway_url": state.gateway_url,
        "metrics_url": state.metrics_url,
        "processes": rows,
        "workers": workers,
    }


async def _answers(network: GrpcNetwork, http: httpx2.AsyncClient, process: ProcessState) -> bool:
    if process.service == "valkey":
        return await valkey_answers(process.address)
    if process.service == "gateway":
        return await http_is_ok(http, f"http://{process.address}/ready")
    return await grpc_is_serving(network, process.address)


async def view_workers(network: GrpcNetwork, state: MeshState) -> list[dict[str, Any]]:
    """The workers as the first router that answers sees them; empty when none does."""
    for process in state.processes:
        if process.service != "router":
            continue
        try:
            channel = network.channel(process.address)
            view = await channel.unary(VIEW, router_pb2.ViewRequest(), VIEW_TIMEOUT_S)
        except RpcError:
            continue
        return [worker_row(worker) for worker in view.workers]
    return []


def worker_row(viewed: router_pb2.ViewedWorker) -> dict[str, Any]:
    load = viewed.load
    return {
        "worker_id": viewed.worker.worker_id,
        "role": _ROLES.get(viewed.worker.role, "?"),
        "address": viewed.worker.address,
        "model": viewed.model,
        "live": viewed.live,
        "draining": load.draining,
        "num_running": load.num_running,
        "num_waiting": load.num_waiting,
        "num_free_blocks": load.num_free_blocks,
        "prefill_tokens_per_s": round(load.prefill_tokens_per_s, 1),
        "age_ms": round(viewed.age_ns / 1e6, 1),
    }


def shown(found: dict[str, Any]) -> RenderableType:
    """Two tables."""
    return Group(process_table(found["processes"]), "", worker_table(found["workers"]))


def process_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("process", "phase", "answers", "pid", "address", "restarts"):
        table.add_column(column)
    for row in rows:
        answers = "yes" if row["answers"] else "no"
        style = "" if row["answers"] else "red"
        cells = (row["name"], row["phase"], answers, str(row["pid"] or "-"), row["address"])
        table.add_row(*cells, str(row["num_restarts"]), style=style)
    return table


def worker_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    columns = ("worker", "role", "model", "state", "running", "waiting", "free blocks", "tokens/s")
    for column in columns:
        table.add_column(column)
    for row in rows:
        state = "draining" if row["draining"] else "live" if row["live"] else "silent"
        numbers = ("num_running", "num_waiting", "num_free_blocks", "prefill_tokens_per_s")
        cells = (row["worker_id"], row["role"], row["model"], state)
        table.add_row(*cells, *(str(row[name]) for name in numbers))
    return table
