"""Pages for peers of version 0.1: what was right stays right, and what was wrong stays wrong."""

from __future__ import annotations

import pytest
from tests.kvstore.stored import block, layers_of, pages_of

from banyan.v1 import kv_pb2
from banyan_core.hashing import page_checksum, page_digest
from banyan_runtime.kv_pages import as_pages, layers_in, num_bytes, num_pages
from banyan_runtime.kv_pages import pages_of as pages_of_part

ONE = block(b"x" * 16, num_layers=3)
LAYERS = kv_pb2.KvPages(layers=[layers_of(ONE)], output_token_ids=[7])
PAGES = kv_pb2.KvPages(pages=pages_of([ONE]), output_token_ids=[7])


def test_layers_become_pages_with_their_digests() -> None:
    assert as_pages(LAYERS) == PAGES
    assert as_pages(kv_pb2.KvPages()) == kv_pb2.KvPages()


def test_pages_are_read_as_layers_of_one() -> None:
    assert list(layers_in(PAGES)) == [layers_of(ONE, layer, layer + 1) for layer in range(3)]
    assert list(layers_in(LAYERS)) == [layers_of(ONE)]


@pytest.mark.parametrize("message", [LAYERS, PAGES])
def test_counts_are_the_same_in_both(message: kv_pb2.KvPages) -> None:
    assert (num_pages(message), num_bytes(message)) == (3, 300)


def test_a_page_that_is_damaged_matches_nothing_after_translation() -> None:
    damaged = layers_of(ONE)
    damaged.data = damaged.data[:-1] + b"?"
    pages = as_pages(kv_pb2.KvPages(layers=[damaged])).pages
    assert [page_digest(page.data) == page.digest for page in pages] == [True, True, False]

    old = kv_pb2.KvPages(pages=pages_of([ONE]))
    old.pages[1].data = old.pages[1].data[:-1] + b"?"
    read = [pages_of_part(part)[0] for part in layers_in(old)]
    assert [page_checksum(data) == checksum for checksum, data in read] == [True, False, True]
