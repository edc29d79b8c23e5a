"""Reasoning is split off, however the text is cut, and only where an answer begins with it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banyan_text.reasoning import FORMATS, detect

WORDS = st.text(st.sampled_from("ab <th/ink>\n"), max_size=30)


def read(parts: list[str], tail: str = "") -> tuple[str, str]:
    parser = FORMATS["think"].parser(tail)
    splits = [*map(parser.push, parts), parser.finish()]
    return "".join(s.reasoning for s in splits), "".join(s.content for s in splits)


@pytest.mark.parametrize(
    "text, tail, reasoning, content",
    [
        ("<think>\nwhy\n</think>\n\nyes", "", "why", "yes"),
        (" <think>why </think>yes\n", "", "why", "yes\n"),
        ("why</think>yes", "assistant\n<think>\n", "why", "yes"),
        ("no <think>tag</think>", "", "", "no <think>tag</think>"),
        ("<think>never ends ", "", "never ends", ""),
        ("<think></think>yes", "", "", "yes"),
        ("<think>\n\n</think>\n\n", "", "", ""),
        ("  plain", "", "", "  plain"),
        ("<thin", "", "", "<thin"),
        ("<think>a </thi nk> b</think> c", "", "a </thi nk> b", "c"),
    ],
)
def test_parts(text: str, tail: str, reasoning: str, content: str) -> None:
    assert read([text], tail) == (reasoning, content)
    assert read(list(text), tail) == (reasoning, content)


@given(text=WORDS, tail=st.sampled_from(["", "<think>"]))
def test_any_text_is_read_the_same_whole_and_by_characters(text: str, tail: str) -> None:
    assert read([text], tail) == read(list(text), tail)


@given(text=WORDS)
def test_text_that_does_not_begin_with_the_tag_is_content(text: str) -> None:
    if not text.lstrip().startswith("<think>"):
        assert read(list(text)) == ("", text)


@pytest.mark.parametrize(
    "template, name",
    [("... </think> ...", "think"), ("[/THINK]", "mistral"), ("{{ messages }}", None)],
)
def test_a_template_tells_its_format(template: str, name: str | None) -> None:
    assert detect(template) == name
