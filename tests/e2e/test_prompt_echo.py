"""A prompt that opens its answer, over real workers of which one is killed in mid-answer."""

from __future__ import annotations

from typing import Any

import pytest
from tests.e2e.running import SAMPLED, RunningMesh
from tests.e2e.test_kills import PROMPT

LISTS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


def echoed(mesh: RunningMesh, kill_at: int | None) -> dict[str, Any]:
    """A streamed answer's text, its lists of logprobs, and each chunk's prompt logprobs."""
    heard: dict[str, Any] = {"text": "", "prompts": [], **{name: [] for name in LISTS}}
    killed: dict[str, int] = {}
    options = SAMPLED | {"extra_body": {"ignore_eos": True, "prompt_logprobs": 1}}
    with mesh.client() as client:
        stream = client.completions.create(
            model=mesh.model(), prompt=PROMPT, echo=True, logprobs=2, stream=True, **options
        )
        for num_chunks, chunk in enumerate(stream, 1):
            (choice,) = chunk.choices
            heard["text"] += choice.text
            heard["prompts"].append(choice.to_dict().get("prompt_logprobs"))
            if choice.logprobs is not None:
                for name in LISTS:
                    heard[name] += getattr(choice.logprobs, name)
            if num_chunks == kill_at:
                name = mesh.streaming_worker()
                killed[name] = mesh.process(name)["num_restarts"]
                mesh.kill(name)
    for name, num_restarts in killed.items():
        mesh.wait_restarted(name, num_restarts)
    assert bool(killed) == (kill_at is not None)
    return heard


def test_an_echoed_prompt_comes_once_although_the_worker_dies(mesh: RunningMesh) -> None:
    calm = echoed(mesh, None)
    assert calm["text"].startswith(PROMPT)
    assert calm["text"].count(PROMPT) == 1
    assert calm["token_logprobs"][0] is None
    assert all(each < 0 for each in calm["token_logprobs"][1:])
    num_output = SAMPLED["max_tokens"]
    assert calm["text_offset"][-num_output] == len(PROMPT)
    for offset, token in list(zip(calm["text_offset"], calm["tokens"], strict=True))[:-num_output]:
        assert PROMPT.startswith(token, offset)
    for kill_at in (1, 20):
        heard = echoed(mesh, kill_at)
        assert heard["prompts"][0] is not None
        assert not any(heard["prompts"][1:])
        assert heard | {"prompts": 0} == calm | {"prompts": 0}


def test_a_text_is_scored_as_its_tokens_were_when_they_were_said(mesh: RunningMesh) -> None:
    """As lm-evaluation-harness does: echo, logprobs, and no token more."""
    with mesh.client() as client:
        ids = client.post("../tokenize", cast_to=dict, body={"prompt": PROMPT})["tokens"]
        said = client.completions.create(
            model=mesh.model(), prompt=ids, max_tokens=12, temperature=0, echo=True, logprobs=1
        ).choices[0]
        output = client.post(
            "../tokenize", cast_to=dict, body={"prompt": said.text[len(PROMPT) :]}
        )["tokens"]
        scored = client.completions.create(
            model=mesh.model(), prompt=[*ids, *output], max_tokens=0, echo=True, logprobs=1
        )
    assert scored.usage is not None
    assert scored.usage.completion_tokens == 0
    (choice,) = scored.choices
    assert choice.text == said.text
    assert said.logprobs is not None
    assert choice.logprobs is not None
    found, known = choice.logprobs.token_logprobs, said.logprobs.token_logprobs
    assert found is not None
    assert known is not None
    assert len(found) == len(ids) + len(output)
    assert found[1:] == pytest.approx(known[1 : len(found)], abs=1e-5)
    assert choice.logprobs.top_logprobs is not None
    for likely, top in zip(
        found[len(ids) :], choice.logprobs.top_logprobs[len(ids) :], strict=True
    ):
        assert likely == max(top.values()), "greedy tokens are the likeliest"
