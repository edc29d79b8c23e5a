"""Turns for shared cores, between real processes: never two at once, none passed over or stuck."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from banyan_runtime.core_turns import CoreTurns

TIMEOUT_S = 60.0
LOGGER = logging.getLogger("test")
# Writes its name when a turn begins and when it ends, into a file that all append to.
TAKES_TURNS = """
import logging, os, sys, time
from pathlib import Path
from banyan_runtime.core_turns import CoreTurns

folder, name, num_turns, hold_s = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
turns = CoreTurns(folder, logging.getLogger(), patience_s=60.0)
journal = os.open(folder / "journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
os.write(journal, f"{name} ready\\n".encode())
while not (folder / "go").exists():
    time.sleep(0.001)
for _ in range(num_turns):
    os.write(journal, f"{name} asks\\n".encode())
    with turns.turn():
        os.write(journal, f"{name} in\\n".encode())
        time.sleep(float(hold_s))
        os.write(journal, f"{name} out\\n".encode())
"""


@contextmanager
def process(
    folder: Path, name: str, num_turns: int, hold_s: float
) -> Iterator[subprocess.Popen[bytes]]:
    arguments = [str(folder), name, str(num_turns), str(hold_s)]
    with subprocess.Popen([sys.executable, "-c", TAKES_TURNS, *arguments]) as child:
        try:
            yield child
        finally:
            child.kill()


def journal(folder: Path) -> list[str]:
    return (folder / "journal").read_text().splitlines() if (folder / "journal").exists() else []


def wait_for(folder: Path, line: str, num: int = 1) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while journal(folder).count(line) < num:
        assert time.monotonic() < deadline, f"no {line!r} in {journal(folder)}"
        time.sleep(0.005)


def test_turns_never_overlap(tmp_path: Path) -> None:
    with process(tmp_path, "a", 50, 0.002) as a, process(tmp_path, "b", 50, 0.002) as b:
        wait_for(tmp_path, "a ready")
        wait_for(tmp_path, "b ready")
        (tmp_path / "go").touch()
        assert (a.wait(TIMEOUT_S), b.wait(TIMEOUT_S)) == (0, 0)
    lines = journal(tmp_path)
    turns = [line for line in lines if line.endswith(("in", "out"))]
    for begun, ended in zip(turns[::2], turns[1::2], strict=True):
        assert begun.replace("in", "out") == ended


def test_who_waits_is_not_passed_over_by_who_gives_the_turn_back(tmp_path: Path) -> None:
    holder = CoreTurns(tmp_path, LOGGER, patience_s=TIMEOUT_S)
    (tmp_path / "go").touch()
    with process(tmp_path, "a", 1, 0.0):
        with holder.turn():
            wait_for(tmp_path, "a asks")
            deadline = time.monotonic() + TIMEOUT_S
            while not is_locked(tmp_path / "next-turn"):  # until then it does not wait
                assert time.monotonic() < deadline
                time.sleep(0.001)
        with holder.turn() as granted:
            assert granted
            assert journal(tmp_path)[-2:] == ["a in", "a out"]


def is_locked(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_killed_process_leaves_its_turn(tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    turns = CoreTurns(tmp_path, LOGGER, patience_s=TIMEOUT_S)
    with process(tmp_path, "a", 1, TIMEOUT_S) as child:
        wait_for(tmp_path, "a in")
        child.kill()
        with turns.turn() as granted:
            assert granted


def test_a_stopped_process_holds_others_up_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "go").touch()
    turns = CoreTurns(tmp_path, LOGGER, patience_s=0.3)
    with process(tmp_path, "a", 1, 0.5) as child:
        wait_for(tmp_path, "a in")
        os.kill(child.pid, signal.SIGSTOP)
        begun = time.monotonic()
        for _ in range(100):
            with turns.turn() as granted:
                assert not granted
        assert 0.3 <= time.monotonic() - begun < 10.0  # one wait and not a hundred
        assert len(caplog.records) == 1
        os.kill(child.pid, signal.SIGCONT)
        assert child.wait(TIMEOUT_S) == 0
    deadline = time.monotonic() + TIMEOUT_S
    while not turn_is_granted(turns):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def turn_is_granted(turns: CoreTurns) -> bool:
    with turns.turn() as granted:
        return granted


def test_a_wait_that_was_given_up_takes_the_turn_from_nobody(tmp_path: Path) -> None:
    holder, impatient, third = (
        CoreTurns(tmp_path, LOGGER, patience_s) for patience_s in (60.0, 0.05, 60.0)
    )
    with holder.turn(), impatient.turn() as granted:
        assert not granted
    with third.turn() as granted:
        assert granted


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        CoreTurns(tmp_path / "nowhere", LOGGER)
