"""litellm, unmodified, against the mesh; it also stands for the OpenAI SDK 2.x, which it pins."""

from __future__ import annotations

from typing import Any

import pytest
from tests.clients.conftest import ClientMesh

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def told(mesh: ClientMesh) -> dict[str, Any]:
    return mesh.told("litellm", "litellm_sdk")


def test_whole_and_stream_give_the_same(told: dict[str, Any]) -> None:
    whole, stream = told["whole"], told["stream"]
    assert "1937" in whole["text"]
    assert stream["text"] == whole["text"]
    assert stream["finish"] == whole["finish"] == "stop"
    prompt, completion, total = whole["usage"]
    assert total == prompt + completion
    assert stream["completion_tokens"] == completion
    assert whole["cached"] is not None


def test_vllms_extensions_give_a_fixed_length(told: dict[str, Any]) -> None:
    assert told["hosted_vllm"] == ["length", 20]


def test_errors_are_litellms_own(told: dict[str, Any]) -> None:
    assert told["errors"] == {
        "model": ["NotFoundError", 404],
        "temperature": ["BadRequestError", 400],
        "context": ["ContextWindowExceededError", 400],
    }


def test_a_stream_whose_worker_is_killed_goes_on(mesh: ClientMesh) -> None:
    calm = mesh.heard("litellm", "litellm_sdk")
    killed = mesh.heard("litellm", "litellm_sdk", kill_at=20)
    mesh.wait_restarted(*mesh.killed)
    assert killed == calm
    assert calm["finish"] == "length"
