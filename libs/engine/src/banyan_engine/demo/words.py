"""The words that the demo model knows.

They stand apart from the generators so that the tokenizer can be trained until
each of them is one token, and so that a reader sees at a glance what may be
asked.  Names of things are adjective + noun: many names from few words, and
two names that share a word can be told apart only by reading both.
"""

from typing import Final


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ADJECTIVES: Final = _words(
    """amber silver golden crimson scarlet azure violet ivory ebony copper bronze iron
    wooden glass marble velvet silken woolen paper stone crystal pearl ruby emerald
    sapphire jade coral onyx opal topaz red blue green yellow orange purple white black
    brown grey pink teal olive tiny small little large huge giant tall short long wide
    narrow round square flat curved bent twisted broken old new ancient modern young
    shiny dusty rusty muddy clean dirty bright dark pale dim heavy light soft hard rough
    smooth warm cold frozen burning wet dry quiet loud secret hidden lost found royal
    humble lucky magic plain painted carved polished"""
)

OPENERS: Final = ("key", "card", "ring", "badge", "coin", "token", "lever", "whistle")
OBJECTS: Final = ("lamp", "box", "book", "clock", "cup", "mirror", "chair", "drum")
VEHICLES: Final = ("ship", "boat", "train", "cart", "bus", "sled", "wagon", "ferry")

ANIMALS: Final = _words(
    """fox rabbit bear owl mouse wolf cat dog horse duck frog turtle hedgehog squirrel
    crow sparrow goat sheep deer badger"""
)
PEOPLE: Final = _words(
    """Mara Tom Nina Oskar Lena Paul Ruth Simon Clara Hugo Iris Jonas Vera Felix Anna
    Emil Greta Leo Olga Max"""
)
PLACES: Final = _words(
    """forest village river mountain garden market bridge harbor meadow mill tower
    valley lake farm library kitchen"""
)
FOODS: Final = _words("bread soup apples honey cheese berries cake nuts pears tea")
WEATHERS: Final = _words("rain snow wind sun fog frost thunder")
FEELINGS: Final = _words("happy tired hungry proud afraid curious calm glad brave")
TIMES: Final = ("morning", "evening", "night", "afternoon", "day")
