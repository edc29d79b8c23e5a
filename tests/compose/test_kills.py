"""`docker kill` in mid-answer: what was begun ends as if nothing had happened."""

from __future__ import annotations

from typing import Any

import pytest
from tests.compose.running import ComposeMesh, docker, wait_until

PROMPT = (
    "The amber key opens door 4821. The silver key opens door 1937. The iron key opens door 6650. "
    "Count from one to forty, then tell a story about the amber key."
)
# Drawn wildly: an answer that falls into a loop is foretold by drafts, and is soon over.
SAMPLED: dict[str, Any] = {
    "max_tokens": 400,
    "temperature": 2.0,
    "seed": 5,
    "extra_body": {"ignore_eos": True},
}


@pytest.fixture(scope="module")
def calm(mesh: ComposeMesh) -> str:
    """The answer when nothing goes wrong."""
    return mesh.stream(PROMPT, **SAMPLED)


def answer_with_a_death(mesh: ComposeMesh, container_id: str) -> str:
    killed: list[str] = []

    def kill(num_chunks: int) -> None:
        if num_chunks == 10 and not killed:
            docker("kill", container_id)
            killed.append(container_id)

    text = mesh.stream(PROMPT, kill, **SAMPLED)
    assert killed
    return text


def test_the_only_decode_worker_dies(mesh: ComposeMesh, calm: str) -> None:
    (decode,) = mesh.containers("decode")
    assert answer_with_a_death(mesh, decode["Id"]) == calm
    mesh.restore()


@pytest.mark.parametrize("service", ["kafka", "redis", "kvstore", "metrics", "router"])
def test_no_running_answer_needs_this_service(mesh: ComposeMesh, calm: str, service: str) -> None:
    (victim,) = mesh.containers(service)
    assert answer_with_a_death(mesh, victim["Id"]) == calm
    if service != "router":  # without one, new requests wait
        assert mesh.stream(PROMPT, **SAMPLED) == calm
    mesh.restore()
    assert mesh.stream(PROMPT, **SAMPLED) == calm


def test_replicas_are_found_and_one_of_them_dies(mesh: ComposeMesh, calm: str) -> None:
    mesh.up("--no-recreate", "--scale=decode=2", "--scale=prefill=2")
    wait_until(lambda: sum(mesh.view().values()) == 4, "the router sees four workers")
    roles = sorted(name.partition("-")[0] for name, live in mesh.view().items() if live)
    assert roles == ["decode", "decode", "prefill", "prefill"]

    victims = {one["Id"] for one in mesh.containers("decode")}
    killed: list[str] = []

    def kill(num_chunks: int) -> None:
        if num_chunks == 10 and not killed:
            killed.extend(one for one in victims if mesh.num_running(one))
            for one in killed:
                docker("kill", one)

    long = SAMPLED | {"max_tokens": 1600}  # who runs it is asked of one after the other
    undisturbed = mesh.stream(PROMPT, **long)
    assert mesh.stream(PROMPT, kill, **long) == undisturbed
    assert len(killed) == 1
    mesh.restore()

    mesh.up("--no-recreate", "--scale=decode=1", "--scale=prefill=1")
    wait_until(lambda: sum(mesh.view().values()) == 2, "the router sees two workers")
    assert mesh.stream(PROMPT, **SAMPLED) == calm
