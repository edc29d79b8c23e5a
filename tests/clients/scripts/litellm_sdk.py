"""litellm as a library, with the mesh as an OpenAI-compatible provider."""

import json
import sys

import litellm

url, model, *scenario = sys.argv[1:]
litellm.suppress_debug_info = True
litellm.telemetry = False
QUESTION = (
    "The amber key opens door 4821. The silver key opens door 1937. "
    "Which door does the silver key open?"
)
MESSAGES = [{"role": "user", "content": QUESTION}]
PLACE = {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": "unused", "num_retries": 0}


def whole():
    answer = litellm.completion(**PLACE, messages=MESSAGES, temperature=0, max_tokens=30)
    usage = answer.usage
    return {
        "text": answer.choices[0].message.content,
        "finish": answer.choices[0].finish_reason,
        "usage": [usage.prompt_tokens, usage.completion_tokens, usage.total_tokens],
        "cached": usage.prompt_tokens_details.cached_tokens,
    }


def stream():
    text, finish, usage = "", None, None
    for chunk in litellm.completion(
        **PLACE,
        messages=MESSAGES,
        temperature=0,
        max_tokens=30,
        stream=True,
        stream_options={"include_usage": True},
    ):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
        if getattr(chunk, "usage", None):
            usage = chunk.usage.completion_tokens
    return {"text": text, "finish": finish, "completion_tokens": usage}


def hosted_vllm():
    """litellm's own name for servers with vLLM's extensions."""
    place = PLACE | {"model": f"hosted_vllm/{model}"}
    answer = litellm.completion(
        **place,
        messages=MESSAGES,
        temperature=0,
        max_tokens=20,
        extra_body={"ignore_eos": True, "min_tokens": 20, "top_k": 5},
    )
    return [answer.choices[0].finish_reason, answer.usage.completion_tokens]


def errors():
    named = {}
    for name, change in (
        ("model", {"model": "openai/other"}),
        ("temperature", {"temperature": 9}),
        ("context", {"max_tokens": 100_000}),
    ):
        try:
            litellm.completion(**(PLACE | {"messages": MESSAGES} | change))
        except Exception as error:  # the class is the question
            named[name] = [type(error).__name__, getattr(error, "status_code", None)]
    return named


if scenario:
    last = None
    for chunk in litellm.completion(
        **PLACE,
        messages=MESSAGES,
        temperature=1,  # greedily a small model repeats itself, which litellm takes for an error
        seed=1,
        max_tokens=1500,
        stream=True,
        extra_body={"ignore_eos": True, "min_tokens": 1500},
    ):
        for choice in chunk.choices:
            if choice.delta.content:
                print(json.dumps({"piece": choice.delta.content}), flush=True)
            last = choice.finish_reason or last
    print(json.dumps({"finish": last}))
else:
    print(json.dumps({scene.__name__: scene() for scene in (whole, stream, hosted_vllm, errors)}))
