"""What `infra/topics.yaml` names is made by whoever comes first, and left alone afterwards."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from aiokafka.admin import AIOKafkaAdminClient  # type: ignore[import-untyped]  # no types
from aiokafka.admin.config_resource import (  # type: ignore[import-untyped]
    ConfigResource,
    ConfigResourceType,
)
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]
from tests.kafka.conftest import LOGGER, new_prefix, topic_specs

from banyan_runtime.bus import KV_EVENTS, SCALE_EVENTS, TOPICS
from banyan_runtime.kafka_access import KafkaAccess, client_arguments, kafka_servers
from banyan_runtime.kafka_topics import KafkaTopics, TopicSpec


@pytest.fixture
async def admin(kafka_url: str) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=kafka_servers(kafka_url))
    await client.start()
    yield client
    await client.close()


def topics(kafka_url: str, specs: tuple[TopicSpec, ...], prefix: str) -> KafkaTopics:
    arguments = client_arguments(kafka_servers(kafka_url), KafkaAccess())
    return KafkaTopics(arguments, specs, prefix, LOGGER)


async def setting(admin: AIOKafkaAdminClient, topic: str, key: str) -> str:
    asked = ConfigResource(ConfigResourceType.TOPIC, topic, {key: ""})
    (answer,) = await admin.describe_configs([asked])
    ((_, _, _, _, ((_, value, *_),)),) = answer.resources
    return str(value)


async def test_the_first_makes_them_and_a_race_is_no_error(
    kafka_url: str, admin: AIOKafkaAdminClient
) -> None:
    prefix = new_prefix()
    names = [prefix + name for name in TOPICS]
    ours = (topics(kafka_url, topic_specs(), prefix) for _ in range(5))
    told = await asyncio.gather(*(each.ensure(names) for each in ours))
    wanted = {prefix + spec.name: spec.num_partitions for spec in topic_specs()}
    assert told == [wanted] * 5
    assert await setting(admin, prefix + SCALE_EVENTS, "retention.ms") == str(168 * 3_600_000)
    assert await setting(admin, prefix + KV_EVENTS, "segment.bytes") == str(64 << 20)


async def test_what_exists_is_reported_and_left(
    kafka_url: str, admin: AIOKafkaAdminClient, caplog: pytest.LogCaptureFixture
) -> None:
    prefix = new_prefix()
    spec = TopicSpec(KV_EVENTS, 2, 1, {"retention.ms": "1000000"})
    await topics(kafka_url, (spec,), prefix).ensure()
    caplog.set_level(logging.WARNING)
    again = topics(kafka_url, (spec,), prefix)
    await again.ensure()
    assert caplog.records == []
    changed = replace(spec, num_partitions=4, settings={"retention.ms": "2000000"})
    other = topics(kafka_url, (changed,), prefix)
    for _ in range(2):  # said once
        assert await other.ensure([prefix + KV_EVENTS]) == {prefix + KV_EVENTS: 2}
    said = {(r.__dict__["key"], r.__dict__["file"], r.__dict__["broker"]) for r in caplog.records}
    assert said == {("partitions", "4", "2"), ("retention.ms", "2000000", "1000000")}
    assert len(caplog.records) == 2
    assert await setting(admin, prefix + KV_EVENTS, "retention.ms") == "1000000"


async def test_a_topic_that_cannot_be_made_says_why(kafka_url: str) -> None:
    prefix = new_prefix()
    spec = TopicSpec(KV_EVENTS, 1, 99, {})
    with pytest.raises(KafkaError, match=rf"cannot create {prefix}kv\.events: .*replication"):
        await topics(kafka_url, (spec,), prefix).ensure()
