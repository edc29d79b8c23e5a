"""How Kafka is reached: addresses and security in, arguments for aiokafka's clients out.

Apart from what uses aiokafka: importing that takes 0.3 s, which a mesh on Valkey need not spend.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from banyan_runtime.settings import SettingsError, is_address

SCHEME = "kafka://"
REQUEST_TIMEOUT_S = 10.0


class KafkaSecurity(StrEnum):
    """Kafka's own names."""

    PLAINTEXT = "PLAINTEXT"
    SSL = "SSL"
    SASL_PLAINTEXT = "SASL_PLAINTEXT"
    SASL_SSL = "SASL_SSL"


class SaslMechanism(StrEnum):
    PLAIN = "PLAIN"
    SCRAM_SHA_256 = "SCRAM-SHA-256"
    SCRAM_SHA_512 = "SCRAM-SHA-512"


@dataclass(frozen=True, slots=True)
class KafkaAccess:
    """How the brokers know us, and we them. Without `ca_file` the system's authorities count."""

    security: KafkaSecurity = KafkaSecurity.PLAINTEXT
    mechanism: SaslMechanism = SaslMechanism.SCRAM_SHA_512
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None


def kafka_servers(url: str) -> list[str]:
    """The addresses in kafka://HOST:PORT[,HOST:PORT]. Raises ValueError when it is none."""
    servers = url.removeprefix(SCHEME).split(",")
    if not url.startswith(SCHEME) or not all(is_address(server) for server in servers):
        raise ValueError(f"{url}: expected {SCHEME}HOST:PORT[,HOST:PORT]")
    return servers


def client_arguments(servers: list[str], access: KafkaAccess) -> Mapping[str, Any]:
    """What every client of aiokafka is made with. Raises SettingsError."""
    arguments: dict[str, Any] = {
        "bootstrap_servers": servers,
        "security_protocol": access.security.value,
        "request_timeout_ms": round(REQUEST_TIMEOUT_S * 1000),
    }
    if access.security in (KafkaSecurity.SSL, KafkaSecurity.SASL_SSL):
        arguments["ssl_context"] = _ssl_context(access.ca_file)
    if access.security in (KafkaSecurity.SASL_PLAINTEXT, KafkaSecurity.SASL_SSL):
        for key, value in (("USERNAME", access.username), ("PASSWORD", access.password)):
            if not value:
                why = f"which BANYAN_KAFKA_SECURITY={access.security} needs"
                raise SettingsError(f"BANYAN_KAFKA_{key} is not set: expected text, {why}.")
        arguments["sasl_mechanism"] = access.mechanism.value
        arguments["sasl_plain_username"] = access.username
        arguments["sasl_plain_password"] = access.password
    return arguments


def _ssl_context(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError:
        said = f"BANYAN_KAFKA_CA_FILE={ca_file}"
        raise SettingsError(f"{said}: expected a readable file of PEM certificates.") from None
