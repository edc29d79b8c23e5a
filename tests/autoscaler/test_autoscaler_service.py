"""The service on virtual time, with a broker, workers that speak and an actuator that obeys."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry

from banyan.v1 import events_pb2
from banyan_autoscaler.actuators import Actuator, ActuatorError, DryRunActuator
from banyan_autoscaler.service import ACTUATOR_TIMEOUT_S, AutoscalerService
from banyan_core.events import Event, ScaleDecided, WorkerAlive
from banyan_core.policies.scaling import TargetTracking
from banyan_core.policies.scaling_limits import Limits
from banyan_core.scaling_config import ScalingConfig
from banyan_core.scaling_loop import RoleScaling, ScalingCommand, ScalingFact, ScalingLoop
from banyan_core.types import NS_PER_S, Role, WorkerLoad, WorkerRef
from banyan_runtime.bus import SCALE_EVENTS, WORKER_EVENTS, EventProducer, Since
from banyan_runtime.directories import StaticDirectory
from banyan_runtime.event_codec import event_from_pb, payload_to_pb
from banyan_runtime.memory_bus import MemoryBroker, MemoryBus
from banyan_runtime.recorder import FileRecorder, read_recording
from banyan_runtime.virtual_loop import VirtualLoop, run_virtual

TRACKING = RoleScaling(
    "target_tracking",
    TargetTracking("num_running", 4.0),
    Limits(1, 4, down_window_ns=60 * NS_PER_S),
)
CONFIG = ScalingConfig({Role.DECODE: TRACKING})


@dataclass
class TwinActuator:
    """Has replicas at once; can be made to fail or to hang."""

    counts: dict[Role, int] = field(default_factory=lambda: {Role.PREFILL: 1, Role.DECODE: 1})
    trouble: str = ""
    hangs: bool = False
    name: str = "twin"

    async def replicas(self) -> Mapping[Role, int]:
        if self.hangs:
            await asyncio.sleep(3600)
        return dict(self.counts)

    async def set_replicas(self, role: Role, num_replicas: int) -> bool:
        if self.trouble:
            raise ActuatorError(self.trouble)
        self.counts[role] = num_replicas
        return True


class Scaled:
    """One autoscaler, and as many decode workers as its actuator has, each with this load."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.clock = loop.clock
        self.broker = MemoryBroker()
        self.actuator = TwinActuator()
        self.num_sequences = 0
        self._registry = CollectorRegistry()
        self._bus = MemoryBus(self.broker)
        self._speaker = MemoryBus(self.broker)
        self._voices: dict[str, EventProducer] = {}
        self._workers: asyncio.Task[None] | None = None
        self._service: AutoscalerService | None = None

    async def start(
        self, actuator: Actuator | None = None, recorder: FileRecorder | None = None
    ) -> None:
        self._service = AutoscalerService(
            "autoscaler-0",
            self._bus,
            self.clock,
            actuator or self.actuator,
            CONFIG,
            logger=logging.getLogger("test"),
            registry=self._registry,
            recorder=recorder,
        )
        await self._service.start()
        self._workers = asyncio.create_task(self._speak(), name="workers")

    async def _speak(self) -> None:
        while True:
            num_workers = self.actuator.counts[Role.DECODE]
            for i in range(num_workers):
                self._alive(f"decode-{i}", self.num_sequences // num_workers)
            await asyncio.sleep(1.0)

    def _alive(self, worker_id: str, num_running: int) -> None:
        if worker_id not in self._voices:
            self._voices[worker_id] = EventProducer(self._speaker, self.clock, worker_id, 1)
        ref = WorkerRef(worker_id, 1, f"{worker_id}:1", Role.DECODE)
        event = WorkerAlive(ref, "m", 64, WorkerLoad(num_running=num_running), 3 * NS_PER_S)
        self._voices[worker_id].emit(WORKER_EVENTS, payload_to_pb(event))

    def figure(self, name: str, **labels: str) -> float | None:
        """A gauge of the decode role, as /metrics has it."""
        full = f"banyan_autoscaler_{name}"
        return self._registry.get_sample_value(full, {"role": "decode", **labels})

    async def decisions(self) -> list[ScaleDecided]:
        """All that was said on the bus, oldest first."""
        said: list[ScaleDecided] = []
        for record in self.broker.after(SCALE_EVENTS, 0, 1_000):
            event = event_from_pb(events_pb2.Event.FromString(record.value))
            assert isinstance(event, Event) and isinstance(event.payload, ScaleDecided)
            said.append(event.payload)
        return said

    async def stop(self) -> None:
        if self._workers is not None:
            self._workers.cancel()
            await asyncio.gather(self._workers, return_exceptions=True)
        if self._service is not None:
            await self._service.stop(0.0)
        for bus in (self._bus, self._speaker):
            await bus.close()


def virtually(test: Callable[[Scaled], Awaitable[None]]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        scaled = Scaled(loop)
        try:
            await test(scaled)
        finally:
            await scaled.stop()

    run_virtual(main)


def test_grows_with_load_and_shrinks_after_the_window() -> None:
    async def test(scaled: Scaled) -> None:
        await scaled.start()
        scaled.num_sequences = 12
        await asyncio.sleep(16.0)
        assert scaled.actuator.counts == {Role.PREFILL: 1, Role.DECODE: 3}
        (grown,) = await scaled.decisions()
        assert grown == ScaleDecided(
            Role.DECODE,
            1,
            3,
            "target_tracking",
            "mean num_running 12 of target 4 over 1 replicas",
            "twin",
            True,
            12.0,
            4.0,
        )
        scaled.num_sequences = 2
        await asyncio.sleep(45.0)
        assert scaled.actuator.counts[Role.DECODE] == 3
        held = (await scaled.decisions())[-1]
        assert (held.num_replicas_wanted, held.applied) == (3, False)
        assert "highest advice of the last 60 s" in held.reason
        assert held.limited_by == "down_window"
        assert scaled.figure("replicas") == scaled.figure("wanted_replicas") == 3
        assert scaled.figure("target") == 4
        assert scaled.figure("figure") == 0  # two sequences, none of which fills a worker's share
        assert scaled.figure("limited", by="down_window") == 1
        assert scaled.figure("limited", by="max_replicas") == 0
        await asyncio.sleep(30.0)
        assert scaled.actuator.counts[Role.DECODE] == 1

    virtually(test)


def test_bounds_hold_against_any_load() -> None:
    async def test(scaled: Scaled) -> None:
        await scaled.start()
        scaled.num_sequences = 1_000
        await asyncio.sleep(120.0)
        assert scaled.actuator.counts[Role.DECODE] == 4

    virtually(test)


def test_dry_run_says_and_does_nothing() -> None:
    async def test(scaled: Scaled) -> None:
        listed = StaticDirectory({"decode": ("decode-0:1",), "prefill": ("prefill-0:1",)})
        await scaled.start(DryRunActuator(listed))
        scaled.num_sequences = 8
        await asyncio.sleep(31.0)
        assert scaled.actuator.counts[Role.DECODE] == 1
        said = await scaled.decisions()
        assert [(d.num_replicas_wanted, d.applied, d.actuator) for d in said] == [
            (2, False, "dry-run"),
            (2, False, "dry-run"),
        ]

    virtually(test)


def test_actuator_that_fails_is_told_and_tried_again() -> None:
    async def test(scaled: Scaled) -> None:
        scaled.actuator.trouble = "disk full"
        scaled.num_sequences = 8
        await scaled.start()
        await asyncio.sleep(16.0)
        (failed,) = await scaled.decisions()
        assert failed.reason.endswith("actuator failed: disk full") and not failed.applied
        scaled.actuator.trouble = ""
        await asyncio.sleep(15.0)
        assert scaled.actuator.counts[Role.DECODE] == 2

    virtually(test)


def test_actuator_that_hangs_is_given_up() -> None:
    async def test(scaled: Scaled) -> None:
        scaled.actuator.hangs = True
        scaled.num_sequences = 8
        await scaled.start()
        await asyncio.sleep(15.0 + ACTUATOR_TIMEOUT_S + 1.0)
        scaled.actuator.hangs = False
        await asyncio.sleep(15.0)
        assert scaled.actuator.counts[Role.DECODE] == 2

    virtually(test)


def test_without_a_bus_nothing_is_changed() -> None:
    async def test(scaled: Scaled) -> None:
        scaled.actuator.counts[Role.DECODE] = 3
        scaled.num_sequences = 12
        await scaled.start()
        await asyncio.sleep(20.0)
        scaled.broker.down()
        scaled.num_sequences = 0
        await asyncio.sleep(300.0)
        assert scaled.actuator.counts[Role.DECODE] == 3

    virtually(test)


def test_unreadable_event_is_passed_over() -> None:
    async def test(scaled: Scaled) -> None:
        await scaled.start()
        await asyncio.sleep(0.1)
        scaled.broker.append(WORKER_EVENTS, "w", b"\xff\xff")
        scaled.num_sequences = 8
        await asyncio.sleep(16.0)
        assert scaled.actuator.counts[Role.DECODE] == 2

    virtually(test)


def test_recorded_run_replays_to_equal_commands(tmp_path: Path) -> None:
    path = tmp_path / "autoscaler.jsonl"

    async def test(scaled: Scaled) -> None:
        with FileRecorder(path) as recorder:
            await scaled.start(recorder=recorder)
            scaled.num_sequences = 12
            await asyncio.sleep(40.0)
            scaled.num_sequences = 1
            await asyncio.sleep(100.0)
            await scaled.stop()

    virtually(test)
    steps = read_recording(path, (ScalingFact, ScalingCommand))
    assert any(step.commands for step in steps)
    machine = ScalingLoop(CONFIG.roles, "twin", CONFIG.period_ns)
    for step in steps:
        assert tuple(machine.step(step.now, step.facts).commands) == step.commands


def test_decisions_reach_a_subscriber() -> None:
    async def test(scaled: Scaled) -> None:
        await scaled.start()
        bus = MemoryBus(scaled.broker)
        records = bus.subscribe((SCALE_EVENTS,), Since.START)
        event = event_from_pb(events_pb2.Event.FromString((await anext(records)).value))
        assert event is not None and event.producer == "autoscaler-0"
        assert isinstance(event.payload, ScaleDecided)
        await bus.close()

    virtually(test)
