"""The OpenAI SDK as its users write it: asks, and says what it heard as JSON."""

import json
import sys

import openai

url, model, *scenario = sys.argv[1:]
client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", timeout=60)
QUESTION = (
    "The amber key opens door 4821. The silver key opens door 1937. "
    "Which door does the silver key open?"
)
MESSAGES = [{"role": "user", "content": QUESTION}]
LONG = {
    "temperature": 0,
    "max_tokens": 1500,
    "extra_body": {"ignore_eos": True, "min_tokens": 1500},
}


def usage_of(answer):
    usage = answer.usage
    return {
        "prompt": usage.prompt_tokens,
        "completion": usage.completion_tokens,
        "total": usage.total_tokens,
        "cached": usage.prompt_tokens_details.cached_tokens,
    }


def chat():
    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, temperature=0, max_tokens=30
    )
    choice = answer.choices[0]
    return {
        "text": choice.message.content,
        "finish": choice.finish_reason,
        "usage": usage_of(answer),
    }


def chat_stream():
    stream = client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        temperature=0,
        max_tokens=30,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    choices = [choice for chunk in chunks for choice in chunk.choices]
    return {
        "text": "".join(choice.delta.content or "" for choice in choices),
        "finish": choices[-1].finish_reason,
        "usage": usage_of(chunks[-1]),
    }


def accumulated():
    """The SDK's own accumulator, which is strict about what chunks may hold."""
    with client.chat.completions.stream(
        model=model, messages=MESSAGES, temperature=0, max_tokens=30
    ) as stream:
        for _ in stream:
            pass
        completion = stream.get_final_completion()
    return {
        "text": completion.choices[0].message.content,
        "finish": completion.choices[0].finish_reason,
    }


def completion():
    answer = client.completions.create(model=model, prompt=QUESTION, **LONG)
    return {"finish": answer.choices[0].finish_reason, "usage": usage_of(answer)}


def ignored():
    """Fields of the API that have no effect here must not be refused."""
    raw = client.chat.completions.with_raw_response.create(
        model=model,
        messages=MESSAGES,
        max_completion_tokens=4,
        store=True,
        metadata={"a": "b"},
        service_tier="auto",
        safety_identifier="s",
        verbosity="low",
        prompt_cache_key="k",
        reasoning_effort="low",
        parallel_tool_calls=True,
        user="me",
        extra_headers={"x-request-id": "client-request-1", "Idempotency-Key": "once"},
    )
    return {
        "request_id": raw.headers["x-request-id"],
        "ignored": raw.headers["x-banyan-ignored-fields"].split(", "),
        "text": raw.parse().choices[0].message.content,
    }


def error_of(ask):
    try:
        ask()
    except openai.APIStatusError as error:
        return {
            "class": type(error).__name__,
            "status": error.status_code,
            "code": error.code,
            "param": error.param,
            "type": error.type,
            "has_request_id": bool(error.request_id),
        }
    return None


def errors():
    create = client.chat.completions.create
    weather = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    return {
        "model": error_of(lambda: create(model="gpt-4", messages=MESSAGES)),
        "temperature": error_of(lambda: create(model=model, messages=MESSAGES, temperature=9)),
        "context": error_of(lambda: create(model=model, messages=MESSAGES, max_tokens=100_000)),
        "tools": error_of(lambda: create(model=model, messages=MESSAGES, tools=[weather])),
        "embeddings": error_of(lambda: client.embeddings.create(model=model, input="x")),
        "responses": error_of(lambda: client.responses.create(model=model, input="x")),
    }


def cancel():
    stream = client.completions.create(model=model, prompt=QUESTION, stream=True, **LONG)
    for _ in stream:
        break
    stream.close()
    return True


if scenario:
    last = None
    for chunk in client.completions.create(model=model, prompt=QUESTION, stream=True, **LONG):
        for choice in chunk.choices:
            print(json.dumps({"piece": choice.text}), flush=True)
            last = choice.finish_reason
    print(json.dumps({"finish": last}))
else:
    scenes = (chat, chat_stream, accumulated, completion, ignored, errors, cancel)
    models = [each.id for each in client.models.list()]
    print(json.dumps({scene.__name__: scene() for scene in scenes} | {"models": models}))
