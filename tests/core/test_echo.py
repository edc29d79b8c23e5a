"""The echo runner notices every way in which KV can be wrong."""

from __future__ import annotations

import pytest

from banyan_core.echo import ECHO_LAYOUT, GARBAGE, EchoLatency, EchoRunner
from banyan_core.runner import Opening, PlanItem, StepPlan
from banyan_core.types import SamplingParams

PROMPT = tuple(range(11, 19))
GREEDY = SamplingParams(temperature=0)


def item(start: int, table: tuple[int, ...], output: tuple[int, ...] = ()) -> PlanItem:
    opening = Opening(PROMPT, output, table, GREEDY)
    return PlanItem("s", (PROMPT + output)[start:], start, sample=True, opening=opening)


def runner(num_blocks: int = 8) -> EchoRunner:
    return EchoRunner(num_blocks, 4, EchoLatency())


def ask(engine: EchoRunner, asked: PlanItem) -> int:
    (sampled,) = engine.run(StepPlan(1, (asked,)), lambda layer: None).sampled
    return sampled.tokens[0].token_id


def test_output_token_i_is_prompt_token_i_out_of_the_blocks() -> None:
    engine = runner()
    output: tuple[int, ...] = ()
    for index in range(5):
        start = 0 if index == 0 else len(PROMPT) + index - 1
        output += (ask(engine, item(start, (3, 1, 5, 0), output)),)
    assert output == PROMPT[:5]


def copy_block(source: EchoRunner, target: EchoRunner, block_id: int, layers: range) -> None:
    for layer in layers:
        target.import_page(block_id, layer, source.export_page(block_id, layer))


@pytest.mark.parametrize(
    ("layers", "expected"), [(range(2), PROMPT[0]), (range(1), GARBAGE), (range(1, 2), GARBAGE)]
)
def test_a_transferred_block_must_have_all_its_layers(layers: range, expected: int) -> None:
    source, target = runner(), runner()
    ask(source, item(0, (0, 1)))
    copy_block(source, target, 0, layers)
    assert ask(target, item(4, (0, 1))) == expected


def test_a_page_of_another_layer_is_noticed() -> None:
    source, target = runner(), runner()
    ask(source, item(0, (0, 1)))
    copy_block(source, target, 0, range(2))
    target.import_page(0, 1, source.export_page(0, 0))
    assert ask(target, item(4, (0, 1))) == GARBAGE


def test_a_block_of_another_place_gives_another_answer() -> None:
    engine = runner()
    ask(engine, item(0, (0, 1)))
    assert ask(engine, item(7, (1, 1))) != PROMPT[0]


def test_a_page_has_the_layouts_size_and_no_other() -> None:
    engine = runner()
    expected = ECHO_LAYOUT.page_bytes(0, 4)
    assert len(engine.export_page(0, 0)) == expected
    with pytest.raises(ValueError, match="expected 32 bytes, got 3"):
        engine.import_page(0, 0, b"abc")


def test_layers_are_announced_in_order_and_time_is_modelled() -> None:
    layers: list[int] = []
    result = runner().run(StepPlan(1, (item(0, (0, 1)),)), layers.append)
    assert layers == [0, 1]
    assert result.modelled_ns == EchoLatency().base_ns + 8 * 20_000 + 50_000


def test_what_it_was_told_stays_until_the_sequence_is_closed() -> None:
    engine = runner()
    opening = Opening(PROMPT, (), (3, 1), GREEDY)
    engine.run(StepPlan(1, (PlanItem("s", PROMPT, 0, True, opening=opening),)), lambda layer: None)
    grown = PlanItem("s", PROMPT[:1], len(PROMPT), True, new_block_ids=(5,))
    (sampled,) = engine.run(StepPlan(2, (grown,)), lambda layer: None).sampled
    assert [token.token_id for token in sampled.tokens] == [PROMPT[1]]
    engine.run(StepPlan(3, (), closed=("s", "nobody")), lambda layer: None)
    assert engine.num_open == 0


@pytest.mark.parametrize(("num_right", "drafts"), [(0, (1, 12)), (1, (12, 1)), (2, (12, 13))])
def test_a_draft_is_worth_a_token_when_all_before_it_were_right(
    num_right: int, drafts: tuple[int, ...]
) -> None:
    engine = runner()
    ask(engine, item(0, (3, 1, 5)))
    asked = PlanItem("s", (PROMPT[0], *drafts), len(PROMPT), True, num_draft_tokens=len(drafts))
    (sampled,) = engine.run(StepPlan(2, (asked,)), lambda layer: None).sampled
    assert [token.token_id for token in sampled.tokens] == [*PROMPT[1 : 2 + num_right]]


def test_a_copied_block_is_the_same_and_its_own() -> None:
    engine = runner()
    ask(engine, item(0, (0, 1)))
    engine.run(StepPlan(2, (), copies=((1, 4),)), lambda layer: None)
    assert [engine.export_page(4, layer) for layer in range(2)] == [
        engine.export_page(1, layer) for layer in range(2)
    ]
    before = engine.export_page(4, 0)
    engine.import_page(1, 0, bytes(32))
    assert engine.export_page(4, 0) == before
