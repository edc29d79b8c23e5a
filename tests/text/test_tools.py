"""Tool calls in an answer: found however it is cut, and never lost when they are malformed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banyan_text.tools import FORMATS, CallArguments, CallBegin, Content, detect
from banyan_text.tools.call_reader import RAW_CHARS_MAX

SPELLINGS = {
    "hermes": '<tool_call>\n{{"name": "{0}", "arguments": {1}}}\n</tool_call>',
    "llama3": '{{"name": "{0}", "parameters": {1}}}',
    "mistral": '[TOOL_CALLS][{{"name": "{0}", "arguments": {1}}}]',
}
JOINTS = {"hermes": "\n", "llama3": "; "}
MISTRAL_NEW = "[TOOL_CALLS]{0}[ARGS]{1}"

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
CALLS = st.lists(
    st.tuples(st.from_regex(r"[a-z_.]{1,8}", fullmatch=True), st.dictionaries(st.text(), JSON)),
    min_size=1,
    max_size=3,
)
CUTS = st.lists(st.integers(0, 400), max_size=12)


def pieces(text: str, cuts: Sequence[int]) -> list[str]:
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    return [text[start:end] for start, end in pairwise(places)]


def read(name: str, parts: Sequence[str]) -> tuple[str, list[tuple[str, str]]]:
    """Content, and name and arguments of each call, put together again."""
    parser = FORMATS[name].parser()
    content, calls = "", list[tuple[str, str]]()
    for news in [*(each for part in parts for each in parser.push(part)), *parser.finish()]:
        match news:
            case Content():
                content += news.text
            case CallBegin():
                assert news.index == len(calls)
                calls.append((news.name, ""))
            case CallArguments():
                assert news.index == len(calls) - 1
                calls[-1] = (calls[-1][0], calls[-1][1] + news.text)
    return content, calls


def spelled(name: str, calls: Sequence[tuple[str, object]]) -> str:
    if name == "mistral":
        objects = [json.dumps({"name": tool, "arguments": value}) for tool, value in calls]
        return f"[TOOL_CALLS][{', '.join(objects)}]"
    texts = [SPELLINGS[name].format(tool, json.dumps(value)) for tool, value in calls]
    return JOINTS[name].join(texts)


@pytest.mark.parametrize("name", FORMATS)
@given(calls=CALLS, cuts=CUTS)
def test_calls_are_found_however_the_text_is_cut(
    name: str, calls: list[tuple[str, object]], cuts: list[int]
) -> None:
    content, found = read(name, pieces(spelled(name, calls), cuts))
    assert content == ""
    assert [(tool, json.loads(text)) for tool, text in found] == calls


@given(calls=CALLS, cuts=CUTS, between=st.sampled_from(["", "[CALL_ID]abcdefghi"]))
def test_mistrals_newer_spelling(
    calls: list[tuple[str, object]], cuts: list[int], between: str
) -> None:
    texts = [f"[TOOL_CALLS]{tool}{between}[ARGS]{json.dumps(value)}" for tool, value in calls]
    content, found = read("mistral", pieces("".join(texts), cuts))
    assert content == ""
    assert [(tool, json.loads(text)) for tool, text in found] == calls


@pytest.mark.parametrize("name", FORMATS)
@given(text=st.text(st.sampled_from('<tool_cal>/[]TOOLCS{}",:; nametgus\\\n|'), max_size=80))
def test_any_text_is_read_the_same_whole_and_by_characters(name: str, text: str) -> None:
    assert read(name, [text]) == read(name, list(text))


@pytest.mark.parametrize("name", FORMATS)
@given(text=st.text(max_size=60), cuts=CUTS)
def test_text_without_calls_is_content_to_the_last_blank(
    name: str, text: str, cuts: list[int]
) -> None:
    assert read(name, pieces(text, cuts)) == (text, [])


@pytest.mark.parametrize(
    "name, text",
    [
        ("hermes", "<tool_call>no call</tool_call>"),
        ("hermes", '<tool_call>{"arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": 3}</tool_call>'),
        ("hermes", "ends in the middle of <tool_"),
        ("hermes", '<tool_call>\n{"name": "cut of'),
        ("llama3", '{"answer": 42}'),
        ("llama3", '{"name": ["a"]}'),
        ("llama3", "{"),
        ("mistral", "[TOOL_CALLS]"),
        ("mistral", '[TOOL_CALLS][{"name": 1}]'),
        ("mistral", "[TOOL_CALLS] no { name\n"),
        ("mistral", "[TOOL_CALLS]" + 300 * "x"),
    ],
)
@given(cuts=CUTS)
def test_what_is_no_call_is_content(name: str, text: str, cuts: list[int]) -> None:
    content, calls = read(name, pieces(text, cuts))
    if not calls:
        assert content == text
    else:  # "no { name" does name a call, by mistral's rule
        assert name == "mistral" and "{" in text


def test_text_around_calls_stays_and_blanks_beside_them_go() -> None:
    text = 'Let me look.\n\n<tool_call>{"name": "f"}</tool_call>\n Done. '
    assert read("hermes", list(text)) == ("Let me look.Done. ", [("f", "{}")])


def test_arguments_leave_while_they_are_written() -> None:
    parser = FORMATS["hermes"].parser()
    assert parser.push('<tool_call>{"name": "f", "arguments": {"a": [1') == [
        CallBegin(0, "f"),
        CallArguments(0, '{"a": [1'),
    ]
    assert parser.push(", 2]}}</tool_call>") == [CallArguments(0, ", 2]}")]


def test_arguments_before_the_name_wait_for_it() -> None:
    text = '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>'
    assert read("hermes", list(text)) == ("", [("f", '{"a": 1}')])


@pytest.mark.parametrize("name", ["hermes", "llama3"])
def test_a_call_without_a_name_is_held_back_only_so_long(name: str) -> None:
    start = SPELLINGS[name].format("f", "{}").partition('"name"')[0]
    text = start + '"x": "' + "y" * (2 * RAW_CHARS_MAX)
    parser = FORMATS[name].parser()
    sent = "".join(news.text for news in parser.push(text) if isinstance(news, Content))
    assert sent == text


@pytest.mark.parametrize(
    "template, name",
    [
        ("... <tool_call></tool_call> ...", "hermes"),
        ("{{- '<|python_tag|>' + tool_call.name }}", "llama3"),
        ('{{ "[TOOL_CALLS][" }}', "mistral"),
        ("{{ messages }}", None),
    ],
)
def test_a_template_tells_its_format(template: str, name: str | None) -> None:
    assert detect(template) == name
