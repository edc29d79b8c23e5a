"""What only the real side has: health, reflection, mutual TLS, and offloaded work on threads."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import threading
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import (  # type: ignore[import-untyped]  # it ships no types
    health_pb2,
    health_pb2_grpc,
)
from grpc_reflection.v1alpha import (  # type: ignore[import-untyped]  # nor does this
    reflection_pb2,
    reflection_pb2_grpc,
)

from banyan.v1 import router_pb2
from banyan_runtime import rpc, wire
from banyan_runtime.grpc_network import GrpcNetwork
from banyan_runtime.grpc_security import ChannelSecurity
from banyan_runtime.offload import InlineOffload, Offload, ThreadOffload
from banyan_runtime.rpc import Code, RpcError
from banyan_runtime.settings import SettingsError


async def place(request: router_pb2.PlaceRequest) -> router_pb2.PlaceResponse:
    return router_pb2.PlaceResponse(refusal=router_pb2.PlaceRefusal(reason="served"))


HANDLERS = [rpc.serve_unary(wire.PLACE, place)]


async def test_health_follows_set_serving() -> None:
    network = GrpcNetwork(ChannelSecurity.plain())
    server = await network.serve("127.0.0.1:0", HANDLERS)
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def status() -> int:
            return int((await stub.Check(health_pb2.HealthCheckRequest(service=""))).status)

        serving = health_pb2.HealthCheckResponse.ServingStatus
        seen = []
        for wanted in (True, False, True):
            server.set_serving(wanted)
            await asyncio.sleep(0.01)
            seen.append(await status())
        assert seen == [serving.SERVING, serving.NOT_SERVING, serving.SERVING]
    await network.close()


async def test_reflection_lists_the_services() -> None:
    network = GrpcNetwork(ChannelSecurity.plain())
    server = await network.serve("127.0.0.1:0", HANDLERS)
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        ask = reflection_pb2.ServerReflectionRequest
        requests = [ask(list_services=""), ask(file_containing_symbol="banyan.v1.Router")]
        answers = [answer async for answer in stub.ServerReflectionInfo(iter(requests))]
    names = [service.name for service in answers[0].list_services_response.service]
    assert "banyan.v1.Router" in names
    assert "grpc.health.v1.Health" in names
    assert answers[1].file_descriptor_response.file_descriptor_proto
    await network.close()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and one key pair for 127.0.0.1 that it signed."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make keys")
    folder = tmp_path_factory.mktemp("keys")
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1\n")
    new_key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    for command in (
        f"req -x509 {new_key} -keyout ca.key -out ca.pem -days 2 -subj /CN=mesh",
        f"req {new_key} -keyout peer.key -out peer.csr -subj /CN=peer",
        "x509 -req -in peer.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out peer.pem "
        "-days 2 -extfile san",
    ):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
    return folder


async def test_mutual_tls_serves_those_with_a_key_and_nobody_else(keys: Path) -> None:
    security = ChannelSecurity.mtls(keys / "peer.key", keys / "peer.pem", keys / "ca.pem")
    network, stranger = GrpcNetwork(security), GrpcNetwork(ChannelSecurity.plain())
    server = await network.serve("127.0.0.1:0", HANDLERS)
    answer = await network.channel(server.address).unary(wire.PLACE, router_pb2.PlaceRequest(), 10)
    assert answer.refusal.reason == "served"
    with pytest.raises(RpcError) as caught:
        await stranger.channel(server.address).unary(wire.PLACE, router_pb2.PlaceRequest(), 5)
    assert caught.value.code is Code.UNAVAILABLE
    await stranger.close()
    await network.close()


@pytest.mark.parametrize("offload", [ThreadOffload(2), InlineOffload()], ids=["thread", "inline"])
async def test_offloaded_work_gives_results_and_errors(offload: Offload) -> None:
    def divide(a: int, b: int) -> tuple[int, int]:
        return a // b, threading.get_ident()

    quotient, thread = await offload.run(divide, 7, 2)
    assert quotient == 3
    assert (thread == threading.get_ident()) is isinstance(offload, InlineOffload)
    with pytest.raises(ZeroDivisionError):
        await offload.run(divide, 1, 0)
    await offload.close()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("tls", "expected plain, or mtls:KEY,CERTIFICATE,AUTHORITY"),
        ("mtls:a,b", "expected plain, or mtls:KEY,CERTIFICATE,AUTHORITY"),
        ("mtls:/none/a,/none/b,/none/c", "No such file"),
    ],
)
def test_a_wrong_channel_setting_is_one_sentence(spec: str, said: str) -> None:
    with pytest.raises(SettingsError, match="BANYAN_CHANNELS") as wrong:
        ChannelSecurity.parse(spec)
    assert said in str(wrong.value)


def test_files_that_are_no_keys_are_refused_before_anything_listens(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("no PEM")
    spec = "mtls:" + ",".join([str(tmp_path / "a")] * 3)
    with pytest.raises(SettingsError, match="expected three PEM files that belong together"):
        ChannelSecurity.parse(spec)


def test_channels_are_plain_or_read_from_three_files(keys: Path) -> None:
    assert ChannelSecurity.parse("plain").is_plain
    files = ",".join(str(keys / name) for name in ("peer.key", "peer.pem", "ca.pem"))
    assert not ChannelSecurity.parse(f"mtls:{files}").is_plain
