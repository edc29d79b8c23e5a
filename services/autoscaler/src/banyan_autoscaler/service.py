"""The autoscaler: hears workers, lets the loop decide, acts, and says what it did and why.

No request needs it. While it is away the mesh keeps its size; when it comes back it starts from
what the actuator counts, and its history starts with that number, so that nothing shrinks for
the length of the down window.
"""

from __future__ import annotations

import asyncio
import logging

from google.protobuf.message import DecodeError
from prometheus_client import CollectorRegistry

from banyan.v1 import events_pb2
from banyan_autoscaler.actuators import Actuator, ActuatorError
from banyan_autoscaler.metrics import AutoscalerMetrics
from banyan_core.events import ScaleDecided
from banyan_core.scaling_config import ScalingConfig
from banyan_core.scaling_loop import (
    ActuatorFailed,
    CountReplicas,
    Publish,
    ReplicaCounts,
    ReplicasSet,
    ScalingCommand,
    ScalingFact,
    ScalingLoop,
    SetReplicas,
)
from banyan_core.types import Role
from banyan_runtime.bus import SCALE_EVENTS, WORKER_EVENTS, Bus, EventProducer, Since
from banyan_runtime.clock import Clock
from banyan_runtime.event_codec import event_from_pb, payload_to_pb
from banyan_runtime.lifespan import Tasks
from banyan_runtime.pump import Pump, Recorder

ACTUATOR_TIMEOUT_S = 25.0
_RECORDS_PER_TURN = 256


class AutoscalerService:
    """Everything but the process: adapters are passed in, `main` serves health around it."""

    def __init__(
        self,
        autoscaler_id: str,
        bus: Bus,
        clock: Clock,
        actuator: Actuator,
        config: ScalingConfig,
        *,
        logger: logging.Logger,
        registry: CollectorRegistry,
        recorder: Recorder | None = None,
    ) -> None:
        self._bus = bus
        self._actuator = actuator
        self._logger = logger
        self._metrics = AutoscalerMetrics(registry)
        self._producer = EventProducer(bus, clock, autoscaler_id, clock.unix_ns())
        loop = ScalingLoop(config.roles, actuator.name, config.period_ns)
        self._pump: Pump[ScalingFact, ScalingCommand] = Pump(loop, clock, self._apply, recorder)
        self._tasks = Tasks()

    async def start(self) -> None:
        """Begin to listen and to decide; returns at once, a bus that is away is waited for."""
        self._tasks.spawn("autoscaler pump", self._pump.run())
        self._tasks.spawn("autoscaler events", self._listen())
        self._pump.feed()  # the first step sets the first period

    async def stop(self, grace_s: float) -> None:
        """Stop deciding. A wish that was handed to the actuator stands."""
        await self._tasks.cancel_all()

    async def _listen(self) -> None:
        num_records = 0
        async for record in self._bus.subscribe((WORKER_EVENTS,), Since.TAIL):
            try:
                event = event_from_pb(events_pb2.Event.FromString(record.value))
            except (DecodeError, ValueError) as error:
                self._logger.warning("unreadable event", extra={"why": f"{error}"})
                continue
            if event is not None:
                self._pump.feed(event)
            num_records += 1
            if num_records % _RECORDS_PER_TURN == 0:
                await asyncio.sleep(0)

    # ------------------------------------------------------------ commands

    def _apply(self, command: ScalingCommand) -> None:
        if isinstance(command, CountReplicas):
            self._tasks.spawn_brief("count replicas", self._count())
        elif isinstance(command, SetReplicas):
            self._tasks.spawn_brief("set replicas", self._set(command))
        else:
            self._publish(command)

    async def _count(self) -> None:
        try:
            async with asyncio.timeout(ACTUATOR_TIMEOUT_S):
                counts = await self._actuator.replicas()
        except (ActuatorError, TimeoutError) as error:
            self._fail(None, error)
            return
        self._pump.feed(
            ReplicaCounts(tuple((role, counts[role]) for role in Role if role in counts))
        )

    async def _set(self, command: SetReplicas) -> None:
        try:
            async with asyncio.timeout(ACTUATOR_TIMEOUT_S):
                applied = await self._actuator.set_replicas(command.role, command.num_replicas)
        except (ActuatorError, TimeoutError) as error:
            self._fail(command.role, error)
            return
        self._pump.feed(ReplicasSet(command.role, command.num_replicas, applied))

    def _fail(self, role: Role | None, error: Exception) -> None:
        reason = str(error) or f"no answer within {ACTUATOR_TIMEOUT_S:.0f} s"
        self._metrics.actuator_failures.inc()
        self._logger.error("actuator failed", extra={"role": role, "why": reason})
        self._pump.feed(ActuatorFailed(role, reason))

    def _publish(self, command: Publish) -> None:
        decided = command.decided
        self._producer.emit(SCALE_EVENTS, payload_to_pb(decided))
        self._metrics.decided(decided)
        is_change = decided.num_replicas_wanted != decided.num_replicas_now
        level = logging.INFO if is_change else logging.DEBUG
        self._logger.log(level, "scale decided", extra=_log_fields(decided))


def _log_fields(decided: ScaleDecided) -> dict[str, object]:
    return {
        "role": decided.role.value,
        "num_replicas_now": decided.num_replicas_now,
        "num_replicas_wanted": decided.num_replicas_wanted,
        "policy": decided.policy,
        "figure": decided.figure,
        "target": decided.target,
        "limited_by": decided.limited_by,
        "reason": decided.reason,
        "actuator": decided.actuator,
        "applied": decided.applied,
    }
