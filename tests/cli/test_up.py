"""`banyan up` as people run it: real processes, the echo runner, kills, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from banyan_cli.state import MeshState, StateFolder

BANYAN = str(Path(sys.executable).parent / "banyan")
PATIENCE_S = 90.0
QUESTION = "The amber key opens door 4821, the copper key opens door 1076."


def banyan(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [BANYAN, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def wait_for(what: str, check: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not check():
        assert time.monotonic() < until, f"{what}: not within {PATIENCE_S:g} s"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Not a zombie either: whoever inherits an orphan may be slow to bury it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Mesh:
    def __init__(self, path: Path) -> None:
        self.folder = StateFolder(path)
        self.option = f"--state-dir={path}"

    def state(self) -> MeshState:
        state = self.folder.read_state()
        assert state is not None
        return state

    def pid(self, name: str) -> int:
        return {process.name: process.pid for process in self.state().processes}.get(name, 0)

    def pids(self) -> list[int]:
        state = self.state()
        return [state.supervisor_pid, *(p.pid for p in state.processes if p.pid)]

    def log(self) -> str:
        return self.folder.log_file("supervisor").read_text()


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    mesh = Mesh(tmp_path / "state")
    try:  # a mesh that takes too long goes on by itself
        started = banyan("up", "--runner=echo", "--port=0", "--detach", mesh.option)
        assert started.returncode == 0, started.stderr
        pids = mesh.pids()
        assert len(pids) == 9
        yield mesh
    finally:
        banyan("down", mesh.option)
    assert [pid for pid in pids if is_alive(pid)] == []


def test_answers_restarts_scales_and_goes_down(mesh: Mesh) -> None:
    check_commands(mesh)
    check_restart(mesh)
    check_scaling(mesh)
    pids = mesh.pids()
    down = banyan("down", mesh.option)
    assert (down.returncode, down.stdout.strip()) == (0, "the mesh is down")
    assert [pid for pid in pids if is_alive(pid)] == []
    again = banyan("down", mesh.option)
    assert again.returncode == 0
    assert "no mesh runs" in again.stdout


def check_commands(mesh: Mesh) -> None:
    said = banyan("chat", QUESTION, "--max-tokens=24", mesh.option)
    assert said.returncode == 0, said.stderr
    assert QUESTION[:8] in said.stdout
    assert "24 output tokens" in said.stdout
    request = said.stdout.rpartition("banyan explain ")[2].strip()
    explained = banyan("explain", request, mesh.option).stdout
    for word in ("prefill-0", "decode-0", "prefix_cost", "decode compute", "all"):
        assert word in explained
    status = json.loads(banyan("status", "--json", mesh.option).stdout)
    assert all(row["answers"] for row in status["processes"])
    assert [row["worker_id"] for row in status["workers"]] == ["decode-0", "prefill-0"]
    wait_for("the figures", lambda: "1 finished" in banyan("top", "--once", mesh.option).stdout)
    assert banyan("explain", "chatcmpl-0", mesh.option).returncode == 1


def check_restart(mesh: Mesh) -> None:
    before, address = mesh.pid("decode-0"), address_of(mesh, "decode-0")
    os.kill(before, signal.SIGKILL)
    wait_for("the news", lambda: "decode-0 is ready again" in mesh.log())
    assert "decode-0 was killed by signal 9; starting it again in 0.25 s" in mesh.log()
    assert mesh.pid("decode-0") not in (0, before)
    assert address_of(mesh, "decode-0") == address
    body = {"model": "echo", "prompt": QUESTION, "max_tokens": 12, "temperature": 0}
    with httpx2.Client(base_url=mesh.state().gateway_url, trust_env=False) as client:
        answer = client.post("/v1/completions", json=body, timeout=PATIENCE_S)
    assert answer.json()["choices"][0]["text"] == QUESTION[:12]


def address_of(mesh: Mesh, name: str) -> str:
    return next(p.address for p in mesh.state().processes if p.name == name)


def check_scaling(mesh: Mesh) -> None:
    mesh.folder.scale_file.write_text(json.dumps({"decode": 2}))
    wait_for("a second decode worker", lambda: "decode-1 is ready" in mesh.log())
    listed = json.loads(mesh.folder.mesh_file.read_text())["decode"]
    assert listed == [address_of(mesh, "decode-0"), address_of(mesh, "decode-1")]
    pid = mesh.pid("decode-1")
    mesh.folder.scale_file.write_text(json.dumps({"decode": 1}))
    wait_for("its leave", lambda: "decode-1 has left" in mesh.log())
    assert not is_alive(pid)


def test_killed_supervisor_takes_its_children_with_it(mesh: Mesh) -> None:
    pids = mesh.pids()
    os.kill(pids[0], signal.SIGKILL)
    wait_for("the end of all", lambda: not any(is_alive(pid) for pid in pids))
    assert banyan("status", mesh.option).returncode == 2


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Children begin with SIGINT as in a terminal; behind a shell's `&` they inherit it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_gives_up_waiting_leaves_no_mesh(tmp_path: Path, number: signal.Signals) -> None:
    """While it starts behind: nobody would know of it when it is up."""
    folder = StateFolder(tmp_path)
    never_written = tmp_path / "keys"  # the gateway waits for them, and the mesh for the gateway
    os.mkfifo(never_written)
    command = [BANYAN, "up", "--runner=echo", "--port=0", "--detach", f"--state-dir={tmp_path}"]
    environment = os.environ | {
        "BANYAN_GATEWAY_KEY_FILE": str(never_written),
        "BANYAN_MESH_SECRET": "sixteen letters, or more of them",
    }
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as starting:
        try:
            wait_for("its first process", lambda: len(running_of(folder)) > 1)
            pids = running_of(folder)
            starting.send_signal(number)
            starting.communicate(timeout=PATIENCE_S)
        except BaseException:
            starting.kill()
            banyan("down", f"--state-dir={tmp_path}")
            raise
    assert starting.returncode != 0
    wait_for("the end of all", lambda: not folder.is_claimed())
    assert [pid for pid in {*pids, *running_of(folder)} if is_alive(pid)] == []


def running_of(folder: StateFolder) -> set[int]:
    """The supervisor of a mesh that may just begin, and what it has started."""
    state = folder.read_state()
    if state is None:
        return set()
    return {state.supervisor_pid, *(process.pid for process in state.processes if process.pid)}


def test_second_mesh_in_one_folder_is_refused(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    claimed = folder.claim()
    try:
        refused = banyan("up", "--runner=echo", f"--state-dir={tmp_path}")
    finally:
        os.close(claimed)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"banyan: A mesh already runs from {tmp_path}")


def test_busy_port_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = banyan("up", "--runner=echo", f"--port={port}", f"--state-dir={tmp_path}")
    assert refused.returncode == 2
    expected = f"Port {port} is taken: stop what uses it, or choose another with --port."
    assert refused.stderr.strip() == f"banyan: {expected}"


def test_a_port_that_is_none_is_refused(tmp_path: Path) -> None:
    refused = banyan("up", "--runner=echo", "--port=99999", f"--state-dir={tmp_path}")
    assert refused.returncode == 2
    assert refused.stderr == "banyan: --port is 99999: expected 0 to 65535.\n"


@pytest.mark.parametrize(
    ("option", "expected"),
    [("--quantize", "'int8', 'int4'"), ("--kv-dtype", "'float32', 'bfloat16', 'int8'")],
)
def test_a_format_that_is_not_known_is_refused(option: str, expected: str) -> None:
    refused = banyan("up", f"{option}=int3")
    assert refused.returncode == 2
    said = " ".join(refused.stderr.replace("│", " ").split())  # it comes in a box
    assert f"Invalid value for '{option}'" in said
    assert f"'int3' is not one of {expected}." in said


def test_wrong_policy_stops_everything_with_the_services_own_sentence(tmp_path: Path) -> None:
    policies = tmp_path / "policies.toml"
    policies.write_text('[routing]\npolicy = "best"\n')
    folder = f"--state-dir={tmp_path / 'state'}"
    refused = banyan("up", "--runner=echo", "--port=0", f"--policies={policies}", folder)
    assert refused.returncode == 2
    assert "router cannot start:" in refused.stdout
    assert "prefix_cost" in refused.stdout


@pytest.mark.parametrize("command", ["status", "top", "chat"])
def test_questions_without_a_mesh_say_how_to_start_one(tmp_path: Path, command: str) -> None:
    asked = banyan(command, f"--state-dir={tmp_path}")
    assert asked.returncode == 2
    assert asked.stderr.strip() == (
        f"banyan: No mesh runs from {tmp_path}: start one with `banyan up`."
    )
