"""The pump and its record: facts in order, wake-ups in time, and a replay that agrees."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banyan_core import engine_messages, types
from banyan_core.machine import Stepped
from banyan_core.types import NS_PER_MS
from banyan_runtime.pump import Pump, PumpOverflow
from banyan_runtime.recorder import FileRecorder, RecordingError, read_recording
from banyan_runtime.virtual_loop import VirtualLoop, run_virtual


@dataclass(frozen=True)
class Arrived:
    request_id: str
    role: types.Role
    hashes: tuple[bytes, ...]
    weights: dict[str, float]
    load: types.WorkerLoad | types.Refusal | None = None


@dataclass(frozen=True)
class Answer:
    request_id: str
    number: int
    at_ns: int


class Counter:
    """Answers every third arrival, and all that waits 10 ms after the last fact."""

    def __init__(self) -> None:
        self._waiting: list[str] = []
        self._number = 0

    def step(self, now: int, facts: Sequence[Arrived]) -> Stepped[Answer]:
        self._waiting += [fact.request_id for fact in facts]
        if facts and len(self._waiting) < 3:
            return Stepped((), now + 10 * NS_PER_MS)
        answers = []
        for request_id in self._waiting:
            self._number += 1
            answers.append(Answer(request_id, self._number, now))
        self._waiting.clear()
        return Stepped(answers, None)


def fact(number: int) -> Arrived:
    hashes = (bytes([number % 256]) * 16, b"")
    weights = {"queue": number / 3, "least": -math.inf}
    loads = (None, types.Refusal("full", number), types.WorkerLoad(admitted=(str(number),)))
    return Arrived(f"r{number}", types.Role.DECODE, hashes, weights, loads[number % 3])


def run_pump(path: Path) -> list[Answer]:
    """A pump over a Counter, fed now and then, in virtual time."""

    async def main() -> list[Answer]:
        clock = cast(VirtualLoop, asyncio.get_running_loop()).clock
        answers: list[Answer] = []
        with FileRecorder(path) as recorder:
            pump: Pump[Arrived, Answer] = Pump(Counter(), clock, answers.append, recorder)
            running = asyncio.create_task(pump.run())
            for number in range(1, 8):
                pump.feed(fact(number))
                await asyncio.sleep(0.004 * number)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        return answers

    return run_virtual(main)


def test_a_replay_of_a_record_gives_equal_commands(tmp_path: Path) -> None:
    answers = run_pump(tmp_path / "counter.jsonl")
    steps = read_recording(tmp_path / "counter.jsonl", [Arrived, Answer])
    again = Counter()
    for now, facts, commands in steps:
        assert tuple(again.step(now, facts).commands) == commands
    assert [command for step in steps for command in step.commands] == answers
    assert [f for step in steps for f in step.facts] == [fact(n) for n in range(1, 8)]
    assert len(answers) == 7


def test_the_pump_wakes_its_machine_at_the_instant_it_asked_for(tmp_path: Path) -> None:
    answers = run_pump(tmp_path / "counter.jsonl")
    # Facts at 0, 4, 12, 24, 40, 60, 84 ms; the first three make a batch, later ones wait 10 ms.
    at_ms = [(answer.request_id, answer.at_ns / NS_PER_MS) for answer in answers]
    assert at_ms == [
        ("r1", 12),
        ("r2", 12),
        ("r3", 12),
        ("r4", 34),
        ("r5", 50),
        ("r6", 70),
        ("r7", 94),
    ]


def test_facts_fed_together_make_one_step() -> None:
    batches: list[int] = []

    class Batches:
        def step(self, now: int, facts: Sequence[int]) -> Stepped[int]:
            batches.append(len(facts))
            return Stepped((), None)

    async def main() -> None:
        clock = cast(VirtualLoop, asyncio.get_running_loop()).clock
        pump: Pump[int, int] = Pump(Batches(), clock, lambda _: None, max_facts=100)
        running = asyncio.create_task(pump.run())
        pump.feed(*range(60))
        pump.feed(*range(40))
        with pytest.raises(PumpOverflow):
            pump.feed(1)
        await asyncio.sleep(1)
        pump.feed(1)
        await asyncio.sleep(1)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run_virtual(main)
    assert batches == [100, 1]


def test_a_machine_that_fails_ends_its_pump() -> None:
    class Broken:
        def step(self, now: int, facts: Sequence[int]) -> Stepped[int]:
            raise LookupError(f"no {facts[0]}")

    async def main() -> None:
        clock = cast(VirtualLoop, asyncio.get_running_loop()).clock
        pump: Pump[int, int] = Pump(Broken(), clock, lambda _: None)
        pump.feed(5)
        await pump.run()

    with pytest.raises(LookupError, match="no 5"):
        run_virtual(main)


VALUES = st.builds(
    Arrived,
    st.text(max_size=4),
    st.sampled_from(types.Role),
    st.lists(st.binary(max_size=20), max_size=3).map(tuple),
    st.dictionaries(st.text(max_size=3), st.floats(allow_nan=False), max_size=2),
    st.none() | st.builds(types.Refusal, st.text(max_size=4), st.integers(0, 2**62)),
)


@given(st.lists(VALUES, max_size=5), st.integers(0, 2**62))
def test_every_value_comes_back_equal(
    tmp_path_factory: pytest.TempPathFactory, facts: list[Arrived], now: int
) -> None:
    path = tmp_path_factory.mktemp("record") / "x.jsonl"
    with FileRecorder(path) as recorder:
        recorder.record(now, facts, [])
    assert read_recording(path, [Arrived]) == [(now, tuple(facts), ())]


def test_nested_types_are_found_through_their_fields(tmp_path: Path) -> None:
    spec = types.SequenceSpec(
        "r/0/0", "g", 1, b"d", (1, 2), (), types.SamplingParams(logit_bias=((3, -1.5),)), b"s"
    )
    report = types.SequenceReport(
        "r/0/0", 0, (types.OutputToken(5, -0.25, ((5, -0.25),)),), types.Finish.STOP
    )
    facts = [engine_messages.Submit(spec, hold=True), engine_messages.DrainNow()]
    commands = [engine_messages.Report(3, (report,))]
    with FileRecorder(tmp_path / "x.jsonl") as recorder:
        recorder.record(1, facts, commands)
    read = read_recording(
        tmp_path / "x.jsonl", [engine_messages.EngineFact, engine_messages.EngineCommand]
    )
    assert read == [(1, tuple(facts), tuple(commands))]


@pytest.mark.parametrize(
    ("line", "problem"),
    [('[1, [{"type":"Unknown","fields":{}}], []]', "Unknown"), ("[1, [", "line 2"), ("{}", "2")],
)
def test_a_damaged_record_names_its_line(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(f"[0,[],[]]\n{line}\n")
    with pytest.raises(RecordingError, match=problem):
        read_recording(path, [Arrived])


def test_what_has_no_order_cannot_be_recorded(tmp_path: Path) -> None:
    recorder = FileRecorder(tmp_path / "x.jsonl")
    with recorder, pytest.raises(TypeError, match="set cannot be recorded"):
        recorder.record(0, [{1, 2}], [])
