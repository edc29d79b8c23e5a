"""The measurement of resumes counts what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from banyan_engine import drift


@pytest.mark.parametrize("numerics", ["fast", "deterministic"])
def test_tokens_that_differ_after_a_resume_are_counted(
    numerics: str,
    model_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["drift", str(model_folder()), "--numerics", numerics, "--prompts", "1"]
    monkeypatch.setattr("sys.argv", arguments)
    drift.main()
    printed = capsys.readouterr().out
    assert printed.startswith(f"{numerics}: ")
    assert printed.endswith(" of 64 tokens differ after a resume\n")
    if numerics == "deterministic":
        assert printed.startswith("deterministic: 0 of 64")
