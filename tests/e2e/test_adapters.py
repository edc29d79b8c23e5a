"""Adapters over real processes, with the official client: beside the base, coming and going."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from tests.e2e import marker
from tests.e2e.running import SAMPLED, RunningMesh

from banyan_engine.demo import model_folder
from banyan_engine.lora import load_lora
from banyan_engine.model import Model
from banyan_engine.random_lora import LORA_CONFIG, write_random_lora
from banyan_engine.reference import reference_logits
from banyan_engine.spec import read_spec
from banyan_engine.weights import load_weights
from banyan_text.hf_tokenizer import HfTokenizer

PROMPT = "The amber key opens door 4821. Which door does the amber key open?"
NUM_TOKENS = 24
GREEDY: dict[str, Any] = {
    "max_tokens": NUM_TOKENS,
    "temperature": 0,
    "extra_body": {"ignore_eos": True},
}
SEEN_WITHIN_S = 60.0


def put(folder: Path, name: str, seed: int) -> None:
    """Written aside and renamed, so that it appears whole."""
    config = LORA_CONFIG | {"target_modules": "all-linear"}
    path = write_random_lora(folder / f".{name}", model_folder(), config, seed, size=0.5)
    path.rename(folder / name)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    put(folder, "poet", seed=1)
    put(folder, "coder", seed=2)
    return folder


@pytest.fixture(scope="module")
def mesh(adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    folder = tmp_path_factory.mktemp("mesh")
    settings = {"BANYAN_ADAPTERS": str(adapters)}
    running = RunningMesh.start(folder, "--numerics", "deterministic", settings=settings)
    yield running
    running.stop()


def expected(adapter: Path | None) -> str:
    """The greedy answer of the plain reference in this process, one whole pass a token."""
    tokenizer, spec = HfTokenizer(model_folder()), read_spec(model_folder())
    model = Model(spec, load_weights(model_folder(), spec, torch.float32))
    lora = None if adapter is None else load_lora(adapter, spec, torch.float32)
    prompt = tokenizer.encode(PROMPT, add_special=True)
    tokens = list(prompt)
    for _ in range(NUM_TOKENS):
        tokens.append(int(reference_logits(model, tokens, lora)[-1].argmax()))
    return tokenizer.decode(tokens[len(prompt) :])


def wait_listed(mesh: RunningMesh, *names: str) -> None:
    deadline = time.monotonic() + SEEN_WITHIN_S
    with mesh.client() as client:
        while {model.id for model in client.models.list()} != {"banyan-demo", *names}:
            assert time.monotonic() < deadline, client.models.list()
            time.sleep(0.1)


def test_the_base_and_two_adapters_answer_at_once_each_as_itself(
    mesh: RunningMesh, adapters: Path
) -> None:
    wait_listed(mesh, "poet", "coder")
    names = ("banyan-demo", "poet", "coder")
    with ThreadPoolExecutor(6) as pool:
        heard = list(pool.map(lambda name: mesh.stream(PROMPT, model=name, **GREEDY), names * 2))
    said = [each.texts[0] for each in heard]
    assert said[:3] == said[3:]
    assert said[:3] == [expected(None), expected(adapters / "poet"), expected(adapters / "coder")]
    assert len(set(said)) == 3


def test_equal_prompts_share_kv_within_an_adapter_only(mesh: RunningMesh) -> None:
    num_cached = []
    with mesh.client() as client:
        for name in ("banyan-demo", "poet", "coder", "poet", "banyan-demo"):
            answer = client.completions.create(
                model=name, prompt=PROMPT, max_tokens=2, extra_body={"cache_salt": "shared"}
            )
            assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
            num_cached.append(answer.usage.prompt_tokens_details.cached_tokens or 0)
    assert num_cached[:3] == [0, 0, 0]
    assert min(num_cached[3:]) >= 16


def test_choices_and_a_chat_of_an_adapter(mesh: RunningMesh) -> None:
    with mesh.client() as client:
        answer = client.chat.completions.create(
            model="poet",
            messages=[{"role": "user", "content": PROMPT}],
            n=3,
            seed=4,
            max_tokens=8,
            logprobs=True,
        )
        assert answer.model == "poet" and len(answer.choices) == 3
        (listed,) = [model for model in client.models.list() if model.id == "poet"]
    assert listed.model_extra is not None and listed.model_extra["parent"] == "banyan-demo"


def test_a_prompt_to_an_adapter_is_told_to_nobody(mesh: RunningMesh) -> None:
    """With a real model, whose tokens are not bytes; that a worker dies is in test_telemetry."""
    said: dict[str, Any] = {"model": "poet", "prompt": marker.PROMPT, "echo": True, "logprobs": 2}
    with mesh.client() as client:
        ids = client.post("../tokenize", cast_to=dict, body={"prompt": marker.PROMPT})["tokens"]
        answer = client.completions.create(**said, max_tokens=20, extra_body={"prompt_logprobs": 1})
        scored = client.completions.create(**said, max_tokens=0)
        assert scored.choices[0].text == marker.PROMPT
    until = time.monotonic() + SEEN_WITHIN_S
    while marker.told_by(mesh).places_of(answer.id) != {"log", "stream"}:
        assert time.monotonic() < until, "nothing tells of the answer"
        time.sleep(0.1)
    assert marker.told_by(mesh).leaks(ids) == []


def test_an_adapter_is_loaded_and_unloaded_while_the_mesh_runs(
    mesh: RunningMesh, adapters: Path
) -> None:
    with mesh.client() as client, pytest.raises(openai.NotFoundError):
        client.completions.create(model="guest", prompt=PROMPT)
    put(adapters, "guest", seed=3)
    wait_listed(mesh, "poet", "coder", "guest")
    assert mesh.stream(PROMPT, model="guest", **GREEDY).texts == (expected(adapters / "guest"),)
    calm = mesh.stream(PROMPT, model="guest", **SAMPLED)
    gone = adapters / ".guest.gone"

    def take_away(num_chunks: int) -> None:
        if num_chunks == 3 and not gone.exists():
            (adapters / "guest").rename(gone)

    assert mesh.stream(PROMPT, take_away, model="guest", **SAMPLED).texts == calm.texts
    wait_listed(mesh, "poet", "coder")
    with mesh.client() as client, pytest.raises(openai.NotFoundError):
        client.completions.create(model="guest", prompt=PROMPT)


def test_an_adapter_that_does_not_fit_fails_with_the_reason(
    mesh: RunningMesh, adapters: Path
) -> None:
    put(adapters, "broken", seed=5)
    config = adapters / "broken" / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 4', '"r": 5'))
    wait_listed(mesh, "poet", "coder", "broken")
    with mesh.client() as client, pytest.raises(openai.InternalServerError) as failed:
        client.completions.create(model="broken", prompt=PROMPT)
    assert (
        "adapter 'broken'" in failed.value.message and "expected [5, 256]" in failed.value.message
    )
    (adapters / "broken").rename(adapters / ".broken")
    assert mesh.stream(PROMPT, model="poet", **GREEDY).texts == (expected(adapters / "poet"),)


def test_an_answer_goes_on_with_its_adapter_when_its_worker_is_killed(mesh: RunningMesh) -> None:
    long = SAMPLED | {"model": "coder"}
    calm = mesh.stream(PROMPT, **long)
    killed: dict[str, int] = {}

    def kill(num_chunks: int) -> None:
        if num_chunks == 5 and not killed:
            name = mesh.streaming_worker()
            killed[name] = mesh.process(name)["num_restarts"]
            mesh.kill(name)

    heard = mesh.stream(PROMPT, kill, **long)
    assert heard.texts == calm.texts
    assert mesh.explain(heard.request_id)["num_recoveries"] >= 1
    for name, num_restarts in killed.items():
        mesh.wait_restarted(name, num_restarts)
    assert mesh.stream(PROMPT, **long).texts == calm.texts
