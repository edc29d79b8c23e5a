"""`banyan generate`: a file of prompts, answered by a model in this process, without a mesh."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from banyan_cli.answers_file import AnswersFile
from banyan_cli.batch_line import Batch, Line, OpenLine, error_line, place, read_line
from banyan_cli.errors import CommandError
from banyan_gateway.errors import ApiError, invalid
from banyan_gateway.model_formats import FROM_TEMPLATE, ModelFormats, model_formats
from banyan_text.generation_defaults import read_generation_defaults
from banyan_worker.offline import LLM
from banyan_worker.offline_engine import OfflineAnswer, OfflineRequest

LINE_BYTES_MAX = 64 << 20


@dataclass(slots=True)
class Counts:
    """Of lines in this run, and of tokens written."""

    num_answered: int = 0
    num_failed: int = 0
    num_skipped: int = 0
    num_tokens: int = 0


def generate(source: Path, target: Path, model: Path, numerics: str, console: Console) -> int:
    """Answer every line of `source` that `target` does not answer yet.

    Returns the exit code: 1 when lines were bad or failed. Raises CommandError, SettingsError.
    """
    if not source.is_file():
        raise CommandError(f"--input {source}: expected a file of JSON lines.")
    if target.exists() and target.samefile(source):
        raise CommandError("--output is the input itself: name another file.")
    num_lines = sum(line != b"" for line in input_lines(source))
    with AnswersFile(target) as answers:
        started = time.monotonic()
        with _progress(console) as progress:
            task = progress.add_task("loading", total=num_lines)
            llm = LLM(model, numerics=numerics)
            progress.update(task, description="answering")
            formats = _formats(llm, model)
            run = _Run(source, answers, llm, formats, on_line=lambda: progress.advance(task))
            run.all()
    counts, elapsed_s = run.counts, time.monotonic() - started
    console.print(
        f"{counts.num_answered} answered, {counts.num_failed} failed, {counts.num_skipped} were "
        f"there already; {counts.num_tokens} tokens in {elapsed_s:.1f} s.",
        highlight=False,
    )
    return 1 if counts.num_failed else 0


def input_lines(source: Path) -> Iterator[bytes | None]:
    """Lines without their ends; b"" for an empty one, None for one that is too long to be read."""
    with source.open("rb") as file:
        while data := file.readline(LINE_BYTES_MAX):
            if len(data) < LINE_BYTES_MAX or data.endswith(b"\n"):
                yield data.strip()
                continue
            while (rest := file.readline(LINE_BYTES_MAX)) and not rest.endswith(b"\n"):
                pass
            yield None


def _formats(llm: LLM, folder: Path) -> ModelFormats:
    """As a gateway has them by itself."""
    found = model_formats(llm.tokenizer.template_source, "", FROM_TEMPLATE, FROM_TEMPLATE)
    return replace(found, defaults=read_generation_defaults(folder))


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console)


class _Run:
    """Lines are read as the engine takes them, and written as they end."""

    def __init__(
        self,
        source: Path,
        answers: AnswersFile,
        llm: LLM,
        formats: ModelFormats,
        on_line: Callable[[], object],
    ) -> None:
        self._source = source
        self._answers = answers
        self._llm = llm
        self._batch = Batch(llm.card, llm.tokenizer, formats)
        self._on_line = on_line
        self._open: dict[str, OpenLine] = {}
        self._seen: set[str] = set()
        self.counts = Counts()

    def all(self) -> None:
        for answer in self._llm.answers(self._requests()):
            self._take(answer)

    def _requests(self) -> Iterator[OfflineRequest]:
        for number, data in enumerate(input_lines(self._source), 1):
            if data == b"":
                continue
            opened = self._opened(data, number)
            if opened is None:
                self._on_line()
                continue
            for request in opened.offline_requests():
                self._open[request.request_id] = opened
                yield request

    def _opened(self, data: bytes | None, number: int) -> OpenLine | None:
        """None when there is nothing to compute: answered before, or wrong, which is written."""
        key = place(number)
        try:
            line = self._read(data, number)
            key = line.key
            if key in self._answers.keys:
                self.counts.num_skipped += 1
                return None
            return self._batch.open(line)
        except ApiError as error:
            if key in self._answers.keys:
                self.counts.num_skipped += 1
            else:
                self.counts.num_failed += 1
                self._answers.write(error_line(key, error))
            return None

    def _read(self, data: bytes | None, number: int) -> Line:
        if data is None:
            raise ApiError(400, f"the line is longer than {LINE_BYTES_MAX} bytes")
        line = read_line(data, number)
        if line.key in self._seen:
            raise invalid("custom_id", f"{line.key!r} is that of an earlier line")
        self._seen.add(line.key)
        return line

    def _take(self, answer: OfflineAnswer) -> None:
        opened = self._open.pop(answer.request_id)
        written = opened.take(answer)
        if written is None:
            return
        self._answers.write(written)
        self._on_line()
        if written["error"] is not None:
            self.counts.num_failed += 1
            return
        self.counts.num_answered += 1
        self.counts.num_tokens += written["response"]["body"]["usage"]["completion_tokens"]
