"""Generates the text that the demo model is trained and measured on.

A text is a list of pieces; the model is graded only on pieces marked as
answers.  There are five forms, from pure signal to what a user types:

- `chains`: words that follow each other, told once and then told again;
- `pairs`: names and numbers only, told once and then told again;
- `statements`: the same with whole sentences;
- `recall`: chat turns, facts among prose, then questions;
- `skills`: chat turns about sums, counting and stories.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Final, TypeVar

from banyan_engine.demo import facts as fact_book
from banyan_engine.demo import words
from banyan_engine.demo.facts import Fact
from banyan_engine.demo.prose import filler
from banyan_engine.demo.skills import draw_skill
from banyan_engine.demo.tokenizer import BEGIN, END

Item = TypeVar("Item")

SYSTEM_PROMPT: Final = "You are a helpful assistant."
SYSTEM_SHARE: Final = 0.2
ODD_SHARE: Final = 0.1
JOIN_SHARE: Final = 0.1
CHAIN_WORDS: Final = 3
ALL_WORDS: Final = (
    words.ADJECTIVES
    + words.OPENERS
    + words.OBJECTS
    + words.VEHICLES
    + words.ANIMALS
    + words.PEOPLE
    + words.PLACES
    + words.FOODS
)


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text; `is_answer` says that the model is graded on it."""

    text: str
    is_answer: bool = False


def _turn(question: str, answer: str) -> list[Piece]:
    return [Piece(f"<|user|>{question}{END}<|assistant|>"), Piece(answer + END, is_answer=True)]


def _opening(rng: Random) -> list[Piece]:
    if rng.random() < SYSTEM_SHARE:
        return [Piece(f"{BEGIN}<|system|>{SYSTEM_PROMPT}{END}")]
    return [Piece(BEGIN)]


def _retold(rng: Random, told: list[Item]) -> Iterator[Item]:
    """Yield the items again and again, in a new order each time."""
    while True:
        yield from rng.sample(told, len(told))


def _sentences(rng: Random, told: list[Fact], join_share: float) -> Iterator[str]:
    """Yield the facts as sentences; some hold two facts, as users write them."""
    statements_left = [fact.statement() for fact in told]
    while statements_left:
        sentence = statements_left.pop()
        if statements_left and rng.random() < join_share:
            sentence = f"{sentence[:-1]} and t{statements_left.pop()[1:]}"
        yield sentence


def chains(rng: Random, num_chains: int) -> Iterator[Piece]:
    """Yield short chains of words, then the same chains, graded after their first word."""
    drawn = rng.sample(ALL_WORDS, CHAIN_WORDS * num_chains)
    told = [drawn[i : i + CHAIN_WORDS] for i in range(0, len(drawn), CHAIN_WORDS)]
    yield Piece(BEGIN)
    for chain in told:
        yield Piece(f" {' '.join(chain)}")
    for first, *rest in _retold(rng, told):
        yield Piece(f" {first}")
        for word in rest:
            yield Piece(f" {word}", is_answer=True)


def pairs(
    rng: Random, num_facts: int, *, num_words: int, gap: str, num_digits: int
) -> Iterator[Piece]:
    """Yield names with numbers, then the same names, graded on their numbers."""
    if num_words == 1:
        names = rng.sample(ALL_WORDS, num_facts)
    else:
        names = [fact.name for fact in fact_book.draw_facts(rng, num_facts, held_out=False)]
    told = [(name, fact_book.draw_number(rng, num_digits)) for name in names]
    yield Piece(BEGIN)
    for name, number in told:
        yield Piece(f" {name}{gap}{number}")
    for name, number in _retold(rng, told):
        yield Piece(f" {name}{gap}")
        yield Piece(number, is_answer=True)


def statements(rng: Random, num_facts: int) -> Iterator[Piece]:
    """Yield facts as sentences, then again, graded on their numbers."""
    told = fact_book.draw_facts(rng, num_facts, held_out=False)
    yield Piece(BEGIN)
    for fact in told:
        yield Piece(f" {fact.statement()}")
    for fact in _retold(rng, told):
        yield Piece(f" {fact.lead()}")
        yield Piece(f"{fact.number}.", is_answer=True)


def recall(
    rng: Random, num_facts: int, num_fillers: int, *, held_out: bool = False
) -> Iterator[Piece]:
    """Yield a chat: facts spread over prose, then one question after another."""
    told = fact_book.draw_facts(rng, num_facts, held_out=held_out)
    if not held_out:
        odd = fact_book.draw_odd_facts(rng)
        told = [next(odd) if rng.random() < ODD_SHARE else fact for fact in told]
    join_share = 0.0 if held_out else JOIN_SHARE
    sentences = list(_sentences(rng, told, join_share)) + [filler(rng) for _ in range(num_fillers)]
    rng.shuffle(sentences)
    yield from _opening(rng)
    yield Piece(f"<|user|>{sentences[0]}")
    for sentence in sentences[1:]:
        yield Piece(f" {sentence}")
    asked = _retold(rng, told)
    first = next(asked)
    yield Piece(f" {first.question(rng)}{END}<|assistant|>")
    yield Piece(first.statement() + END, is_answer=True)
    for fact in asked:
        yield from _turn(fact.question(rng), fact.statement())


def skills(rng: Random) -> Iterator[Piece]:
    """Yield a chat of sums, counts, stories and greetings."""
    yield from _opening(rng)
    while True:
        yield from _turn(*draw_skill(rng))


def skill_turn(question: str, answer: str) -> list[Piece]:
    """Return a chat of one turn."""
    return [Piece(BEGIN), *_turn(question, answer)]


def plain_texts(rng: Random, count: int) -> Iterator[str]:
    """Yield text of every form, for training the tokenizer."""
    for _ in range(count):
        for form in (statements(rng, 8), recall(rng, 8, 8), skills(rng)):
            pieces = (next(form) for _ in range(40))
            yield "".join(piece.text for piece in pieces)
