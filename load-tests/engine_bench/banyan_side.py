"""Our engine as a side: engine loop and torch runner, called directly. The only file here that
knows how they are called.

    python -m engine_bench.banyan_side FOLDER NUM_BLOCKS NUM_THREADS WEIGHTS STEP_TOKENS

WEIGHTS is their format: `auto` is what the engine chooses by itself, else `int8` or `int4`.
"""

from __future__ import annotations

import dataclasses
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from banyan_core.engine_loop import EngineLoop
from banyan_core.engine_messages import (
    Cancel,
    EngineFact,
    ImportDone,
    ImportReady,
    ImportWanted,
    Report,
    RunStep,
    StepDone,
    Submit,
)
from banyan_core.hashing import block_hashes
from banyan_core.model_spec import Quantize
from banyan_core.runner import Runner
from banyan_core.scheduler import EngineLimits
from banyan_core.types import Grammar, GrammarKind, SamplingParams, SequenceSpec
from banyan_engine.kernels.native import loader
from banyan_worker.runners import RunnerKind, load_runner
from engine_bench.serving import serve

BLOCK_SIZE = 16
DECODE_TOKENS = 1024
"""More than a sequence says while others open and the rounds run, so that none ends in between."""
HELPER_TIMEOUT_S = 300.0
SALT = b""
MIB = 1 << 20


@dataclasses.dataclass(slots=True)
class StepTimes:
    """One turn: the loop's own CPU, then the runner's time on the clock."""

    plan_s: float
    run_s: float


class Engine:
    """Sequences that stay open between questions, so that a context is made once."""

    def __init__(
        self, folder: Path, num_blocks: int, num_threads: int, weights: str, step_tokens: int
    ) -> None:
        loaded = load_runner(
            RunnerKind.TORCH,
            prefix="",
            folder=folder,
            name=None,
            numerics="fast",
            block_size=BLOCK_SIZE,
            kv_bytes=1,
            num_blocks=num_blocks,
            num_threads=num_threads,
            quantize=None if weights == "auto" else Quantize(weights),
        )
        self._runner, self._card = loaded.runner, loaded.card
        loader.wait(HELPER_TIMEOUT_S)
        limits = EngineLimits(max_step_tokens=step_tokens, max_running=64)
        self._engine = EngineLoop(self._card, num_blocks, limits)
        self._rng = random.Random(1)
        self._num_submitted = 0
        self._facts: list[EngineFact] = []
        self._reports: list[Report] = []
        self._decoding: dict[str, list[str]] = {}

    # ------------------------------------------------------------ questions

    def describe(self) -> dict[str, float | str]:
        """What a step reads: bytes of a parameter and of a token's KV."""
        num_bytes, num_params = count_weights(self._runner)
        token_bytes = self._card.kv_layout.token_bytes
        return {
            "param_bytes": num_bytes / num_params,
            "weight_bytes": num_bytes,
            "kv_token_bytes": token_bytes,
            "helper": loader.status,
            "kv_pool_bytes": token_bytes * BLOCK_SIZE * self._runner.num_blocks,
            "dtype": str(inside(self._runner)._model.dtype).rpartition(".")[2],
        }

    def decode(self, num_sequences: int, context: int, num_steps: int) -> dict[str, float]:
        """Median times of a decode step. The first call makes the contexts, the others go on."""
        key = f"{num_sequences}/{context}"
        if key not in self._decoding:
            self._stop_decoding()
            self._decoding[key] = [self._open_at(context) for _ in range(num_sequences)]
            for _ in range(2):
                self._turn()  # the turn that admits them, and one more to be warm
        times = [self._turn() for _ in range(num_steps)]
        assert all(len(report.sequences) == num_sequences for report in self._reports[-2:])
        self._reports.clear()
        return {"step_s": median(t.run_s for t in times), "plan_s": median(t.plan_s for t in times)}

    def first_token(self, num_tokens: int, again: bool = False) -> float:
        """Seconds to the first token of a prompt; with `again` that of the last call."""
        self._stop_decoding()
        if not again:
            self._prompt = self._random_prompt(num_tokens)
        began = time.perf_counter()
        self._submit(self._prompt, 1)
        self._until_idle()
        return time.perf_counter() - began

    def requests(self, lengths: Sequence[tuple[int, int]]) -> dict[str, float]:
        """Prompts and outputs of these lengths, all there at once: seconds until the last ended."""
        self._stop_decoding()
        prompts = [self._random_prompt(num_prompt) for num_prompt, _ in lengths]
        began = time.perf_counter()
        for prompt, (_, num_output) in zip(prompts, lengths, strict=True):
            self._submit(prompt, num_output)
        self._until_idle()
        return {"s": time.perf_counter() - began, "num_output": self._num_reported()}

    def greedy(self, token_ids: Sequence[int], num_tokens: int) -> list[int]:
        """To be compared with what others say of the same weights."""
        self._stop_decoding()
        self._submit(tuple(token_ids), num_tokens)
        self._until_idle()
        reports = [one for report in self._reports for one in report.sequences]
        self._reports.clear()
        return [token.token_id for one in reports for token in one.tokens]

    def answer(self, schema: str, num_tokens: int) -> float:
        """Median seconds of a step that decodes under a JSON schema; with "" free text."""
        self._stop_decoding()
        grammar = Grammar(GrammarKind.JSON_SCHEMA, schema) if schema else None
        sequence_id = self._submit(self._random_prompt(64), num_tokens, grammar=grammar)
        times = []
        while not self._engine.idle or self._facts:
            times.append(self._turn())
        num_tokens = self._num_reported(sequence_id)
        assert num_tokens > len(times) // 2, "the schema ended the text too early"
        return median(each.run_s for each in times[2:-1])

    def memory(self) -> dict[str, float]:
        """MB: the most that this process ever used."""
        return {"peak_mb": memory_mb("VmHWM")}

    # ------------------------------------------------------------ the loop

    def _turn(self) -> StepTimes:
        """One step of the loop and, if it wants one, of the runner."""
        facts, self._facts = self._facts, []
        began = time.thread_time()
        commands = self._engine.step(time.monotonic_ns(), facts).commands
        plan_s, run_s = time.thread_time() - began, 0.0
        for command in commands:
            match command:
                case Report():
                    self._reports.append(command)
                case ImportReady():
                    self._fill(command)
                case RunStep(plan):
                    started = time.perf_counter()
                    result = self._runner.run(plan, lambda layer: None)
                    run_s = time.perf_counter() - started
                    self._facts.append(StepDone(result, int(run_s * 1e9)))
        return StepTimes(plan_s, run_s)

    def _until_idle(self) -> None:
        while not self._engine.idle or self._facts:
            self._turn()

    def _num_reported(self, sequence_id: str = "") -> int:
        reports = [one for report in self._reports for one in report.sequences]
        failed = [one.error for one in reports if one.error]
        assert not failed, failed
        self._reports.clear()
        return sum(len(one.tokens) for one in reports if sequence_id in ("", one.sequence_id))

    def _random_prompt(self, num_tokens: int) -> tuple[int, ...]:
        return tuple(self._rng.choices(range(300, 1200), k=num_tokens))

    def _submit(
        self,
        prompt: tuple[int, ...],
        num_tokens: int,
        import_id: str = "",
        grammar: Grammar | None = None,
    ) -> str:
        self._num_submitted += 1
        sampling = SamplingParams(
            temperature=0.0, max_tokens=num_tokens, ignore_eos=grammar is None, grammar=grammar
        )
        spec = SequenceSpec(
            sequence_id=f"{self._num_submitted}/0/0",
            gateway_id="",
            gateway_epoch=0,
            card_digest=self._card.digest,
            prompt_token_ids=prompt,
            output_token_ids=(),
            sampling=sampling,
            salt=SALT,
        )
        self._facts.append(Submit(spec, hold=False, import_id=import_id))
        return spec.sequence_id

    def _open_at(self, context: int) -> str:
        """A sequence whose context was computed elsewhere: its blocks are filled, not computed."""
        prompt = self._random_prompt(context)
        hashes = block_hashes(prompt[:-1], BLOCK_SIZE, SALT)
        import_id = f"context-{self._num_submitted}"
        self._facts.append(ImportWanted(import_id, hashes))
        self._turn()
        self._facts.append(ImportDone(import_id, hashes))
        return self._submit(prompt, DECODE_TOKENS, import_id)

    def _fill(self, ready: ImportReady) -> None:
        """Every page is written: one that nobody wrote would be read from the cache."""
        for layer in range(self._card.kv_layout.num_layers):
            page = self._runner.export_page(ready.block_ids[0], layer)
            for block_id in ready.block_ids:
                self._runner.import_page(block_id, layer, page)

    def _stop_decoding(self) -> None:
        for ids in self._decoding.values():
            self._facts.append(Cancel(tuple(ids)))
        self._decoding.clear()
        self._until_idle()
        self._reports.clear()


def median(values: Iterator[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def inside(runner: Runner) -> Any:
    """Past its interface: nobody but a measurement asks a runner what its weights weigh."""
    return runner


def count_weights(runner: Runner) -> tuple[int, int]:
    """Bytes and parameters of all weights of products, in whatever format they are."""
    num_bytes = num_params = 0
    left, seen = [inside(runner)._model._weights], set()
    while left:
        thing = left.pop()
        if isinstance(thing, (tuple, list)):
            left += thing
        elif hasattr(thing, "num_bytes") and hasattr(thing, "shape"):
            if id(thing) not in seen:
                seen.add(id(thing))
                num_bytes += thing.num_bytes
                num_params += thing.shape.numel()
        elif dataclasses.is_dataclass(thing):
            left += [getattr(thing, each.name) for each in dataclasses.fields(thing)]
    return num_bytes, num_params


def memory_mb(key: str) -> float:
    """Of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise KeyError(key)


QUESTIONS = (
    "describe",
    "decode",
    "first_token",
    "requests",
    "greedy",
    "answer",
    "memory",
)


def main() -> None:
    folder, num_blocks, num_threads, weights, step_tokens = sys.argv[1:]
    engine = Engine(Path(folder), int(num_blocks), int(num_threads), weights, int(step_tokens))
    serve({name: getattr(engine, name) for name in QUESTIONS})


if __name__ == "__main__":
    main()
