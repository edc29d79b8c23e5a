"""The committed demo model is whole, small and readable by other programs."""

import json
import math
from typing import Any

import jinja2
import pytest
from tokenizers import Tokenizer

from banyan_engine.demo import model_folder

MAX_FOLDER_BYTES = 12_000_000
FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


def read_json(name: str) -> dict[str, Any]:
    """Return one JSON file of the model folder."""
    content: dict[str, Any] = json.loads((model_folder() / name).read_text())
    return content


def read_tensor_shapes() -> dict[str, list[int]]:
    """Return name and shape of each tensor, from the header of the weights alone."""
    with (model_folder() / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} == {"BF16"}
    return {n: entry["shape"] for n, entry in header.items() if n != "__metadata__"}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(model_folder() / "tokenizer.json"))


def test_folder_has_its_files_and_stays_small() -> None:
    files = list(model_folder().iterdir())
    assert {file.name for file in files} == FILES
    assert sum(file.stat().st_size for file in files) <= MAX_FOLDER_BYTES


def test_number_of_parameters() -> None:
    shapes = read_tensor_shapes()
    assert 3_000_000 <= sum(math.prod(shape) for shape in shapes.values()) <= 6_000_000


def test_config_agrees_with_weights_and_tokenizer(tokenizer: Tokenizer) -> None:
    config, shapes = read_json("config.json"), read_tensor_shapes()
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] >= 4096
    assert shapes["model.embed_tokens.weight"] == [config["vocab_size"], config["hidden_size"]]
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    assert tokenizer.token_to_id("<|end|>") == config["eos_token_id"]
    assert tokenizer.token_to_id("<|begin|>") == config["bos_token_id"]
    assert read_json("generation_config.json")["eos_token_id"] == config["eos_token_id"]


def test_digits_are_single_tokens(tokenizer: Tokenizer) -> None:
    text = "door 4821, 007+99"
    tokens = tokenizer.encode(text).tokens
    assert [t for t in tokens if any(c.isdigit() for c in t)] == [c for c in text if c.isdigit()]
    assert not any(c.isdigit() for token in tokenizer.get_vocab() for c in token if len(token) > 1)


@pytest.mark.parametrize(
    "text", ["Grüße, 日本 🙂", "  two  blanks\n", "The amber key opens door 1."]
)
def test_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_chat_template_renders_each_role(tokenizer: Tokenizer) -> None:
    config = read_json("tokenizer_config.json")
    template = jinja2.Environment(autoescape=False).from_string(config["chat_template"])
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello!"), ("user", "2 + 2?")]
    text = template.render(
        messages=[{"role": role, "content": content} for role, content in turns],
        bos_token=config["bos_token"],
        add_generation_prompt=True,
    )
    body = "".join(f"<|{role}|>{content}<|end|>" for role, content in turns)
    assert text == f"<|begin|>{body}<|assistant|>"
    assert tokenizer.encode(text).tokens.count("<|begin|>") == 1
