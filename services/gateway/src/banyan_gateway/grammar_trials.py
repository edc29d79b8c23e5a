"""Whether a grammar can be followed, found out in a child process.

Compiling a client's grammar may take minutes and any amount of memory, so it is done where it can
be stopped, never in the process that serves streams. The child is started by the first new grammar
and stays; what it said is remembered, so a usual request costs a look into a table.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from signal import SIGKILL
from threading import Lock, Timer
from typing import Final

from banyan_core.types import Grammar
from banyan_gateway.errors import ApiError
from banyan_text.grammar import check_size
from banyan_text.grammar_child import (
    COMPILE_CPU_S,
    OVERTIME_SIGNAL,
    grammar_line,
    vocabulary_line,
)
from banyan_text.tokenizer import Tokenizer

TOO_SLOW: Final = f"it takes longer than {COMPILE_CPU_S:g} s to compile"
TOO_COMPLEX: Final = "it is too complex to compile"
_COMMAND = (sys.executable, "-P", "-m", "banyan_text.grammar_child")
_ANSWER_S_MAX = 20.0  # without its CPU time by then, the child is on an overloaded machine
_START_S_MAX = 20.0
_TURN_S_MAX = 5.0
_REASON_CHARS_MAX = 500
_NUM_KNOWN = 4096


class GrammarTrials:
    """For one tokenizer; may be called from several threads, which take turns at the child."""

    def __init__(self, tokenizer: Tokenizer, end_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._end_token_ids = end_token_ids
        self._known: OrderedDict[bytes, _Verdict] = OrderedDict()
        self._table = Lock()
        self._turn = Lock()
        self._child: _Child | None = None
        self._is_closed = False

    def refusal(self, grammar: Grammar) -> str | None:
        """What is wrong with it, or None. Raises ApiError when that cannot be found out now."""
        try:
            check_size(grammar.text)
        except ValueError as error:
            return str(error)
        name = hashlib.sha256(grammar_line(grammar)).digest()
        if (known := self._recalled(name)) is not None:
            return known.reason
        if not self._turn.acquire(timeout=_TURN_S_MAX):
            raise _busy("other grammars are being checked")
        try:
            verdict = self._recalled(name) or _Verdict(self._tried(grammar))
        finally:
            self._turn.release()
        self._remember(name, verdict)
        return verdict.reason

    async def close(self) -> None:
        self._is_closed = True
        if self._child is not None:
            self._child.end()

    def _recalled(self, name: bytes) -> _Verdict | None:
        with self._table:
            if (known := self._known.get(name)) is not None:
                self._known.move_to_end(name)
            return known

    def _remember(self, name: bytes, verdict: _Verdict) -> None:
        with self._table:
            self._known[name] = verdict
            if len(self._known) > _NUM_KNOWN:
                self._known.popitem(last=False)

    def _tried(self, grammar: Grammar) -> str | None:
        if self._is_closed:
            raise _busy("the gateway is stopping")
        if self._child is None or not self._child.is_alive:
            self._child = _started(vocabulary_line(self._tokenizer, self._end_token_ids))
        try:
            return self._child.ask(grammar_line(grammar), _ANSWER_S_MAX)
        except _ChildEndedError as error:
            self._child = None
            if error.signal == OVERTIME_SIGNAL:
                return TOO_SLOW
            if error.signal == SIGKILL:  # by our clock, or from outside
                raise _busy("checking the grammar took too long") from None
            return TOO_COMPLEX


@dataclass(frozen=True, slots=True)
class _Verdict:
    """`reason` is why it is refused, None when it is not."""

    reason: str | None


class _ChildEndedError(Exception):
    """`signal` is 0 when it ended in another way."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"signal {signal}")
        self.signal = signal


class _Child:
    def __init__(self) -> None:
        """Raises OSError. A session of its own: a Ctrl-C is for the gateway, which ends it."""
        pipe = subprocess.PIPE
        process = subprocess.Popen(_COMMAND, stdin=pipe, stdout=pipe, start_new_session=True)
        self._process = process
        self.end = weakref.finalize(self, _end, process)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, line: bytes, timeout_s: float) -> str | None:
        """Raises _ChildEndedError, at the latest after `timeout_s`."""
        source, target = self._process.stdout, self._process.stdin
        assert source is not None and target is not None
        timer = Timer(timeout_s, self._process.kill)
        timer.daemon = True
        timer.start()
        try:
            with suppress(BrokenPipeError):
                target.write(line)
                target.flush()
            answer = source.readline()
        finally:
            timer.cancel()
        if answer.endswith(b"\n"):
            reason = json.loads(answer)
            return None if reason is None else str(reason)[:_REASON_CHARS_MAX]
        self.end()
        raise _ChildEndedError(max(0, -self._process.wait()))


def _started(vocabulary: bytes) -> _Child:
    try:
        child = _Child()
        child.ask(vocabulary, _START_S_MAX)
    except (OSError, RuntimeError, _ChildEndedError) as error:  # no room for a process or a thread
        raise _busy(f"no process to check it in could be started ({error})") from None
    return child


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with suppress(BrokenPipeError):  # what was not written is lost on purpose
            pipe.close()


def _busy(why: str) -> ApiError:
    message = f"the grammar could not be checked: {why}"
    return ApiError(503, message, code="grammar_check_busy", retry_after_s=2.0)
