"""The official client against the running mesh with the demo model; a stream cut on purpose."""

from __future__ import annotations

import os
import signal

import httpx2
import openai
import pytest
from tests.e2e.running import SAMPLED, RunningMesh

QUESTION = (
    "The amber key opens door 4821. The silver key opens door 1937. The iron key opens door 6650. "
    "Which door does the silver key open?"
)


def test_a_streamed_chat_answers_from_the_prompt(mesh: RunningMesh) -> None:
    with mesh.client() as client:
        stream = client.chat.completions.create(
            model=mesh.model(),
            messages=[{"role": "user", "content": QUESTION}],
            temperature=0,
            max_tokens=30,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "1937" in text
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 3


def test_a_second_turn_finds_the_first_in_the_cache(mesh: RunningMesh) -> None:
    with mesh.client() as client:
        answers = [
            client.chat.completions.create(
                model=mesh.model(),
                messages=[{"role": "user", "content": QUESTION}],
                temperature=0,
                max_tokens=30,
            )
            for _ in range(2)
        ]
    first, second = (answer.choices[0].message.content for answer in answers)
    assert first == second
    usage = answers[1].usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    cached = usage.prompt_tokens_details.cached_tokens or 0
    assert cached >= usage.prompt_tokens - 2 * 16


def test_a_prompt_is_as_likely_as_the_same_tokens_were_as_output(mesh: RunningMesh) -> None:
    """Over prefill and decode workers, and although the prompt's blocks are in their caches."""
    with mesh.client() as client:
        ids = client.post("../tokenize", cast_to=dict, body={"prompt": QUESTION})["tokens"]
        said = client.completions.create(
            model=mesh.model(), prompt=ids, max_tokens=8, logprobs=0, seed=5
        )
        logprobs = said.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.token_logprobs is not None
        output = client.post("../tokenize", cast_to=dict, body={"prompt": said.choices[0].text})
        again = client.completions.create(
            model=mesh.model(),
            prompt=[*ids, *output["tokens"]],
            max_tokens=2,
            extra_body={"prompt_logprobs": 0},
        )
    entries = again.choices[0].to_dict()["prompt_logprobs"]
    assert isinstance(entries, list)
    assert entries[0] is None
    assert len(entries) == len(ids) + len(output["tokens"])
    likely = [next(iter(each.values()))["logprob"] for each in entries[len(ids) :]]
    assert likely == pytest.approx(logprobs.token_logprobs[: len(likely)], abs=1e-5)


def test_tokens_make_the_round_trip(mesh: RunningMesh) -> None:
    with mesh.client() as client:
        ids = client.post("../tokenize", cast_to=dict, body={"prompt": QUESTION})["tokens"]
        assert client.post("../detokenize", cast_to=dict, body={"tokens": ids}) == {
            "prompt": QUESTION
        }


def test_errors_name_the_field(mesh: RunningMesh) -> None:
    with mesh.client() as client:
        with pytest.raises(openai.BadRequestError) as wrong:
            client.completions.create(model=mesh.model(), prompt="x", temperature=9)
        assert wrong.value.param == "temperature"
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="another", prompt="x")


def test_a_stream_that_is_cut_is_an_error_never_an_end(mesh: RunningMesh) -> None:
    """The gateway itself dies: no `[DONE]`, no finish reason, and the client sees it."""
    killed: list[int] = []

    def kill(num_chunks: int) -> None:
        if num_chunks == 3 and not killed:
            killed.append(mesh.process("gateway")["num_restarts"])
            mesh.kill("gateway")

    with pytest.raises((openai.APIError, httpx2.RemoteProtocolError)):
        mesh.stream(QUESTION, kill, max_tokens=2000, extra_body={"ignore_eos": True})
    mesh.wait_restarted("gateway", killed[0])


def test_a_worker_told_to_stop_lets_its_answer_go_on_elsewhere(mesh: RunningMesh) -> None:
    calm = mesh.stream(QUESTION, **SAMPLED)
    told: list[int] = []

    def drain(num_chunks: int) -> None:
        if num_chunks == 3 and not told:
            told.append(mesh.process("decode-0")["pid"])
            os.kill(told[0], signal.SIGTERM)

    assert mesh.stream(QUESTION, drain, **SAMPLED).texts == calm.texts
