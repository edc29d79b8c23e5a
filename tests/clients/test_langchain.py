"""LangChain's OpenAI integration, unmodified, against the mesh."""

from __future__ import annotations

from typing import Any

import pytest
from tests.clients.conftest import ClientMesh

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def told(mesh: ClientMesh) -> dict[str, Any]:
    return mesh.told("langchain", "langchain_chat")


def test_invoke_and_stream_give_the_same(told: dict[str, Any], mesh: ClientMesh) -> None:
    whole, stream = told["invoke"], told["stream"]
    assert "1937" in whole["text"]
    assert whole["model"] == mesh.model()
    assert stream["text"] == whole["text"]
    assert stream["finish"] == whole["finish"] == "stop"
    assert stream["num_chunks"] > 3


def test_usage_with_cached_tokens(told: dict[str, Any]) -> None:
    usage = told["stream"]["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["input_token_details"]["cache_read"] >= usage["input_tokens"] - 2 * 16


def test_batches_and_plain_completions(told: dict[str, Any]) -> None:
    assert len(told["batch"]) == 4
    assert all(told["batch"])
    assert told["plain"]


def test_errors_are_langchains_own(told: dict[str, Any]) -> None:
    assert told["errors"] == {
        "model": ["OpenAIModelNotFoundError", "model"],
        "temperature": ["OpenAIInvalidRequestError", "temperature"],
        "context": ["OpenAIContextOverflowError", "max_completion_tokens"],
    }


def test_a_stream_whose_worker_is_killed_goes_on(mesh: ClientMesh) -> None:
    calm = mesh.heard("langchain", "langchain_chat")
    killed = mesh.heard("langchain", "langchain_chat", kill_at=20)
    mesh.wait_restarted(*mesh.killed)
    assert killed == calm
    assert calm["finish"] == "length"
