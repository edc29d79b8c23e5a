"""Small skills beside recall: sums, counting, stories and a greeting.

Each function returns one question and its answer.  One pair of numbers in ten
is held out of training, so the evaluation asks for sums and counts that the
model has not seen.
"""

from random import Random
from typing import Final

from banyan_engine.demo.facts import HELD_OUT_EVERY
from banyan_engine.demo.prose import draw_cast, story

MAX_OPERAND: Final = 12
MAX_COUNT_START: Final = 40
MAX_COUNT_STEPS: Final = 30

GREETINGS: Final = (
    ("Hello!", "Hello! Tell me some facts, then ask me about them."),
    ("Hi", "Hello! Tell me some facts, then ask me about them."),
    ("Who are you?", "I am the Banyan demo model. I remember facts, add, count and tell stories."),
    ("What can you do?", "I remember facts, add, count and tell stories."),
    ("Thank you!", "You are welcome."),
)


def _draw_pair(rng: Random, high_a: int, high_b: int, *, held_out: bool) -> tuple[int, int]:
    while True:
        a, b = rng.randint(0, high_a), rng.randint(0, high_b)
        if ((7 * a + 3 * b) % HELD_OUT_EVERY == 0) == held_out:
            return a, b


def arithmetic(rng: Random, *, held_out: bool = False) -> tuple[str, str]:
    """Return a sum or a difference of two numbers up to 12."""
    a, b = _draw_pair(rng, MAX_OPERAND, MAX_OPERAND, held_out=held_out)
    if rng.random() < 0.5:
        left, right = f"{a} + {b}", a + b
    else:
        left, right = f"{max(a, b)} - {min(a, b)}", abs(a - b)
    return f"What is {left}?", f"{left} = {right}."


def counting(rng: Random, *, held_out: bool = False) -> tuple[str, str]:
    """Return a request to count upwards, and the count."""
    start, steps = _draw_pair(rng, MAX_COUNT_START, MAX_COUNT_STEPS, held_out=held_out)
    last = start + steps
    numbers = ", ".join(str(n) for n in range(start, last + 1))
    return f"Count from {start} to {last}.", f"{numbers}."


def story_request(rng: Random) -> tuple[str, str]:
    """Return a request for a story about an animal, and the story."""
    cast = draw_cast(rng)
    asked = rng.choice(("Tell me a story about a {}.", "Tell me a short story about a {}."))
    return asked.format(cast.animal), story(rng, cast)


def greeting(rng: Random) -> tuple[str, str]:
    """Return a greeting and the reply."""
    return rng.choice(GREETINGS)


def draw_skill(rng: Random) -> tuple[str, str]:
    """Return a question of any kind; sums come often, for they take longest to learn."""
    kinds = (arithmetic, counting, story_request, greeting)
    return rng.choices(kinds, weights=(70, 14, 8, 8))[0](rng)
