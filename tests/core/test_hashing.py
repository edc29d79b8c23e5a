"""Block addresses: who may share what, and nobody else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banyan_core.hashing import block_hash, block_hashes, cache_salt, derive, pack, unpack

tokens = st.lists(st.integers(0, 2**32 - 1), max_size=100)


@given(tokens, st.integers(1, 20))
def test_only_full_blocks_have_an_address(token_ids: list[int], block_size: int) -> None:
    assert len(block_hashes(token_ids, block_size, b"")) == len(token_ids) // block_size


@given(tokens, st.integers(1, 20), st.data())
def test_prompts_share_exactly_their_common_blocks(
    token_ids: list[int], block_size: int, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(token_ids)))
    other = [*token_ids[:at], 2**32 - 1, *token_ids[at:]]
    ours, theirs = (block_hashes(ids, block_size, b"s") for ids in (token_ids, other))
    same = [mine == yours for mine, yours in zip(ours, theirs, strict=False)]
    differing = (i for i, (a, b) in enumerate(zip(token_ids, other, strict=False)) if a != b)
    common = next(differing, len(token_ids))
    assert same == [i < common // block_size for i in range(len(same))]


@given(tokens, tokens)
def test_the_parent_is_part_of_the_address(first: list[int], second: list[int]) -> None:
    parents = [block_hash(b"", first, b""), block_hash(b"", [*first, 1], b"")]
    assert block_hash(parents[0], second, b"") != block_hash(parents[1], second, b"")


def test_a_salt_separates_tenants_requests_and_models() -> None:
    salts = {
        cache_salt(b"secret", group, request, card)
        for group in ("a", "b", "ab")
        for request in ("", "a", "b")
        for card in (b"m1", b"m2")
    }
    assert len(salts) == 18
    assert cache_salt(b"other", "a", "", b"m1") not in salts


def test_a_salt_separates_adapters_from_each_other_and_from_the_base() -> None:
    salts = {cache_salt(b"k", "a", "", b"m", adapter) for adapter in (None, b"", b"x", b"y")}
    assert len(salts) == 4
    assert cache_salt(b"k", "a", "", b"m", None) == cache_salt(b"k", "a", "", b"m")


def test_moving_a_letter_between_parts_gives_another_salt() -> None:
    assert cache_salt(b"k", "ab", "c", b"") != cache_salt(b"k", "a", "bc", b"")


@given(st.lists(st.binary(min_size=16, max_size=16), max_size=20))
def test_packing_is_reversible(hashes: list[bytes]) -> None:
    assert unpack(pack(hashes)) == tuple(hashes)


def test_a_cut_list_of_hashes_is_refused() -> None:
    with pytest.raises(ValueError, match="block_hashes: 17 bytes"):
        unpack(b"x" * 17)


def test_derived_numbers_depend_on_every_part() -> None:
    assert len({derive(1), derive(2), derive(1, 0), derive(1, 1), derive(1, "0", "1")}) == 5
    assert 0 <= derive(1, "x") < 2**63
