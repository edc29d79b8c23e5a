"""Fields about tools that are wrong, or that the model has no format for."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from tests.gateway_api.conftest import app_of
from tests.gateway_api.echo_gateway import EchoGateway
from tests.gateway_api.test_tools import WEATHER

from banyan_gateway.auth import KeyRing
from banyan_gateway.model_formats import ModelFormats
from banyan_text.tools import FORMATS

BAD: list[tuple[dict[str, Any], str]] = [
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [WEATHER], "tool_choice": "often"}, "tool_choice"),
    (
        {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}},
        "tool_choice.function.name",
    ),
    ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name"),
    ({"tools": [WEATHER] * 129}, "tools"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "tools[0].type"),
    (
        {
            "tools": [
                WEATHER,
                {"type": "function", "function": {"name": "a", "parameters": {"type": "strin"}}},
            ],
            "tool_choice": "required",
        },
        "tools[1].function.parameters",
    ),
    ({"tools": [WEATHER], "tool_choice": "required", "min_tokens": 1}, "min_tokens"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    (
        {"messages": [{"role": "user", "content": "x", "tool_call_id": "a"}]},
        "messages[0].tool_call_id",
    ),
    ({"messages": [{"role": "assistant", "tool_calls": []}]}, "messages[0].content"),
    ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0]"),
    (
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [
                        {
                            "id": "a",
                            "type": "function",
                            "function": {"name": "f", "arguments": "[1]"},
                        }
                    ],
                }
            ]
        },
        "messages[0].tool_calls[0].function.arguments",
    ),
    ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.tools"),
    (
        {"continue_final_message": True, "add_generation_prompt": True},
        "add_generation_prompt",
    ),
    (
        {"continue_final_message": True, "messages": [{"role": "user", "content": ""}]},
        "continue_final_message",
    ),
]


@pytest.mark.parametrize(("change", "param"), BAD)
async def test_bad_fields_are_named(
    gateway: EchoGateway, change: dict[str, Any], param: str
) -> None:
    app = app_of(gateway, KeyRing(), ModelFormats(FORMATS["hermes"]))
    body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as http:
        response = await http.post("/v1/chat/completions", json=body | change)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"].startswith(param), error
    assert gateway.requests == []


async def test_a_model_without_a_format_takes_no_tools(http: httpx2.AsyncClient) -> None:
    body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    refused = await http.post("/v1/chat/completions", json=body | {"tools": [WEATHER]})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "tools"
    harmless: dict[str, Any]
    for harmless in ({"tools": []}, {"tools": [WEATHER], "tool_choice": "none"}):
        response = await http.post("/v1/chat/completions", json=body | harmless)
        assert response.status_code == 200
