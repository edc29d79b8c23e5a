"""The engine as a state machine: sequences and imports in, steps and reports out.

One step is outstanding at a time. When it comes back its tokens are committed, and the next plan
leaves in the same `step`, so the runner never waits for a second turn of the loop. As a rule it
does not wait at all: the next step was prepared while the last one ran (`step_ahead.py`), has begun
by itself, and the commit comes after. A cancel that arrives while its sequence is being computed
takes effect when that step ends: until then the runner still writes into its blocks.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

from banyan_core.block_desk import BlockDesk
from banyan_core.block_manager import BlockManager, FilledBlock
from banyan_core.engine_messages import (
    Cancel,
    DrainNow,
    EngineCommand,
    EngineFact,
    Held,
    Report,
    RunStep,
    StepBegun,
    StepDone,
    StepFailed,
    StepRuns,
    Submit,
)
from banyan_core.machine import Stepped
from banyan_core.rates import StepRates
from banyan_core.runner import PlanItem, StepPlan
from banyan_core.scheduler import EngineLimits, Scheduler, SchedulerTotals
from banyan_core.sequence import Sequence
from banyan_core.step_news import NO_TOKEN, News, report, take_sampled
from banyan_core.types import (
    BlockHash,
    Finish,
    ModelCard,
    SequenceReport,
    WorkerLoad,
)


class EngineLoop:
    """A `Machine[EngineFact, EngineCommand]` over one pool of blocks."""

    def __init__(self, card: ModelCard, num_blocks: int, limits: EngineLimits) -> None:
        self._card = card
        self._blocks = BlockManager(num_blocks, card.block_size)
        self._desk = BlockDesk(self._blocks)
        self._scheduler = Scheduler(self._blocks, limits)
        self._rates = StepRates()
        self._sequences: dict[str, Sequence] = {}
        self._plan: StepPlan | None = None
        self._asked_after = 0  # the step after which another may begin by itself
        self._num_steps = 0
        self._num_submitted = 0
        self._commands: list[EngineCommand] = []
        self._reports: list[SequenceReport] = []

    # ------------------------------------------------------------ what others may ask

    @property
    def idle(self) -> bool:
        """No sequence here and no step outstanding; leases may still hold blocks."""
        return not self._sequences and self._plan is None

    @property
    def num_used_blocks(self) -> int:
        return self._blocks.num_used

    @property
    def totals(self) -> SchedulerTotals:
        return self._scheduler.totals

    def lease_ids(self) -> tuple[str, ...]:
        """Leases, pins and imports that hold blocks now."""
        return self._blocks.pin_names()

    def is_held(self, lease_id: str) -> bool:
        """Whether blocks are held under this lease or pin."""
        return self._blocks.is_held(lease_id)

    def block_of(self, block_hash: BlockHash) -> int | None:
        """Where this content lies, if it is here."""
        return self._blocks.block_of(block_hash)

    def written_blocks(self, sequence_id: str, start: int, num_tokens: int = 1) -> list[int]:
        """The blocks that a step of this sequence's tokens from `start` on writes to, in order."""
        size, table = self._card.block_size, self._sequences[sequence_id].block_table
        return table[start // size : -(-(start + num_tokens) // size)]

    def num_prompt_tokens(self, item: PlanItem) -> int:
        """How many of this item's tokens are prompt."""
        num_left = self._sequences[item.sequence_id].num_prompt_tokens - item.start
        return min(len(item.token_ids), max(0, num_left))

    def cached_hashes(self) -> tuple[BlockHash, ...]:
        return self._blocks.hashes()

    def load(self, now: int) -> WorkerLoad:
        """The view that a router gets, without `draining` and `admitted`."""
        return WorkerLoad(
            num_waiting=len(self._scheduler.waiting),
            num_running=len(self._scheduler.running),
            num_free_blocks=self._blocks.num_available,
            num_waiting_tokens=sum(s.num_uncomputed for s in self._sequences.values()),
            prefill_tokens_per_s=self._rates.prefill_tokens_per_s,
            step_s=self._rates.step_s,
        )

    def check_invariants(self) -> None:
        """Raises AssertionError when counts, queues and blocks disagree."""
        self._blocks.check_invariants([s.block_table for s in self._sequences.values()])
        queued = [*self._scheduler.waiting, *self._scheduler.running]
        assert len(queued) == len(self._sequences)
        assert all(self._sequences[s.sequence_id] is s for s in queued)
        assert all(not s.block_table for s in self._scheduler.waiting)
        for sequence in self._scheduler.running:
            assert len(sequence.block_table) * self._card.block_size >= sequence.num_computed

    # ------------------------------------------------------------ the machine

    def step(self, now: int, facts: Seq[EngineFact]) -> Stepped[EngineCommand]:
        self._commands = []
        for fact in facts:
            self._take(now, fact)
        self._cancel_overdue(now)
        step_commands = self._step_commands(now)
        self._commands += self._desk.evicted()
        if self._reports:
            self._commands.append(Report(self._num_steps, tuple(self._reports)))
            self._reports = []
        self._commands += step_commands
        if self._plan is not None:
            self._num_steps = self._plan.number
        return Stepped(self._commands, self._next_wake())

    def _step_commands(self, now: int) -> list[EngineCommand]:
        """What runs next, or what may follow what runs."""
        if self._plan is None:
            self._plan = self._next_plan(now)
            return [] if self._plan is None else [RunStep(self._plan)]
        if self._asked_after != self._plan.number:
            return []
        self._asked_after = 0
        return [*self._scheduler.ahead.prepare(self._plan, self._card)]

    def _take(self, now: int, fact: EngineFact) -> None:
        match fact:
            case StepDone():
                self._step_done(now, fact)
            case StepFailed():
                self._step_failed(now, fact)
            case StepRuns():
                self._asked_after = fact.number
            case Submit():
                self._submit(now, fact)
            case Cancel():
                for sequence_id in fact.sequence_ids:
                    self._cancel(now, sequence_id)
            case DrainNow():
                for sequence in list(self._sequences.values()):
                    self._end_soon(now, sequence, Finish.DRAINED, "")
            case _:
                headroom = len(self._scheduler.running)
                self._commands += self._desk.take(fact, headroom)

    def _next_wake(self) -> int | None:
        deadlines = [s.deadline_ns for s in self._sequences.values() if s.ending is None]
        return min((d for d in deadlines if d is not None), default=None)

    # ------------------------------------------------------------ sequences come and go

    def _submit(self, now: int, fact: Submit) -> None:
        spec = fact.spec
        if spec.sequence_id in self._sequences:
            return
        self._num_submitted += 1
        sequence = Sequence(
            spec=spec,
            hold=fact.hold,
            arrival=self._num_submitted,
            submitted_ns=now,
            block_size=self._card.block_size,
            import_id=fact.import_id,
            fetch_ns=fact.fetch_ns,
            num_fetched_blocks=fact.num_fetched_blocks,
            num_rejected_pages=fact.num_rejected_pages,
        )
        sequence.num_max_tokens = min(sequence.num_max_tokens, self._card.context_tokens)
        self._sequences[spec.sequence_id] = sequence
        self._scheduler.add(sequence)
        self._commands += self._scheduler.ahead.revoke()
        finish = sequence.finish_now(self._card)
        if finish is not None:
            self._end(now, sequence, News((), finish))
        elif sequence.num_blocks_needed > self._blocks.num_blocks:
            self._end(now, sequence, News((), Finish.FAILED, self._too_long(sequence)))

    def _too_long(self, sequence: Sequence) -> str:
        return (
            f"{len(sequence.tokens)} tokens need {sequence.num_blocks_needed} KV blocks; "
            f"this worker has {self._blocks.num_blocks}"
        )

    def _cancel(self, now: int, sequence_id: str) -> None:
        sequence = self._sequences.get(sequence_id)
        if sequence is not None:
            self._end_soon(now, sequence, Finish.CANCELLED, "")
        else:
            self._blocks.release(sequence_id)  # it had ended and held its blocks

    def _cancel_overdue(self, now: int) -> None:
        for sequence in list(self._sequences.values()):
            deadline = sequence.deadline_ns
            if deadline is not None and now >= deadline and sequence.ending is None:
                self._end_soon(now, sequence, Finish.CANCELLED, "its deadline passed")

    def _end_soon(self, now: int, sequence: Sequence, finish: Finish, error: str) -> None:
        """End it now, or when the step that computes it is back."""
        in_step = self._plan is not None and any(
            item.sequence_id == sequence.sequence_id for item in self._plan.items
        )
        if not in_step:
            self._end(now, sequence, News((), finish, error))
        elif sequence.ending is None:
            sequence.ending = (finish, error)
            self._commands += self._scheduler.ahead.revoke()

    def _end(self, now: int, sequence: Sequence, news: News) -> None:
        """Take the sequence out, with its last tokens if it has some, and free its blocks."""
        del self._sequences[sequence.sequence_id]
        is_done = news.finish in (Finish.STOP, Finish.LENGTH)
        is_whole = is_done and not sequence.hold
        block_ids = self._scheduler.remove(sequence, is_whole=is_whole)
        if sequence.hold and is_done and block_ids:
            self._blocks.hold(sequence.sequence_id, block_ids)
            self._commands.append(Held(sequence.sequence_id, sequence.output_token_ids))
        else:
            self._blocks.give_back(block_ids)
        self._reports.append(report(now, sequence, news))

    # ------------------------------------------------------------ steps

    def _next_plan(self, now: int) -> StepPlan | None:
        planned = self._scheduler.plan(self._num_steps + 1)
        for sequence in planned.too_long:
            del self._sequences[sequence.sequence_id]
            news = News((), Finish.FAILED, self._too_long(sequence))
            self._reports.append(report(now, sequence, news))
        return planned.plan

    def _step_done(self, now: int, fact: StepDone) -> None:
        plan = self._finish_plan(fact.result.number)
        if fact.went_on:
            self._plan = self._scheduler.ahead.begun(fact.result)
            self._commands.append(StepBegun(self._plan))
        self._rates.observe(plan, fact.elapsed_ns)
        self._scheduler.observe(plan, fact.elapsed_ns)
        sampled = {one.sequence_id: one for one in fact.result.sampled}
        running_on = [] if self._plan is None else self._plan.items
        going_on = {item.sequence_id for item in running_on}
        filled: list[FilledBlock] = []
        news: list[tuple[Sequence, News]] = []
        for item in plan.items:
            sequence = self._sequences[item.sequence_id]
            num_computed = len(item.token_ids) - item.num_draft_tokens
            if sequence.ending is not None and item.sequence_id not in going_on:
                news.append((sequence, News((), *sequence.ending)))
            elif item.sample:
                result = sampled.get(item.sequence_id) or NO_TOKEN
                one = take_sampled(sequence, result, self._card)
                num_right = max(0, len(result.tokens) - 1)
                num_computed += min(len(one.tokens), num_right)
                self._scheduler.drafts.checked(item, num_right)
                news.append((sequence, one))
            filled += self._scheduler.commit(sequence, num_computed, fact.elapsed_ns)
        for item in running_on:
            self._scheduler.ahead.told(self._sequences[item.sequence_id])
        self._commands += self._desk.filled(filled)
        for sequence, one in news:
            if one.finish is not None:
                self._end(now, sequence, one)
            else:
                self._reports.append(report(now, sequence, one))

    def _step_failed(self, now: int, fact: StepFailed) -> None:
        plan = self._finish_plan(fact.number)
        self._scheduler.take_back(plan)
        for item in plan.items:
            sequence = self._sequences[item.sequence_id]
            finish, error = sequence.ending or (Finish.FAILED, fact.error)
            self._end(now, sequence, News((), finish, error))

    def _finish_plan(self, number: int) -> StepPlan:
        plan, self._plan = self._plan, None
        assert plan is not None and plan.number == number, f"step {number} is not outstanding"
        return plan
