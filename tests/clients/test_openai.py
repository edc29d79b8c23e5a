"""The OpenAI SDK, unmodified, against the mesh."""

from __future__ import annotations

from typing import Any

import pytest
from tests.clients.conftest import ClientMesh

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def told(mesh: ClientMesh) -> dict[str, Any]:
    return mesh.told("openai", "openai_sdk")


def test_answers_come_from_the_prompt_whole_and_streamed(told: dict[str, Any]) -> None:
    assert "1937" in told["chat"]["text"]
    assert told["chat"]["finish"] == "stop"
    for way in ("chat_stream", "accumulated"):
        assert told[way]["text"] == told["chat"]["text"]
        assert told[way]["finish"] == "stop"


def test_usage_counts_and_the_second_time_is_cached(told: dict[str, Any]) -> None:
    usage = told["chat_stream"]["usage"]
    assert usage["total"] == usage["prompt"] + usage["completion"]
    assert 3 < usage["completion"] <= 30
    assert usage["cached"] >= usage["prompt"] - 2 * 16


def test_a_fixed_length_is_kept(told: dict[str, Any]) -> None:
    assert told["completion"]["finish"] == "length"
    assert told["completion"]["usage"]["completion"] == 1500


def test_fields_without_effect_are_taken_and_named(told: dict[str, Any], mesh: ClientMesh) -> None:
    assert told["ignored"]["text"]
    assert told["ignored"]["request_id"] == "client-request-1"
    assert set(told["ignored"]["ignored"]) >= {"store", "metadata", "verbosity", "user"}
    assert told["models"] == [mesh.model()]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model", ("NotFoundError", 404, "model_not_found", "model")),
        ("temperature", ("BadRequestError", 400, None, "temperature")),
        ("context", ("BadRequestError", 400, "context_length_exceeded", "max_tokens")),
        ("tools", ("BadRequestError", 400, "unsupported_parameter", "tools")),
        ("embeddings", ("NotFoundError", 404, None, None)),
        ("responses", ("NotFoundError", 404, None, None)),
    ],
)
def test_errors_are_those_of_the_sdk(
    told: dict[str, Any], name: str, expected: tuple[str, int, str | None, str | None]
) -> None:
    error = told["errors"][name]
    assert (error["class"], error["status"], error["code"], error["param"]) == expected
    assert error["type"]
    assert error["has_request_id"]


def test_a_cancelled_stream_leaves_no_work(told: dict[str, Any], mesh: ClientMesh) -> None:
    assert told["cancel"]
    mesh.wait_idle()


def test_a_stream_whose_worker_is_killed_goes_on(mesh: ClientMesh) -> None:
    calm = mesh.heard("openai", "openai_sdk")
    killed = mesh.heard("openai", "openai_sdk", kill_at=20)
    mesh.wait_restarted(*mesh.killed)
    assert killed == calm
    assert calm["finish"] == "length"
