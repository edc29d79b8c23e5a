"""A Llama of about 150 million random parameters that a gateway can serve: its folder."""

from __future__ import annotations

from pathlib import Path
from shutil import copyfile

from banyan_engine.demo import model_folder
from banyan_engine.random_model import TINY_CONFIG, write_random_model

CONFIG = TINY_CONFIG | {
    "vocab_size": 1280,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
NUM_PARAMETERS = 152_000_000
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def write_model(folder: Path) -> Path:
    """With the demo model's tokenizer, so that a gateway can serve it."""
    write_random_model(folder, CONFIG, seed=0)
    for name in TOKENIZER_FILES:
        copyfile(model_folder() / name, folder / name)
    return folder
