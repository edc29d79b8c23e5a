"""Trains the demo model from nothing, on generated text.

`python -m banyan_engine.demo.train --out FOLDER [--minutes N] [--seed S]`

The texts and the first weights follow from the seed.  How far the run gets in
its minutes, and so the last weights, depend on the machine.
"""

import argparse
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from banyan_engine.demo import corpus
from banyan_engine.demo.batches import Batch, make_batch
from banyan_engine.demo.corpus import Piece
from banyan_engine.demo.curriculum import FIRST_CHAT_RUNG, LADDER, Curriculum, Rung
from banyan_engine.demo.evaluate import recall_score
from banyan_engine.demo.first_weights import set_first_weights
from banyan_engine.demo.folder import load_model, save_model
from banyan_engine.demo.model import Llama, ModelShape
from banyan_engine.demo.tokenizer import train_tokenizer, write_tokenizer

PEAK_RATE: Final = 1e-3
EMBEDDING_RATE_SHARE: Final = 0.3
WARMUP_STEPS: Final = 50
DECAY_SHARE: Final = 0.6
FINAL_RATE_SHARE: Final = 0.05
BATCH_TOKENS: Final = 2304
MAX_GRADIENT_NORM: Final = 1.0
CHECKPOINT_SECONDS: Final = 180
LOG_STEPS: Final = 25
PROBE_SEED: Final = 7
TOKENIZER_TEXTS: Final = 1500


@dataclass(slots=True)
class Progress:
    """What the run has used so far."""

    started: float
    seconds: float
    steps: int = 0
    tokens: int = 0

    def share(self) -> float:
        """Return the share of the time that is gone."""
        return (time.monotonic() - self.started) / self.seconds

    def rate(self) -> float:
        """Return the learning rate: a short rise, a plateau, a straight fall."""
        fall = min(1.0, (1.0 - self.share()) / DECAY_SHARE)
        return PEAK_RATE * min(1.0, (self.steps + 1) / WARMUP_STEPS) * max(fall, FINAL_RATE_SHARE)


def texts_of(rung: Rung, rng: Random) -> Iterator[Iterable[Piece]]:
    """Yield texts of one kind without end."""
    while True:
        yield rung.text(rng)


def draw_batch(rung: Rung, tokenizer: Tokenizer, rng: Random) -> Batch:
    """Return a batch of one kind of text, about the same number of tokens each time."""
    size = max(1, BATCH_TOKENS // rung.length)
    return make_batch(tokenizer, texts_of(rung, rng), size, rung.length, rng, rung.max_leap)


def grade(model: Llama, batch: Batch) -> tuple[Tensor, float]:
    """Return the loss on the answers, and the share of answers right in every token."""
    hidden = model(batch.ids, batch.positions)[:, :-1]
    graded = batch.answers[:, 1:] > 0
    logits = model.logits(hidden[graded])
    targets = batch.ids[:, 1:][graded]
    rows = torch.arange(len(batch.ids)).unsqueeze(1) * batch.ids.shape[1]
    answers = (rows + batch.answers[:, 1:])[graded]
    right = torch.ones(batch.ids.numel())
    right.scatter_reduce_(0, answers, (logits.argmax(-1) == targets).float(), "amin")
    asked = torch.zeros_like(right).index_fill_(0, answers, 1.0)
    return F.cross_entropy(logits, targets), float((right * asked).sum() / asked.sum())


def take_step(
    model: Llama, optimizer: torch.optim.Optimizer, batch: Batch, progress: Progress
) -> tuple[float, float]:
    """Learn from one batch; return its loss and its share of right answers."""
    for group in optimizer.param_groups:
        group["lr"] = progress.rate() * group["rate_share"]
    loss, exact = grade(model, batch)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
    optimizer.step()
    progress.steps += 1
    progress.tokens += batch.ids.numel()
    return loss.item(), exact


def probe(model: Llama, tokenizer: Tokenizer, rung: int) -> str:
    """Return the exact recall on a few held-out prompts, as text for the log."""
    lengths = {256: 40, 1000: 20} | ({4000: 6} if rung >= len(LADDER) - 3 else {})
    scores = [
        (n, recall_score(model, tokenizer, n, count, PROBE_SEED)) for n, count in lengths.items()
    ]
    return " ".join(f"{n}:{score['exact']}/{score['of']}" for n, score in scores)


def make_optimizer(model: Llama) -> torch.optim.Optimizer:
    """Return the optimizer; embeddings move slowly.

    A token that is no answer yet is only ever pushed away.  At full rate all
    such tokens end up in one place, and the digits cannot be told apart when
    their turn comes.
    """
    inner = [*model.layers.parameters(), *model.norm.parameters()]
    groups = [
        {"params": inner, "rate_share": 1.0},
        {"params": [model.embed_tokens.weight], "rate_share": EMBEDDING_RATE_SHARE},
    ]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)


def train(out: Path, minutes: float, seed: int, start: Path | None, first_rung: int) -> None:
    """Train for that long and leave the model in the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    rng = Random(seed)
    torch.manual_seed(seed)
    if start is None:
        tokenizer = train_tokenizer(corpus.plain_texts(rng, TOKENIZER_TEXTS))
        model = Llama(ModelShape(vocab_size=tokenizer.get_vocab_size()))
        set_first_weights(model)
    else:
        tokenizer = Tokenizer.from_file(str(start / "tokenizer.json"))
        model = load_model(start)
    write_tokenizer(tokenizer, out, model.shape.max_position_embeddings)
    optimizer = make_optimizer(model)
    curriculum = Curriculum(rng, first_rung)
    progress = Progress(time.monotonic(), minutes * 60)
    next_save = CHECKPOINT_SECONDS
    while progress.share() < 1.0:
        rung = curriculum.draw()
        batch = draw_batch(rung, tokenizer, rng)
        loss, exact = take_step(model, optimizer, batch, progress)
        rose = curriculum.note(rung, exact)
        if rose or progress.steps % LOG_STEPS == 0:
            report(progress, curriculum, rung, loss, exact)
        if progress.share() * progress.seconds > next_save:
            next_save += CHECKPOINT_SECONDS
            save_model(model, out)
            if curriculum.rung >= FIRST_CHAT_RUNG:
                print("held out", probe(model, tokenizer, curriculum.rung), flush=True)
    save_model(model, out)
    print("held out", probe(model, tokenizer, len(LADDER)), flush=True)


def report(
    progress: Progress, curriculum: Curriculum, rung: Rung, loss: float, exact: float
) -> None:
    """Print one line of the log."""
    print(
        f"{progress.share() * progress.seconds:.0f}s step {progress.steps}"
        f" tokens {progress.tokens / 1e6:.2f}M rung {curriculum.rung} exact {curriculum.exact:.3f}"
        f" | {rung.form} {rung.length} loss {loss:.3f} exact {exact:.3f}",
        flush=True,
    )


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train the Banyan demo model.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=90.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=Path, help="go on from the weights in this folder")
    parser.add_argument("--rung", type=int, default=0, help="rung of the ladder to begin at")
    args = parser.parse_args()
    train(args.out, args.minutes, args.seed, args.start, args.rung)


if __name__ == "__main__":
    main()
