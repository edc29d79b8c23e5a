"""Tags in a stream of text: where one is complete, and how much may yet become one."""

from __future__ import annotations


def split_at_tag(text: str, tag: str) -> tuple[str, str | None]:
    """The text before the first `tag` and the text behind it; None when it is not there."""
    before, found, behind = text.partition(tag)
    return before, behind if found else None


def num_held_chars(text: str, *tags: str) -> int:
    """How many of the last characters may be the beginning of a tag that is not complete yet."""
    longest = max(map(len, tags)) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(tag.startswith(text[-length:]) for tag in tags if len(tag) > length):
            return length
    return 0
