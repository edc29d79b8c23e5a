"""The official client against a real port: what users of OpenAI's API do."""

import asyncio

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from tests.gateway_api.conftest import Served
from tests.gateway_api.echo_gateway import Script

from banyan_gateway.ports import RequestFailed

HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi €"}]
RENDERED = "hi €\n"  # special tokens of the template add no text


async def test_chat(served: Served) -> None:
    answer = await served.client.chat.completions.create(model="echo", messages=HI, max_tokens=9)
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", RENDERED)
    assert choice.finish_reason == "length"
    assert answer.object == "chat.completion"
    assert answer.id == served.gateway.requests[0].request_id
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(served.gateway.requests[0].prompt_token_ids)
    assert (answer.usage.completion_tokens, answer.usage.total_tokens) == (9, 18)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 2


async def test_chat_stream(served: Served) -> None:
    stream = await served.client.chat.completions.create(
        model="echo",
        messages=HI,
        max_completion_tokens=9,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].delta.role for chunk in chunks[1:-1]] == [None] * (len(chunks) - 2)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == RENDERED
    assert chunks[-2].choices[0].finish_reason == "length"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-2]] == [None] * (len(chunks) - 2)
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 9
    assert {chunk.id for chunk in chunks} == {served.gateway.requests[0].request_id}


async def test_stream_without_usage_has_none(served: Served) -> None:
    stream = await served.client.chat.completions.create(
        model="echo", messages=HI, max_tokens=3, stream=True
    )
    async for chunk in stream:
        assert chunk.usage is None
        assert chunk.choices


async def test_usage_in_every_chunk(served: Served) -> None:
    stream = await served.client.completions.create(
        model="echo",
        prompt="abc",
        max_tokens=4,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    )
    counts = [(c.usage.prompt_tokens, c.usage.completion_tokens) async for c in stream if c.usage]
    assert counts == [(3, 1), (3, 2), (3, 3), (3, 4), (3, 4), (3, 4)]


async def test_several_choices(served: Served) -> None:
    answer = await served.client.chat.completions.create(
        model="echo", messages=HI, max_tokens=9, n=3
    )
    assert [(c.index, c.message.content) for c in answer.choices] == [
        (index, RENDERED) for index in range(3)
    ]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 27


async def test_several_choices_streamed(served: Served) -> None:
    stream = await served.client.chat.completions.create(
        model="echo", messages=HI, max_tokens=9, n=2, stream=True
    )
    texts, roles, ends = ["", ""], [0, 0], [0, 0]
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles[choice.index] += choice.delta.role is not None
            ends[choice.index] += choice.finish_reason is not None
    assert (texts, roles, ends) == ([RENDERED, RENDERED], [1, 1], [1, 1])


async def test_stop_string(served: Served) -> None:
    answer = await served.client.completions.create(
        model="echo", prompt="one END two", max_tokens=11, stop=["END"]
    )
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("one ", "stop")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len("one END")


async def test_stop_string_streamed_and_included(served: Served) -> None:
    for include, expected in ((False, "one "), (True, "one END")):
        stream = await served.client.completions.create(
            model="echo",
            prompt="one END two",
            max_tokens=11,
            stop="END",
            stream=True,
            extra_body={"include_stop_str_in_output": include},
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].text for chunk in chunks) == expected
        assert chunks[-1].choices[0].finish_reason == "stop"


async def test_completion_of_several_prompts(served: Served) -> None:
    answer = await served.client.completions.create(
        model="echo", prompt=["ab", "cd"], max_tokens=2, n=2
    )
    assert [(c.index, c.text) for c in answer.choices] == list(enumerate(["ab", "ab", "cd", "cd"]))
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 8)
    ids = [request.request_id for request in served.gateway.requests]
    assert ids == [f"{answer.id}-0", f"{answer.id}-1"]


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [("ab", ["ab"]), ([97, 98], ["ab"]), (["ab"], ["ab"]), ([[97, 98], [99, 100]], ["ab", "cd"])],
)
async def test_forms_of_prompts(
    served: Served, prompt: str | list[str] | list[int] | list[list[int]], texts: list[str]
) -> None:
    answer = await served.client.completions.create(model="echo", prompt=prompt, max_tokens=2)
    assert [choice.text for choice in answer.choices] == texts


async def test_chat_logprobs(served: Served) -> None:
    answer = await served.client.chat.completions.create(
        model="echo", messages=HI, max_tokens=9, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    data = b"".join(bytes(entry.bytes or []) for entry in logprobs.content)
    assert data.decode() == f"<|user|>{RENDERED}<|assistant|>"
    assert logprobs.content[1].token == "h"
    assert logprobs.content[1].logprob == -0.5
    tops = [(top.token, top.logprob) for top in logprobs.content[1].top_logprobs]
    assert tops == [("h", -0.5), ("\ufffd", -9999.0)]


async def test_streamed_logprobs_equal_whole(served: Served) -> None:
    whole = await served.client.completions.create(
        model="echo", prompt="aé€", max_tokens=6, logprobs=3
    )
    stream = await served.client.completions.create(
        model="echo", prompt="aé€", max_tokens=6, logprobs=3, stream=True
    )
    parts = [c.choices[0].logprobs async for c in stream if c.choices[0].logprobs]
    expected = whole.choices[0].logprobs
    assert expected is not None
    assert expected.tokens == ["a", *(f"bytes:\\x{byte:02x}" for byte in "é€".encode())]
    assert expected.text_offset == [0, 1, 1, 2, 2, 2]
    assert expected.top_logprobs is not None
    assert expected.top_logprobs[0] == {"a": -0.5, "bytes:\\xe2": -9999.0, "bytes:\\xc3": -3.0}
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        joined = [item for part in parts for item in getattr(part, name)]
        assert joined == getattr(expected, name)


async def test_models(served: Served) -> None:
    models = [model async for model in served.client.models.list()]
    assert [(model.id, model.object, model.owned_by) for model in models] == [
        ("echo", "model", "banyan")
    ]
    assert (await served.client.models.retrieve("echo")).id == "echo"
    with pytest.raises(openai.NotFoundError) as caught:
        await served.client.models.retrieve("org/other")
    assert caught.value.code == "model_not_found"


async def test_previous_answers_can_be_sent_back(served: Served) -> None:
    answer = await served.client.chat.completions.create(model="echo", messages=HI, max_tokens=9)
    again: list[ChatCompletionMessageParam] = [
        *HI,
        answer.choices[0].message.to_dict(),  # type: ignore[list-item]  # as users do it
        {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]},
    ]
    await served.client.chat.completions.create(model="echo", messages=again, max_tokens=1)
    text = bytes(i for i in served.gateway.requests[-1].prompt_token_ids if i < 256).decode()
    assert text == f"hi €\n{RENDERED}\nx\ny\n"


async def test_wrong_requests_raise_the_clients_errors(served: Served) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await served.client.chat.completions.create(model="gpt", messages=HI)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as wrong:
        await served.client.chat.completions.create(model="echo", messages=HI, temperature=9)
    assert wrong.value.param == "temperature"
    assert wrong.value.request_id


async def test_refused_before_the_first_token(served: Served) -> None:
    failure = RequestFailed("overloaded", "all are busy", 1.5, 429)
    served.gateway.script = Script(num_tokens=0, failure=failure)
    for stream in (False, True):
        with pytest.raises(openai.RateLimitError) as caught:
            await served.client.chat.completions.create(model="echo", messages=HI, stream=stream)
        assert caught.value.response.headers["retry-after"] == "2"
        assert caught.value.code == "overloaded"


@pytest.mark.parametrize(
    ("failure", "code"),
    [(RequestFailed("worker_lost", "gone"), "worker_lost"), (RuntimeError("a bug"), "internal")],
)
async def test_broken_stream_raises(served: Served, failure: Exception, code: str) -> None:
    served.gateway.script = Script(num_tokens=3, failure=failure)
    stream = await served.client.completions.create(
        model="echo", prompt="abcdef", max_tokens=6, stream=True
    )
    text = ""
    with pytest.raises(openai.APIError) as caught:
        async for chunk in stream:
            text += chunk.choices[0].text
            assert chunk.choices[0].finish_reason is None
    assert text == "abc"
    assert caught.value.code == code


@pytest.mark.parametrize("script", [Script(no_usage=True), Script(no_reason=True)])
async def test_stream_whose_generator_merely_ends_is_not_complete(
    served: Served, script: Script
) -> None:
    served.gateway.script = script
    stream = await served.client.completions.create(
        model="echo", prompt="abc", max_tokens=3, stream=True
    )
    with pytest.raises(openai.APIError):
        async for _ in stream:
            pass


async def test_client_that_leaves_a_stream_stops_the_work(served: Served) -> None:
    served.gateway.script = Script(num_tokens=2, wait_s=60)
    stream = await served.client.completions.create(
        model="echo", prompt="abc", max_tokens=100, stream=True
    )
    async for _ in stream:
        break
    assert served.gateway.num_running == 1
    await stream.close()
    await served.gateway.until_running(0)
    assert served.gateway.num_given_up == 1


async def test_client_that_leaves_before_the_answer_stops_the_work(served: Served) -> None:
    served.gateway.script = Script(num_tokens=2, wait_s=60)
    asking = asyncio.create_task(
        served.client.completions.create(model="echo", prompt=["abc", "def"], max_tokens=100)
    )
    await served.gateway.until_running(2)
    asking.cancel()
    await served.gateway.until_running(0)
    assert served.gateway.num_given_up == 2
