"""Where requests wait, all at once: whatever happens, the queue keeps its word."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.queue_game import MOVES, Game

from banyan_core.types import (
    NS_PER_S,
    Outcome,
)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), num_moves=st.integers(10, 250))
def test_whatever_happens_the_queue_keeps_its_word(seed: int, num_moves: int) -> None:
    """Bounds hold, nobody is forgotten or ended twice, retries are paid for."""
    game = Game(random.Random(seed))
    for _ in range(num_moves):
        getattr(game, game.rng.choice(MOVES))()
    game.finish()
    for end in game.ends.values():
        if end.record.outcome is Outcome.FAILED:  # with tokens, only the client's own word does it
            assert end.record.num_output_tokens and end.record.reason == "its deadline passed"
        assert (end.record.shed is not None) == (end.record.outcome is Outcome.SHED)
        if end.record.shed is not None:
            assert end.retryable and NS_PER_S <= end.retry_after_ns <= 60 * NS_PER_S


@pytest.mark.parametrize("seed", range(5))
def test_within_a_class_they_are_served_in_the_order_of_their_arrival(seed: int) -> None:
    """Refusals and all: while nobody is lost or hurried, nobody is overtaken by its own class."""
    game = Game(random.Random(seed), in_order=True)
    moves = [move for move in MOVES if move not in ("kill", "leave")]
    for _ in range(300):
        getattr(game, game.rng.choice(moves))()
    game.finish()
    assert any(end.record.outcome is Outcome.FINISHED for end in game.ends.values())
    assert any(end.record.shed is not None for end in game.ends.values())
