"""The tokenizer of a Hugging Face model folder.

Encoding is the `tokenizers` library's. Decoding is ours: each token is a fixed run of bytes, which
is what makes incremental detokenising exact. Two spellings of bytes cover the Llama family:
byte-level BPE (every byte a printable character) and SentencePiece with byte fallback (`▁` for a
blank, `<0xE2>` for a byte).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as HfLibTokenizer

from banyan_text.detokenizer import Detokenizer
from banyan_text.model_folder import (
    ModelFolderError,
    chat_template_source,
    read_object,
    read_object_if_there,
    require_folder,
    token_text,
)
from banyan_text.template import NO_VARIABLES, ChatTemplate, TemplateError
from banyan_text.tokenizer import decode_all

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


class HfTokenizer:
    """Reads `tokenizer.json`, `tokenizer_config.json` and the chat template of a folder.

    Raises ModelFolderError when a file is missing or of a kind that is not understood.
    """

    def __init__(self, folder: Path) -> None:
        require_folder(folder)
        description = read_object(folder / "tokenizer.json")
        try:
            self._library = HfLibTokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises plain Exception
            raise ModelFolderError(
                f"{folder / 'tokenizer.json'} is not understood ({error}): replace the file."
            ) from None
        self._library.no_truncation()
        self._library.no_padding()
        self._read_tokens(folder, description)
        self._template = _chat_template(folder)

    def _read_tokens(self, folder: Path, description: dict[str, Any]) -> None:
        spelling = _Spelling(folder, description.get("decoder"))
        self._num_leading_spaces = spelling.num_leading_spaces
        added = self._library.get_added_tokens_decoder()
        self._special_ids = {each.content: i for i, each in sorted(added.items()) if each.special}
        special = tuple(self._special_ids.values())
        vocab = self._library.get_vocab(with_added_tokens=True)
        self._vocab_size = _vocab_size(folder, max(vocab.values(), default=-1) + 1)
        self._bytes = [b""] * self._vocab_size
        for piece, token_id in vocab.items():
            literal = token_id in added
            self._bytes[token_id] = piece.encode() if literal else spelling.to_bytes(piece)
        self._text_bytes = list(self._bytes)
        for token_id in special:
            self._text_bytes[token_id] = b""

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def special_ids(self) -> Mapping[str, int]:
        return self._special_ids

    @property
    def token_bytes_max(self) -> int:
        return max(map(len, self._bytes))

    def encode(self, text: str, add_special: bool) -> list[int]:
        # Of the library's ways to encode, this one lets go of the interpreter's lock, so that a
        # long prompt in a thread does not hold up the event loop.
        return self._library.encode_batch_fast([text], add_special_tokens=add_special)[0].ids

    def decode(self, token_ids: Sequence[int]) -> str:
        return decode_all(self.decode_stream(), token_ids)

    def decode_stream(self, shown: Collection[str] = ()) -> Detokenizer:
        shown_ids = frozenset(i for text, i in self._special_ids.items() if text in shown)
        if not shown_ids:
            return Detokenizer(self._visible_bytes, self._num_leading_spaces)

        def visible(token_id: int) -> bytes:
            spelled = token_id in shown_ids
            return self._bytes[token_id] if spelled else self._visible_bytes(token_id)

        return Detokenizer(visible, self._num_leading_spaces)

    def token_bytes(self, token_id: int) -> bytes:
        return self._bytes[token_id] if token_id < self._vocab_size else b""

    @property
    def template_source(self) -> str:
        return self._template.source if self._template else ""

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any] = NO_VARIABLES
    ) -> str:
        if self._template is None:
            raise TemplateError("this model has no chat template: use /v1/completions")
        return self._template.render(messages, variables)

    def _visible_bytes(self, token_id: int) -> bytes:
        return self._text_bytes[token_id] if token_id < self._vocab_size else b""


class _Spelling:
    """How the vocabulary writes bytes, told by the decoder in tokenizer.json."""

    def __init__(self, folder: Path, decoder: object) -> None:
        steps = _decoder_steps(decoder)
        kinds = [step.get("type") for step in steps]
        self.num_leading_spaces = 0
        self._byte_level = _byte_level_alphabet() if "ByteLevel" in kinds else None
        if self._byte_level is None and "ByteFallback" not in kinds:
            raise ModelFolderError(
                f"{folder / 'tokenizer.json'} has decoder {kinds}: "
                "give a model with a ByteLevel or ByteFallback tokenizer."
            )
        for step in steps:
            if step.get("type") == "Strip" and step.get("content") == " ":
                self.num_leading_spaces = int(step.get("start", 0))

    def to_bytes(self, piece: str) -> bytes:
        if self._byte_level is not None:
            if all(character in self._byte_level for character in piece):
                return bytes(self._byte_level[character] for character in piece)
            return piece.encode()
        byte = _BYTE_PIECE.fullmatch(piece)
        return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()


def _decoder_steps(decoder: object) -> list[dict[str, Any]]:
    if not isinstance(decoder, dict):
        return []
    if decoder.get("type") == "Sequence":
        return [step for step in decoder.get("decoders", ()) if isinstance(step, dict)]
    return [decoder]


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's spelling: printable bytes are themselves, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return alphabet


def _vocab_size(folder: Path, num_known: int) -> int:
    """The model's vocabulary, which may be padded past the tokenizer's, never shorter."""
    num_rows = read_object(folder / "config.json").get("vocab_size", num_known)
    if not isinstance(num_rows, int) or num_rows < num_known:
        raise ModelFolderError(
            f"{folder}: tokenizer.json has {num_known} token ids, config.json says vocab_size "
            f"{num_rows}: take both files from the same model."
        )
    return num_rows


def _chat_template(folder: Path) -> ChatTemplate | None:
    source = chat_template_source(folder)
    if source is None:
        return None
    config = read_object_if_there(folder / "tokenizer_config.json")
    named = {name: token_text(config.get(name)) for name in _NAMED_TOKENS}
    try:
        return ChatTemplate(source, {name: text for name, text in named.items() if text})
    except TemplateError as error:
        raise ModelFolderError(f"{folder}: {error}; replace the template.") from None
