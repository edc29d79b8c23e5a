"""Short stories from a grammar of sentences.

They have two uses: as answers ("Tell me a story about a fox."), which gives
replies long enough to compare token by token, and as filler between facts,
which gives prompts of any length with the facts far from the question.
"""

from dataclasses import dataclass
from random import Random
from typing import Final

from banyan_engine.demo.words import ANIMALS, FEELINGS, FOODS, PEOPLE, PLACES, TIMES, WEATHERS

OPENINGS: Final = (
    "Once upon a time a {animal} lived near the {place}.",
    "One {time} a {animal} walked to the {place}.",
    "There was a {animal} who loved {food}.",
    "A {animal} and {person} met at the {place}.",
)
MIDDLES: Final = (
    "The {animal} was {feeling} because of the {weather}.",
    "{person} came along the road with some {food}.",
    "Together they went to the {place} and looked around.",
    "The {animal} asked {person} for help.",
    "They shared the {food} and talked until {time}.",
    "The {weather} came over the {place}, and everyone ran home.",
    "{person} told the {animal} about the old {place}.",
    "Nobody had seen so much {weather} before.",
    "In the {time} the {animal} slept under a tree.",
    "{person} was {feeling} and sang a song.",
    "A {animal} watched them from the {place}.",
)
ENDINGS: Final = (
    "In the end the {animal} was {feeling}, and they all ate {food}.",
    "From that day on {person} and the {animal} were friends.",
    "Then the {animal} went home and slept well.",
    "And that is how the {animal} came to the {place}.",
)


@dataclass(frozen=True, slots=True)
class Cast:
    """Who and what one story is about, so that its sentences belong together."""

    animal: str
    person: str

    def tell(self, rng: Random, sentence: str) -> str:
        """Fill one sentence pattern: the cast is fixed, the scenery is drawn."""
        return sentence.format(
            animal=self.animal,
            person=self.person,
            place=rng.choice(PLACES),
            food=rng.choice(FOODS),
            weather=rng.choice(WEATHERS),
            feeling=rng.choice(FEELINGS),
            time=rng.choice(TIMES),
        )


def draw_cast(rng: Random) -> Cast:
    """Return the cast of a new story."""
    return Cast(rng.choice(ANIMALS), rng.choice(PEOPLE))


def story(rng: Random, cast: Cast) -> str:
    """Return a story of five to seven sentences about this cast."""
    middles = rng.sample(MIDDLES, rng.randint(3, 5))
    patterns = (rng.choice(OPENINGS), *middles, rng.choice(ENDINGS))
    return " ".join(cast.tell(rng, pattern) for pattern in patterns)


def filler(rng: Random) -> str:
    """Return one sentence of prose that states no fact."""
    return draw_cast(rng).tell(rng, rng.choice((*OPENINGS, *MIDDLES, *ENDINGS)))
