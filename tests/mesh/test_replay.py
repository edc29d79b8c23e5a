"""What a decider was told makes it decide the same again: recorded live, replayed alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.mesh.asking import Answer, Question, ask, assert_right, prompt_of

from banyan_core.engine_loop import EngineLoop
from banyan_core.engine_messages import EngineCommand, EngineFact, Held, Report
from banyan_core.hashing import derive
from banyan_core.index_facts import AddBlocks, IndexCommand, IndexFact, ReplaceBlocks
from banyan_core.index_fold import IndexFold
from banyan_core.journey_limits import JourneyLimits
from banyan_core.journey_messages import JourneyCommand, JourneyFact
from banyan_core.journeys import Journeys
from banyan_core.machine import Machine
from banyan_core.placer import PlaceDecided, Placer, PlacerCommand, PlacerFact
from banyan_core.policies.scaling import TargetTracking
from banyan_core.policies.scaling_limits import Limits
from banyan_core.request_fold import Closed, RequestFact, RequestFold
from banyan_core.scaling_config import ScalingConfig
from banyan_core.scaling_loop import Publish, RoleScaling, ScalingCommand, ScalingFact, ScalingLoop
from banyan_core.types import NS_PER_S, Role
from banyan_runtime.recorder import FileRecorder, RecordedStep, read_recording
from banyan_runtime.virtual_loop import run_virtual
from banyan_sim.builders import Shared
from banyan_sim.mesh import SimMesh, Topology

# One of each decider; decode-0 is not among them, because it is killed.
RECORDED = (
    "gateway-0",
    "router-0",
    "prefill-0",
    "decode-1",
    "kvstore-0",
    "autoscaler-0",
    "metrics-0",
)
SCALING = ScalingConfig(
    {Role.DECODE: RoleScaling("target_tracking", TargetTracking("num_running", 1.0), Limits(3, 4))},
    NS_PER_S // 2,
)
SETTLE_S = 3.0  # for what reaches the metrics and the autoscaler late, or once a period
PLAIN = Shared(scaling=SCALING)


class Recorded:
    """The recordings of one mesh in which requests ran while a decode worker was killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.epoch = run_virtual(self._live)

    async def _live(self) -> int:
        with ExitStack() as recording:
            recorders = {
                host: recording.enter_context(FileRecorder(self._folder / host))
                for host in RECORDED
            }
            shared = Shared(scaling=SCALING, recorders=recorders)
            mesh = SimMesh(Topology(num_decode=2, shared=shared))
            await mesh.start()

            def kill(answer: Answer) -> None:
                if answer.num_tokens == 5:
                    mesh.crash("decode-0")

            questions = [
                Question(f"q{i}", prompt_of(80 + 40 * i, i), temperature=1.0, n=2) for i in range(4)
            ]
            asked = (ask(mesh, question, on_news=kill) for question in questions)
            answers = await asyncio.gather(*asked)
            for question, answer in zip(questions, answers, strict=True):
                assert_right(question, answer)
            await asyncio.sleep(SETTLE_S)
            epoch = mesh.gateway.epoch
            await mesh.stop()
        return epoch

    def steps(self, host: str, *types: Any) -> list[RecordedStep]:
        return read_recording(self._folder / host, types)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return Recorded(tmp_path_factory.mktemp("recorded"))


def commands_again(machine: Machine[Any, Any], steps: Sequence[RecordedStep]) -> list[Any]:
    """All commands of a replay, after checking that each step's are those of the record."""
    commands: list[Any] = []
    for step in steps:
        again = tuple(machine.step(step.now, step.facts).commands)
        assert again == step.commands
        commands.extend(again)
    return commands


def count(commands: Sequence[Any], *kinds: type) -> int:
    return sum(isinstance(command, kinds) for command in commands)


def test_the_gateways_journeys(recorded: Recorded) -> None:
    steps = recorded.steps("gateway-0", JourneyFact, JourneyCommand)
    journeys = Journeys("gateway-0", recorded.epoch, JourneyLimits())
    assert len(commands_again(journeys, steps)) > 40


def test_the_routers_placer(recorded: Recorded) -> None:
    steps = recorded.steps("router-0", PlacerFact, PlacerCommand)
    placer = Placer("router-0", PLAIN.policy, derive(PLAIN.seed, "router-0"))
    assert count(commands_again(placer, steps), PlaceDecided) >= 8  # two choices a question


@pytest.mark.parametrize(("worker", "kind"), [("prefill-0", Held), ("decode-1", Report)])
def test_a_workers_engine_loop(recorded: Recorded, worker: str, kind: type) -> None:
    steps = recorded.steps(worker, EngineFact, EngineCommand)
    engine = EngineLoop(PLAIN.card, PLAIN.num_blocks, PLAIN.worker.limits)
    assert count(commands_again(engine, steps), kind) >= 4


def test_the_stores_index_fold(recorded: Recorded) -> None:
    steps = recorded.steps("kvstore-0", IndexFact, IndexCommand)
    assert count(commands_again(IndexFold(), steps), AddBlocks, ReplaceBlocks) >= 4


def test_the_autoscalers_loop(recorded: Recorded) -> None:
    steps = recorded.steps("autoscaler-0", ScalingFact, ScalingCommand)
    loop = ScalingLoop(SCALING.roles, "dry-run", SCALING.period_ns)
    assert count(commands_again(loop, steps), Publish) >= 1


def test_the_metrics_services_fold(recorded: Recorded) -> None:
    steps = recorded.steps("metrics-0", RequestFact, Closed)
    assert count(commands_again(RequestFold(), steps), Closed) == 4
