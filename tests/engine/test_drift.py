"""The measurement of fast mode against deterministic mode counts what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from banyan_engine import drift


def test_float32_hardly_drifts_and_a_rounded_model_does(
    model_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["drift", str(model_folder()), "--prompts", "2"])
    drift.main()
    header, _, line = capsys.readouterr().out.splitlines()
    assert header.count("|") == line.count("|")
    name, num_tokens, *shares = (cell.strip() for cell in line.strip("|").split("|"))
    assert (name, num_tokens) == (model_folder().name, "128")
    exact, rounded = [float(share.split()[0]) for share in shares[:2]], shares[2:]
    assert max(exact) < 2.0
    assert all(float(share.split()[0]) <= 30.0 for share in rounded)
    assert any(float(share.split()[0]) > 0.0 for share in rounded)
