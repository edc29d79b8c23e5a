"""What waits for the index is written in few writes, and in each holder's order."""

from __future__ import annotations

from collections import deque

from banyan_core.index_facts import (
    AddBlocks,
    DropHolder,
    IndexCommand,
    Position,
    RemoveBlocks,
)
from banyan_core.types import BlockHash
from banyan_kvstore.index_writes import MAX_BLOCKS, take_run


def block(number: int) -> BlockHash:
    return BlockHash(number.to_bytes(16, "big"))


def adds(holder: str, seq: int, *numbers: int) -> AddBlocks:
    return AddBlocks(holder, Position(1, seq), tuple(map(block, numbers)))


def removes(holder: str, seq: int, *numbers: int) -> RemoveBlocks:
    return RemoveBlocks(holder, Position(1, seq), tuple(map(block, numbers)))


def written(*commands: IndexCommand) -> list[IndexCommand]:
    waiting = deque(commands)
    taken = []
    while waiting:
        taken.append(take_run(waiting))
    return taken


def test_what_one_holder_adds_in_a_row_is_one_write_whatever_others_say_between() -> None:
    assert written(adds("a", 1, 1), adds("b", 7, 9), adds("a", 2, 2, 3), adds("b", 8, 8)) == [
        adds("a", 2, 1, 2, 3),
        adds("b", 8, 9, 8),
    ]


def test_nothing_of_a_holder_passes_what_it_did_before() -> None:
    commands: list[IndexCommand] = [adds("a", 1, 1), removes("a", 2, 1), adds("a", 3, 1)]
    commands.append(DropHolder("a"))
    assert written(*commands, adds("a", 4, 2)) == [*commands, adds("a", 4, 2)]


def test_a_write_is_bounded() -> None:
    commands = [adds("a", seq, seq) for seq in range(MAX_BLOCKS + 1)]
    first, rest = written(*commands)
    assert isinstance(first, AddBlocks) and len(first.hashes) == MAX_BLOCKS
    assert rest == commands[-1]
