"""Both tokenizers against the library's own decoding, and folders that cannot be used."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from banyan_text.hf_tokenizer import HfTokenizer
from banyan_text.model_folder import ModelFolderError
from banyan_text.template import TemplateError
from banyan_text.tokenizer import ByteTokenizer

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
TEXTS = ("hello", " world", "é€😀", "a  b\n\tc", "x<|end|>y", "▁", "12 345")


def byte_level() -> LibraryTokenizer:
    library = LibraryTokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(["hello world hello words"], trainer)
    library.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    return library


def byte_fallback() -> LibraryTokenizer:
    pieces = ["<|begin|>", "<|end|>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "h", "e", "l", "o", "he", "ll", "hell", "hello", "▁hello"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("▁", "hello")]
    library = LibraryTokenizer(models.BPE(vocab, merges, byte_fallback=True, fuse_unk=True))
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    library.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    library.add_special_tokens(["<|begin|>", "<|end|>"])
    return library


def write_folder(folder: Path, library: LibraryTokenizer, **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    library.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps({**named, "chat_template": TEMPLATE}))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
@pytest.mark.parametrize("text", TEXTS)
def test_decodes_as_the_library_does(
    make: Callable[[], LibraryTokenizer], text: str, tmp_path: Path
) -> None:
    library = make()
    tokenizer = HfTokenizer(write_folder(tmp_path, library))
    ids = tokenizer.encode(text, add_special=False)
    assert ids == library.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == library.decode(ids, skip_special_tokens=True)


@given(st.text(max_size=30))
def test_byte_tokenizer_round_trip(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text, add_special=False)
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    assert max(ids, default=0) < tokenizer.vocab_size


def test_special_tokens(tmp_path: Path) -> None:
    tokenizer = HfTokenizer(write_folder(tmp_path, byte_level()))
    assert dict(tokenizer.special_ids) == {"<|begin|>": 0, "<|end|>": 1}
    plain = tokenizer.encode("hi", add_special=False)
    assert tokenizer.encode("hi", add_special=True) == [0, *plain]
    assert tokenizer.encode("hi<|end|>", add_special=False) == [*plain, 1]
    assert tokenizer.decode([0, *plain, 1]) == "hi"
    assert tokenizer.token_bytes(1) == b"<|end|>"


@pytest.mark.parametrize("kind", ["bytes", "folder"])
def test_a_stream_spells_out_the_special_tokens_it_is_asked_for(kind: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, byte_level())
    tokenizer = ByteTokenizer() if kind == "bytes" else HfTokenizer(folder)
    token_ids = tokenizer.encode("<|begin|>hi<|end|>", add_special=False)
    stream = tokenizer.decode_stream(shown=("<|end|>", "<|unknown|>"))
    assert "".join(map(stream.push, token_ids)) + stream.finish() == "hi<|end|>"


def test_ids_without_a_token_add_nothing(tmp_path: Path) -> None:
    tokenizer = HfTokenizer(write_folder(tmp_path, byte_level(), vocab_size=512))
    assert tokenizer.vocab_size == 512
    assert tokenizer.decode([511, 10_000]) == ""
    assert tokenizer.token_bytes(511) == b""


def test_chat_template_of_the_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, byte_level())
    messages = [{"role": "user", "content": "hi"}]
    assert HfTokenizer(folder).render_chat(messages) == "<|begin|>hi<|end|>"
    (folder / "chat_template.jinja").write_text("own file")
    assert HfTokenizer(folder).render_chat(messages) == "own file"


def test_no_chat_template(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, byte_level())
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(TemplateError, match="no chat template"):
        HfTokenizer(folder).render_chat([])


def test_byte_chat() -> None:
    rendered = ByteTokenizer().render_chat([{"role": "user", "content": "hi"}])
    assert rendered == "<|user|>hi\n<|assistant|>"


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("config.json", None, "no config.json"),
        ("config.json", '{"vocab_size": 10}', "same model"),
        ("tokenizer.json", None, "no tokenizer.json"),
        ("tokenizer.json", "{", "cannot be read"),
        ("tokenizer.json", "[]", "JSON object"),
        ("tokenizer.json", "{}", "not understood"),
        ("tokenizer_config.json", '{"chat_template": "{% if %}"}', "compile"),
    ],
)
def test_unusable_folder(tmp_path: Path, file: str, content: str | None, reason: str) -> None:
    folder = write_folder(tmp_path, byte_level())
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(ModelFolderError, match=reason):
        HfTokenizer(folder)


def test_unknown_decoder_is_refused(tmp_path: Path) -> None:
    library = byte_level()
    library.decoder = decoders.WordPiece()
    with pytest.raises(ModelFolderError, match="WordPiece"):
        HfTokenizer(write_folder(tmp_path, library))
