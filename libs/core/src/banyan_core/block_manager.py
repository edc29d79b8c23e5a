"""Who owns each KV block: bookkeeping over ids and hashes, no tensors.

A block is *used* while anything refers to it (a sequence's block table, a lease, an export's pin,
an import), *cached* when nothing does but its content has a hash, else *free*. Allocation takes
free blocks first, then the cached block that has been idle for longest. A cached or used block
whose hash is known may be shared by any number of sequences: full blocks are never written again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from banyan_core.types import BlockHash


class FilledBlock(NamedTuple):
    """A block whose content has an address."""

    block_hash: BlockHash
    block_id: int


@dataclass(slots=True)
class _Import:
    kept: list[int]
    reserved: dict[BlockHash, int] = field(default_factory=dict)


class BlockManager:
    """`num_blocks` blocks of `block_size` tokens. Hash chains come from the sequences."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"a pool of {num_blocks} blocks of {block_size} tokens is empty")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._num_refs = [0] * num_blocks
        self._hash_of: list[BlockHash | None] = [None] * num_blocks
        self._by_hash: dict[BlockHash, int] = {}
        self._free = list(range(num_blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._imports: dict[str, _Import] = {}
        self._pins: dict[str, list[int]] = {}
        self._evicted: list[BlockHash] = []

    # ------------------------------------------------------------ figures

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_available(self) -> int:
        """Free ones, and those with known content that nothing refers to."""
        return len(self._free) + len(self._idle)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_available

    def is_held(self, name: str) -> bool:
        return name in self._pins

    def is_written_by_one(self, block_id: int) -> bool:
        """Whether one sequence alone has it and its content has no address."""
        return self._num_refs[block_id] == 1 and self._hash_of[block_id] is None

    def pin_names(self) -> tuple[str, ...]:
        """Leases, export pins and imports that hold blocks now."""
        return (*self._pins, *self._imports)

    def hashes(self) -> tuple[BlockHash, ...]:
        """Every block address that is here, oldest first."""
        return tuple(self._by_hash)

    # ------------------------------------------------------------ content

    def block_of(self, block_hash: BlockHash) -> int | None:
        return self._by_hash.get(block_hash)

    def match(self, hashes: Sequence[BlockHash]) -> list[int]:
        """Block ids of the longest run of `hashes`, from the first on, that is here."""
        found: list[int] = []
        for block_hash in hashes:
            block_id = self._by_hash.get(block_hash)
            if block_id is None:
                break
            found.append(block_id)
        return found

    def fill(self, block_id: int, block_hash: BlockHash) -> bool:
        """A used block is full now. False when equal content is already known elsewhere.

        The copy then stays private to its owner and becomes free when given back.
        """
        if block_hash in self._by_hash or self._hash_of[block_id] is not None:
            return False
        self._hash_of[block_id] = block_hash
        self._by_hash[block_hash] = block_id
        return True

    def take_evicted(self) -> tuple[BlockHash, ...]:
        """Hashes that were dropped since the last call."""
        evicted, self._evicted = tuple(self._evicted), []
        return evicted

    # ------------------------------------------------------------ references

    def take(self, block_ids: Iterable[int]) -> None:
        """One more reference to each of these known blocks."""
        for block_id in block_ids:
            if self._num_refs[block_id] == 0:
                del self._idle[block_id]
            self._num_refs[block_id] += 1

    def allocate(self, num: int) -> list[int] | None:
        """`num` blocks with one reference each and no content; None when there are too few."""
        if num > self.num_available:
            return None
        return [self._allocate_one() for _ in range(num)]

    def extend(self, block_table: list[int], num_tokens: int) -> bool:
        """Make a table long enough for so many tokens; False when the blocks do not suffice."""
        while len(block_table) * self.block_size < num_tokens:
            block_ids = self.allocate(1)
            if block_ids is None:
                return False
            block_table += block_ids
        return True

    def _allocate_one(self) -> int:
        if self._free:
            block_id = self._free.pop()
        else:
            block_id, _ = self._idle.popitem(last=False)
            block_hash = self._hash_of[block_id]
            assert block_hash is not None
            del self._by_hash[block_hash]
            self._hash_of[block_id] = None
            self._evicted.append(block_hash)
        self._num_refs[block_id] = 1
        return block_id

    def give_back(self, block_ids: Sequence[int]) -> None:
        """One reference less. From the last block on, so that a chain is evicted tail first."""
        for block_id in reversed(block_ids):
            self._num_refs[block_id] -= 1
            assert self._num_refs[block_id] >= 0, f"block {block_id} was given back twice"
            if self._num_refs[block_id] == 0:
                if self._hash_of[block_id] is None:
                    self._free.append(block_id)
                else:
                    self._idle[block_id] = None

    # ------------------------------------------------------------ named holds

    def hold(self, name: str, block_ids: Sequence[int]) -> None:
        """The caller's references pass to the hold `name`."""
        self._pins.setdefault(name, []).extend(block_ids)

    def pin(self, name: str, hashes: Sequence[BlockHash]) -> list[FilledBlock]:
        """Keep those of `hashes` that are here, until `release(name)`. Returns them."""
        found = [FilledBlock(h, self._by_hash[h]) for h in hashes if h in self._by_hash]
        block_ids = [block_id for _, block_id in found]
        self.take(block_ids)
        self.hold(name, block_ids)
        return found

    def release(self, name: str) -> bool:
        """End a hold, pin or import, whatever its state. False when there is none."""
        pinned = self._pins.pop(name, None)
        pending = self._imports.pop(name, None)
        if pinned is not None:
            self.give_back(pinned)
        if pending is not None:
            self.give_back([*pending.kept, *pending.reserved.values()])
        return pinned is not None or pending is not None

    # ------------------------------------------------------------ imports

    def reserve(
        self, name: str, hashes: Sequence[BlockHash], headroom: int = 0
    ) -> dict[BlockHash, int] | None:
        """Blocks to write foreign content into; what is here is kept meanwhile.

        Returns the block for each hash that is absent, None when that would leave fewer than
        `headroom` blocks to others.
        """
        if name in self._imports:
            raise ValueError(f"import {name!r} is already under way")
        wanted = list(dict.fromkeys(hashes))
        kept = [self._by_hash[h] for h in wanted if h in self._by_hash]
        absent = [h for h in wanted if h not in self._by_hash]
        self.take(kept)
        fits = self.num_available >= len(absent) + headroom
        allocated = self.allocate(len(absent)) if fits else None
        if allocated is None:
            self.give_back(kept)
            return None
        reserved = dict(zip(absent, allocated, strict=True))
        self._imports[name] = _Import(kept, reserved)
        return dict(reserved)

    def commit_import(self, name: str, imported: Sequence[BlockHash]) -> list[FilledBlock]:
        """These reserved blocks hold verified content now; the other reservations end.

        All that is here of the import stays pinned under `name`. Returns the blocks whose content
        is new here. An unknown name (it was released meanwhile) changes nothing.
        """
        pending = self._imports.pop(name, None)
        if pending is None:
            return []
        written = frozenset(imported)
        new: list[FilledBlock] = []
        kept = pending.kept
        for block_hash, block_id in pending.reserved.items():
            if block_hash in written and self.fill(block_id, block_hash):
                new.append(FilledBlock(block_hash, block_id))
                kept.append(block_id)
                continue
            self.give_back([block_id])
            if block_hash in self._by_hash:
                self.take([self._by_hash[block_hash]])
                kept.append(self._by_hash[block_hash])
        self.hold(name, kept)
        return new

    # ------------------------------------------------------------ the truth

    def check_invariants(self, block_tables: Iterable[Sequence[int]]) -> None:
        """Raises AssertionError unless every count agrees with the references that exist."""
        refs = [0] * self.num_blocks
        held = [*block_tables, *self._pins.values()]
        for pending in self._imports.values():
            held += [pending.kept, list(pending.reserved.values())]
        for block_ids in held:
            for block_id in block_ids:
                refs[block_id] += 1
        assert refs == self._num_refs, f"references {self._num_refs} but holders say {refs}"
        unused = sorted([*self._free, *self._idle])
        assert unused == [i for i, n in enumerate(refs) if n == 0], "free or idle but used"
        for block_id in self._free:
            assert self._hash_of[block_id] is None, f"free block {block_id} has content"
        for block_id in self._idle:
            assert self._hash_of[block_id] is not None, f"idle block {block_id} has no content"
        known = {h: i for i, h in enumerate(self._hash_of) if h is not None}
        assert known == self._by_hash, "hash index and blocks disagree"
