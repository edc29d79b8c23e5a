"""Who waits to be placed, in order: class, then running answers, then due time, then arrival.

A ticket keeps its key for life, so whoever is sent back by a full worker stands where it stood.
Some step aside for a time (after a loss, or for the retry budget) without blocking those behind
them, and come back to their place.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from heapq import heappop, heappush

Name = tuple[str, int]
"""Request id and choice."""

Key = tuple[int, bool, int, int, int]


@dataclass(frozen=True, slots=True)
class Ticket:
    """One choice of a request that wants a worker. A lower `priority` is a better class.

    `due_ns` is the request's deadline, or, if that is earlier or there is none, the end of the wait
    that the queue promises at most: so those without a deadline do not starve within their class.
    `started`: its client has tokens already. `retry`: placing it again must be
    paid for out of the retry budget.
    """

    request_id: str
    choice: int
    priority: int
    due_ns: int
    number: int  # of its request's arrival
    num_tokens: int  # of its prompt
    started: bool = False
    retry: bool = False

    @property
    def key(self) -> Key:
        return (self.priority, not self.started, self.due_ns, self.number, self.choice)

    @property
    def name(self) -> Name:
        return (self.request_id, self.choice)


class WaitingLine:
    """Sorted tickets. Some thousands wait at most: a list's memmove beats any tree."""

    def __init__(self) -> None:
        self._ready: list[Key] = []
        self._tickets: dict[Key, Ticket] = {}
        self._keys: dict[Name, Key] = {}
        self._aside: list[tuple[int, Key]] = []  # a heap; entries that are not in force are skipped
        self._aside_until: dict[Key, int] = {}
        self.num_fresh = 0  # without `started`: those that the bounds are for
        self.num_fresh_tokens = 0

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, name: Name) -> bool:
        return name in self._keys

    def add(self, ticket: Ticket, not_before_ns: int = 0) -> None:
        """Take its place, at once or from an instant on; an earlier entry of its name ends."""
        self.remove(ticket.name)
        key = ticket.key
        self._keys[ticket.name] = key
        self._tickets[key] = ticket
        if not ticket.started:
            self.num_fresh += 1
            self.num_fresh_tokens += ticket.num_tokens
        if not_before_ns:
            self._aside_until[key] = not_before_ns
            heappush(self._aside, (not_before_ns, key))
        else:
            insort(self._ready, key)

    def remove(self, name: Name) -> None:
        """Nothing happens when it does not wait."""
        key = self._keys.pop(name, None)
        if key is None:
            return
        ticket = self._tickets.pop(key)
        if not ticket.started:
            self.num_fresh -= 1
            self.num_fresh_tokens -= ticket.num_tokens
        if self._aside_until.pop(key, None) is None:
            del self._ready[bisect_left(self._ready, key)]

    def come_back(self, now: int) -> None:
        """Those whose time aside is over stand in line again."""
        while self._aside and self._aside[0][0] <= now:
            until, key = heappop(self._aside)
            if self._aside_until.get(key) == until:
                del self._aside_until[key]
                insort(self._ready, key)

    def best(self) -> Ticket | None:
        """The first that stands in line."""
        return self._tickets[self._ready[0]] if self._ready else None

    def worst_fresh(self) -> Ticket | None:
        """The last whose client has no token yet."""
        ready = next((key for key in reversed(self._ready) if key[1]), None)
        aside = max((key for key in self._aside_until if key[1]), default=None)
        keys = [key for key in (ready, aside) if key is not None]
        return self._tickets[max(keys)] if keys else None

    def num_before(self, key: Key) -> int:
        """How many stand in line before this key."""
        return bisect_left(self._ready, key)

    def key_of(self, name: Name) -> Key | None:
        return self._keys.get(name)

    def next_return_ns(self) -> int | None:
        """When somebody comes back; at the latest, since entries out of force count too."""
        return self._aside[0][0] if self._aside else None
