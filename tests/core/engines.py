"""An engine loop with an echo runner, driven by hand: no clock, no tasks."""

from __future__ import annotations

from banyan_core.echo import ECHO_LAYOUT, EchoLatency, EchoRunner
from banyan_core.engine_loop import EngineLoop
from banyan_core.engine_messages import (
    EngineCommand,
    EngineFact,
    ImportDone,
    ImportReady,
    ImportWanted,
    Prepare,
    Report,
    Revoke,
    RunStep,
    StepBegun,
    StepDone,
    StepRuns,
    Submit,
)
from banyan_core.hashing import block_hashes, derive
from banyan_core.next_step import NextStep
from banyan_core.runner import StepPlan
from banyan_core.scheduler import EngineLimits
from banyan_core.types import (
    Finish,
    ModelCard,
    SamplingParams,
    SequenceFigures,
    SequenceReport,
    SequenceSpec,
)

BLOCK_SIZE = 4
END_TOKEN = 999
CONTEXT = 200
PROMPT = tuple(range(100, 121))


def card(context_tokens: int = CONTEXT) -> ModelCard:
    return ModelCard(
        name="echo",
        weights_digest=b"w" * 16,
        tokenizer_digest=b"t" * 16,
        context_tokens=context_tokens,
        end_token_ids=(END_TOKEN,),
        block_size=BLOCK_SIZE,
        kv_layout=ECHO_LAYOUT,
        numerics="deterministic",
    )


def spec(
    sequence_id: str,
    prompt: tuple[int, ...],
    *,
    output: tuple[int, ...] = (),
    sampling: SamplingParams | None = None,
    max_tokens: int = 8,
    priority: int = 0,
    remaining_ns: int = 0,
) -> SequenceSpec:
    return SequenceSpec(
        sequence_id=sequence_id,
        gateway_id="gateway",
        gateway_epoch=1,
        card_digest=card().digest,
        prompt_token_ids=prompt,
        output_token_ids=output,
        sampling=sampling or SamplingParams(temperature=0, max_tokens=max_tokens),
        salt=b"salt",
        priority=priority,
        remaining_ns=remaining_ns,
    )


def echoed(of: SequenceSpec) -> list[int]:
    """What an echo engine must say, worked out without any engine."""
    prompt, sampling = of.prompt_token_ids, of.sampling
    output = list(of.output_token_ids)
    while len(output) < sampling.max_tokens and len(prompt) + len(output) < CONTEXT:
        index = len(output)
        place = index if sampling.temperature == 0 else derive(sampling.seed, index)
        output.append(prompt[place % len(prompt)])
    return output[len(of.output_token_ids) :]


def hashes_of(prompt: tuple[int, ...]) -> tuple[bytes, ...]:
    return block_hashes(prompt, BLOCK_SIZE, b"salt")


class Bench:
    """One loop and its runner. `facts` go in, steps run at once, what came out is kept.

    With `goes_on` steps that were prepared begin by themselves, as they do in a worker: between
    `compute` and `hear` one may have begun that the loop does not know of.
    """

    def __init__(
        self, num_blocks: int = 64, limits: EngineLimits | None = None, *, goes_on: bool = True
    ) -> None:
        self.loop = EngineLoop(card(), num_blocks, limits or EngineLimits())
        self.runner = EchoRunner(num_blocks, BLOCK_SIZE, EchoLatency())
        self.goes_on = goes_on
        self.now = 0
        self.plan: StepPlan | None = None
        self.next_step: NextStep | None = None
        self.done: StepDone | None = None
        self.plans: list[StepPlan] = []
        self.commands: list[EngineCommand] = []
        self.tokens: dict[str, dict[int, int]] = {}
        self.finished: dict[str, SequenceReport] = {}
        self.stepped: dict[str, list[tuple[int, int]]] = {}
        self.wake: int | None = None

    @property
    def num_begun(self) -> int:
        """Steps that began by themselves."""
        return sum(isinstance(command, StepBegun) for command in self.commands)

    def feed(self, *facts: EngineFact) -> list[EngineCommand]:
        """One step of the loop; leaves the step that it starts outstanding."""
        commands, self.wake = self.loop.step(self.now, facts)
        self.commands += commands
        for command in commands:
            self._apply(command)
        self.loop.check_invariants()
        if self.goes_on and any(isinstance(one, RunStep | StepBegun) for one in commands):
            self.feed(StepRuns(self.plans[-1].number))
        return list(commands)

    def _apply(self, command: EngineCommand) -> None:
        match command:
            case RunStep():
                assert self.plan is None, "two steps outstanding"
                self.plan, self.next_step = command.plan, None
                self.plans.append(command.plan)
            case StepBegun():
                assert command.plan == self.plan, "the loop and the runner differ"
                self.plans.append(command.plan)
            case Prepare():
                self.next_step = command.next_step
            case Revoke():
                self.next_step = None
            case Report():
                for report in command.sequences:
                    self._note(report)

    def _note(self, report: SequenceReport) -> None:
        assert report.sequence_id not in self.finished, "news after the end"
        known = self.tokens.setdefault(report.sequence_id, {})
        for index, token in enumerate(report.tokens, report.first_index):
            assert index not in known, "a token was reported twice"
            known[index] = token.token_id
        if report.finish is not None:
            self.finished[report.sequence_id] = report

    def compute(self) -> None:
        """Run the outstanding step, and begin the one that was prepared; the loop is not told."""
        assert self.plan is not None and self.done is None
        for item in self.plan.items:
            span = (item.start, item.start + len(item.token_ids))
            self.stepped.setdefault(item.sequence_id, []).append(span)
        result = self.runner.run(self.plan, lambda layer: None)
        self.now += result.modelled_ns
        self.plan = None if self.next_step is None else self.next_step.plan(result)
        self.next_step = None
        self.done = StepDone(result, result.modelled_ns, self.plan is not None)

    def hear(self, *facts: EngineFact) -> list[EngineCommand]:
        """Tell the loop of the step that was computed, then `facts`."""
        assert self.done is not None
        done, self.done = self.done, None
        return self.feed(done, *facts)

    def finish_step(self, *facts: EngineFact) -> list[EngineCommand]:
        """Run the outstanding step; its result goes in before `facts`."""
        self.compute()
        return self.hear(*facts)

    def advance(self, *, hears: bool) -> None:
        """A step further, if there is one; unless it `hears` the loop learns of it next time."""
        if self.done is not None:
            self.hear()
        if self.plan is not None:
            self.compute()
            if hears:
                self.hear()

    def run(self, max_steps: int = 2000) -> None:
        if self.done is not None:
            self.hear()
        for _ in range(max_steps):
            if self.plan is None:
                return
            self.finish_step()
        raise AssertionError(f"still running after {max_steps} steps")

    def output(self, sequence_id: str) -> list[int]:
        known = self.tokens.get(sequence_id, {})
        return [known[index] for index in sorted(known)]

    def finish(self, sequence_id: str) -> Finish | None:
        return self.finished[sequence_id].finish

    def figures(self, sequence_id: str) -> SequenceFigures:
        figures = self.finished[sequence_id].figures
        assert figures is not None
        return figures


def imported(
    source: Bench, target: Bench, prompt: tuple[int, ...], num: int, import_id: str = "import"
) -> str:
    """Move the first `num` absent blocks of a prompt; what was reserved beyond is given back.

    Returns the import's id, empty when it was refused.
    """
    commands = target.feed(ImportWanted(import_id, hashes_of(prompt)))
    ready = next((one for one in commands if isinstance(one, ImportReady)), None)
    if ready is None:
        return ""
    for block_hash, block_id in zip(ready.hashes[:num], ready.block_ids[:num], strict=True):
        origin = source.loop.block_of(block_hash)
        assert origin is not None
        for layer in range(2):
            target.runner.import_page(block_id, layer, source.runner.export_page(origin, layer))
    target.feed(ImportDone(import_id, ready.hashes[:num]))
    return import_id


def engine_with(prompt: tuple[int, ...]) -> Bench:
    """An engine that holds the KV of this prompt."""
    bench = Bench()
    bench.feed(Submit(spec("p", prompt), hold=True))
    bench.run()
    return bench
