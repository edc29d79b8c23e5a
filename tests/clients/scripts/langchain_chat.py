"""LangChain's chat model for OpenAI: invoke, stream, and what becomes of errors."""

import json
import sys
import time

import openai
from langchain_openai import ChatOpenAI, OpenAI

url, model, *scenario = sys.argv[1:]
QUESTION = (
    "The amber key opens door 4821. The silver key opens door 1937. "
    "Which door does the silver key open?"
)
PLACE = {"base_url": f"{url}/v1", "api_key": "unused", "model": model, "max_retries": 0}
LONG = {"max_tokens": 1500, "extra_body": {"ignore_eos": True, "min_tokens": 1500}}


def invoke():
    answer = ChatOpenAI(**PLACE, temperature=0, max_tokens=30).invoke(
        [("system", "You answer from the text."), ("human", QUESTION)]
    )
    return {
        "text": answer.content,
        "finish": answer.response_metadata["finish_reason"],
        "model": answer.response_metadata["model_name"],
        "usage": dict(answer.usage_metadata),
    }


def stream():
    """Until the prompt is found cached: where blocks lie is told to the router a moment later."""
    for _ in range(20):
        heard = stream_once()
        if heard["usage"]["input_token_details"]["cache_read"]:
            break
        time.sleep(0.2)
    return heard


def stream_once():
    chat = ChatOpenAI(**PLACE, temperature=0, max_tokens=30, stream_usage=True)
    whole = None
    num_chunks = 0
    for chunk in chat.stream([("system", "You answer from the text."), ("human", QUESTION)]):
        whole = chunk if whole is None else whole + chunk
        num_chunks += 1
    return {
        "text": whole.content,
        "finish": whole.response_metadata["finish_reason"],
        "usage": dict(whole.usage_metadata),
        "num_chunks": num_chunks,
    }


def batch():
    chat = ChatOpenAI(**PLACE, temperature=0, max_tokens=5)
    return [len(answer.content) for answer in chat.batch([QUESTION] * 4)]


def plain():
    return OpenAI(**PLACE, temperature=0, max_tokens=5).invoke(QUESTION)


def errors():
    named = {}
    for name, change in (
        ("model", {"model": "other"}),
        ("temperature", {"temperature": 9}),
        ("context", {"max_tokens": 100_000}),
    ):
        try:
            ChatOpenAI(**(PLACE | change)).invoke("hi")
        except openai.APIStatusError as error:
            named[name] = [type(error).__name__, error.param]
    return named


if scenario:
    last = None
    chat = ChatOpenAI(**PLACE, temperature=0, **LONG)
    for chunk in chat.stream(QUESTION):
        if chunk.content:
            print(json.dumps({"piece": chunk.content}), flush=True)
        last = chunk.response_metadata.get("finish_reason", last)
    print(json.dumps({"finish": last}))
else:
    scenes = (invoke, stream, batch, plain, errors)
    print(json.dumps({scene.__name__: scene() for scene in scenes}))
