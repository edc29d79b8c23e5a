"""A process that tries grammars out for one that must not wait: `-m banyan_text.grammar_child`.

llguidance's limits do not bound every schema: a large `multipleOf` computes for seconds, hundreds
of `patternProperties` for minutes, with no way to stop a thread. A process can be stopped: this one
ends itself, by a timer of the kernel, when a grammar takes too much of its CPU time, and it may
take a bounded amount of memory. The time is CPU time, so that the verdict depends on the grammar
and not on what else the machine does.

A line in, a line out, JSON both: first the vocabulary, then grammars; answered by null, or by what
is wrong. It ends with its input, so it never outlives who started it by more than one grammar.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from banyan_core.types import Grammar, GrammarKind
from banyan_text.grammar import Grammars
from banyan_text.vocabulary import Spelling

COMPILE_CPU_S: Final = 2.0
OVERTIME_SIGNAL: Final = signal.SIGPROF
"""What ends the process when a grammar takes longer."""
_MEMORY_BYTES_MAX = 1536 * 1024 * 1024  # of address space: 512 MiB are the stack for references


def vocabulary_line(tokenizer: Spelling, end_token_ids: Sequence[int]) -> bytes:
    spelt = [tokenizer.token_bytes(each).decode("latin-1") for each in range(tokenizer.vocab_size)]
    return _line([spelt, dict(tokenizer.special_ids), list(end_token_ids)])


def grammar_line(grammar: Grammar) -> bytes:
    return _line([grammar.kind.value, grammar.text])


def main() -> None:
    _bound_process()
    source, target = sys.stdin.buffer, sys.stdout.buffer
    spelt, special_ids, end_token_ids = json.loads(source.readline())
    grammars = Grammars(_Spelt(spelt, special_ids), end_token_ids)
    target.write(_line(None))
    target.flush()
    for line in source:
        signal.setitimer(signal.ITIMER_PROF, COMPILE_CPU_S)
        reason = _refusal(grammars, line)
        signal.setitimer(signal.ITIMER_PROF, 0)
        target.write(_line(reason))
        target.flush()


class _Spelt:
    """`Spelling` from the list of the tokens' bytes. Without the model's own way to write a text
    the longest tokens that fit are taken; whether a grammar can be followed is the same."""

    def __init__(self, spelt: Sequence[str], special_ids: Mapping[str, int]) -> None:
        self._spelt = [each.encode("latin-1") for each in spelt]
        self.vocab_size = len(spelt)
        self.special_ids = special_ids

    def token_bytes(self, token_id: int) -> bytes:
        return self._spelt[token_id] if token_id < self.vocab_size else b""

    def encode(self, text: str, add_special: bool) -> list[int]:
        return []


def _refusal(grammars: Grammars, line: bytes) -> str | None:
    kind, text = json.loads(line)
    try:
        grammars.check(Grammar(GrammarKind(kind), text))
    except ValueError as error:
        return str(error)
    return None


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _bound_process() -> None:
    signal.signal(OVERTIME_SIGNAL, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(ValueError, OSError):  # macOS has no such limit; others may have a lower one
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES_MAX, _MEMORY_BYTES_MAX))


if __name__ == "__main__":
    main()
