"""What a decider was told makes it decide the same again: recorded live, replayed alone."""

from __future__ import annotations

from pathlib import Path

from tests.mesh.asking import Answer, Question, ask, assert_right, prompt_of

from banyan_core.journey import JourneyLimits
from banyan_core.journey_messages import JourneyCommand, JourneyFact
from banyan_core.journeys import Journeys
from banyan_runtime.recorder import FileRecorder, read_recording
from banyan_runtime.virtual_loop import START_UNIX_NS, run_virtual
from banyan_sim.builders import Shared
from banyan_sim.mesh import SimMesh, Topology


def test_a_recorded_gateway_replays_to_equal_commands(tmp_path: Path) -> None:
    path = tmp_path / "gateway-0.jsonl"

    async def main() -> int:
        with FileRecorder(path) as recorder:
            mesh = SimMesh(Topology(shared=Shared(recorders={"gateway-0": recorder})))
            await mesh.start()

            def kill(answer: Answer) -> None:
                if answer.num_tokens == 5:
                    mesh.crash("decode-0")

            question = Question("q", prompt_of(80), temperature=1.0, n=2)
            assert_right(question, await ask(mesh, question, on_news=kill))
            epoch = mesh.gateway.epoch
            await mesh.stop()
        return epoch

    epoch = run_virtual(main)
    assert epoch >= START_UNIX_NS
    steps = read_recording(path, (JourneyFact, JourneyCommand))
    machine = Journeys("gateway-0", epoch, JourneyLimits())
    assert len(steps) > 40
    for step in steps:
        assert tuple(machine.step(step.now, step.facts).commands) == step.commands
