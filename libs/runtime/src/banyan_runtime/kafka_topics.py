"""Which topics the mesh needs (`infra/topics.yaml`), and how whoever connects first makes them.

Every bus asks before it sends or reads: what is missing is created, a race with another process is
no error, and what exists is left as it is. A topic with other partitions or settings than the file
names is reported, because changing it moves keys or deletes records: that is a person's decision.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from aiokafka.admin import (  # type: ignore[import-untyped]  # it ships no types
    AIOKafkaAdminClient,
    NewTopic,
)
from aiokafka.admin.config_resource import (  # type: ignore[import-untyped]
    ConfigResource,
    ConfigResourceType,
)
from aiokafka.errors import (  # type: ignore[import-untyped]
    KafkaError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
    for_code,
)

from banyan_runtime.bus import TOPICS
from banyan_runtime.settings import SettingsError

_FIELDS = ("partitions", "replication", "retention_hours", "settings")
_MS_PER_HOUR = 3_600_000
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """`settings` are the broker's own, such as segment.bytes; retention is among them."""

    name: str
    num_partitions: int
    num_replicas: int
    settings: Mapping[str, str]


def read_topics(path: Path) -> tuple[TopicSpec, ...]:
    """Raises SettingsError that names the file and the field."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError):
        expected = "expected a readable YAML file of topics"
        raise SettingsError(f"BANYAN_TOPICS={path}: {expected}.") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: not YAML: {' '.join(str(error).split())}.") from None
    try:
        if not isinstance(content, dict):
            raise ValueError(f"expected one entry for each of {', '.join(TOPICS)}")
        for name in content:
            if name not in TOPICS:
                raise ValueError(f"{name} is no topic: expected one of {', '.join(TOPICS)}")
        return tuple(_spec(name, content.get(name)) for name in TOPICS)
    except ValueError as error:
        raise SettingsError(f"{path}: {error}.") from None


def _spec(name: str, entry: object) -> TopicSpec:
    if not isinstance(entry, dict):
        raise ValueError(f"{name} is missing: expected {', '.join(_FIELDS)}")
    for field in entry:
        if field not in _FIELDS:
            raise ValueError(f"{name}.{field} is not known: expected one of {', '.join(_FIELDS)}")
    settings = entry.get("settings", {})
    if not isinstance(settings, dict):
        raise ValueError(f"{name}.settings={settings}: expected a table of the broker's settings")
    hours = _whole(name, "retention_hours", entry)
    texts = {str(key): str(value) for key, value in settings.items()}
    return TopicSpec(
        name,
        _whole(name, "partitions", entry),
        _whole(name, "replication", entry),
        {"retention.ms": str(hours * _MS_PER_HOUR), **texts},
    )


def _whole(name: str, field: str, entry: Mapping[str, object]) -> int:
    value = entry.get(field)
    if type(value) is int and value >= 1:
        return value
    shown = "is missing" if value is None else f"is {value}"
    raise ValueError(f"{name}.{field} {shown}: expected a whole number from 1")


class KafkaTopics:
    """Asks and makes, over a connection of its own each time: it is rare."""

    def __init__(
        self,
        arguments: Mapping[str, Any],
        specs: Sequence[TopicSpec],
        prefix: str,
        logger: logging.Logger,
    ) -> None:
        self._arguments = arguments
        self._specs = {prefix + spec.name: spec for spec in specs}
        self._logger = logger
        self._is_compared = False

    async def ensure(self, names: Sequence[str] = ()) -> dict[str, int]:
        """Make what is missing of the file; the number of partitions of `names`.

        Raises KafkaError. A name that the file lacks is waited for; brokers that make topics by
        themselves make it then.
        """
        admin = AIOKafkaAdminClient(**self._arguments)
        try:
            await admin.start()
            if self._specs:
                # Not asked by name: that makes a broker make it, with its own settings.
                existing = {each["topic"] for each in await admin.describe_topics()}
                made = await self._create(admin, self._specs.keys() - existing)
                if not self._is_compared:
                    await self._compare(admin, sorted(self._specs.keys() - made))
                    self._is_compared = True
            return await self._count_partitions(admin, names)
        finally:
            await admin.close()

    async def _create(self, admin: AIOKafkaAdminClient, names: set[str]) -> set[str]:
        """Those of `names` that others had not made meanwhile."""
        if not names:
            return set()
        specs = ((name, self._specs[name]) for name in sorted(names))
        wanted = [
            NewTopic(name, spec.num_partitions, spec.num_replicas, topic_configs=spec.settings)
            for name, spec in specs
        ]
        answer = await admin.create_topics(wanted)
        for name, code, *why in answer.topic_errors:
            error = for_code(code)
            if code and error is not TopicAlreadyExistsError:
                raise error(f"cannot create {name}: {why[0] if why else error.__name__}")
        made = {name for name, code, *_ in answer.topic_errors if not code}
        if made:
            self._logger.info("made Kafka topics", extra={"topics": sorted(made)})
        return made

    async def _compare(self, admin: AIOKafkaAdminClient, names: Sequence[str]) -> None:
        """Say in which way existing topics differ from the file."""
        counts = await self._count_partitions(admin, names)
        configured = await _settings_of(admin, names)
        for name in names:
            spec = self._specs[name]
            want = {"partitions": str(spec.num_partitions), **spec.settings}
            found = {**configured.get(name, {}), "partitions": str(counts[name])}
            for key, value in want.items():
                if found.get(key) != value:
                    self._logger.warning(
                        "a Kafka topic differs from the topics file, and is left so",
                        extra={"topic": name, "key": key, "file": value, "broker": found.get(key)},
                    )

    async def _count_partitions(
        self, admin: AIOKafkaAdminClient, names: Sequence[str]
    ) -> dict[str, int]:
        deadline = asyncio.get_running_loop().time() + 5
        while names:
            described = await admin.describe_topics(list(names))
            counts = {each["topic"]: len(each["partitions"]) for each in described}
            if all(counts.get(name) for name in names):
                return counts
            if asyncio.get_running_loop().time() > deadline:
                absent = [name for name in names if not counts.get(name)]
                raise UnknownTopicOrPartitionError(", ".join(absent))
            await asyncio.sleep(_POLL_S)
        return {}


async def _settings_of(admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, Any]:
    """What brokers hold for each topic; nothing for one that we may not ask about."""
    if not names:
        return {}
    asked = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    try:
        answers = await admin.describe_configs(asked)
    except KafkaError:
        return {}
    return {
        name: {key: value for key, value, *_ in entries}
        for answer in answers
        for code, _, _, name, entries in answer.resources
        if not code
    }
