"""The set-up refuses what it should, in one sentence, before it costs anybody five gigabytes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from setup_env import SetupError, check_build, pip_settings, set_up

INDEX = "https://example.invalid/cpu"


def fake_python(folder: Path, said: str) -> Path:
    """A Python whose answer to everything is `said`."""
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f"#!/bin/sh\ncat <<'END'\n{said}\nEND\n")
    python.chmod(0o755)
    return python


def test_cuda_build_that_nobody_asked_for_is_refused(tmp_path: Path) -> None:
    python = fake_python(tmp_path, "13.0")
    with pytest.raises(SetupError, match=r"a CUDA 13\.0 build of torch got in unasked"):
        check_build(python, "cpu")
    check_build(python, "cuda")


def test_cpu_build_is_fine(tmp_path: Path) -> None:
    check_build(fake_python(tmp_path, ""), "cpu")


def test_old_python_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    with pytest.raises(SetupError, match=r"needs Python 3\.11 or newer and this is 3\.10"):
        set_up(tmp_path / "venv", "cpu", INDEX)
    assert not (tmp_path / "venv").exists()


def test_unknown_build_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="TORCH is 'rocm', expected cpu or cuda"):
        set_up(tmp_path / "venv", "rocm", INDEX)
    assert not (tmp_path / "venv").exists()


def test_pips_environment_overrides_its_files(tmp_path: Path) -> None:
    listed = (
        ":env:.find-links='/env/wheels'\n"
        "global.find-links='/file/wheels'\n"
        "global.extra-index-url='file:///one file:///two'"
    )
    settings = pip_settings(fake_python(tmp_path, listed))
    assert settings == {
        "find-links": ["/env/wheels"],
        "extra-index-url": ["file:///one", "file:///two"],
    }
