"""Kill -9 of anything, at any token: the client's answer does not change.

Every case runs the services' own code on virtual time with the echo runner, whose answer is read
out of the KV blocks: a token lost, doubled or computed from a wrong block would be seen.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from tests.mesh.asking import Answer, Question, ask, assert_right, prompt_of, streaming_worker

from banyan_core.journey_limits import JourneyLimits
from banyan_runtime.virtual_loop import run_virtual
from banyan_sim.builders import Shared
from banyan_sim.mesh import SimMesh, Topology

NUM_TOKENS = 40
QUESTIONS = {
    "greedy": Question("greedy", prompt_of(70), NUM_TOKENS),
    "seeded": Question("seeded", prompt_of(70), NUM_TOKENS, temperature=1.0, seed=11),
    "two": Question("two", prompt_of(70), NUM_TOKENS, temperature=1.0, seed=12, n=2),
    "scored": Question("scored", prompt_of(70), NUM_TOKENS, n=2, num_prompt_logprobs=1),
}
SMALL = Topology()
LARGE = Topology(num_prefill=2, num_decode=2)
RESTART_AFTER_S = 0.3


class Killer:
    """Crashes one host when the client has `at` tokens, and may bring it back."""

    def __init__(
        self, mesh: SimMesh, request_id: str, at: int, victim: str | None, restart: bool
    ) -> None:
        self.mesh = mesh
        self.request_id = request_id
        self.at = at
        self.victim = victim
        self.restart = restart
        self.killed = ""

    def __call__(self, answer: Answer) -> None:
        if self.killed or answer.num_tokens < self.at:
            return
        self.killed = self.victim or streaming_worker(self.mesh, self.request_id)
        self.mesh.crash(self.killed)
        if self.restart:
            self.mesh.later(RESTART_AFTER_S, self.mesh.restart_dead)


async def ask_and_kill(
    topology: Topology, question: Question, at: int, victim: str | None, restart: bool
) -> tuple[Answer, int]:
    """The answer, and how many recoveries the gateway counted."""
    mesh = SimMesh(topology)
    await mesh.start()
    killer = Killer(mesh, question.request_id, at, victim, restart)
    answer = await ask(mesh, question, on_news=killer)
    assert killer.killed
    view = mesh.gateway.request_view(question.request_id)
    assert view is not None
    await mesh.wait_idle(60.0)
    await mesh.stop()
    return answer, int(view["num_recoveries"])


@pytest.mark.parametrize("restart", [False, True], ids=["gone", "restarted"])
@pytest.mark.parametrize("topology", [SMALL, LARGE], ids=["1+1", "2+2"])
@pytest.mark.parametrize("name", QUESTIONS)
def test_the_streaming_worker_may_die_at_any_token(
    name: str, topology: Topology, restart: bool
) -> None:
    question = QUESTIONS[name]
    for at in range(1, NUM_TOKENS * question.n):
        answer, num_recoveries = run_virtual(
            partial(ask_and_kill, topology, question, at, None, restart), seed=at
        )
        assert_right(question, answer)
        assert num_recoveries >= 1, f"at token {at}"


def test_without_recovery_the_same_death_fails_the_request() -> None:
    shared = Shared(journey=JourneyLimits(recover=False))
    topology = replace(SMALL, shared=shared)
    for at in (1, 7, NUM_TOKENS - 1):
        answer, _ = run_virtual(
            partial(ask_and_kill, topology, QUESTIONS["greedy"], at, None, False)
        )
        assert answer.failure is not None
        assert answer.failure.retry_after_s is not None


@pytest.mark.parametrize("restart", [False, True], ids=["gone", "restarted"])
@pytest.mark.parametrize("topology", [SMALL, LARGE], ids=["1+1", "2+2"])
def test_prefill_may_die_in_mid_prompt(topology: Topology, restart: bool) -> None:
    """2,000 prompt tokens take 44 ms of modelled steps: die in each tenth of that time."""

    async def main(after_s: float) -> None:
        mesh = SimMesh(topology)
        await mesh.start()
        question = Question("prompt", prompt_of(2000), 10)
        mesh.later(after_s, lambda: mesh.crash(_prefilling(mesh)))
        if restart:
            mesh.later(after_s + RESTART_AFTER_S, mesh.restart_dead)
        assert_right(question, await ask(mesh, question))
        view = mesh.gateway.request_view("prompt")
        assert view is not None
        assert view["num_recoveries"] >= 1
        await mesh.wait_idle(60.0)
        await mesh.stop()

    for tenth in range(1, 10):
        run_virtual(partial(main, 0.0044 * tenth))


def _prefilling(mesh: SimMesh) -> str:
    view = mesh.gateway.request_view("prompt")
    assert view is not None
    (leg,) = [leg for leg in view["workers"] if leg["verb"] == "prefill"]
    assert view["num_output_tokens"] == 0, "too late: the prompt is computed"
    return str(leg["worker_id"])


@pytest.mark.parametrize("restart", [False, True], ids=["gone", "restarted"])
@pytest.mark.parametrize("victim", ["router-0", "kvstore-0", "autoscaler-0", "metrics-0"])
def test_no_running_answer_needs_the_rest_of_the_mesh(victim: str, restart: bool) -> None:
    question = QUESTIONS["seeded"]
    for at in (1, 2, 20, 39):
        answer, num_recoveries = run_virtual(
            partial(ask_and_kill, SMALL, question, at, victim, restart)
        )
        assert_right(question, answer)
        assert num_recoveries == 0


@pytest.mark.parametrize("part", ["bus", "index"])
@pytest.mark.parametrize("lose", [False, True], ids=["kept", "lost"])
def test_the_bus_and_the_index_may_be_away(part: str, lose: bool) -> None:
    async def main() -> None:
        mesh = SimMesh(SMALL)
        await mesh.start()

        def kill(answer: Answer) -> None:
            if answer.num_tokens == 5:
                mesh.take_down(part, lose_content=lose)

        before = Question("before", prompt_of(70), NUM_TOKENS)
        assert_right(before, await ask(mesh, before, on_news=kill))
        during = Question("during", prompt_of(90, start=5), NUM_TOKENS)
        assert_right(during, await ask(mesh, during))
        mesh.bring_up(part)
        after = Question("after", prompt_of(90, start=9), NUM_TOKENS)
        assert_right(after, await ask(mesh, after))
        await mesh.wait_idle(60.0)
        await mesh.stop()

    run_virtual(main)


def test_a_dead_router_is_replaced_by_another() -> None:
    async def main() -> None:
        mesh = SimMesh(replace(SMALL, num_routers=2))
        await mesh.start()
        mesh.crash("router-0")
        question = QUESTIONS["greedy"]
        assert_right(question, await ask(mesh, question))
        await mesh.stop()

    run_virtual(main)


def test_without_any_router_a_new_request_waits_and_is_shed_in_time() -> None:
    async def main() -> None:
        mesh = SimMesh(SMALL)
        await mesh.start()
        mesh.crash("router-0")
        answer = await ask(mesh, QUESTIONS["greedy"])
        assert answer.failure is not None
        assert answer.failure.http_status == 503
        assert answer.failure.retry_after_s is not None
        assert mesh.loop.time() < 60
        await mesh.restart("router-0")
        await mesh.wait_ready()
        again = replace(QUESTIONS["greedy"], request_id="again")
        assert_right(again, await ask(mesh, again))
        await mesh.stop()

    run_virtual(main)
