"""A request for an adapter that no worker has ends with the reason, and nothing else suffers."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from tests.mesh.asking import Question, ask, assert_right, prompt_of, request_of

from banyan_core.types import Adapter
from banyan_gateway.ports import RequestFailed
from banyan_runtime.virtual_loop import run_virtual
from banyan_sim.mesh import SimMesh, Topology


def test_a_request_that_no_worker_can_serve_ends_with_the_reason() -> None:
    async def main() -> None:
        mesh = SimMesh(Topology())
        await mesh.start()
        other = Question("other", prompt_of(60), 100)
        beside = asyncio.create_task(ask(mesh, other))
        plain = request_of(mesh, Question("lost", prompt_of(50), 10))
        started_s = mesh.loop.time()
        with pytest.raises(RequestFailed) as failed:
            async for _ in mesh.gateway.generate(
                replace(plain, model="poet", adapter=Adapter("poet", b"d" * 16))
            ):
                raise AssertionError("there is nothing to say")
        assert mesh.loop.time() - started_s < 20.0
        assert "this worker has no folder of adapters" in failed.value.message
        assert failed.value.http_status == 503
        assert_right(other, await beside)
        view = mesh.gateway.request_view("lost")
        assert view is not None
        assert view["model"] == "poet"
        await mesh.stop()

    run_virtual(main)
