"""Measures the demo model: exact answers, never token accuracy.

`python -m banyan_engine.demo.evaluate` prints one JSON object.  Recall prompts
are about 256, 1,000 and 4,000 tokens of prose with one fact in every 40 tokens
and one question at the end; names, numbers and prose differ from training.

An answer counts when each of its tokens, `<|end|>` included, is the most
likely one after the true tokens before it.  That is the same as greedy
decoding returning the answer exactly, at the price of one forward pass.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Final

import torch
from tokenizers import Tokenizer

from banyan_engine.demo import corpus, model_folder
from banyan_engine.demo.corpus import Piece
from banyan_engine.demo.folder import load_model
from banyan_engine.demo.model import Llama
from banyan_engine.demo.skills import arithmetic, counting

EVALUATION_SEED: Final = 90_001
TOKENS_PER_FACT: Final = 40
FACT_TOKENS: Final = 12
FILLER_TOKENS: Final = 9
QUESTION_TOKENS: Final = 14


def recall_pieces(rng: Random, num_tokens: int) -> list[Piece]:
    """Return a held-out prompt of about that many tokens, and its one answer."""
    num_facts = max(2, num_tokens // TOKENS_PER_FACT)
    prose = num_tokens - num_facts * FACT_TOKENS - QUESTION_TOKENS
    pieces: list[Piece] = []
    for piece in corpus.recall(rng, num_facts, prose // FILLER_TOKENS, held_out=True):
        pieces.append(piece)
        if piece.is_answer:
            break
    return pieces


@torch.no_grad()
def is_exact(model: Llama, tokenizer: Tokenizer, pieces: Iterable[Piece]) -> tuple[bool, int]:
    """Return whether greedy decoding gives the last piece, and the tokens before it."""
    encoded = [tokenizer.encode(piece.text, add_special_tokens=False).ids for piece in pieces]
    ids = [token for piece in encoded for token in piece]
    num_prompt = len(ids) - len(encoded[-1])
    tokens = torch.tensor([ids])
    hidden = model(tokens[:, :-1], torch.arange(len(ids) - 1).unsqueeze(0))
    guesses = model.logits(hidden[0, num_prompt - 1 :]).argmax(dim=-1)
    return bool(torch.equal(guesses, tokens[0, num_prompt:])), num_prompt


def score(model: Llama, tokenizer: Tokenizer, prompts: Iterable[list[Piece]]) -> dict[str, float]:
    """Return how many prompts got their exact answer, of how many."""
    results = [is_exact(model, tokenizer, pieces) for pieces in prompts]
    right = sum(exact for exact, _ in results)
    return {
        "exact": right,
        "of": len(results),
        "share": round(right / len(results), 4),
        "mean_prompt_tokens": round(sum(length for _, length in results) / len(results)),
    }


def recall_score(
    model: Llama, tokenizer: Tokenizer, num_tokens: int, count: int, seed: int = EVALUATION_SEED
) -> dict[str, float]:
    """Return the exact recall on held-out prompts of about that many tokens."""
    rng = Random(seed + num_tokens)
    return score(model, tokenizer, (recall_pieces(rng, num_tokens) for _ in range(count)))


def evaluate(folder: Path, num_prompts: int) -> dict[str, dict[str, float]]:
    """Return every score of the model in the folder."""
    model = load_model(folder).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    report = {
        f"recall_{length}": recall_score(model, tokenizer, length, count)
        for length, count in ((256, num_prompts), (1000, num_prompts), (4000, num_prompts // 4))
    }
    for draw, held_out in ((arithmetic, True), (arithmetic, False), (counting, True)):
        rng = Random(EVALUATION_SEED)
        turns = [corpus.skill_turn(*draw(rng, held_out=held_out)) for _ in range(num_prompts)]
        name = f"{draw.__name__}_{'unseen' if held_out else 'seen'}"
        report[name] = score(model, tokenizer, turns)
    return report


def main() -> None:
    """Print the scores of a model folder as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", type=Path, default=model_folder())
    parser.add_argument("--prompts", type=int, default=200)
    args = parser.parse_args()
    print(json.dumps(evaluate(args.model, args.prompts), indent=2))


if __name__ == "__main__":
    main()
