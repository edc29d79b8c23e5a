"""Brokers that want a password, over TLS: SCRAM and PLAIN, and what a wrong one comes to."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.contract.test_bus import Listener
from tests.kafka.brokers import Broker, free_port
from tests.kafka.conftest import LOGGER, eventually, new_prefix, topic_specs

from banyan_runtime.bus import KV_EVENTS, Since
from banyan_runtime.kafka_access import KafkaAccess, KafkaSecurity, SaslMechanism
from banyan_runtime.kafka_bus import KafkaBus

USER, PASSWORD = "banyan", "correct-horse"
_LOGINS = f"""
sasl_ssl.KafkaServer {{
    org.apache.kafka.common.security.scram.ScramLoginModule required;
}};
sasl_plaintext.KafkaServer {{
    org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{PASSWORD}";
}};
"""


@dataclass
class Guarded:
    """A broker with a plain listener for operators and two guarded ones for us."""

    broker: Broker
    tls_port: int
    plain_port: int
    ca_file: Path


def make_certificate(folder: Path) -> Path:
    """A key and a certificate for 127.0.0.1 that signs itself; the file for Kafka has both."""
    key, certificate, both = (folder / name for name in ("key.pem", "ca.pem", "broker.pem"))
    lasting = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    named = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    written = ["-keyout", str(key), "-out", str(certificate)]
    command = ["openssl", "req", *lasting, *named, *written]
    subprocess.run(command, check=True, capture_output=True)
    both.write_text(key.read_text() + certificate.read_text())
    return certificate


@pytest.fixture(scope="module")
def guarded(kafka_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here, which makes the broker's certificate")
    folder = tmp_path_factory.mktemp("guarded")
    ca_file = make_certificate(folder)
    inside, outside, tls, plain = (free_port() for _ in range(4))
    listeners = (
        f"PLAINTEXT://127.0.0.1:{outside},SASL_SSL://127.0.0.1:{tls},"
        f"SASL_PLAINTEXT://127.0.0.1:{plain}"
    )
    logins = folder / "logins.conf"
    logins.write_text(_LOGINS)
    settings = {
        "KAFKA_OPTS": f"-Djava.security.auth.login.config={logins}",
        "KAFKA_LISTENERS": f"{listeners},CONTROLLER://127.0.0.1:{inside}",
        "KAFKA_ADVERTISED_LISTENERS": listeners,
        "KAFKA_CONTROLLER_QUORUM_VOTERS": f"1@127.0.0.1:{inside}",
        "KAFKA_LISTENER_NAME_SASL__SSL_SASL_ENABLED_MECHANISMS": "SCRAM-SHA-512",
        "KAFKA_LISTENER_NAME_SASL__PLAINTEXT_SASL_ENABLED_MECHANISMS": "PLAIN",
        "KAFKA_SSL_KEYSTORE_TYPE": "PEM",
        "KAFKA_SSL_KEYSTORE_LOCATION": str(folder / "broker.pem"),
    }
    broker = Broker(kafka_home, folder / "kafka", settings=settings)
    try:
        broker.up()
        credential = f"SCRAM-SHA-512=[password={PASSWORD}]"
        alter = ["--alter", "--add-config", credential, "--entity-type", "users"]
        subprocess.run(
            [
                kafka_home / "bin" / "run-class",
                "kafka.admin.ConfigCommand",
                *("--bootstrap-server", f"127.0.0.1:{outside}", *alter, "--entity-name", USER),
            ],
            check=True,
            capture_output=True,
        )
        yield Guarded(broker, tls, plain, ca_file)
    finally:
        broker.remove()


async def assert_carries(port: int, access: KafkaAccess) -> None:
    url, prefix = f"kafka://127.0.0.1:{port}", new_prefix()
    bus = KafkaBus(url, access, topic_specs(), logger=LOGGER, prefix=prefix)
    listener = Listener(bus, [KV_EVENTS], Since.START)
    assert bus.publish(KV_EVENTS, "p", b"secret")
    await eventually(lambda: listener.values == [b"secret"])
    await listener.stop()
    await bus.close()


async def test_scram_over_tls(guarded: Guarded) -> None:
    access = KafkaAccess(
        KafkaSecurity.SASL_SSL, SaslMechanism.SCRAM_SHA_512, USER, PASSWORD, guarded.ca_file
    )
    await assert_carries(guarded.tls_port, access)


async def test_plain(guarded: Guarded) -> None:
    access = KafkaAccess(KafkaSecurity.SASL_PLAINTEXT, SaslMechanism.PLAIN, USER, PASSWORD)
    await assert_carries(guarded.plain_port, access)


async def test_a_wrong_password_is_said_and_not_shown(
    guarded: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    access = KafkaAccess(KafkaSecurity.SASL_PLAINTEXT, SaslMechanism.PLAIN, USER, "wrong-horse")
    bus = KafkaBus(f"kafka://127.0.0.1:{guarded.plain_port}", access, (), logger=LOGGER)
    assert bus.publish(KV_EVENTS, "p", b"secret")
    await eventually(lambda: "Kafka is away" in caplog.text)
    assert "horse" not in caplog.text and "horse" not in repr(access)
    await bus.close()
