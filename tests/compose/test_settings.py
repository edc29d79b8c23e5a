"""A mesh of its own with what the settings offer: packed weights and KV, adapters, tool formats.

The mesh of the other tests computes deterministically, where nothing can be packed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.compose.running import ComposeMesh

from banyan_engine.demo import model_folder
from banyan_engine.random_lora import LORA_CONFIG, write_random_lora

pytestmark = pytest.mark.timeout(900)
QUESTION = (
    "The amber key opens door 4821. The silver key opens door 1937. The iron key opens door 6650. "
    "Which door does the silver key open?"
)
SCHEMA = {
    "type": "object",
    "properties": {"door": {"type": "integer", "minimum": 0, "maximum": 9999}},
    "required": ["door"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "open_door", "parameters": SCHEMA}}
CARD = ("QUANTIZE", "KV_DTYPE")


def settings(adapters: Path) -> dict[str, str]:
    return {
        "BANYAN_QUANTIZE": "int8",
        "BANYAN_KV_DTYPE": "int8",
        "BANYAN_ADAPTERS": str(adapters),
        "BANYAN_TOOL_FORMAT": "hermes",
        "BANYAN_REASONING_FORMAT": "none",
    }


@pytest.fixture(scope="module")
def packed(images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeMesh]:
    adapters = tmp_path_factory.mktemp("adapters")
    write_random_lora(adapters / "other", model_folder(), LORA_CONFIG, seed=1)
    for path in (adapters, *adapters.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)  # containers read it as somebody else
    running = ComposeMesh("banyan-test-packed", env=settings(adapters))
    running.down()
    try:
        running.up()
        yield running
    finally:
        running.down()


def chat(mesh: ComposeMesh, **changes: Any) -> Any:
    asked: dict[str, Any] = {"model": "banyan-demo", "temperature": 0, "max_tokens": 60}
    messages: Any = [{"role": "user", "content": QUESTION}]
    with mesh.client() as client:
        answer = client.chat.completions.create(messages=messages, **(asked | changes))
    return answer.choices[0]


def test_gateway_and_workers_are_told_the_same(packed: ComposeMesh) -> None:
    config = json.loads(packed.compose("config", "--format=json"))["services"]
    for service in ("gateway", "prefill", "decode"):
        told = config[service]["environment"]
        prefix = f"BANYAN_{service.upper()}"
        assert [told[f"{prefix}_{key}"] for key in CARD] == ["int8", "int8"]
        assert told["BANYAN_ADAPTERS"] == "/adapters"


def test_packed_weights_and_kv_answer_from_the_prompt(packed: ComposeMesh) -> None:
    assert "1937" in chat(packed).message.content


def test_an_adapter_answers_in_its_own_way(packed: ComposeMesh) -> None:
    with packed.client() as client:
        assert {model.id for model in client.models.list()} == {"banyan-demo", "other"}
    assert chat(packed, model="other").message.content != chat(packed).message.content


def test_an_answer_follows_its_schema(packed: ComposeMesh) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "door", "schema": SCHEMA}}
    answer = chat(packed, response_format=schema)
    assert list(json.loads(answer.message.content)) == ["door"]


def test_a_forced_tool_is_called(packed: ComposeMesh) -> None:
    choice = {"type": "function", "function": {"name": "open_door"}}
    (call,) = chat(packed, tools=[TOOL], tool_choice=choice).message.tool_calls
    assert call.function.name == "open_door"
    assert list(json.loads(call.function.arguments)) == ["door"]
