"""Incremental detokenising: never half a character, and equal to decoding the whole."""

from hypothesis import given
from hypothesis import strategies as st

from banyan_text.detokenizer import Detokenizer
from banyan_text.tokenizer import ByteTokenizer


@given(st.binary(max_size=40))
def test_any_bytes_give_the_whole_texts_decoding(data: bytes) -> None:
    stream = ByteTokenizer().decode_stream()
    text = "".join(stream.push(byte) for byte in data) + stream.finish()
    assert text == data.decode("utf-8", errors="replace")


@given(st.text(max_size=20))
def test_valid_text_never_shows_a_replacement(text: str) -> None:
    stream = ByteTokenizer().decode_stream()
    sent = ""
    for byte in text.encode():
        sent += stream.push(byte)
        assert text.startswith(sent)
    assert not stream.has_partial
    assert stream.finish() == ""
    assert sent == text


def test_half_a_character_waits() -> None:
    stream = ByteTokenizer().decode_stream()
    first, second, third = "€".encode()
    assert stream.push(first) == ""
    assert stream.push(second) == ""
    assert stream.has_partial
    assert stream.push(third) == "€"
    assert not stream.has_partial


def test_half_a_character_at_the_end_becomes_one_replacement() -> None:
    stream = ByteTokenizer().decode_stream()
    assert stream.push(0xE2) + stream.push(0x82) == ""
    assert stream.finish() == "\ufffd"


def test_leading_spaces_are_dropped_only_at_the_beginning() -> None:
    stream = Detokenizer(lambda token_id: [b"", b" ", b" a", b"  b"][token_id], 1)
    assert [stream.push(token_id) for token_id in (0, 2, 3, 1)] == ["", "a", "  b", " "]
