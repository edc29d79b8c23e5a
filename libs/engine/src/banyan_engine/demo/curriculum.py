"""The order in which the model meets its texts, and when it moves on.

Recall of *which* fact is learnt as a jump, and only from texts that hold little
else.  So the ladder starts with two facts and nothing around them, and a rung
is left only when whole answers are right, whatever the token loss says.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Final, Literal

from banyan_engine.demo import corpus
from banyan_engine.demo.corpus import Piece

Form = Literal["chains", "pairs", "statements", "recall", "skills"]


@dataclass(frozen=True, slots=True)
class Rung:
    """One kind of text; counts are upper limits, each text draws its own.

    `max_leap` is how far positions may leap; see `batches`.
    """

    form: Form
    length: int
    num_facts: int
    num_fillers: int = 0
    num_words: int = 2
    gap: str = " "
    num_digits: int = 4
    max_leap: int = 0
    pass_mark: float = 0.9

    def text(self, rng: Random) -> Iterator[Piece]:
        """Return one text of this kind."""
        num_facts = rng.randint((self.num_facts + 1) // 2, self.num_facts)
        match self.form:
            case "chains":
                return corpus.chains(rng, num_facts)
            case "pairs":
                return corpus.pairs(
                    rng,
                    num_facts,
                    num_words=self.num_words,
                    gap=self.gap,
                    num_digits=self.num_digits,
                )
            case "statements":
                return corpus.statements(rng, num_facts)
            case "recall":
                return corpus.recall(rng, num_facts, rng.randint(0, self.num_fillers))
            case "skills":
                return corpus.skills(rng)


LADDER: Final = (
    Rung("chains", 48, 4),
    Rung("chains", 96, 12),
    Rung("pairs", 80, 8, num_words=1, gap="", num_digits=3),
    Rung("pairs", 96, 8, gap="", num_digits=3),
    Rung("pairs", 128, 8),
    Rung("pairs", 256, 16),
    Rung("statements", 192, 8),
    Rung("recall", 192, 6, 2, max_leap=64, pass_mark=0.85),
    Rung("recall", 384, 10, 8, max_leap=256, pass_mark=0.85),
    Rung("recall", 640, 16, 24, max_leap=512, pass_mark=0.88),
    Rung("recall", 1152, 30, 48, max_leap=1024, pass_mark=0.93),
    Rung("recall", 2304, 60, 96, max_leap=2048, pass_mark=0.97),
    Rung("recall", 4352, 90, 200, max_leap=1024, pass_mark=1.1),
)
SKILLS: Final = Rung("skills", 256, 0)
FIRST_CHAT_RUNG: Final = 7
SKILL_SHARE: Final = 0.55
EARLY_SKILL_SHARE: Final = 0.08
PREVIEW_SHARE: Final = 0.1
REHEARSAL_SHARE: Final = 0.1
MEMORY: Final = 0.95


@dataclass(slots=True)
class Curriculum:
    """The rung in reach, and how well it goes there."""

    rng: Random
    rung: int = 0
    exact: float = field(default=0.0)

    def draw(self) -> Rung:
        """Return the kind of the next batch: mostly the rung in reach."""
        chance = self.rng.random()
        skill_share = SKILL_SHARE if self.rung >= FIRST_CHAT_RUNG else EARLY_SKILL_SHARE
        if chance < skill_share:
            return SKILLS
        if chance < skill_share + PREVIEW_SHARE:
            return LADDER[min(self.rung + 1, len(LADDER) - 1)]
        if chance < skill_share + PREVIEW_SHARE + REHEARSAL_SHARE:
            return LADDER[self.rng.randrange(max(0, self.rung - 2), self.rung + 1)]
        return LADDER[self.rung]

    def note(self, drawn: Rung, exact: float) -> bool:
        """Take in the share of right answers in a batch; say whether the rung rose."""
        if drawn != LADDER[self.rung]:
            return False
        self.exact = MEMORY * self.exact + (1 - MEMORY) * exact
        if self.exact < drawn.pass_mark:
            return False
        self.rung, self.exact = self.rung + 1, 0.5
        return True
