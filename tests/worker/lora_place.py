"""Workers with adapters: the model really computes, in deterministic mode, on virtual time."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from pathlib import Path

import torch
from tests.worker.workers import Gateway, Mesh, clock

from banyan_core.hashing import cache_salt
from banyan_core.runner import Runner, StepPlan, StepResult
from banyan_core.types import (
    Adapter,
    Finish,
    ModelCard,
    Role,
    SamplingParams,
    SequenceSpec,
    WorkerRef,
)
from banyan_engine.lora import load_lora
from banyan_engine.model import Model
from banyan_engine.random_lora import LORA_CONFIG, write_random_lora
from banyan_engine.random_model import TINY_CONFIG, write_random_model
from banyan_engine.reference import reference_logits
from banyan_engine.spec import read_spec
from banyan_engine.torch_runner import TorchRunner
from banyan_engine.weights import load_weights
from banyan_runtime.memory_bus import MemoryBus
from banyan_runtime.memory_network import MemoryNetwork
from banyan_runtime.offload import InlineOffload
from banyan_runtime.virtual_loop import run_virtual
from banyan_text.adapter_folder import AdapterFolder
from banyan_worker.adapter_pool import AdapterSource
from banyan_worker.options import WorkerOptions
from banyan_worker.service import WorkerService
from banyan_worker.step_loop import InlineExecutor

BLOCK_SIZE = 8
NUM_BLOCKS = 64
PROMPT = tuple(3 + (7 * i) % 90 for i in range(5 * BLOCK_SIZE + 3))
NUM_TOKENS = 12
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)


class Paced(InlineExecutor):
    """Each step takes a millisecond, so that there is a time during an answer."""

    async def run_one(
        self, runner: Runner, plan: StepPlan, on_layer: Callable[[int], None]
    ) -> StepResult:
        await asyncio.sleep(0.001)
        return await super().run_one(runner, plan, on_layer)


class Place:
    """A model, a folder of adapters, and workers that have both."""

    def __init__(self, path: Path) -> None:
        self.model = write_random_model(path / "model", TINY_CONFIG, seed=1)
        self.adapters = path / "adapters"
        self.adapters.mkdir()
        self.mesh = Mesh()
        self.gateway: Gateway

    def write(self, name: str, seed: int, **config: object) -> Adapter:
        write_random_lora(self.adapters / name, self.model, LORA_CONFIG | config, seed)
        return self.found(name)

    def found(self, name: str) -> Adapter:
        adapter = AdapterFolder(self.adapters).find(name)
        assert adapter is not None
        return adapter

    async def worker(
        self, worker_id: str, *, max_adapters: int = 4, folder: Path | None = None
    ) -> WorkerService:
        runner = TorchRunner(
            self.model, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, numerics="deterministic"
        )
        layout = runner.layout
        self.card = ModelCard("tiny", b"w", b"t", 512, (), BLOCK_SIZE, layout, "deterministic")
        role = Role.PREFILL if worker_id.startswith("p") else Role.DECODE
        source = AdapterSource(
            AdapterFolder(folder or self.adapters), runner, InlineOffload(), max_adapters
        )
        service = WorkerService(
            WorkerRef(worker_id, clock().clock.unix_ns(), f"{worker_id}:1", role),
            self.card,
            runner,
            MemoryNetwork(self.mesh.wires, worker_id),
            MemoryBus(self.mesh.broker),
            self.mesh.directory,
            clock().clock,
            Paced(),
            WorkerOptions(),
            logger=self.mesh.logger,
            adapters=None if folder == Path("none") else source,
        )
        await service.start()
        self.mesh.workers.append(service)
        if not hasattr(self, "gateway"):
            self.gateway = self.mesh.gateway()
        self.gateway.listen(service)
        return service

    def spec(
        self, name: str, adapter: Adapter | None, num_tokens: int = NUM_TOKENS
    ) -> SequenceSpec:
        digest = None if adapter is None else adapter.digest
        salt = cache_salt(b"secret", "tenant", "", self.card.digest, digest)
        return SequenceSpec(
            name,
            "gateway",
            1,
            self.card.digest,
            PROMPT,
            (),
            dataclasses.replace(GREEDY, max_tokens=num_tokens),
            salt,
            adapter=adapter,
        )

    def expected(self, adapter: str | None, num_tokens: int = NUM_TOKENS) -> list[int]:
        """Greedy tokens of the plain reference, one whole pass a token."""
        spec = read_spec(self.model)
        model = Model(spec, load_weights(self.model, spec, torch.float32))
        lora = None
        if adapter is not None:
            lora = load_lora(self.adapters / adapter, spec, torch.float32)
        tokens = list(PROMPT)
        for _ in range(num_tokens):
            tokens.append(int(reference_logits(model, tokens, lora)[-1].argmax()))
        return tokens[len(PROMPT) :]

    async def said(self, worker: WorkerService, name: str, adapter: Adapter | None) -> list[int]:
        admission = await self.gateway.decode(worker, self.spec(name, adapter))
        assert admission.accepted, admission.reason
        told = await self.gateway.until(name)
        assert told.finish is Finish.LENGTH, told.error
        return told.output()

    async def stop(self) -> None:
        await self.gateway.close()
        await self.mesh.stop()


def run(path: Path, test: Callable[[Place], Awaitable[None]]) -> None:
    """A test on virtual time; its workers must be empty at its end."""

    async def main() -> None:
        place = Place(path)
        await test(place)
        await place.stop()

    run_virtual(main)
