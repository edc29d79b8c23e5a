"""What all mains share: adapters close in order, and failures are told as settings."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from banyan_runtime.health_only import HealthOnly
from banyan_runtime.lifespan import Running
from banyan_runtime.listening import listen
from banyan_runtime.memory_mesh import MemoryMesh
from banyan_runtime.memory_network import MemoryNetwork
from banyan_runtime.service_main import Kit, ServiceSettings, run_main
from banyan_runtime.settings import SettingsError

GOOD = {"BANYAN_TEST_ID": "t0", "BANYAN_TEST_ADDRESS": "127.0.0.1:0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(ServiceSettings):
    folder: Path | None = None


class Heard:
    """Writes down the ends, in order; as a service it asks for its own end at once."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    def adapter(self, name: str) -> Adapter:
        return Adapter(name, self.ended)

    async def stop(self, grace_s: float) -> None:
        self.ended.append(f"service within {grace_s:g} s")


class Adapter:
    def __init__(self, name: str, ended: list[str]) -> None:
        self._name = name
        self._ended = ended

    async def close(self) -> None:
        self._ended.append(self._name)


def run(
    start: Callable[[Settings, None, Kit], Awaitable[Running]],
    wire: Callable[[Settings], None] = lambda _: None,
    **changes: str,
) -> int:
    env = GOOD | {f"BANYAN_TEST_{key.upper()}": value for key, value in changes.items()}
    return run_main("test", Settings, env, wire, start)


def test_adapters_close_after_the_service_newest_first(tmp_path: Path) -> None:
    heard = Heard()
    path = tmp_path / "record"

    async def start(settings: Settings, _: None, kit: Kit) -> Heard:
        kit.keep(heard.adapter("first"))
        kit.keep(heard.adapter("second"))
        assert kit.recorder is not None
        kit.recorder.record(1, ("fact",), ())
        os.kill(os.getpid(), signal.SIGTERM)
        return heard

    assert run(start, record=str(path), grace_s="3") == 0
    assert heard.ended == ["service within 3 s", "second", "first"]
    assert path.read_text() == '[1,["fact"],[]]\n'


def test_a_start_that_fails_closes_what_was_opened(capsys: pytest.CaptureFixture[str]) -> None:
    heard = Heard()

    async def start(settings: Settings, _: None, kit: Kit) -> Heard:
        kit.keep(heard.adapter("first"))
        raise OSError(5, "the disk is gone")

    assert run(start) == 2
    assert heard.ended == ["first"]
    assert capsys.readouterr().err == "the disk is gone\n"


def test_an_error_is_told_as_the_setting_that_it_is_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def start(settings: Settings, _: None, kit: Kit) -> Heard:
        (tmp_path / "folder" / "below").read_text()
        return Heard()

    folder = tmp_path / "folder"
    assert run(start, folder=str(folder)) == 2
    why = "expected a place to write to (No such file or directory)"
    assert capsys.readouterr().err == f"BANYAN_TEST_FOLDER={folder}: {why}.\n"


def test_what_wire_refuses_starts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    async def start(settings: Settings, _: None, kit: Kit) -> Heard:
        raise AssertionError("it started")

    def wire(settings: Settings) -> None:
        raise SettingsError("No.")

    assert run(start, wire) == 2
    assert capsys.readouterr().err == "No.\n"


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_listening_once_and_not_twice(host: str) -> None:
    with listen(f"{host}:0") as taken:
        address = f"{host}:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match=r"cannot listen \(Address already in use\)") as caught:
            listen(address)
    assert caught.value.filename == address
    listen(address).close()


@pytest.mark.parametrize("address", ["no.such.host.invalid:0", "192.0.2.1:0", "127.0.0.1:70000"])
def test_no_address_of_this_machine(address: str) -> None:
    with pytest.raises(OSError, match="expected a free address of this machine") as caught:
        listen(address)
    assert caught.value.filename == address


async def test_a_server_for_health_around_a_service(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    class Listener:
        async def start(self) -> None:
            calls.append("start")

        async def stop(self, grace_s: float) -> None:
            calls.append("stop")

    network = MemoryNetwork(MemoryMesh(), "host")
    serving = HealthOnly(Listener(), network, "host:1", logging.getLogger("test"))
    with caplog.at_level("INFO"):
        await serving.start("listener", mood="calm")
    (line,) = caplog.records
    assert line.getMessage() == "listener serves"
    assert (vars(line)["address"], vars(line)["mood"]) == ("host:1", "calm")
    with pytest.raises(OSError):
        await network.serve("host:1", [])
    await serving.stop(0.0)
    again = await network.serve("host:1", [])
    await again.stop(0.0)
    assert calls == ["start", "stop"]
