"""Getting the compiled helper: ready-made, compiled, refused; nothing fails without it."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch

from banyan_engine.kernels import build
from banyan_engine.kernels.build import LEVELS, Loader, binary_name, cpu_level
from banyan_engine.linear import linear, quantize_int8


def test_the_helper_is_kept_and_found_again(helper: ctypes.CDLL, tmp_path: Path) -> None:
    level = cpu_level()
    assert level is not None
    made = build.cache_folder() / binary_name(level)
    assert made.is_file()
    again = Loader(ready_made=build.cache_folder(), cache=tmp_path / "unused")
    assert again.wait(60) is not None
    assert again.status == f"in use: {level}"
    assert not (tmp_path / "unused").exists()


def test_no_compiler_leaves_it_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    loader = Loader(ready_made=tmp_path, cache=tmp_path / "cache")
    assert loader.wait(60) is None
    assert loader.status.startswith("absent: ")


def test_a_failing_compiler_leaves_it_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/bin/false")
    loader = Loader(ready_made=tmp_path, cache=tmp_path / "cache")
    assert loader.wait(60) is None
    assert loader.status.startswith("absent: ")
    assert not list((tmp_path / "cache").glob("*.so"))


def test_a_folder_that_cannot_be_written_leaves_it_absent(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    loader = Loader(ready_made=tmp_path, cache=tmp_path / "file" / "cache")
    assert loader.wait(60) is None
    assert loader.status.startswith("absent: ")


def test_a_broken_binary_leaves_it_absent(tmp_path: Path) -> None:
    for level in LEVELS:
        (tmp_path / binary_name(level)).write_bytes(b"no library")
    loader = Loader(ready_made=tmp_path)
    assert loader.wait(60) is None
    assert loader.status.startswith("absent: ")


def test_products_go_on_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from banyan_engine.kernels import native

    monkeypatch.setattr(native, "loader", Loader(ready_made=tmp_path, cache=Path("/proc/none")))
    weight = quantize_int8(torch.randn(8, 32))
    x = torch.randn(2, 32)
    wanted = x @ weight.unpack(slice(None), torch.float32).t()
    torch.testing.assert_close(linear(x, weight), wanted)


def test_loaders_that_start_together_share_one_binary(helper: ctypes.CDLL, tmp_path: Path) -> None:
    """The compiler notes each of its runs, and links by copying what was linked before."""
    notes = tmp_path / "notes"
    compiler = tmp_path / "compiler"
    compiler.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >> {notes}\n'
        "for target; do :; done\n"  # the last of its arguments
        f'case "$*" in *-shared*) cp {helper._name} "$target";; *) : > "$target";; esac\n',
        encoding="utf-8",
    )
    compiler.chmod(0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", str(compiler))
        loaders = [Loader(ready_made=tmp_path, cache=tmp_path / "cache") for _ in range(3)]
        for loader in loaders:
            loader.start()
        assert all(loader.wait(60) is not None for loader in loaders)
    num_links = sum("-shared" in line for line in notes.read_text(encoding="utf-8").splitlines())
    assert num_links == 1
