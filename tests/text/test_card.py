"""The card tells models, versions and broken copies apart."""

import json
import struct
from pathlib import Path

import pytest

from banyan_core.model_spec import KvDtype, Quantize
from banyan_core.types import KvLayer, KvLayout
from banyan_runtime.worker_codec import model_card_from_pb, model_card_to_pb
from banyan_text.card import echo_card, read_card
from banyan_text.model_folder import ModelFolderError

CONFIG = {
    "architectures": ["MistralForCausalLM"],
    "vocab_size": 99,
    "intermediate_size": 64,
    "rms_norm_eps": 1e-5,
    "sliding_window": 96,
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "max_position_embeddings": 512,
    "eos_token_id": 7,
}
LONG = 3 * 1024 * 1024


def weights(data: bytes) -> bytes:
    header = json.dumps(
        {"w": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}
    )
    return struct.pack("<Q", len(header)) + header.encode() + data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes(weights(bytes(LONG)))
    (folder / "tokenizer.json").write_text('{"added_tokens": [{"id": 3, "content": "<e>"}]}')
    return folder


def test_card_of_a_folder(folder: Path) -> None:
    card = read_card(folder, 16, "fast")
    assert (card.name, card.context_tokens, card.end_token_ids) == ("tiny", 512, (7,))
    layout = card.kv_layout
    assert layout == KvLayout((KvLayer(2, 8, 8, window=96),) * 3, "bfloat16")
    assert (card.block_size, card.numerics) == (16, "fast")
    assert read_card(folder, 16, "deterministic").kv_layout.dtype == "float32"
    assert read_card(folder, 16, "fast") == card
    assert read_card(folder, 16, "fast", name="other").name == "other"
    packed = read_card(folder, 16, "fast", quantize=Quantize.INT4, kv=KvDtype.INT8)
    assert packed.numerics == "fast+int4"
    assert packed.kv_layout.dtype == "int8"


def test_a_packed_folder_is_another_model_and_is_not_packed_again(folder: Path) -> None:
    plain = read_card(folder, 16, "fast")
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    digests = {plain.digest}
    for version in ("gptq", "gptq_v2"):
        packing = {"quantization_config": gptq | {"checkpoint_format": version}}
        (folder / "config.json").write_text(json.dumps(CONFIG | packing))
        digests.add(read_card(folder, 16, "fast").digest)
    assert len(digests) == 3
    with pytest.raises(ModelFolderError, match="quantize: int8, expected none"):
        read_card(folder, 16, "fast", quantize=Quantize.INT8)
    with pytest.raises(ModelFolderError, match="numerics: deterministic, expected fast"):
        read_card(folder, 16, "deterministic")


@pytest.mark.parametrize("place", [0, LONG - 1])
def test_other_weights_give_another_digest(folder: Path, place: int) -> None:
    before = read_card(folder, 16, "fast")
    data = bytearray(LONG)
    data[place] = 1
    (folder / "model.safetensors").write_bytes(weights(bytes(data)))
    after = read_card(folder, 16, "fast")
    assert after.weights_digest != before.weights_digest
    assert after.tokenizer_digest == before.tokenizer_digest


def test_truncated_copy_and_other_config_differ(folder: Path) -> None:
    before = read_card(folder, 16, "fast").weights_digest
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    truncated = read_card(folder, 16, "fast").weights_digest
    (folder / "config.json").write_text(json.dumps({**CONFIG, "rope_theta": 5}))
    assert len({before, truncated, read_card(folder, 16, "fast").weights_digest}) == 3


def test_template_is_in_the_tokenizer_digest(folder: Path) -> None:
    before = read_card(folder, 16, "fast").tokenizer_digest
    (folder / "chat_template.jinja").write_text("new")
    assert read_card(folder, 16, "fast").tokenizer_digest != before


def test_end_tokens_from_each_source(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert read_card(folder, 16, "fast").end_token_ids == (1, 2)
    (folder / "generation_config.json").unlink()
    without = {key: value for key, value in CONFIG.items() if key != "eos_token_id"}
    (folder / "config.json").write_text(json.dumps(without))
    assert read_card(folder, 16, "fast").end_token_ids == ()
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<e>"}')
    assert read_card(folder, 16, "fast").end_token_ids == (3,)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("config.json", None, "no config.json"),
        ("config.json", b"nonsense", "cannot be read"),
        ("config.json", b'{"architectures": ["LlamaForCausalLM"]}', "hidden_size: None, expected"),
        ("config.json", b"{}", "architectures: None, expected"),
        ("model.safetensors", None, "no .safetensors"),
        ("model.safetensors", b"short", "not a safetensors"),
        ("model.safetensors", b"\xff" * 64, "not a safetensors"),
        ("tokenizer.json", None, "no tokenizer.json"),
    ],
)
def test_unusable_folder(folder: Path, file: str, content: bytes | None, reason: str) -> None:
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(ModelFolderError, match=reason):
        read_card(folder, 16, "fast")


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="does not exist"):
        read_card(tmp_path / "none", 16, "fast")


def test_echo_cards_of_equal_settings_are_equal() -> None:
    assert echo_card(16, "fast").digest == echo_card(16, "fast").digest
    assert echo_card(16, "fast").digest != echo_card(32, "fast").digest


@pytest.mark.parametrize("kv", [None, *KvDtype])
def test_a_card_keeps_its_digest_on_the_wire(folder: Path, kv: KvDtype | None) -> None:
    card = read_card(folder, 16, "fast", quantize=Quantize.INT8, kv=kv)
    assert model_card_from_pb(model_card_to_pb(card)).digest == card.digest


def test_naming_the_type_that_kv_has_anyway_changes_nothing(folder: Path) -> None:
    named = read_card(folder, 16, "fast", kv=KvDtype.BFLOAT16)
    assert named.digest == read_card(folder, 16, "fast").digest
