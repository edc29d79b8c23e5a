"""The sequences of one worker, from admission to their end, and all that follows from a step.

This is where the parts meet: a sequence is admitted, its KV is fetched, the engine runs it, and
what the engine says goes to the token streams, the pulls, the store and the bus.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from banyan_core.admission import AdmissionView, refuse
from banyan_core.engine_messages import (
    BlocksEvicted,
    BlocksFilled,
    Cancel,
    DrainNow,
    EngineCommand,
    Held,
    Release,
    Report,
)
from banyan_core.hashing import block_hashes
from banyan_core.next_step import NextStep
from banyan_core.runner import StepPlan
from banyan_core.types import (
    NS_PER_S,
    Finish,
    LeasedKv,
    Refusal,
    SequenceReport,
    SequenceSpec,
    WorkerLoad,
)
from banyan_runtime.clock import Clock
from banyan_runtime.lifespan import Tasks
from banyan_runtime.rpc import RpcError
from banyan_runtime.trace_context import in_trace
from banyan_worker.adapter_pool import AdapterError
from banyan_worker.importer import Onboarded
from banyan_worker.parts import Parts
from banyan_worker.sequence_traces import SequenceTraces
from banyan_worker.submission import submission
from banyan_worker.work_totals import WorkTotals


@dataclass(frozen=True, slots=True)
class _Fetching:
    spec: SequenceSpec
    num_tokens: int  # to compute here: none of a prompt that is prefilled elsewhere
    task: asyncio.Task[None]


class Work:
    """A `StepListener`. `parts` are complete before the first call."""

    def __init__(
        self, clock: Clock, tasks: Tasks, logger: logging.Logger, traces: SequenceTraces
    ) -> None:
        self._traces = traces
        self._clock = clock
        self._tasks = tasks
        self._logger = logger
        self._fetching: dict[str, _Fetching] = {}
        self._entering: dict[str, int] = {}  # given to the engine in this turn: their tokens
        self.parts: Parts
        self.draining = False
        self.totals = WorkTotals()

    @property
    def idle(self) -> bool:
        """Nothing runs and nobody may still pull."""
        at_rest = self.parts.steps.engine.idle and not len(self.parts.leases)
        return at_rest and not self._fetching and not self._entering

    @property
    def num_fetching(self) -> int:
        return len(self._fetching)

    def load(self) -> WorkerLoad:
        """The engine's load, what waits for its KV, and what the engine has not looked at yet."""
        load = self.parts.steps.engine.load(self._clock.now_ns())
        fetching = sum(entry.num_tokens for entry in self._fetching.values())
        return replace(
            load,
            num_waiting=load.num_waiting + len(self._fetching) + len(self._entering),
            num_waiting_tokens=load.num_waiting_tokens + fetching + sum(self._entering.values()),
            draining=self.draining,
        )

    # ------------------------------------------------------------ admission

    async def missing(self, spec: SequenceSpec) -> Refusal | None:
        """To be asked before admission: what this worker would have to have, and has not."""
        refusal = await self.parts.adapters.missing(spec.adapter)
        self.totals.num_refused += refusal is not None
        return refusal

    def admit_prefill(
        self, spec: SequenceSpec, lease_ns: int, skip_store: bool = False
    ) -> Refusal | None:
        """Compute, sample one token, keep the blocks for `lease_ns`. None is a yes."""
        if spec.sequence_id in self.parts.streams.outbox:
            return None  # said twice
        refusal = self._admit(spec)
        if refusal is None:
            tokens = (*spec.prompt_token_ids, *spec.output_token_ids)
            hashes = block_hashes(tokens, self.parts.card.block_size, spec.salt)
            self.parts.leases.ask(spec.sequence_id, lease_ns)
            self.parts.exporter.expect(spec.sequence_id, hashes)
            with in_trace(self._traces.admitted(spec, "prefill")):
                self._onboard(spec, None, skip_store, hold=True)
        return refusal

    def admit_decode(
        self, spec: SequenceSpec, source: LeasedKv | None, skip_store: bool = False
    ) -> Refusal | None:
        """Run to the end, with the KV of `source` if it can be had. None is a yes."""
        if spec.sequence_id in self.parts.streams.outbox:
            return None
        refusal = self._admit(spec, prefilled_elsewhere=source is not None)
        if refusal is None:
            with in_trace(self._traces.admitted(spec, "decode")):
                self._onboard(spec, source, skip_store, hold=False)
        return refusal

    def _admit(self, spec: SequenceSpec, *, prefilled_elsewhere: bool = False) -> Refusal | None:
        parts, load = self.parts, self.load()
        num_awaiting = sum(not entry.num_tokens for entry in self._fetching.values())
        view = AdmissionView(parts.card, parts.num_blocks, parts.options.limits, load, num_awaiting)
        refusal = refuse(spec, view, prefilled_elsewhere=prefilled_elsewhere)
        refusal = refusal or parts.adapters.claim(spec)
        if refusal is not None:
            self.totals.num_refused += 1
            return refusal
        try:
            parts.streams.open(spec)
        except RpcError:
            parts.adapters.release(spec.sequence_id)
            raise
        parts.board.admitted(spec.sequence_id)
        return None

    def _onboard(
        self, spec: SequenceSpec, source: LeasedKv | None, skip_store: bool, hold: bool
    ) -> None:
        if source is None and skip_store and self.parts.adapters.is_ready(spec.adapter):
            self._submit(spec, Onboarded(""), hold)
            return
        task = self._tasks.spawn_brief("onboard", self._fetch_and_submit(spec, source, hold))
        num_tokens = len(spec.prompt_token_ids) if source is None else 0
        self._fetching[spec.sequence_id] = _Fetching(spec, num_tokens, task)

    async def _fetch_and_submit(
        self, spec: SequenceSpec, source: LeasedKv | None, hold: bool
    ) -> None:
        remaining_s = spec.remaining_ns / NS_PER_S if spec.remaining_ns else None
        started_ns = self._clock.now_ns()
        try:
            async with asyncio.timeout(remaining_s):
                await self.parts.adapters.load(spec.adapter)
                onboarded = await self._fetch(spec, source)
        except (TimeoutError, AdapterError) as error:
            is_late = isinstance(error, TimeoutError)
            finish = Finish.CANCELLED if is_late else Finish.FAILED
            self._end_unsubmitted(spec, finish, "its deadline passed" if is_late else str(error))
            return
        finally:
            self._fetching.pop(spec.sequence_id, None)
        if spec.remaining_ns:
            left_ns = spec.remaining_ns - (self._clock.now_ns() - started_ns)
            spec = replace(spec, remaining_ns=max(1, left_ns))
        self._submit(spec, onboarded, hold)

    async def _fetch(self, spec: SequenceSpec, source: LeasedKv | None) -> Onboarded:
        try:
            onboarding = self.parts.importer.onboard(spec, source, self.parts.steps)
            return await self._traces.fetched(source, onboarding)
        except Exception:  # the guard around what came over the wire: the sequence must go on
            which = {"request_id": spec.request_id, "sequence_id": spec.sequence_id}
            self._logger.exception("onboarding failed", extra=which)
            return Onboarded("")

    def _submit(self, spec: SequenceSpec, onboarded: Onboarded, hold: bool) -> None:
        submit, report = submission(spec, onboarded, hold)
        if report is not None:
            self.parts.streams.add(0, [report])
        self._entering[spec.sequence_id] = len(spec.prompt_token_ids)
        self.parts.steps.feed(submit)
        asyncio.get_running_loop().call_soon(self._entering.pop, spec.sequence_id, None)

    # ------------------------------------------------------------ ends

    def cancel(self, sequence_ids: Sequence[str]) -> None:
        """Stop working on these within one step; unknown ids are ignored."""
        for sequence_id in sequence_ids:
            entry = self._fetching.pop(sequence_id, None)
            if entry is not None:
                entry.task.cancel()
                self._end_unsubmitted(entry.spec, Finish.CANCELLED, "")
        if sequence_ids:
            self.parts.steps.feed(Cancel(tuple(sequence_ids)))
            self.parts.leases.release(sequence_ids)

    def release(self, lease_ids: Sequence[str]) -> int:
        return self.parts.leases.release(lease_ids)

    def lease_ended(self, lease_id: str) -> None:
        self.parts.exporter.end(lease_id)
        self.parts.steps.feed(Release((lease_id,)))

    def drain_now(self) -> None:
        """End everything as drained, so that it goes on elsewhere."""
        entries, self._fetching = self._fetching, {}
        for entry in entries.values():
            entry.task.cancel()
            self._end_unsubmitted(entry.spec, Finish.DRAINED, "")
        self.parts.steps.feed(DrainNow())

    def _end_unsubmitted(self, spec: SequenceSpec, finish: Finish, error: str) -> None:
        index = len(spec.output_token_ids)
        self._ended(SequenceReport(spec.sequence_id, index, (), finish, error))

    def _ended(self, report: SequenceReport) -> None:
        """The end of a sequence that the engine does not hold blocks for."""
        self._traces.ended(report)
        self.parts.adapters.release(report.sequence_id)
        self.parts.streams.add(0, [report])
        self._drop_lease(report.sequence_id)

    def _drop_lease(self, sequence_id: str) -> None:
        self.parts.exporter.end(sequence_id)
        self.parts.leases.forget(sequence_id)

    # ------------------------------------------------------------ what steps bring

    def step_started(self, plan: StepPlan) -> None:
        engine = self.parts.steps.engine
        self.parts.exporter.step_started()
        self.totals.num_steps += 1
        for item in plan.items:
            block_ids = engine.written_blocks(item.sequence_id, item.start, len(item.token_ids))
            self.parts.pages.written(block_ids)
            self.parts.exporter.written(item, block_ids)
            self.totals.num_prompt_tokens += engine.num_prompt_tokens(item)

    def step_prepared(self, next_step: NextStep) -> None:
        engine = self.parts.steps.engine
        for item in next_step.items:
            self.parts.pages.written(engine.written_blocks(item.sequence_id, item.start))

    def step_begun(self) -> None:
        self.parts.exporter.step_started()  # of prefills nobody has a part in it
        self.totals.num_steps += 1

    def layer_done(self, layer: int) -> None:
        self.parts.exporter.layer_done(layer)

    def step_ended(self) -> None:
        self.parts.exporter.step_ended()

    def on_command(self, command: EngineCommand) -> None:
        parts = self.parts
        match command:
            case Report():
                self._on_report(command)
            case Held():
                self._on_held(command)
            case BlocksFilled():
                parts.pages.blocks_filled(command.hashes, command.block_ids)
                parts.events.blocks_filled(command.hashes)
                if not command.imported:
                    parts.offloader.blocks_filled(command.hashes)
            case BlocksEvicted():
                parts.pages.blocks_evicted(command.hashes)
                parts.events.blocks_evicted(command.hashes)
            case _:
                raise AssertionError(f"{type(command).__name__} is the step loop's own")

    def _on_held(self, command: Held) -> None:
        if self.parts.steps.engine.is_held(command.lease_id):
            self.parts.exporter.held(command.lease_id, command.output_token_ids)
            self.parts.leases.grant(command.lease_id)
        else:
            self._drop_lease(command.lease_id)  # cancelled in the very step that completed it

    def _on_report(self, command: Report) -> None:
        self.parts.streams.add(command.step, command.sequences)
        for report in command.sequences:
            self.totals.num_output_tokens += len(report.tokens)
            if report.finish is not None:
                self._traces.ended(report)
                self.parts.adapters.release(report.sequence_id)
                if not self.parts.exporter.is_held(report.sequence_id):
                    self._drop_lease(report.sequence_id)
        self.parts.board.changed()
