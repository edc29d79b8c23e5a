"""Grammars as masks: what comes out is valid, wherever it was taken up; bad ones are refused."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.text.test_tokenizers import byte_fallback, byte_level, write_folder
from tokenizers import Tokenizer as LibraryTokenizer

from banyan_core.types import Grammar, GrammarKind
from banyan_text.grammar import GRAMMAR_BYTES_MAX, Grammars, GrammarState, choice_text
from banyan_text.hf_tokenizer import HfTokenizer
from banyan_text.tokenizer import ByteTokenizer, Tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "ages": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["name", "ages", "kind"],
    "additionalProperties": False,
}
SCHEMA["properties"]["ages"]["maxItems"] = 3  # type: ignore[index]
END = 257  # of the byte tokenizer


def with_holes(folder: Path) -> Tokenizer:
    """Token ids past the tokenizer's: rows of the model for which there is no token."""
    return HfTokenizer(write_folder(folder, byte_level(), vocab_size=400))


def hugging_face(make: Callable[[], LibraryTokenizer]) -> Callable[[Path], Tokenizer]:
    return lambda folder: HfTokenizer(write_folder(folder, make()))


TOKENIZERS: dict[str, tuple[Callable[[Path], Tokenizer], tuple[int, ...]]] = {
    "bytes": (lambda _: ByteTokenizer(), (END,)),
    "bytes, no end": (lambda _: ByteTokenizer(), ()),
    "byte-level": (hugging_face(byte_level), (1,)),
    "byte fallback": (hugging_face(byte_fallback), (1,)),
    "holes": (with_holes, (1,)),
}
OPENABLE = [
    (GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA)),
    (GrammarKind.REGEX, "[a-c]{2,4}-hello"),
    (GrammarKind.CHOICE, choice_text(["yes", 'no "é"', "<|end|>"])),
    (GrammarKind.LARK, 'start: "a" (b | "hello")\nb: /[0-9]{3}/'),
]


def allowed(state: GrammarState, vocab_size: int) -> list[int]:
    row = memoryview(bytearray(-(-vocab_size // 32) * 4)).cast("I")
    state.fill(row)
    return [token for token in range(vocab_size) if row[token // 32] >> token % 32 & 1]


def generate(
    grammars: Grammars, grammar: Grammar, tokenizer: Tokenizer, ends: tuple[int, ...], seed: int
) -> list[int]:
    """A random output, as random weights would give it. Every token opens the state anew."""
    draw = random.Random(seed)
    output: list[int] = []
    state = grammars.open(grammar, ())
    for _ in range(400):
        tokens = allowed(state, tokenizer.vocab_size)
        assert tokens == allowed(grammars.open(grammar, output), tokenizer.vocab_size)
        token = draw.choice(tokens)
        assert state.advance([token])
        if token in ends:
            return output
        output.append(token)
        if state.is_finished:
            return output
    raise AssertionError("no end")


def is_valid(grammar: Grammar, text: str) -> bool:
    if grammar.kind is GrammarKind.JSON_SCHEMA:
        value = json.loads(text)
        return list(value) == ["name", "ages", "kind"] and all(0 <= n < 100 for n in value["ages"])
    if grammar.kind is GrammarKind.CHOICE:
        return text in json.loads(grammar.text)
    pattern = grammar.text if grammar.kind is GrammarKind.REGEX else "a([0-9]{3}|hello)"
    return bool(re.fullmatch(pattern, text))


@pytest.mark.parametrize("named", TOKENIZERS)
@pytest.mark.parametrize(("kind", "text"), OPENABLE)
def test_random_tokens_make_valid_text(
    named: str, kind: GrammarKind, text: str, tmp_path: Path
) -> None:
    make, ends = TOKENIZERS[named]
    tokenizer = make(tmp_path)
    grammars = Grammars(tokenizer, ends)
    grammar = Grammar(kind, text)
    for seed in range(5):
        output = generate(grammars, grammar, tokenizer, ends, seed)
        said = b"".join(map(tokenizer.token_bytes, output)).decode()
        assert is_valid(grammar, said), said


def test_any_object_is_a_json_object() -> None:
    grammars = Grammars(ByteTokenizer(), (END,))
    state = grammars.open(Grammar(GrammarKind.JSON_OBJECT), list(b'{"a": [1, {"b": null}]'))
    assert not state.is_finished and not state.advance(list(b"]"))
    assert state.advance(list(b"}")) and state.is_finished
    assert allowed(state, 261) == [END]
    with pytest.raises(ValueError, match="does not follow"):
        grammars.open(Grammar(GrammarKind.JSON_OBJECT), list(b"[1]"))


def test_what_was_taken_back_was_never_there() -> None:
    grammars = Grammars(ByteTokenizer(), (END,))
    grammar = Grammar(GrammarKind.REGEX, "ab(c|d)e")
    state = grammars.open(grammar, list(b"ab"))
    assert state.advance(list(b"ce")) and state.is_finished
    state.rollback(2)
    assert not state.is_finished and allowed(state, 261) == list(b"cd")
    assert not state.advance(list(b"dx"))  # none of them, not the first alone
    assert allowed(state, 261) == list(b"cd")


def test_special_tokens_are_never_text() -> None:
    grammars = Grammars(ByteTokenizer(), (END,))
    state = grammars.open(Grammar(GrammarKind.REGEX, "[^x]{1,9}"), ())
    assert max(allowed(state, 261)) < 256


BAD = [
    (GrammarKind.JSON_SCHEMA, '{"type": "objec"}', "Invalid type: objec"),
    (GrammarKind.JSON_SCHEMA, '{"$ref": "#/nowhere"}', "does not exist"),
    (GrammarKind.JSON_SCHEMA, '{"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/a"}}}', "no outp"),
    (GrammarKind.JSON_SCHEMA, '{"type":"integer","minimum":5,"maximum":1}', "Unsatisfiable"),
    (GrammarKind.JSON_SCHEMA, '{"type":"string","pattern":"(?=a)b"}', "look-ahead"),
    (GrammarKind.JSON_SCHEMA, '{"type":"object","if":{}}', "Unimplemented keys"),
    (GrammarKind.JSON_SCHEMA, "[1]", "object"),
    (GrammarKind.JSON_SCHEMA, '{"not":' * 500 + "{}" + "}" * 500, "recursion limit"),
    (GrammarKind.REGEX, "a(", "unclosed group"),
    (GrammarKind.REGEX, "(" * 30_000, "invalid regex"),
    (GrammarKind.LARK, "start: nowhere", "nowhere"),
    (GrammarKind.LARK, "start: " + "(" * 30_000, "too deeply nested"),
    (GrammarKind.LARK, "start: a\na: a", "no output"),
    (
        GrammarKind.LARK,
        "start: A0\n" + "".join(f"A{i}: A{i + 1} A{i + 1}\n" for i in range(30)) + 'A30: "x"',
        "too big",
    ),
    (
        GrammarKind.JSON_SCHEMA,
        json.dumps({"type": "object", "properties": {f"p{i}": {} for i in range(2000)}}),
        "max is 5000",
    ),
    (GrammarKind.CHOICE, "[]", "at least one choice"),
    (GrammarKind.CHOICE, '{"a": 1}', "JSON list"),
    (GrammarKind.REGEX, "a" * (GRAMMAR_BYTES_MAX + 1), "longer than"),
]


@pytest.mark.parametrize(("kind", "text", "reason"), BAD)
def test_a_bad_grammar_is_refused_with_its_reason(
    kind: GrammarKind, text: str, reason: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        Grammars(ByteTokenizer(), (END,)).check(Grammar(kind, text))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (GrammarKind.REGEX, "((a{1000}){1000}){1000}"),
        (GrammarKind.REGEX, "(a|b)*a(a|b){18}"),
        (GrammarKind.LARK, 'start: "a"' + ' | "b"' * 10_000),
        (
            GrammarKind.JSON_SCHEMA,
            json.dumps({"properties": {f"p{i}": {} for i in range(4000)}, "type": "object"}),
        ),
        (GrammarKind.JSON_SCHEMA, json.dumps({"enum": [f"value {i}" for i in range(4000)]})),
        (GrammarKind.JSON_SCHEMA, '{"type":"array","minItems":100000,"items":{"minLength":9999}}'),
    ],
)
def test_the_worst_grammars_take_bounded_time(kind: GrammarKind, text: str) -> None:
    started = time.process_time()
    grammars = Grammars(ByteTokenizer(), (END,))
    try:
        state = grammars.open(Grammar(kind, text), ())
        for _ in range(20):
            state.advance(allowed(state, 261)[:1])
    except ValueError:
        pass
    assert time.process_time() - started < 5  # 0.7 s on a quiet machine


@pytest.mark.parametrize(
    "text", ['{"a": [1, 2]}', '{"a":[1,2]}', '{\n  "a": [\n    1,\n    2\n  ]\n}']
)
def test_usual_layouts_of_json_are_allowed(text: str) -> None:
    grammars = Grammars(ByteTokenizer(), (END,))
    assert grammars.open(Grammar(GrammarKind.JSON_OBJECT), list(text.encode())).is_finished


def test_a_model_cannot_stay_between_two_tokens_of_json() -> None:
    grammars = Grammars(ByteTokenizer(), (END,))
    state = grammars.open(Grammar(GrammarKind.JSON_OBJECT), list(b'{"a" '))
    assert allowed(state, 261) == [ord(":")]
    with pytest.raises(ValueError, match="does not follow"):
        grammars.open(Grammar(GrammarKind.JSON_OBJECT), list(b'{"a":\n' + b" " * 33))


def test_a_thousand_optional_properties_are_not_too_many() -> None:
    schema = {"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(1000)}}
    grammar = Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema))
    text = b'{"p3": null, "p999": null}'
    assert Grammars(ByteTokenizer(), (END,)).open(grammar, list(text)).is_finished


def test_a_tokenizer_that_cannot_spell_the_text_is_an_error_of_that_request() -> None:
    class NoZ(ByteTokenizer):
        def token_bytes(self, token_id: int) -> bytes:
            return b"" if token_id == ord("z") else super().token_bytes(token_id)

    grammars = Grammars(NoZ(), (END,))
    with pytest.raises(ValueError, match="no output"):
        grammars.check(Grammar(GrammarKind.REGEX, "az"))
    assert allowed(grammars.open(Grammar(GrammarKind.REGEX, "(z|y)q"), ()), 261) == [ord("y")]


def test_compiled_grammars_are_bounded_and_reused() -> None:
    grammars = Grammars(ByteTokenizer(), (END,))
    for index in range(200):
        grammars.check(Grammar(GrammarKind.CHOICE, choice_text([f"a{index}"])))
    assert allowed(grammars.open(Grammar(GrammarKind.CHOICE, choice_text(["a3"])), ()), 261)


def test_a_long_chain_of_references_does_not_end_the_process() -> None:
    grammars = Grammars(ByteTokenizer(), (END,))
    rules = "\n".join(f"A{index}: A{index + 1}" for index in range(4500))
    state = grammars.open(Grammar(GrammarKind.LARK, f'start: A0\n{rules}\nA4500: "x"'), ())
    assert allowed(state, 261) == [ord("x")]
    link = '"a{}":{{"properties":{{"x":{{"$ref":"#/$defs/a{}"}}}}}}'
    links = ",".join(link.format(index, index + 1) for index in range(1200))
    schema = f'{{"$defs":{{{links},"a1200":{{}}}},"$ref":"#/$defs/a0"}}'
    grammars.check(Grammar(GrammarKind.JSON_SCHEMA, schema))
