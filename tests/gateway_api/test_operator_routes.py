"""What an operator asks, and what tools around a model need: tokens, health, metrics, explain."""

import asyncio
import logging

import httpx2
import pytest
from tests.gateway_api.conftest import Served
from tests.gateway_api.echo_gateway import EchoGateway, Script

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
KEY_A = {"authorization": "Bearer key-a"}
KEY_B = {"authorization": "Bearer key-b"}


async def test_health_ready_version(http: httpx2.AsyncClient, gateway: EchoGateway) -> None:
    health = await http.get("/health")
    assert (health.status_code, health.content) == (200, b"")
    assert (await http.get("/ready")).json() == {"ready": True, "reason": "ready"}
    gateway.is_ready = (False, "no worker is live")
    response = await http.get("/ready")
    assert response.status_code == 503
    assert response.json() == {"ready": False, "reason": "no worker is live"}
    assert (await http.get("/version")).json() == {"version": "1.2.3"}


async def test_what_can_be_read_can_be_asked_for_without_its_body(served: Served) -> None:
    """As balancers' probes and `wget --spider` ask."""
    async with httpx2.AsyncClient(base_url=served.url) as client:
        for path in ("/health", "/ready", "/v1/models", "/v1/models/echo", "/metrics"):
            whole, head = await client.get(path), await client.head(path)
            assert (head.status_code, head.content) == (200, b""), path
            assert head.headers["content-type" if whole.content else "content-length"]
        assert (await client.head("/v1/completions")).status_code == 405


async def test_models_say_the_context(http: httpx2.AsyncClient) -> None:
    model = (await http.get("/v1/models")).json()["data"][0]
    assert (model["id"], model["max_model_len"]) == ("echo", 131_072)
    assert (await http.get("/v1/models/echo")).json() == model


async def test_tokenize_and_back(http: httpx2.AsyncClient) -> None:
    body = {"model": "echo", "prompt": "é!", "return_token_strs": True}
    answer = (await http.post("/tokenize", json=body)).json()
    assert answer == {
        "count": 3,
        "max_model_len": 131_072,
        "tokens": [0xC3, 0xA9, 0x21],
        "token_strs": ["\ufffd", "\ufffd", "!"],
    }
    answer = (await http.post("/detokenize", json={"tokens": answer["tokens"]})).json()
    assert answer == {"prompt": "é!"}


async def test_tokenize_messages_as_chat_does(
    http: httpx2.AsyncClient, gateway: EchoGateway
) -> None:
    answer = (await http.post("/tokenize", json={"messages": CHAT["messages"]})).json()
    await http.post("/v1/chat/completions", json=CHAT)
    assert answer["tokens"] == list(gateway.requests[0].prompt_token_ids)
    assert answer["token_strs"] is None


async def test_tokenize_refuses(http: httpx2.AsyncClient) -> None:
    for path, body, param in (
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": CHAT["messages"]}, "prompt"),
        ("/tokenize", {"prompt": "a", "model": "other"}, "model"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [261]}, "tokens[0]"),
    ):
        response = await http.post(path, json=body)
        assert response.status_code in (400, 404)
        assert response.json()["error"]["param"] == param


async def test_metrics_count_by_route_and_status(http: httpx2.AsyncClient) -> None:
    await http.post("/v1/chat/completions", json=CHAT)
    await http.post("/v1/chat/completions", json={})
    await http.get("/some/unknown/path")
    await http.get("/v1/models/other")
    text = (await http.get("/metrics")).text
    name = "banyan_gateway_http_requests_total"
    for labels in (
        'route="/v1/chat/completions",status="200"',
        'route="/v1/chat/completions",status="400"',
        'route="unmatched",status="404"',
        'route="/v1/models/{model_id:path}",status="404"',
    ):
        assert f"{name}{{{labels}}} 1.0" in text


async def test_metrics_tell_of_open_requests(
    http: httpx2.AsyncClient, gateway: EchoGateway
) -> None:
    gateway.script = Script(num_tokens=1, wait_for=asyncio.Event())
    open_request = asyncio.create_task(http.post("/v1/chat/completions", json=CHAT))
    await gateway.until_running(1)
    text = (await http.get("/metrics")).text
    assert 'vllm:num_requests_running{model_name="echo"} 1.0' in text
    assert 'vllm:num_requests_waiting{model_name="echo"} 0.0' in text
    assert 'vllm:time_to_first_token_seconds_count{model_name="echo"} 0.0' in text
    assert gateway.script.wait_for is not None
    gateway.script.wait_for.set()
    assert (await open_request).status_code == 200


async def test_explain_by_any_name_but_for_the_tenant_only(keyed: httpx2.AsyncClient) -> None:
    headers = KEY_A | {"x-request-id": "mine"}
    answer = (await keyed.post("/v1/chat/completions", json=CHAT, headers=headers)).json()
    for name in ("mine", answer["id"]):
        view = await keyed.get(f"/v1/requests/{name}", headers=KEY_A)
        assert view.json() == {"id": answer["id"], "tenant": "a"}
        assert (await keyed.get(f"/v1/requests/{name}", headers=KEY_B)).status_code == 404


async def test_explain_an_answer_of_several_prompts(http: httpx2.AsyncClient) -> None:
    body = {"model": "echo", "prompt": ["a", "b"], "max_tokens": 1}
    answer = (await http.post("/v1/completions", json=body)).json()
    view = (await http.get(f"/v1/requests/{answer['id']}")).json()
    assert [each["id"] for each in view["requests"]] == [f"{answer['id']}-0", f"{answer['id']}-1"]
    one = (await http.get(f"/v1/requests/{answer['id']}-1")).json()
    assert one["id"] == f"{answer['id']}-1"


async def test_seed_is_drawn_or_taken(http: httpx2.AsyncClient, gateway: EchoGateway) -> None:
    for seed in (None, None, 7, -1):
        await http.post("/v1/chat/completions", json=CHAT | {"seed": seed})
    first, second, given, negative = [request.sampling.seed for request in gateway.requests]
    assert first != second
    assert (given, negative) == (7, 2**64 - 1)


async def test_what_reaches_the_gateway(http: httpx2.AsyncClient, gateway: EchoGateway) -> None:
    fields = {
        "temperature": 0,
        "top_k": -1,
        "logit_bias": {"9": 5, "3": -100},
        "stop": "x",
        "ignore_eos": True,
        "min_tokens": 1,
        "stop_token_ids": [4],
        "cache_salt": "s",
        "priority": -3,
        "include_stop_str_in_output": True,
    }
    await http.post("/v1/chat/completions", json=CHAT | fields)
    request = gateway.requests[0]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.0, 1.0, 0)
    assert sampling.logit_bias == ((3, -100.0), (9, 5.0))
    assert (sampling.ignore_eos, sampling.min_tokens, sampling.max_tokens) == (True, 1, 2)
    assert sampling.stop_token_ids == (4,)
    assert (request.stop, request.include_stop, request.stream) == (("x",), True, False)
    assert (request.cache_salt, request.priority, request.deadline_ns) == ("s", -3, None)
    assert (request.tenant, request.share_group) == ("default", "tenant/default")


async def test_access_log_links_ids_and_holds_no_text(
    http: httpx2.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    body = {"model": "echo", "prompt": "private words", "max_tokens": 2}
    with caplog.at_level(logging.INFO, "test gateway"):
        response = await http.post("/v1/completions", json=body, headers={"x-request-id": "mine"})
    (record,) = [each for each in caplog.records if each.message == "http request"]
    fields = vars(record)
    assert (fields["request_id"], fields["answer_id"]) == ("mine", response.json()["id"])
    assert (fields["route"], fields["status"]) == ("/v1/completions", 200)
    assert "private" not in repr(fields)
