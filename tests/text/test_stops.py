"""Streaming stop-string matching, judged by searching the whole text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banyan_text.stops import StopMatcher

SMALL_TEXT = st.text(alphabet="ab", max_size=30)
STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=5), max_size=4)


def cut_of_whole(text: str, stops: list[str], include: bool) -> tuple[str, bool]:
    """The slow, obvious version: the stop that ends first, the longest of those."""
    found = [(text.find(stop) + len(stop), -len(stop)) for stop in stops if stop in text]
    if not found:
        return text, False
    end, minus_length = min(found)
    return text[: end if include else end + minus_length], True


def pieces_of(text: str, sizes: list[int]) -> list[str]:
    pieces, start = [], 0
    for size in sizes:
        pieces.append(text[start : start + size])
        start += size
    return [*pieces, text[start:]]


@given(SMALL_TEXT, STOPS, st.booleans(), st.lists(st.integers(0, 4), max_size=20))
def test_equals_search_in_whole_text(
    text: str, stops: list[str], include: bool, sizes: list[int]
) -> None:
    matcher = StopMatcher(stops, include)
    sent = "".join(matcher.push(piece) for piece in pieces_of(text, sizes))
    sent += matcher.finish()
    assert (sent, matcher.matched is not None) == cut_of_whole(text, stops, include)


@given(SMALL_TEXT, STOPS)
def test_holds_back_exactly_what_could_begin_a_stop(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    seen = sent = ""
    for character in text:
        seen += character
        sent += matcher.push(character)
        if matcher.matched is not None:
            return
        held = max(
            (k for k in range(len(seen) + 1) for s in stops if k < len(s) and seen.endswith(s[:k])),
            default=0,
        )
        assert sent == seen[: len(seen) - held]


def test_nothing_comes_after_a_match() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.push("aEN") == "a"
    assert matcher.push("D more") == ""
    assert matcher.matched == "END"
    assert matcher.push("more") == ""
    assert matcher.finish() == ""


def test_unfulfilled_beginning_is_sent_at_the_end() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.push("aEN") == "a"
    assert matcher.finish() == "EN"


def test_empty_stop_is_refused() -> None:
    with pytest.raises(ValueError, match="stop"):
        StopMatcher(["a", ""])
