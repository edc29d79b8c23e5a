"""Kill -9 of real processes in mid-answer, with the demo model in deterministic mode.

Virtual time covers every token and every process (tests/mesh); here a few deaths are real.
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.e2e.running import SAMPLED, Heard, RunningMesh

PROMPT = (
    "The amber key opens door 4821. The silver key opens door 1937. The iron key opens door 6650. "
    "Count from one to forty, then tell a story about the amber key."
)


@pytest.fixture(scope="module")
def calm(mesh: RunningMesh) -> Heard:
    """The answer when nothing goes wrong."""
    return mesh.stream(PROMPT, **SAMPLED)


def answer_with_a_death(
    mesh: RunningMesh, victim: str | None, at: int, **options: Any
) -> tuple[Heard, int]:
    """Kill `victim`, or the worker that streams, at chunk `at`; the answer and its recoveries."""
    killed: dict[str, int] = {}

    def kill(num_chunks: int) -> None:
        if num_chunks == at and not killed:
            name = victim or mesh.streaming_worker()
            killed[name] = mesh.process(name)["num_restarts"]
            mesh.kill(name)

    heard = mesh.stream(PROMPT, kill, **options)
    assert killed, f"the answer had no chunk {at}"
    (name, num_restarts) = next(iter(killed.items()))
    mesh.wait_restarted(name, num_restarts)
    return heard, mesh.explain(heard.request_id)["num_recoveries"]


@pytest.mark.parametrize("at", [1, 20, 100])
def test_the_streaming_worker_dies(mesh: RunningMesh, calm: Heard, at: int) -> None:
    heard, num_recoveries = answer_with_a_death(mesh, None, at, **SAMPLED)
    assert heard.texts == calm.texts
    assert heard.finishes == ("length",)
    assert num_recoveries >= 1


def test_a_sampled_answer_of_two_choices_survives(mesh: RunningMesh) -> None:
    undisturbed = mesh.stream(PROMPT, n=2, **SAMPLED)
    assert undisturbed.texts[0] != undisturbed.texts[1]
    heard, num_recoveries = answer_with_a_death(mesh, None, 20, n=2, **SAMPLED)
    assert heard.texts == undisturbed.texts
    assert num_recoveries >= 1


@pytest.mark.parametrize("victim", ["router", "kvstore", "valkey", "metrics", "autoscaler"])
def test_no_running_answer_needs_this_process(mesh: RunningMesh, calm: Heard, victim: str) -> None:
    heard, _ = answer_with_a_death(mesh, victim, 10, **SAMPLED)
    assert heard.texts == calm.texts
    assert heard.finishes == ("length",)
