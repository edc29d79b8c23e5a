"""Tools over the running mesh: a model that never saw one must still call as it is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pydantic
import pytest
from tests.e2e.running import RunningMesh


class Weather(pydantic.BaseModel, extra="forbid"):
    city: Literal["Paris", "Rome"]
    days: int = pydantic.Field(ge=1, le=9)


class Clock(pydantic.BaseModel, extra="forbid"):
    zone: Literal["utc", "local"]


KINDS: dict[str, type[pydantic.BaseModel]] = {"weather": Weather, "clock": Clock}
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": kind.model_json_schema()}}
    for name, kind in KINDS.items()
]
ASK: Any = [{"role": "user", "content": "How is the weather in Rome?"}]


@pytest.fixture(scope="module")
def tools_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    """The demo model's template knows no tools, so the format is set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BANYAN_GATEWAY_TOOL_FORMAT", "hermes")
        running = RunningMesh.start(tmp_path_factory.mktemp("mesh"), "--prefill", "1")
    yield running
    running.stop()


def ask(mesh: RunningMesh, **options: Any) -> Any:
    """An answer, or the list of its chunks."""
    with mesh.client() as client:
        answer: Any = client.chat.completions.create(
            model=mesh.model(), messages=ASK, tools=TOOLS, max_tokens=400, seed=3, **options
        )
        return list(answer) if options.get("stream") else answer


def check(calls: Any) -> None:
    assert calls
    for each in calls:
        KINDS[each.function.name].model_validate_json(each.function.arguments)


def test_required_calls_are_valid_in_every_choice(tools_mesh: RunningMesh) -> None:
    answer = ask(tools_mesh, tool_choice="required", parallel_tool_calls=False, n=3)
    assert [each.finish_reason for each in answer.choices] == ["tool_calls"] * 3
    for choice in answer.choices:
        assert choice.message.content is None
        assert len(choice.message.tool_calls) == 1
        check(choice.message.tool_calls)


def test_a_named_tool_streamed_is_the_same_call(tools_mesh: RunningMesh) -> None:
    named = {"type": "function", "function": {"name": "clock"}}
    whole = ask(tools_mesh, tool_choice=named, logprobs=True).choices[0]
    check(whole.message.tool_calls)
    assert whole.logprobs is not None
    name, arguments, reason = "", "", None
    for chunk in ask(tools_mesh, tool_choice=named, logprobs=True, stream=True):
        choice = chunk.choices[0]
        for each in choice.delta.tool_calls or ():
            name += each.function.name or ""
            arguments += each.function.arguments or ""
        reason = choice.finish_reason or reason
    assert (name, arguments) == ("clock", whole.message.tool_calls[0].function.arguments)
    assert reason == "tool_calls"


def test_a_call_and_its_result_go_back(tools_mesh: RunningMesh) -> None:
    message = ask(tools_mesh, tool_choice="required").choices[0].message
    results = [
        {"role": "tool", "tool_call_id": each.id, "content": json.dumps({"ok": True})}
        for each in message.tool_calls
    ]
    history: Any = [*ASK, message.model_dump(exclude_none=True), *results]
    with tools_mesh.client() as client:
        answer = client.chat.completions.create(
            model=tools_mesh.model(), messages=history, tools=TOOLS, max_tokens=4
        )
    assert answer.choices[0].finish_reason in ("length", "stop")


def test_bad_parameters_are_refused_in_front(tools_mesh: RunningMesh) -> None:
    bad: Any = {"type": "function", "function": {"name": "a", "parameters": {"type": "strin"}}}
    with tools_mesh.client() as client, pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(
            model=tools_mesh.model(), messages=ASK, tools=[bad], tool_choice="required"
        )
    assert raised.value.param == "tools[0].function.parameters"
