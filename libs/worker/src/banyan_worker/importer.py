"""Brings a sequence's KV here before it runs: from the prefill that holds it, else the store.

Order: what is cached here, the leased worker, the kvstore, recompute. Blocks are reserved when
the first page arrives, each page is checked against its digest, and only blocks that are whole
are given to the cache. Whatever goes wrong costs time, never correctness: the engine computes
what did not come.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from banyan.v1 import kv_pb2, worker_pb2
from banyan_core.engine_messages import ImportDone, Release
from banyan_core.hashing import block_hashes, pack
from banyan_core.runner import Runner
from banyan_core.types import BlockHash, LeasedKv, SequenceSpec, WorkerRef
from banyan_runtime import wire
from banyan_runtime.clock import Clock
from banyan_runtime.kv_pages import layers_in, num_bytes, num_pages
from banyan_runtime.rpc import Network, RpcError
from banyan_worker.options import WorkerOptions
from banyan_worker.pages import Pages, close_stream
from banyan_worker.step_loop import StepLoop
from banyan_worker.store_client import StoreClient


@dataclass(slots=True)
class ImporterTotals:
    """Counters since the start."""

    num_pulls: int = 0
    num_failed_pulls: int = 0
    num_wanted_blocks: int = 0
    num_fetched_blocks: int = 0
    num_rejected_pages: int = 0
    transfer_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Onboarded:
    """What came. `import_id` pins it; `new_token_ids` are outputs that the source sampled."""

    import_id: str
    new_token_ids: tuple[int, ...] = ()
    fetch_ns: int = 0
    num_fetched_blocks: int = 0
    num_rejected_pages: int = 0


@dataclass(slots=True)
class _Import:
    """One reservation being filled."""

    import_id: str
    hashes: tuple[BlockHash, ...]
    block_ids: dict[BlockHash, int] | None = None
    refused: bool = False
    layers: dict[BlockHash, dict[int, None]] = field(default_factory=dict)
    whole: dict[BlockHash, None] = field(default_factory=dict)
    num_rejected: int = 0
    new_token_ids: tuple[int, ...] = ()


class Importer:
    """`onboard` is one sequence's fetch; it never fails, it only brings less."""

    def __init__(
        self,
        ref: WorkerRef,
        runner: Runner,
        pages: Pages,
        network: Network,
        clock: Clock,
        store: StoreClient,
        options: WorkerOptions,
        logger: logging.Logger,
    ) -> None:
        self._ref = ref
        self._runner = runner
        self._pages = pages
        self._network = network
        self._clock = clock
        self._store = store
        self._options = options
        self._logger = logger
        self.totals = ImporterTotals()

    async def onboard(
        self, spec: SequenceSpec, source: LeasedKv | None, steps: StepLoop
    ) -> Onboarded:
        """When it is cancelled or fails it leaves no reservation behind."""
        started_ns = self._clock.now_ns()
        tokens = (*spec.prompt_token_ids, *spec.output_token_ids)
        hashes = block_hashes(tokens, self._runner.block_size, spec.salt)
        todo = _Import(f"import/{spec.sequence_id}", hashes)
        try:
            if source is not None and source.worker.worker_id != self._ref.worker_id:
                await self._pull(todo, source, spec, steps)
            usable = hashes if todo.new_token_ids else hashes[: (len(tokens) - 1) // self._size]
            missing = self._missing(todo, usable, steps)
            self.totals.num_wanted_blocks += len(todo.whole) + len(missing)
            if missing and not todo.refused:
                await self._fetch_stored(todo, missing, steps)
        except BaseException:
            steps.feed(Release((todo.import_id,)))
            raise
        if todo.block_ids is not None:
            steps.feed(ImportDone(todo.import_id, tuple(todo.whole)))
        self.totals.num_fetched_blocks += len(todo.whole)
        self.totals.num_rejected_pages += todo.num_rejected
        return Onboarded(
            import_id=todo.import_id if todo.block_ids is not None else "",
            new_token_ids=todo.new_token_ids,
            fetch_ns=self._clock.now_ns() - started_ns,
            num_fetched_blocks=len(todo.whole),
            num_rejected_pages=todo.num_rejected,
        )

    @property
    def _size(self) -> int:
        return self._runner.block_size

    def _missing(
        self, todo: _Import, usable: Sequence[BlockHash], steps: StepLoop
    ) -> list[BlockHash]:
        """Those that are neither cached here nor came whole with this import, in order."""
        return [h for h in usable if h not in todo.whole and steps.engine.block_of(h) is None]

    # ------------------------------------------------------------ from the leased worker

    async def _pull(
        self, todo: _Import, source: LeasedKv, spec: SequenceSpec, steps: StepLoop
    ) -> None:
        self.totals.num_pulls += 1
        missing = self._missing(todo, todo.hashes, steps)
        request = worker_pb2.PullRequest(
            lease_id=source.lease_id, block_hashes=pack(missing), takes_layers=True
        )
        channel = self._network.channel(source.worker.address)
        stream = channel.stream(wire.PULL, request)
        output: tuple[int, ...] = ()
        try:
            while not output and not todo.refused:
                async with asyncio.timeout(self._options.pull_silence_s):
                    message = await anext(stream)
                output = tuple(message.output_token_ids)
                if num_pages(message) or output:
                    await self._take(todo, message, steps)
        except (RpcError, TimeoutError, StopAsyncIteration) as error:
            self.totals.num_failed_pulls += 1
            extra = {
                "request_id": spec.request_id,
                "sequence_id": spec.sequence_id,
                "source": source.worker.worker_id,
                "why": str(error) or type(error).__name__,
            }
            self._logger.warning("pull broke, falling back", extra=extra)
        finally:
            await close_stream(stream)
        known = len(spec.output_token_ids)
        if output[:known] == spec.output_token_ids:
            todo.new_token_ids = output[known:]

    # ------------------------------------------------------------ from the store

    async def _fetch_stored(self, todo: _Import, missing: list[BlockHash], steps: StepLoop) -> None:
        offer = await self._store.offer(missing, steps.engine.load(self._clock.now_ns()))
        if offer is None:
            return
        async for message in self._store.fetch(offer):
            await self._take(todo, message, steps)
            if todo.refused:
                return

    # ------------------------------------------------------------ pages

    async def _take(self, todo: _Import, message: kv_pb2.KvPages, steps: StepLoop) -> None:
        """Write a message's pages into the reservation, which is made now if it is not yet."""
        if todo.block_ids is None and not todo.refused:
            reserved = await steps.reserve(todo.import_id, todo.hashes)
            todo.refused = reserved is None
            todo.block_ids = dict(reserved) if reserved is not None else None
        if todo.block_ids is None:
            return
        self.totals.transfer_bytes += num_bytes(message)
        for part in layers_in(message):
            block_id = todo.block_ids.get(part.block_hash)
            if block_id is not None and part.block_hash not in todo.whole:
                self._write(todo, part, block_id)

    def _write(self, todo: _Import, part: kv_pb2.KvLayers, block_id: int) -> None:
        written = self._pages.write(part, block_id)
        num_rejected = max(1, len(part.page_bytes)) - len(written)
        if num_rejected:
            todo.num_rejected += num_rejected
            todo.layers.pop(part.block_hash, None)
            return
        layers = todo.layers.setdefault(part.block_hash, {})
        layers.update(dict.fromkeys(written))
        if len(layers) == self._pages.num_layers:
            todo.whole[part.block_hash] = None
