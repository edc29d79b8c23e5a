"""Brokers for these tests: one that is given (BANYAN_TEST_KAFKA=HOST:PORT), else our own.

Own ones come from the tool that stands beside the repository; without it, and without Java, the
tests that need one skip and say so. What must break a broker never touches one that is given.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from tests.kafka.brokers import Broker

from banyan_runtime.kafka_bus import KafkaBus
from banyan_runtime.kafka_topics import TopicSpec, read_topics

ROOT = Path(__file__).parents[2]
TOOL = ROOT.parent / "shared" / "tools" / "kafka"
TOPICS_FILE = ROOT / "infra" / "topics.yaml"
LOGGER = logging.getLogger("kafka tests")

_PREFIXES = itertools.count()


@pytest.fixture(scope="session")
def kafka_home() -> Path:
    """Where Kafka is unpacked."""
    if not os.access(TOOL, os.X_OK):
        pytest.skip("no Kafka here: ../shared/tools/kafka is absent; or set BANYAN_TEST_KAFKA")
    if shutil.which("java") is None:
        pytest.skip("no Java here, which Kafka needs: install openjdk-17-jre-headless")
    told = subprocess.run([TOOL, "home"], check=True, capture_output=True, text=True)
    return Path(told.stdout.strip())


@pytest.fixture(scope="session")
def own_broker(kafka_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    own = Broker(kafka_home, tmp_path_factory.mktemp("kafka"))
    yield own
    own.remove()


@pytest.fixture
def broker(own_broker: Broker) -> Broker:
    """A running broker that a test may take down and up. Each test takes a prefix of its own."""
    if not own_broker.is_up:
        own_broker.up()
    return own_broker


@pytest.fixture
def kafka_url(request: pytest.FixtureRequest) -> str:
    """A broker that stays up."""
    given = os.environ.get("BANYAN_TEST_KAFKA")
    return f"kafka://{given}" if given else str(request.getfixturevalue("broker").url)


def topic_specs() -> tuple[TopicSpec, ...]:
    return read_topics(TOPICS_FILE)


def new_prefix() -> str:
    """Topics of this one test, also on a broker that earlier runs have used."""
    return f"test-{os.getpid()}-{next(_PREFIXES)}."


def bus_maker(
    url: str, prefix: str = "", topics: Sequence[TopicSpec] | None = None
) -> Callable[..., KafkaBus]:
    specs = topic_specs() if topics is None else topics
    return partial(KafkaBus, url, topics=specs, logger=LOGGER, prefix=prefix)


async def eventually(check: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Wait until `check()` holds; fail when it does not in time. Brokers are slow to begin."""
    try:
        async with asyncio.timeout(timeout_s):
            while not check():  # noqa: ASYNC110  # what is awaited has no event to wait for
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail("it did not become true in time")


@pytest.fixture(name="eventually")
def eventually_fixture() -> Callable[..., object]:
    return eventually
