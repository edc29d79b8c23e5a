"""What waits to be written to the index, taken in as few writes as order allows.

Each block that a store takes, and each step of a worker, is an event of its own, and a write is a
script on the server and a round trip. What one holder added in a row is one write, whatever other
holders said in between: their keys have nothing in common.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from banyan_core.index_facts import AddBlocks, IndexCommand, RemoveBlocks

MAX_BLOCKS = 4096
"""Of one write: it holds up the index's server for as long as it takes."""


def take_run(waiting: deque[IndexCommand]) -> IndexCommand:
    """Take the first command, together with what follows of its kind and holder.

    The position is the last one's: all that came before it is contained. `waiting` is not empty.
    """
    first = waiting.popleft()
    if not isinstance(first, AddBlocks | RemoveBlocks):
        return first
    hashes = list(first.hashes)
    others: list[IndexCommand] = []
    at = first.at
    while waiting and len(hashes) < MAX_BLOCKS:
        command = waiting.popleft()
        if command.holder != first.holder:
            others.append(command)
        elif type(command) is type(first):
            hashes += command.hashes
            at = command.at
        else:
            others.append(command)
            break
    waiting.extendleft(reversed(others))
    return replace(first, at=at, hashes=tuple(hashes))
