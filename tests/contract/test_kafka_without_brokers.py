"""What the Kafka bus does before any broker answers: its settings, its topics file, its bounds."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from banyan_runtime.bus import KV_EVENTS, TOPICS, Since
from banyan_runtime.kafka_bus import KafkaBus
from banyan_runtime.kafka_topics import read_topics
from banyan_runtime.settings import SettingsError

SHIPPED = Path(__file__).parents[2] / "infra" / "topics.yaml"
NOBODY = "kafka://127.0.0.1:1"
LOGGER = logging.getLogger("kafka bus tests")
GOOD = "{partitions: 1, replication: 1, retention_hours: 1}"


def test_the_shipped_file_has_every_topic() -> None:
    specs = {spec.name: spec for spec in read_topics(SHIPPED)}
    assert tuple(specs) == TOPICS
    assert specs[KV_EVENTS].settings["retention.ms"] == str(24 * 3_600_000)
    assert specs[KV_EVENTS].settings["segment.bytes"] == str(64 << 20)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{partitions: 1, replication: 1}", "retention_hours is missing: expected a whole number"),
        (GOOD.replace("partitions: 1", "partitions: 0"), "partitions is 0: expected a whole"),
        (GOOD.replace("partitions: 1", "partitions: true"), "partitions is True: expected a whole"),
        (GOOD.replace("replication", "replicas"), "replicas is not known: expected one of"),
        (GOOD.replace("}", ", settings: x}"), "settings=x: expected a table of the broker's"),
    ],
)
def test_a_wrong_field_is_named(entry: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "topics.yaml"
    file.write_text("\n".join(f"{name}: {GOOD}" for name in TOPICS).replace(GOOD, entry, 1))
    with pytest.raises(SettingsError) as failed:
        read_topics(file)
    assert str(failed.value).startswith(f"{file}: request.events.{said}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ": expected one entry for each of request.events, "),
        ("other: {}", ": other is no topic: expected one of request.events, "),
        (f"request.events: {GOOD}", ": worker.events is missing: expected partitions, "),
        ("a: [", ": not YAML: "),
    ],
)
def test_a_wrong_file_is_named(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "topics.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError) as failed:
        read_topics(file)
    assert str(failed.value).startswith(f"{file}{said}")
    with pytest.raises(SettingsError, match=r"BANYAN_TOPICS=.*: expected a readable YAML file"):
        read_topics(tmp_path / "absent.yaml")


@pytest.mark.parametrize("url", ["kafka:nope", "kafka://", "kafka://h:x", "redis://h:1"])
def test_a_url_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError):
        KafkaBus(url, logger=LOGGER)


async def test_the_buffer_is_bounded_in_bytes_too() -> None:
    bus = KafkaBus(NOBODY, logger=LOGGER, max_buffered_bytes=1000)
    assert bus.publish(KV_EVENTS, "key", bytes(500))
    assert not bus.publish(KV_EVENTS, "key", bytes(500))
    assert not bus.publish(KV_EVENTS, "key", b"", (("name", bytes(500)),))
    assert bus.publish(KV_EVENTS, "key", bytes(400))
    await bus.close()


async def test_a_record_larger_than_any_batch_is_refused_alone() -> None:
    bus = KafkaBus(NOBODY, logger=LOGGER)
    assert not bus.publish(KV_EVENTS, "key", bytes(1 << 20))
    assert bus.publish(KV_EVENTS, "key", b"")
    await bus.close()


async def test_close_is_bounded_and_the_outage_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bus = KafkaBus(NOBODY, logger=LOGGER)
    reader = bus.subscribe([KV_EVENTS], Since.TAIL)
    reading = asyncio.ensure_future(anext(reader))
    bus.publish(KV_EVENTS, "key", b"lost")
    await asyncio.sleep(1)
    reading.cancel()
    async with asyncio.timeout(4):
        await asyncio.gather(reading, return_exceptions=True)
        await bus.close()
    assert sum("event sender: Kafka is away" in said for said in caplog.messages) == 1
    assert sum("event reader: Kafka is away" in said for said in caplog.messages) == 1
    assert len(caplog.messages) == 2
    assert not bus.publish(KV_EVENTS, "key", b"late")
