"""Facts that can be stated once and asked later.

A fact ties a name to a number: "The amber key opens door 4821."  The answer to
a question repeats the statement word for word.  That keeps the task a lookup:
find the one place that speaks of this name and copy the number that follows.

One name in ten is held out of training, so the evaluation asks for names that
the model has never met.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Final

from banyan_engine.demo.words import ADJECTIVES, OBJECTS, OPENERS, VEHICLES

HELD_OUT_EVERY: Final = 10
SYLLABLES: Final = ("vel", "mor", "tan", "ri", "ko", "lu", "sen", "da", "fir", "ba", "ne", "zu")


@dataclass(frozen=True, slots=True)
class Relation:
    """One kind of fact: which nouns it fits, how it is told and how it is asked."""

    nouns: tuple[str, ...]
    statement: str
    questions: tuple[str, ...]


RELATIONS: Final = (
    Relation(
        OPENERS,
        "The {name} opens door ",
        (
            "Which door does the {name} open?",
            "which door does the {name} open?",
            "What does the {name} open?",
            "What door does the {name} open?",
        ),
    ),
    Relation(
        OBJECTS,
        "The {name} is in room ",
        (
            "Which room is the {name} in?",
            "which room is the {name} in?",
            "Where is the {name}?",
            "In which room is the {name}?",
        ),
    ),
    Relation(
        VEHICLES,
        "The {name} goes to stop ",
        (
            "Which stop does the {name} go to?",
            "which stop does the {name} go to?",
            "Where does the {name} go?",
            "To which stop does the {name} go?",
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Fact:
    """A name, what is said of it, and its number."""

    relation: Relation
    name: str
    number: str

    def lead(self) -> str:
        """Return the statement up to the number."""
        return self.relation.statement.format(name=self.name)

    def statement(self) -> str:
        """Return the whole statement, which is also the answer to every question."""
        return f"{self.lead()}{self.number}."

    def question(self, rng: Random) -> str:
        """Return one of the ways to ask for the number."""
        return rng.choice(self.relation.questions).format(name=self.name)


def is_held_out(adjective: int, noun: int) -> bool:
    """Say whether the name of these two word indices is kept from training."""
    return (7 * adjective + 3 * noun) % HELD_OUT_EVERY == 0


def names(*, held_out: bool) -> list[tuple[Relation, str]]:
    """Return all names of one side of the split, each with its relation."""
    nouns = [(relation, noun) for relation in RELATIONS for noun in relation.nouns]
    return [
        (relation, f"{word} {noun}")
        for i, word in enumerate(ADJECTIVES)
        for j, (relation, noun) in enumerate(nouns)
        if is_held_out(i, j) == held_out
    ]


TRAINING_NAMES: Final = names(held_out=False)
HELD_OUT_NAMES: Final = names(held_out=True)


def draw_number(rng: Random, num_digits: int = 4) -> str:
    """Return a number of that many digits, the first of them not zero."""
    return str(rng.randrange(10 ** (num_digits - 1), 10**num_digits))


def draw_facts(rng: Random, count: int, *, held_out: bool) -> list[Fact]:
    """Return facts with distinct names from one side of the split."""
    pool = HELD_OUT_NAMES if held_out else TRAINING_NAMES
    return [Fact(r, name, draw_number(rng)) for r, name in rng.sample(pool, count)]


def draw_odd_facts(rng: Random) -> Iterator[Fact]:
    """Yield facts with invented adjectives and numbers of other lengths.

    Users do not keep to the word list; a few such facts teach the model to
    copy names of several tokens and to stop where the number stops.
    """
    while True:
        relation = rng.choice(RELATIONS)
        word = "".join(rng.choices(SYLLABLES, k=rng.randint(2, 3)))
        name = f"{word} {rng.choice(relation.nouns)}"
        yield Fact(relation, name, draw_number(rng, rng.randint(2, 5)))
