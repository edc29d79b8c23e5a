"""The same workers over gRPC, with steps on threads and a model that really computes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from banyan.v1 import worker_pb2
from banyan_core.runner import Runner
from banyan_core.types import ModelCard, Role, SamplingParams, SequenceSpec, WorkerRef
from banyan_engine.random_model import TINY_CONFIG, write_random_model
from banyan_engine.torch_runner import TorchRunner
from banyan_runtime import codec, wire
from banyan_runtime.clock import SystemClock
from banyan_runtime.directories import StaticDirectory
from banyan_runtime.grpc_network import GrpcNetwork
from banyan_runtime.grpc_security import ChannelSecurity
from banyan_runtime.memory_bus import MemoryBroker, MemoryBus
from banyan_worker.options import WorkerOptions
from banyan_worker.service import WorkerService
from banyan_worker.step_loop import ThreadExecutor

BLOCK_SIZE = 8
PROMPT = tuple(3 + (7 * i) % 90 for i in range(75))
NUM_TOKENS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("model"), TINY_CONFIG, seed=1)


def card_of(runner: Runner) -> ModelCard:
    return ModelCard("tiny", b"w", b"t", 512, (), BLOCK_SIZE, runner.layout, "deterministic")


async def worker(
    folder: Path, name: str, role: Role, registry: CollectorRegistry
) -> tuple[WorkerService, GrpcNetwork]:
    runner = TorchRunner(
        folder, num_blocks=64, block_size=BLOCK_SIZE, numerics="deterministic", end_token_ids=()
    )
    network = GrpcNetwork(ChannelSecurity.plain())
    probe = await network.serve("127.0.0.1:0", ())
    address = probe.address
    await probe.stop(0)
    clock = SystemClock()
    service = WorkerService(
        WorkerRef(name, clock.unix_ns(), address, role),
        card_of(runner),
        runner,
        network,
        MemoryBus(MemoryBroker()),
        StaticDirectory({}),
        clock,
        ThreadExecutor(),
        WorkerOptions(),
        logger=logging.getLogger("test"),
        registry=registry,
    )
    await service.start()
    return service, network


def asked(name: str, card: ModelCard) -> SequenceSpec:
    sampling = SamplingParams(temperature=0.9, seed=5, max_tokens=NUM_TOKENS)
    return SequenceSpec(name, "gateway", 1, card.digest, PROMPT, (), sampling, b"salt")


async def heard(network: GrpcNetwork, service: WorkerService, name: str) -> list[int]:
    """The whole output of one sequence."""
    hello = worker_pb2.TokensHello(gateway_id="gateway", gateway_epoch=1)
    done = asyncio.Event()

    async def requests() -> AsyncGenerator[worker_pb2.TokensRequest, None]:
        yield worker_pb2.TokensRequest(hello=hello)
        await done.wait()

    tokens: list[int] = []
    async for message in network.channel(service.ref.address).bidi(wire.TOKENS, requests()):
        for report in map(codec.sequence_report_from_pb, message.sequences):
            if report.sequence_id == name:
                assert report.first_index == len(tokens)
                tokens += [token.token_id for token in report.tokens]
                if report.finish is not None:
                    done.set()
    return tokens


async def test_split_equals_unsplit_bit_for_bit(folder: Path) -> None:
    registry = CollectorRegistry()
    prefill, first_network = await worker(folder, "p1", Role.PREFILL, registry)
    decode, second_network = await worker(folder, "d1", Role.DECODE, CollectorRegistry())
    client = GrpcNetwork(ChannelSecurity.plain())
    card = prefill.work.parts.card
    alone = worker_pb2.DecodeRequest(sequence=codec.sequence_spec_to_pb(asked("alone", card)))
    held = worker_pb2.PrefillRequest(
        sequence=codec.sequence_spec_to_pb(asked("r/0/1", card)), lease_ns=5_000_000_000
    )
    rest = worker_pb2.DecodeRequest(sequence=codec.sequence_spec_to_pb(asked("r/0/2", card)))
    rest.source.worker.CopyFrom(codec.worker_ref_to_pb(prefill.ref))
    rest.source.lease_id = "r/0/1"
    to_prefill = client.channel(prefill.ref.address)
    to_decode = client.channel(decode.ref.address)
    async with asyncio.timeout(60):
        await asyncio.gather(
            to_prefill.unary(wire.PREFILL, held, 5.0), to_decode.unary(wire.DECODE, rest, 5.0)
        )
        split = await heard(client, decode, "r/0/2")
        release = worker_pb2.ReleaseRequest(lease_ids=["r/0/1"])
        assert (await to_prefill.unary(wire.RELEASE, release, 5.0)).num_released == 1
        await to_prefill.unary(wire.DECODE, alone, 5.0)
        unsplit = await heard(client, prefill, "alone")
        assert split == unsplit and len(split) == NUM_TOKENS
        fetched = decode.work.parts.importer.totals
        assert (fetched.num_fetched_blocks, fetched.num_rejected_pages) == (75 // BLOCK_SIZE, 0)
        text = generate_latest(registry).decode()
        engine = f'{{engine="{prefill.ref.worker_id}",model_name="tiny"}}'
        assert f"vllm:num_preemptions_total{engine} 0.0" in text
        assert f"banyan_worker_exported_pages_total{engine} 18.0" in text
        assert f'vllm:cache_config_info{{block_size="{BLOCK_SIZE}",{engine[1:-1]}' in text
        for service, network in ((prefill, first_network), (decode, second_network)):
            await service.stop(0)
            assert service.engine.num_used_blocks == 0
            await network.close()
        await client.close()
