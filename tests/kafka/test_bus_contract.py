"""The suite of all buses, on a real broker: the tests are those of tests/contract/test_bus.py."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.contract.test_bus import (  # noqa: F401  # collected here, with the fixtures below
    Buses,
    test_a_cancelled_subscriber_always_ends,
    test_a_dropped_event_leaves_a_gap_in_seq,
    test_a_full_buffer_drops_and_says_so,
    test_close_is_bounded_when_the_broker_is_down,
    test_close_sends_what_is_buffered,
    test_every_subscriber_gets_every_record,
    test_headers_travel_beside_the_value,
    test_publisher_and_subscriber_survive_an_outage,
    test_records_come_in_order_with_topic_and_key,
    test_tail_starts_late_and_then_loses_nothing,
)
from tests.kafka.brokers import Broker
from tests.kafka.conftest import LOGGER, bus_maker, new_prefix, topic_specs

from banyan_runtime.kafka_access import KafkaAccess, client_arguments, kafka_servers
from banyan_runtime.kafka_topics import KafkaTopics

pytestmark = pytest.mark.timeout(600)  # a broker that restarts on a busy machine


@pytest.fixture
async def buses(kafka_url: str) -> AsyncIterator[Buses]:
    def never() -> None:
        raise AssertionError("the session's broker stays up: use the `outage` fixture")

    prefix = new_prefix()
    arguments = client_arguments(kafka_servers(kafka_url), KafkaAccess())
    await KafkaTopics(arguments, topic_specs(), prefix, LOGGER).ensure()
    made = Buses(bus_maker(kafka_url, prefix), never, never)
    yield made
    for bus in made.made:
        await bus.close()


@pytest.fixture
async def outage(broker: Broker) -> AsyncIterator[Buses]:
    made = Buses(bus_maker(broker.url, new_prefix()), broker.down, broker.up)
    yield made
    for bus in made.made:
        await bus.close()
