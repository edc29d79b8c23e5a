"""What a step's parts take, as the command prints it."""

from __future__ import annotations

import ctypes
import sys

import pytest

from banyan_engine import profile
from banyan_engine.demo import model_folder
from banyan_engine.kernels import native
from banyan_engine.kernels.build import Loader
from banyan_engine.whole_layers import PARTS


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["profile", str(model_folder()), "--sequences", "2"])


@pytest.mark.usefixtures("asked")
def test_every_part_is_told_and_together_they_are_the_step(
    helper: ctypes.CDLL, capsys: pytest.CaptureFixture[str]
) -> None:
    if not native.loader.status.endswith("bf16"):
        pytest.skip("steps go one by one where the CPU does not multiply bfloat16")
    profile.main()
    taken = {line[:32].strip(): float(line[32:42]) for line in capsys.readouterr().out.splitlines()}
    assert {*PARTS, "sampling", "Python, torch", "step"} == set(taken)
    assert taken["experts"] == 0
    assert all(ms > 0 for part, ms in taken.items() if part != "experts")
    assert max(taken, key=lambda part: taken[part]) == "step"


@pytest.mark.usefixtures("asked")
def test_without_the_helper_there_are_no_parts_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Loader()
    absent.status = "absent: a test"
    for module in (native, profile):
        monkeypatch.setattr(module, "loader", absent)
    monkeypatch.setattr(absent, "wait", lambda _: None)
    with pytest.raises(SystemExit, match="one by one: helper absent: a test"):
        profile.main()
