"""Tools and reasoning at the API: what the model is told, what it must do, how it is read.

The gateway echoes the prompt, so what a test writes into the message is what the model "says".
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from tests.gateway_api.conftest import Driving, app_of
from tests.gateway_api.echo_gateway import EchoGateway

from banyan_core.types import GrammarKind
from banyan_gateway.auth import KeyRing
from banyan_gateway.http_server import HttpServer
from banyan_gateway.model_formats import ModelFormats, model_formats
from banyan_runtime.settings import SettingsError
from banyan_text.reasoning import FORMATS as REASONING
from banyan_text.tokenizer import ByteTokenizer
from banyan_text.tools import FORMATS

WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "How it is outside",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CLOCK: ChatCompletionToolParam = {"type": "function", "function": {"name": "clock"}}
ARGUMENTS = '{"city": "Łódź"}'
CALLS = (
    f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>\n'
    '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'
)
END = "STOP"


@pytest.fixture
async def client(gateway: EchoGateway) -> AsyncIterator[openai.AsyncOpenAI]:
    formats = ModelFormats(FORMATS["hermes"], REASONING["think"])
    server = HttpServer(app_of(gateway, KeyRing(), formats), "127.0.0.1:0", Driving())
    await server.start()
    url = f"http://{server.address}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as client:
        yield client
    await server.stop(1.0)


def saying(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text + END}]


async def test_calls(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="echo", messages=saying(CALLS), tools=[WEATHER, CLOCK], stop=END, n=2
    )
    ids = []
    for choice in answer.choices:
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        assert choice.message.tool_calls is not None
        found = [
            (each.function.name, each.function.arguments)
            for each in choice.message.tool_calls
            if each.type == "function"
        ]
        assert found == [("weather", ARGUMENTS), ("clock", "{}")]
        ids += [each.id for each in choice.message.tool_calls]
    assert len(set(ids)) == 4
    assert all(each.isalnum() and len(each) == 9 for each in ids)


async def test_calls_streamed(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="echo",
        messages=saying("Well. " + CALLS),
        tools=[WEATHER, CLOCK],
        tool_choice="auto",
        stop=END,
        stream=True,
        n=2,
    )
    content, reasons = ["", ""], ["", ""]
    calls: list[dict[int, dict[str, str]]] = [{}, {}]
    async for chunk in stream:
        for choice in chunk.choices:
            content[choice.index] += choice.delta.content or ""
            reasons[choice.index] += choice.finish_reason or ""
            for each in choice.delta.tool_calls or ():
                assert each.function is not None
                if each.index not in calls[choice.index]:
                    assert each.type == "function"
                    assert each.id
                    assert each.function.name
                    begun = {"name": each.function.name, "arguments": ""}
                    calls[choice.index][each.index] = begun
                else:
                    assert each.id is None
                    assert each.function.name is None
                calls[choice.index][each.index]["arguments"] += each.function.arguments or ""
    assert content == ["Well."] * 2
    assert reasons == ["tool_calls"] * 2
    expected = {
        0: {"name": "weather", "arguments": ARGUMENTS},
        1: {"name": "clock", "arguments": "{}"},
    }
    assert calls == [expected, expected]


async def test_one_call_where_several_are_not_wanted(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="echo",
        messages=saying(CALLS),
        tools=[WEATHER, CLOCK],
        parallel_tool_calls=False,
        stop=END,
    )
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert [each.function.name for each in calls if each.type == "function"] == ["weather"]


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": 7}</tool_call>',
        "<tool_call>not JSON</tool_call>",
        '<tool_call>{"name": "weather',
        "a < b, <tool_cal",
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_no_call_is_content(
    client: openai.AsyncOpenAI, text: str, stream: bool
) -> None:
    body: dict[str, Any] = {"model": "echo", "messages": saying(text), "tools": [WEATHER]}
    if stream:
        chunks = await client.chat.completions.create(**body, stop=END, stream=True)
        choices = [chunk.choices[0] async for chunk in chunks]
        content = "".join(each.delta.content or "" for each in choices)
        reason = choices[-1].finish_reason
    else:
        whole = (await client.chat.completions.create(**body, stop=END)).choices[0]
        content, reason = whole.message.content or "", whole.finish_reason
    assert content.startswith(text[:12])
    assert reason == "stop"


async def test_a_cut_call_says_length(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="echo", messages=saying(CALLS), tools=[WEATHER], max_tokens=60
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "length"
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert ARGUMENTS.startswith(call.function.arguments)


@pytest.mark.parametrize("stream", [False, True])
async def test_reasoning_is_apart(client: openai.AsyncOpenAI, stream: bool) -> None:
    body: dict[str, Any] = {"model": "echo", "messages": saying("<think>\nHm.\n</think>\n\nYes.")}
    if stream:
        chunks = await client.chat.completions.create(**body, stop=END, stream=True)
        deltas = [chunk.choices[0].delta async for chunk in chunks]
        reasoning = "".join(getattr(each, "reasoning_content", "") or "" for each in deltas)
        content = "".join(each.content or "" for each in deltas)
    else:
        message = (await client.chat.completions.create(**body, stop=END)).choices[0].message
        reasoning, content = message.reasoning_content, message.content or ""
    assert (reasoning, content) == ("Hm.", "Yes.")


async def test_logprobs_go_with_calls(client: openai.AsyncOpenAI) -> None:
    body: dict[str, Any] = {"messages": saying(CALLS), "tools": [WEATHER], "logprobs": True}
    whole = await client.chat.completions.create(model="echo", stop=END, **body)
    stream = await client.chat.completions.create(model="echo", stop=END, stream=True, **body)
    streamed: list[str] = []
    async for chunk in stream:
        logprobs = chunk.choices[0].logprobs
        streamed += [each.token for each in (logprobs and logprobs.content) or ()]
    assert whole.choices[0].logprobs is not None
    assert streamed == [each.token for each in whole.choices[0].logprobs.content or ()]
    assert "".join(streamed[1:]).encode().startswith(b"<tool_call>")


async def test_a_required_call_is_forced_by_a_grammar(
    client: openai.AsyncOpenAI, gateway: EchoGateway
) -> None:
    async def grammar_of(**body: Any) -> str:
        tools = [WEATHER, CLOCK]
        await client.chat.completions.create(
            model="echo", messages=saying("x"), tools=tools, max_tokens=2, **body
        )
        grammar = gateway.requests[-1].sampling.grammar
        if grammar is None:
            return ""
        assert grammar.kind is GrammarKind.LARK
        return grammar.text

    assert await grammar_of() == ""
    assert await grammar_of(tool_choice="none") == ""
    required = await grammar_of(tool_choice="required")
    assert '"weather"' in required
    assert '"clock"' in required
    named = await grammar_of(tool_choice={"type": "function", "function": {"name": "clock"}})
    assert '"weather"' not in named
    assert '"clock"' in named
    assert await grammar_of(tool_choice="required", parallel_tool_calls=False) != required


async def test_a_conversation_with_calls_reaches_the_template(
    client: openai.AsyncOpenAI, gateway: EchoGateway
) -> None:
    function = {"name": "weather", "arguments": ARGUMENTS}
    call = {"id": "abc", "type": "function", "function": function}
    messages: list[Any] = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abc", "content": "mild"},
    ]
    answer = await client.chat.completions.create(model="echo", messages=messages, max_tokens=1)
    assert answer.choices[0].finish_reason == "length"
    prompt = ByteTokenizer().decode(gateway.requests[0].prompt_token_ids)
    assert "mild" in prompt


async def test_the_last_message_is_continued(
    client: openai.AsyncOpenAI, gateway: EchoGateway
) -> None:
    async def prompt_of(**fields: Any) -> str:
        messages: list[Any] = [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "Once upon"},
        ]
        await client.chat.completions.create(
            model="echo", messages=messages, max_tokens=1, extra_body=fields
        )
        token_ids = gateway.requests[-1].prompt_token_ids
        return b"".join(map(ByteTokenizer().token_bytes, token_ids)).decode()

    turns = "<|user|>hi\n<|assistant|>Once upon"
    assert await prompt_of() == turns + "\n<|assistant|>"
    assert await prompt_of(continue_final_message=True) == turns
    assert await prompt_of(continue_final_message=True, add_generation_prompt=False) == turns
    assert await prompt_of(add_generation_prompt=False) == turns + "\n"


def test_formats_are_found_or_set() -> None:
    hermes = "{{ '<tool_call>' }}{{ '</think>' }}"
    found = model_formats(hermes, "P_", "auto", "auto")
    assert (found.tools, found.reasoning) == (FORMATS["hermes"], REASONING["think"])
    assert model_formats("plain", "P_", "auto", "auto") == ModelFormats()
    assert model_formats(hermes, "P_", "none", "none") == ModelFormats()
    assert model_formats("plain", "P_", "mistral", "auto").tools == FORMATS["mistral"]
    with pytest.raises(SettingsError, match="P_TOOL_FORMAT=nosuch: expected one of auto, none, he"):
        model_formats("plain", "P_", "nosuch", "auto")
    with pytest.raises(SettingsError, match="P_REASONING_FORMAT=x: expected one of auto, none, th"):
        model_formats("plain", "P_", "auto", "x")


async def test_many_tools(client: openai.AsyncOpenAI, gateway: EchoGateway) -> None:
    tools: list[Any] = [
        {"type": "function", "function": {**WEATHER["function"], "name": f"tool_{index}"}}
        for index in range(128)
    ]
    answer = await client.chat.completions.create(
        model="echo", messages=saying("x"), tools=tools, tool_choice="required", max_tokens=1
    )
    assert answer.choices
    assert json.dumps("tool_127") in gateway.requests[0].sampling.grammar.text  # type: ignore[union-attr]
