"""Stop strings in a stream: nothing of a stop string, or behind it, is ever sent.

Text that could still turn out to be the beginning of a stop string is held back. One
Knuth-Morris-Pratt automaton per stop string knows at each character how much that is, so the cost
per character does not depend on the stop strings' length, and the result not on how the text was
cut into pieces.
"""

from __future__ import annotations

from collections.abc import Sequence


class _Automaton:
    """How many characters of one stop string the text so far ends with."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.num_matched = 0
        self._fallback = [0] * len(stop)
        length = 0
        for index in range(1, len(stop)):
            while length and stop[index] != stop[length]:
                length = self._fallback[length - 1]
            length += stop[index] == stop[length]
            self._fallback[index] = length

    def feed(self, character: str) -> bool:
        """Take one character; True when the whole stop string has just been seen."""
        while self.num_matched and character != self.stop[self.num_matched]:
            self.num_matched = self._fallback[self.num_matched - 1]
        self.num_matched += character == self.stop[self.num_matched]
        return self.num_matched == len(self.stop)


class StopMatcher:
    """Cuts one choice's text at the stop string that is complete first.

    Of several that end at the same character, the longest counts. With `include` the stop string
    itself is sent too. Raises ValueError for an empty stop string.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        if any(not stop for stop in stops):
            raise ValueError("stop: a stop string must not be empty")
        self._automata = [_Automaton(stop) for stop in stops]
        self._include = include
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Take the next text; what may be sent now. After a match this is always empty."""
        if self.matched is not None:
            return ""
        if not self._automata:
            return text
        for index, character in enumerate(text):
            complete = [each.stop for each in self._automata if each.feed(character)]
            if complete:
                return self._cut(text[: index + 1], max(complete, key=len))
        whole = self._held + text
        num_free = len(whole) - max(each.num_matched for each in self._automata)
        self._held = whole[num_free:]
        return whole[:num_free]

    def finish(self) -> str:
        """The text ends here: what was held back is no stop string after all."""
        held, self._held = self._held, ""
        return held

    def _cut(self, text: str, stop: str) -> str:
        whole = self._held + text
        self.matched, self._held = stop, ""
        return whole if self._include else whole[: len(whole) - len(stop)]
