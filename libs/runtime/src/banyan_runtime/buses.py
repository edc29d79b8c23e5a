"""Which bus a service talks to: the scheme of `BANYAN_BUS_URL` decides, and nothing else knows."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from banyan_runtime.bus import Bus
from banyan_runtime.kafka_access import (
    SCHEME,
    KafkaAccess,
    KafkaSecurity,
    SaslMechanism,
    kafka_servers,
)
from banyan_runtime.redis_client import is_redis_url
from banyan_runtime.service_main import ServiceSettings
from banyan_runtime.settings import Bound, secret, shared
from banyan_runtime.valkey_bus import ValkeyBus


def is_bus_url(text: str) -> bool:
    """Raises ValueError, too, when it is none."""
    return bool(kafka_servers(text)) if text.startswith(SCHEME) else is_redis_url(text)


BUS_URL_EXPECTED = "redis://HOST:PORT or kafka://HOST:PORT[,HOST:PORT]"
BusUrl = Annotated[str, Bound(BUS_URL_EXPECTED, is_bus_url)]


@dataclass(frozen=True, slots=True, kw_only=True)
class BusSettings(ServiceSettings):
    """What every service with a bus is told. Without `topics` the brokers must have them."""

    bus_url: BusUrl = shared("BANYAN_BUS_URL")
    topics: Path | None = shared("BANYAN_TOPICS", None)
    kafka_security: KafkaSecurity = shared("BANYAN_KAFKA_SECURITY", KafkaSecurity.PLAINTEXT)
    kafka_mechanism: SaslMechanism = shared("BANYAN_KAFKA_MECHANISM", SaslMechanism.SCRAM_SHA_512)
    kafka_username: str | None = shared("BANYAN_KAFKA_USERNAME", None)
    kafka_password: str | None = secret("BANYAN_KAFKA_PASSWORD", None)
    kafka_ca_file: Path | None = shared("BANYAN_KAFKA_CA_FILE", None)


def open_bus(settings: BusSettings, logger: logging.Logger) -> Bus:
    """Raises SettingsError. Nothing connects before it is used."""
    if not settings.bus_url.startswith(SCHEME):
        return ValkeyBus(settings.bus_url)
    from banyan_runtime.kafka_bus import KafkaBus  # 0.3 s, only for who wants Kafka
    from banyan_runtime.kafka_topics import read_topics

    access = KafkaAccess(
        settings.kafka_security,
        settings.kafka_mechanism,
        settings.kafka_username,
        settings.kafka_password,
        settings.kafka_ca_file,
    )
    topics = () if settings.topics is None else read_topics(settings.topics)
    return KafkaBus(settings.bus_url, access, topics, logger=logger)
