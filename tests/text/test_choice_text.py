"""Text and tokens of one choice leave together, and nothing leaves of a stop string."""

from hypothesis import given
from hypothesis import strategies as st

from banyan_core.types import OutputToken
from banyan_text.choice_text import ChoiceText
from banyan_text.tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer()
END = TOKENIZER.special_ids["<|end|>"]


def tokens_of(text: str) -> list[OutputToken]:
    return [OutputToken(token_id) for token_id in TOKENIZER.encode(text, add_special=False)]


def text_of(tokens: tuple[OutputToken, ...]) -> str:
    return b"".join(TOKENIZER.token_bytes(each.token_id) for each in tokens).decode()


@given(
    st.text(alphabet="abé€", max_size=20),
    st.lists(st.text(alphabet="abé€", min_size=1, max_size=3), max_size=3),
    st.lists(st.integers(1, 6), max_size=30),
)
def test_released_tokens_cover_exactly_the_sent_text(
    text: str, stops: list[str], sizes: list[int]
) -> None:
    choice = ChoiceText(TOKENIZER, stops)
    tokens = tokens_of(text)
    sent, stopped = "", False
    released: tuple[OutputToken, ...] = ()
    while tokens and not stopped:
        size = sizes.pop() if sizes else 1
        piece = choice.push(tokens[:size])
        tokens = tokens[size:]
        sent, released, stopped = sent + piece.text, released + piece.tokens, piece.stopped
        assert text_of(released) == sent
    end = choice.finish()
    assert text_of(released + end.tokens) == sent + end.text
    if not stopped:
        assert sent + end.text == text
    assert stopped == any(stop in text for stop in stops)


def test_counts_up_to_the_token_that_completed_the_stop() -> None:
    choice = ChoiceText(TOKENIZER, ["EN"])
    assert choice.push(tokens_of("aE")).text == "a"
    piece = choice.push(tokens_of("Nxyz"))
    assert (piece.text, piece.tokens, piece.stopped) == ("", (), True)
    assert choice.num_output_tokens == 3
    again = choice.push(tokens_of("more"))
    assert (again.text, again.tokens, again.stopped) == ("", (), True)
    assert choice.num_output_tokens == 3
    assert choice.finish() == ("", (), True)


def test_included_stop_string_is_sent_with_its_tokens() -> None:
    choice = ChoiceText(TOKENIZER, ["END"], include=True)
    assert choice.push(tokens_of("aEN")).text == "a"
    piece = choice.push(tokens_of("Dx"))
    assert (piece.text, text_of(piece.tokens), piece.stopped) == ("END", "END", True)


def test_partial_character_keeps_its_token_back() -> None:
    choice = ChoiceText(TOKENIZER, [])
    first, second = tokens_of("é")
    assert choice.push([first]) == ("", (), False)
    assert choice.push([second]) == ("é", (first, second), False)


def test_end_without_the_rest_of_a_character() -> None:
    choice = ChoiceText(TOKENIZER, [])
    first = tokens_of("é")[0]
    choice.push([first])
    assert choice.finish() == ("\ufffd", (first,), False)


def test_special_and_silent_tokens_add_no_text_but_count() -> None:
    choice = ChoiceText(TOKENIZER, ["x"], silent_ids=(ord("b"),))
    tokens = [*tokens_of("ab"), OutputToken(END)]
    assert choice.push(tokens) == ("a", tuple(tokens), False)
    assert choice.num_output_tokens == 3
    included = ChoiceText(TOKENIZER, [], include=True, silent_ids=(ord("b"),))
    assert included.push(tokens_of("ab")).text == "ab"
