"""The echo runner notices every way in which KV can be wrong."""

from __future__ import annotations

import pytest

from banyan_core.echo import ECHO_LAYOUT, GARBAGE, EchoLatency, EchoRunner
from banyan_core.runner import PlanItem, StepPlan
from banyan_core.types import SamplingParams

PROMPT = tuple(range(11, 19))
GREEDY = SamplingParams(temperature=0)


def item(start: int, table: tuple[int, ...], output: tuple[int, ...] = ()) -> PlanItem:
    tokens = PROMPT + output
    return PlanItem("s", tokens[start:], start, table, True, GREEDY, len(PROMPT), PROMPT, output)


def runner(num_blocks: int = 8) -> EchoRunner:
    return EchoRunner(num_blocks, 4, EchoLatency())


def ask(engine: EchoRunner, asked: PlanItem) -> int:
    (sampled,) = engine.run(StepPlan(1, (asked,)), lambda layer: None).sampled
    assert sampled.token is not None
    return sampled.token.token_id


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
    expected = ECHO_LAYOUT.token_bytes * 4 // ECHO_LAYOUT.num_layers
    assert len(engine.export_page(0, 0)) == expected
    with pytest.raises(ValueError, match="expected 32 bytes, got 3"):
        engine.import_page(0, 0, b"abc")


def test_layers_are_announced_in_order_and_time_is_modelled() -> None:
    layers: list[int] = []
    result = runner().run(StepPlan(1, (item(0, (0, 1)),)), layers.append)
    assert layers == [0, 1]
    assert result.modelled_ns == EchoLatency().base_ns + 8 * 20_000 + 50_000
