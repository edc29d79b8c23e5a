"""The contract of engine and actuator on the twin, and what only a twin can be made to do."""

from __future__ import annotations

import asyncio

import pytest
from tests.autoscaler.compose_contract import ActuatorContract, EngineContract, Stage
from tests.autoscaler.memory_engine import MemoryEngine

from banyan_autoscaler.actuators import ActuatorError
from banyan_autoscaler.docker_engine import DockerEngine
from banyan_core.types import Role


@pytest.fixture
def engine() -> MemoryEngine:
    engine = MemoryEngine()
    engine.compose_up("p", "decode", 1)
    engine.compose_up("p", "decode", 9, oneoff=True)
    engine.compose_up("p", "router", 1)
    engine.compose_up("q", "decode", 1)
    return engine


@pytest.fixture
def stage(engine: MemoryEngine) -> Stage:
    return Stage(engine, "p")


class TestMemoryEngine(EngineContract):
    pass


class TestActuator(ActuatorContract):
    async def test_engine_away_is_one_sentence(self, stage: Stage, engine: MemoryEngine) -> None:
        actuator = stage.actuator()
        engine.away = True
        with pytest.raises(ActuatorError, match="decode: list: the engine is away"):
            await actuator.set_replicas(Role.DECODE, 2)
        with pytest.raises(ActuatorError, match="the engine is away"):
            await actuator.replicas()

    async def test_replica_that_will_not_start_is_taken_away(
        self, stage: Stage, engine: MemoryEngine
    ) -> None:
        engine.refused.add("start")
        with pytest.raises(ActuatorError, match="decode: start: refused"):
            await stage.actuator().set_replicas(Role.DECODE, 2)
        await stage.state_becomes(2, None)
        engine.refused.clear()
        await stage.actuator().set_replicas(Role.DECODE, 2)
        assert await stage.states() == {1: "running", 2: "running"}

    async def test_time_out_in_mid_start_leaves_nothing(
        self, stage: Stage, engine: MemoryEngine
    ) -> None:
        engine.start_s = 3600.0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await stage.actuator().set_replicas(Role.DECODE, 2)
        await stage.state_becomes(2, None)

    async def test_stopped_one_that_will_not_start_stops_no_growth(
        self, stage: Stage, engine: MemoryEngine
    ) -> None:
        await stage.copy(2)
        engine.broken.add(await stage.id_of(2))
        await stage.actuator().set_replicas(Role.DECODE, 2)
        assert await stage.states() == {1: "running", 2: "created", 3: "running"}

    async def test_nothing_to_copy(self, stage: Stage, engine: MemoryEngine) -> None:
        await engine.remove(await stage.id_of(1))
        with pytest.raises(ActuatorError, match="no container of service decode to copy"):
            await stage.actuator().set_replicas(Role.DECODE, 1)

    async def test_template_that_vanishes_is_replaced_by_another(
        self, stage: Stage, engine: MemoryEngine
    ) -> None:
        engine.compose_up("p", "decode", 2)
        looks = engine.containers

        async def containers(project: str, service: str) -> object:
            listed = await looks(project, service)
            engine.containers = looks  # type: ignore[method-assign]  # once only
            await engine.remove(listed[-1].container_id)
            return listed

        engine.containers = containers  # type: ignore[method-assign,assignment]  # a racing hand
        await stage.actuator().set_replicas(Role.DECODE, 3)
        assert await stage.states() == {1: "running", 3: "running"}

    async def test_drain_goes_on_while_growth_is_wanted(
        self, stage: Stage, engine: MemoryEngine
    ) -> None:
        actuator = stage.actuator()
        await actuator.set_replicas(Role.DECODE, 2)
        engine.grace_s = 0.1
        await actuator.set_replicas(Role.DECODE, 1)
        await actuator.set_replicas(Role.DECODE, 2)
        assert await stage.states() == {1: "running", 2: "running", 3: "running"}
        await stage.state_becomes(2, None)
        assert await stage.states() == {1: "running", 3: "running"}

    async def test_drain_that_fails_is_counted_again(
        self, stage: Stage, engine: MemoryEngine
    ) -> None:
        actuator = stage.actuator()
        await actuator.set_replicas(Role.DECODE, 2)
        engine.refused.add("stop")
        await actuator.set_replicas(Role.DECODE, 1)
        await asyncio.sleep(0)
        assert (await actuator.replicas())[Role.DECODE] == 2
        engine.refused.clear()
        await actuator.set_replicas(Role.DECODE, 1)
        await stage.state_becomes(2, None)

    async def test_autoscaler_that_ends_in_mid_drain_lets_it_be_taken_up(
        self, stage: Stage, engine: MemoryEngine
    ) -> None:
        first = stage.actuator()
        await first.set_replicas(Role.DECODE, 2)
        engine.grace_s = 3600.0
        await first.set_replicas(Role.DECODE, 1)
        await asyncio.sleep(0)
        await first.close()
        engine.grace_s = 0.0
        second = stage.actuator()
        assert (await second.replicas())[Role.DECODE] == 2, "nobody else knows of the drain"
        await second.set_replicas(Role.DECODE, 1)
        await stage.state_becomes(2, None)


async def test_no_engine_at_the_socket(tmp_path: object) -> None:
    engine = DockerEngine(f"unix://{tmp_path}/docker.sock")
    stage = Stage(engine, "p")
    with pytest.raises(ActuatorError, match=r"docker\.sock"):
        await stage.actuator().replicas()
    await engine.close()
