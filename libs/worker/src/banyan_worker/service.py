"""One worker: wires the parts, starts them, drains them.

    admit -> onboard (local, leased worker, store) -> engine -> tokens to the gateway
                                                            -> blocks to pulls, store, events

A role is only a preference of placement: both verbs are served whatever it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry

from banyan_core.engine_loop import EngineLoop
from banyan_core.runner import Runner
from banyan_core.types import NS_PER_S, ModelCard, WorkerRef
from banyan_runtime.bus import Bus, EventProducer
from banyan_runtime.clock import Clock
from banyan_runtime.directory import Directory
from banyan_runtime.lifespan import Tasks
from banyan_runtime.pump import Recorder
from banyan_runtime.rpc import Network, Server
from banyan_runtime.tracing import NO_TRACING, Tracing
from banyan_worker.adapter_pool import AdapterPool, AdapterSource
from banyan_worker.exporter import Exporter
from banyan_worker.importer import Importer
from banyan_worker.lease_keeper import LeaseKeeper
from banyan_worker.load_board import LoadBoard
from banyan_worker.metrics import CacheConfig, WorkerCollector
from banyan_worker.offloader import Offloader
from banyan_worker.options import WorkerOptions
from banyan_worker.pages import Pages
from banyan_worker.parts import Parts
from banyan_worker.sequence_traces import SequenceTraces
from banyan_worker.servicer import WorkerServicer
from banyan_worker.step_loop import StepExecutor, StepLoop
from banyan_worker.store_client import StoreClient
from banyan_worker.token_streams import TokenStreams
from banyan_worker.work import Work
from banyan_worker.worker_events import WorkerEvents

_POLL_S = 0.02


class WorkerService:
    """Serves at `ref.address`, or at `options.bind_address` if that is set.

    `on_drained` is called when a drain that a `Drain` call started is complete: then the process
    should stop. Raises ValueError when card and runner disagree about blocks.
    """

    def __init__(
        self,
        ref: WorkerRef,
        card: ModelCard,
        runner: Runner,
        network: Network,
        bus: Bus,
        directory: Directory,
        clock: Clock,
        executor: StepExecutor,
        options: WorkerOptions,
        *,
        logger: logging.Logger,
        registry: CollectorRegistry | None = None,
        recorder: Recorder | None = None,
        on_drained: Callable[[], None] | None = None,
        tracing: Tracing = NO_TRACING,
        adapters: AdapterSource | None = None,
    ) -> None:
        if runner.block_size != card.block_size or runner.layout != card.kv_layout:
            raise ValueError("the runner's blocks are not those of the model card")
        self.ref = ref
        self._card = card
        self._network = network
        self._clock = clock
        self._executor = executor
        self._options = options
        self._logger = logger
        self._tasks = Tasks()
        self._server: Server | None = None
        self._draining: asyncio.Task[None] | None = None
        self._drained = asyncio.Event()
        self._drain_until_ns = 0
        self._stopping = False
        self._on_drained = on_drained
        self._tracing = tracing
        traces = SequenceTraces(tracing, ref.worker_id)
        self.work = Work(clock, self._tasks, logger, traces)
        engine = EngineLoop(card, runner.num_blocks, options.limits)
        steps = StepLoop(engine, runner, executor, clock, self._tasks, self.work, logger, recorder)
        store = StoreClient(network, directory, clock, card, options, logger)
        pages = Pages(runner)
        leases = LeaseKeeper(clock, options.longest_lease_ns, self.work.lease_ended)
        producer = EventProducer(bus, clock, ref.worker_id, ref.epoch)
        self.work.parts = Parts(
            card=card,
            num_blocks=runner.num_blocks,
            options=options,
            steps=steps,
            pages=pages,
            exporter=Exporter(pages, card.block_size, options, leases.renew),
            importer=Importer(ref, runner, pages, network, clock, store, options, logger),
            offloader=Offloader(store, pages, options),
            leases=leases,
            streams=TokenStreams(ref.epoch, clock, options, self.work.cancel),
            board=LoadBoard(ref, card, runner.num_blocks, options, self.work.load),
            events=WorkerEvents(
                ref, card, runner.num_blocks, producer, clock, options, engine.cached_hashes
            ),
            adapters=AdapterPool(adapters, self._tasks),
        )
        if registry is not None:
            cache = CacheConfig(card.block_size, runner.num_blocks)
            registry.register(WorkerCollector(card.name, ref.worker_id, cache, self.figures))

    @property
    def engine(self) -> EngineLoop:
        """For tests and status: what is in use, what is cached."""
        return self.work.parts.steps.engine

    async def start(self) -> None:
        """Returns when it can be called. Raises OSError when the address is taken."""
        parts = self.work.parts
        servicer = WorkerServicer(self.ref.epoch, self.work, self._start_drain, self._tracing)
        address = self._options.bind_address or self.ref.address
        self._server = await self._network.serve(address, servicer.handlers())
        parts.steps.start()
        parts.leases.start(self._tasks)
        self._tasks.spawn("expire", parts.streams.expire())
        self._tasks.spawn("block events", parts.events.tell_blocks())
        self._tasks.spawn("alive events", parts.events.tell_alive(parts.board, self.work.load))
        if self._options.offload:
            self._tasks.spawn("offload", parts.offloader.run(parts.steps))
        self._server.set_serving(True)
        self._logger.info("worker serves", extra={"address": self._server.address})

    # ------------------------------------------------------------ drain and stop

    def _start_drain(self, grace_ns: int) -> None:
        """Begin a drain, or shorten the one that is under way."""
        until_ns = self._clock.now_ns() + grace_ns
        if self._draining is not None:
            self._drain_until_ns = min(self._drain_until_ns, until_ns)
            return
        self._logger.info("draining", extra={"grace_s": grace_ns / NS_PER_S})
        self._drain_until_ns = until_ns
        self.work.draining = True
        self.work.parts.board.changed()
        self._draining = self._tasks.spawn_brief("drain", self._drain())

    async def _drain(self) -> None:
        """After the grace end what runs; wait until the ends have arrived."""
        if not await self._becomes_idle():
            self.work.drain_now()
        outbox = self.work.parts.streams.outbox
        until_ns = self._clock.now_ns() + round(self._options.deliver_s * NS_PER_S)
        while self._clock.now_ns() < until_ns:
            if self.engine.idle and not outbox.num_owed:
                break
            await asyncio.sleep(_POLL_S)
        self._drained.set()
        if self._on_drained is not None and not self._stopping:
            self._on_drained()

    async def _becomes_idle(self) -> bool:
        """False when the grace, which may shrink meanwhile, is over before."""
        while not self.work.idle:
            if self._clock.now_ns() >= self._drain_until_ns:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    async def stop(self, grace_s: float) -> None:
        """Drain, then end everything. A drain that is under way ends within this grace, too."""
        self._stopping = True
        self._start_drain(round(grace_s * NS_PER_S))
        try:
            async with asyncio.timeout(grace_s + self._options.deliver_s + 1.0):
                await self._drained.wait()
        except TimeoutError:
            self._logger.warning("stopped before it was drained")
        events = self.work.parts.events
        events.flush()
        events.gone("stopped")
        if self._server is not None:
            self._server.set_serving(False)
            await self._server.stop(0)
        await self._tasks.cancel_all()
        await self._executor.close()

    async def crash(self) -> None:
        """For simulations: its ports are cut already; drop all tasks, say nothing."""
        await self._tasks.cancel_all()

    # ------------------------------------------------------------ figures

    def figures(self) -> Mapping[str, float]:
        """A value for every name in `metrics`."""
        work, parts, engine = self.work, self.work.parts, self.engine
        load = work.load()
        totals, fetched = work.totals, parts.importer.totals
        return {
            "vllm:num_requests_running": load.num_running,
            "vllm:num_requests_waiting": load.num_waiting,
            "vllm:kv_cache_usage_perc": engine.num_used_blocks / parts.num_blocks,
            "banyan_worker_leases": len(parts.leases),
            "banyan_worker_fetching": work.num_fetching,
            "banyan_worker_retained_sequences": len(parts.streams.outbox),
            "banyan_worker_adapters": len(parts.adapters),
            "banyan_worker_draining": float(work.draining),
            "vllm:prompt_tokens": totals.num_prompt_tokens,
            "vllm:generation_tokens": totals.num_output_tokens,
            "vllm:prefix_cache_queries": engine.totals.num_queried_tokens,
            "vllm:prefix_cache_hits": engine.totals.num_hit_tokens,
            "vllm:num_preemptions": engine.totals.num_preemptions,
            "vllm:external_prefix_cache_queries": fetched.num_wanted_blocks * self._card.block_size,
            "vllm:external_prefix_cache_hits": fetched.num_fetched_blocks * self._card.block_size,
            "banyan_worker_steps": totals.num_steps,
            "banyan_worker_refused": totals.num_refused,
            "banyan_worker_pulls": fetched.num_pulls,
            "banyan_worker_failed_pulls": fetched.num_failed_pulls,
            "banyan_worker_fetched_blocks": fetched.num_fetched_blocks,
            "banyan_worker_fetched_bytes": fetched.transfer_bytes,
            "banyan_worker_exported_bytes": parts.exporter.transfer_bytes,
            "banyan_worker_rejected_pages": fetched.num_rejected_pages,
            "banyan_worker_exported_pages": parts.exporter.num_pages_sent,
            "banyan_worker_expired_leases": parts.leases.num_expired,
            "banyan_worker_offloaded_blocks": parts.offloader.num_stored_blocks,
            "banyan_worker_offload_dropped_blocks": parts.offloader.num_dropped_blocks,
            "banyan_worker_dropped_events": parts.events.num_dropped,
        }
