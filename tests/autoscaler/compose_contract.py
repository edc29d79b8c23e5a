"""What holds for a container engine and the actuator over it: the twin here, Docker in
tests/compose. A subclass gives the fixture `stage`."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

import pytest

from banyan_autoscaler.compose_actuator import ComposeActuator
from banyan_autoscaler.container_engine import (
    ContainerEngine,
    EngineError,
    NameTaken,
    NoSuchContainer,
)
from banyan_autoscaler.replica_copy import NUMBER_LABEL, replica_config, replica_name
from banyan_core.types import Role


@dataclass
class Stage:
    """A project whose service `decode` has replica 1 running, in two networks, and whose other
    service and one-off container of `decode` must never be touched."""

    engine: ContainerEngine
    project: str

    async def states(self, service: str = "decode") -> dict[int, str]:
        return {c.number: c.state for c in await self.engine.containers(self.project, service)}

    async def state_becomes(self, number: int, state: str | None) -> None:
        async with asyncio.timeout(20.0):
            while (await self.states()).get(number) != state:  # noqa: ASYNC110  # no event tells
                await asyncio.sleep(0.05)

    async def id_of(self, number: int) -> str:
        containers = await self.engine.containers(self.project, "decode")
        return next(c.container_id for c in containers if c.number == number)

    async def copy(self, number: int) -> str:
        name = replica_name(self.project, "decode", number)
        template = await self.engine.inspect(await self.id_of(1))
        return await self.engine.create(name, replica_config(template, name, number))

    def actuator(self) -> ComposeActuator:
        return ComposeActuator(self.engine, self.project, logging.getLogger("test"))


class EngineContract:
    async def test_lists_one_service_of_one_project_by_number(self, stage: Stage) -> None:
        await stage.copy(3)
        await stage.copy(2)
        listed = await stage.engine.containers(stage.project, "decode")
        assert [c.number for c in listed] == [1, 2, 3]
        assert [c.state for c in listed] == ["running", "created", "created"]
        assert listed[1].name == f"{stage.project}-decode-2"
        assert list(await stage.states("router")) == [1]
        assert await stage.engine.containers("no-such-project", "decode") == ()

    async def test_life_of_a_container(self, stage: Stage) -> None:
        made = await stage.copy(2)
        for verb, state in [
            (stage.engine.start, "running"),
            (stage.engine.start, "running"),
            (stage.engine.stop, "exited"),
            (stage.engine.stop, "exited"),
            (stage.engine.start, "running"),
        ]:
            await verb(made)
            assert (await stage.states())[2] == state
        await stage.engine.remove(made)
        assert await stage.states() == {1: "running"}

    async def test_what_is_gone_is_named_as_gone(self, stage: Stage) -> None:
        made = await stage.copy(2)
        await stage.engine.remove(made)
        engine = stage.engine
        for verb in (engine.inspect, engine.start, engine.stop, engine.remove):
            with pytest.raises(NoSuchContainer):
                await verb(made)

    async def test_name_is_given_once(self, stage: Stage) -> None:
        made = await stage.copy(2)
        with pytest.raises(NameTaken):
            await stage.copy(2)
        assert await stage.id_of(2) == made

    async def test_creation_that_fails_leaves_nothing(self, stage: Stage) -> None:
        name = replica_name(stage.project, "decode", 2)
        template = await stage.engine.inspect(await stage.id_of(1))
        good = replica_config(template, name, 2)
        endpoints = good["NetworkingConfig"]["EndpointsConfig"]
        lost = {**endpoints, "no-such-network": {}}
        for bad in (
            {**good, "Image": "sha256:" + "0" * 64},
            {**good, "NetworkingConfig": {"EndpointsConfig": lost}},
        ):
            with pytest.raises(EngineError) as raised:
                await stage.engine.create(name, bad)
            assert type(raised.value) is EngineError
            assert await stage.states() == {1: "running"}

    async def test_copy_is_what_its_template_is_but_for_its_names(self, stage: Stage) -> None:
        made = await stage.copy(2)
        template = await stage.engine.inspect(await stage.id_of(1))
        copy = await stage.engine.inspect(made)
        assert copy["Image"] == template["Image"]
        for of_both in ("Env", "StopTimeout"):
            assert copy["Config"][of_both] == template["Config"][of_both]
        assert copy["HostConfig"] == template["HostConfig"]
        assert copy["Config"]["Hostname"] == made[:12]
        labels = {**template["Config"]["Labels"], NUMBER_LABEL: "2"}
        assert copy["Config"]["Labels"] == labels
        networks = copy["NetworkSettings"]["Networks"]
        assert set(networks) == set(template["NetworkSettings"]["Networks"])
        assert len(networks) == 2
        for endpoint in networks.values():
            names = set(endpoint["Aliases"]) - {made[:12]}  # engines differ in when they add it
            assert names == {f"{stage.project}-decode-2", "decode"}


class ActuatorContract:
    async def test_counts_what_runs(self, stage: Stage) -> None:
        actuator = stage.actuator()
        await stage.copy(2)
        assert await actuator.replicas() == {Role.PREFILL: 0, Role.DECODE: 1}

    async def test_grows_by_the_next_numbers_and_shrinks_from_the_highest(
        self, stage: Stage
    ) -> None:
        actuator = stage.actuator()
        assert await actuator.set_replicas(Role.DECODE, 3)
        assert await stage.states() == {1: "running", 2: "running", 3: "running"}
        assert await actuator.set_replicas(Role.DECODE, 2)
        assert (await actuator.replicas())[Role.DECODE] == 2, "what drains is not counted"
        await stage.state_becomes(3, None)
        assert await stage.states() == {1: "running", 2: "running"}
        assert await stage.states("router") == {1: "running"}

    async def test_the_number_that_is_there_changes_nothing(self, stage: Stage) -> None:
        assert await stage.actuator().set_replicas(Role.DECODE, 1)
        assert await stage.states() == {1: "running"}

    async def test_starts_what_stands_still_before_it_makes_more(self, stage: Stage) -> None:
        await stage.copy(2)  # half-made: somebody died between create and start
        await stage.engine.stop(await stage.id_of(1))
        assert await stage.actuator().set_replicas(Role.DECODE, 2)
        assert await stage.states() == {1: "running", 2: "running"}

    async def test_to_zero_and_back(self, stage: Stage) -> None:
        actuator = stage.actuator()
        await actuator.set_replicas(Role.DECODE, 2)
        await actuator.set_replicas(Role.DECODE, 0)
        await stage.state_becomes(2, None)
        await stage.state_becomes(1, "exited")
        assert (await actuator.replicas())[Role.DECODE] == 0
        await actuator.set_replicas(Role.DECODE, 2)
        assert list((await stage.states()).values()) == ["running", "running"]

    async def test_two_autoscalers_want_the_same_container(self, stage: Stage) -> None:
        one, other = stage.actuator(), stage.actuator()
        await asyncio.gather(
            one.set_replicas(Role.DECODE, 2),
            other.set_replicas(Role.DECODE, 2),
            return_exceptions=True,
        )
        assert await stage.states() == {1: "running", 2: "running"}
        await asyncio.gather(one.set_replicas(Role.DECODE, 1), other.set_replicas(Role.DECODE, 1))
        await stage.state_becomes(2, None)
        assert await stage.states() == {1: "running"}
