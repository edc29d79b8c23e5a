"""Grammars over a tokenizer's vocabulary: what the output's text may be, as masks of tokens.

The gateway has a grammar checked before it takes a request (in a `grammar_child`), the engine
follows it token by token; both do it here, with the same limits, so that
what was accepted can be served. llguidance compiles and steps; the vocabulary it gets is our own
spelling of tokens as bytes, which is the one that answers are detokenised with.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Final

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from banyan_core.types import Grammar, GrammarKind
from banyan_text.vocabulary import Spelling, Vocabulary

GRAMMAR_BYTES_MAX = 64 * 1024
_NUM_CACHED = 64
_STACK_BYTES = 512 * 1024 * 1024  # of address space; memory only as far as it is used
_STACK_LOCK = Lock()
_NUM_TRIED_TOKENS = 4
JSON_BLANKS = r"( |\n[ \t]{0,32})?"
"""Between the tokens of JSON: a blank, or a line break and its indentation. With more, a model that
likes blanks would hardly get further."""
# Fuel is work: about 50 a microsecond. An initial 300,000 is 50 ms at worst, and a schema of some
# thousand alternatives needs a tenth of it.
_LIMITS: Final = LLParserLimits(
    initial_lexer_fuel=300_000,
    step_lexer_fuel=100_000,
    max_items_in_row=5_000,  # 1,200 optional properties; a step then takes up to 10 ms
    max_lexer_states=50_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)


class GrammarState:
    """`banyan_core.masks.MaskState` over llguidance's matcher."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def is_finished(self) -> bool:
        return self._matcher.is_stopped()

    def fill(self, row: memoryview) -> None:
        """Raises ValueError when the grammar turns out to be too complex to go on."""
        mask = self._matcher.compute_bitmask()
        _raise_error(self._matcher)
        target = row.cast("B")
        target[:] = mask[: len(target)].ljust(len(target), b"\0")

    def advance(self, token_ids: Sequence[int]) -> bool:
        num_taken = self._matcher.try_consume_tokens(list(token_ids))
        if num_taken == len(token_ids):
            return True
        self.rollback(num_taken)
        return False

    def rollback(self, num_tokens: int) -> None:
        if num_tokens:
            self._matcher.rollback(num_tokens)


class Grammars:
    """`banyan_core.masks.MaskSource` for one tokenizer; may be called from several threads.

    A grammar may end with any of `end_token_ids`; without one it ends when nothing can follow.
    """

    def __init__(self, tokenizer: Spelling, end_token_ids: Sequence[int]) -> None:
        # An id past the vocabulary stands for an end that no model can draw.
        ends = list(end_token_ids) or [tokenizer.vocab_size]
        size = tokenizer.vocab_size + (not end_token_ids)
        vocabulary = Vocabulary(tokenizer, size, ends[0])
        self._tokenizer = LLTokenizer(vocabulary, n_vocab=size, eos_token=ends)  # type: ignore[arg-type]
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._lock = Lock()

    def open(self, grammar: Grammar, output_token_ids: Sequence[int]) -> GrammarState:
        """Raises ValueError, with what is wrong, when the grammar or the output is bad."""
        state = GrammarState(self._matcher(grammar).deep_copy())
        if not state.advance(output_token_ids):
            raise ValueError("the output so far does not follow the grammar")
        return state

    def check(self, grammar: Grammar) -> None:
        """Raises ValueError, with what is wrong, unless an output can begin."""
        self._matcher(grammar)

    def _matcher(self, grammar: Grammar) -> LLMatcher:
        with self._lock:
            if (known := self._compiled.get(grammar)) is not None:
                self._compiled.move_to_end(grammar)
                return known
        matcher = _on_a_deep_stack(lambda: self._compile(grammar))
        with self._lock:
            self._compiled[grammar] = matcher
            if len(self._compiled) > _NUM_CACHED:
                self._compiled.popitem(last=False)
        return matcher

    def _compile(self, grammar: Grammar) -> LLMatcher:
        check_size(grammar.text)
        source = _SOURCES[grammar.kind](grammar.text)
        matcher = LLMatcher(self._tokenizer, source, log_level=0, limits=_LIMITS)
        _raise_error(matcher)
        _try_out(matcher.deep_copy())
        return matcher


def _on_a_deep_stack(compile_: Callable[[], LLMatcher]) -> LLMatcher:
    """llguidance recurses along references: a usual stack ends, and the process with it, at a
    thousand of them. What fits in `GRAMMAR_BYTES_MAX` fits on this stack."""
    with _STACK_LOCK:
        before = threading.stack_size(_STACK_BYTES)
        try:
            pool = ThreadPoolExecutor(1, thread_name_prefix="grammar")
            compiling = pool.submit(compile_)  # starts the thread, with this stack
        finally:
            threading.stack_size(before)
    with pool:
        return compiling.result()


def choice_text(choices: Sequence[str]) -> str:
    """The text of a grammar of the kind CHOICE."""
    return json.dumps(list(choices), ensure_ascii=False)


def _choice(text: str) -> str:
    choices = json.loads(text)
    if not isinstance(choices, list) or not all(isinstance(each, str) for each in choices):
        raise ValueError("expected a JSON list of strings")
    if not choices or not all(choices):
        raise ValueError("expected at least one choice, and none of them empty")
    alternatives = " | ".join(json.dumps(each, ensure_ascii=False) for each in choices)
    return LLMatcher.grammar_from_lark(f"start: {alternatives}")


def _json_schema(text: str) -> str:
    return LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": JSON_BLANKS})


_SOURCES: Final[dict[GrammarKind, Callable[[str], str]]] = {
    GrammarKind.JSON_OBJECT: lambda _: _json_schema('{"type": "object"}'),
    GrammarKind.JSON_SCHEMA: _json_schema,
    GrammarKind.REGEX: LLMatcher.grammar_from_regex,
    GrammarKind.CHOICE: _choice,
    GrammarKind.LARK: LLMatcher.grammar_from_lark,
}


def _try_out(matcher: LLMatcher) -> None:
    """A few steps of an output. Some grammars are found to be too complex only by them."""
    for _ in range(_NUM_TRIED_TOKENS):
        mask = matcher.compute_bitmask()
        _raise_error(matcher)
        start = next((index for index, byte in enumerate(mask) if byte), None)
        if start is None:
            raise ValueError("no output can satisfy it")
        lowest_bit = mask[start] & -mask[start]
        matcher.consume_token(start * 8 + lowest_bit.bit_length() - 1)
        _raise_error(matcher)
        if matcher.is_stopped():
            return


def check_size(text: str) -> None:
    """Raises ValueError."""
    if len(text.encode()) > GRAMMAR_BYTES_MAX:
        raise ValueError(f"it is longer than {GRAMMAR_BYTES_MAX} bytes")


def _raise_error(matcher: LLMatcher) -> None:
    if matcher.is_error():
        reason = matcher.get_error().removesuffix("<non-verbose/>").strip()
        if not reason or reason.startswith("NoExtension"):
            reason = "no output can satisfy it"
        raise ValueError(reason[:500])
