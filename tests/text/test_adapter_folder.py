"""What is in a folder of adapters, while adapters come, change and go."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

from banyan_text.adapter_folder import AdapterFolder


def write(folder: Path, name: str, *, data: bytes = b"\1\2\3\4", config: str = "{}") -> Path:
    """A file of one tensor in the safetensors format, and a config."""
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]},
        }
    ).encode()
    path = folder / name
    path.mkdir(exist_ok=True)
    (path / "adapter_config.json").write_text(config)
    weights = path / "adapter_model.safetensors"
    weights.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return weights


def names(folder: AdapterFolder) -> list[str]:
    return [adapter.name for adapter in folder.scan()]


def test_subfolders_with_both_files_are_adapters(tmp_path: Path) -> None:
    folder = AdapterFolder(tmp_path)
    assert names(folder) == []
    write(tmp_path, "b")
    write(tmp_path, "a.1")
    write(tmp_path, ".hidden")
    write(tmp_path, "not a name")
    (tmp_path / "file").write_text("x")
    (write(tmp_path, "half").parent / "adapter_config.json").unlink()
    assert names(folder) == ["a.1", "b"]
    assert folder.find("b") == folder.scan()[1]
    for absent in ("half", "c", "..", "../b", "", "a/../b", ".hidden"):
        assert folder.find(absent) is None


def test_the_digest_covers_config_and_weights_and_nothing_else(tmp_path: Path) -> None:
    def digest(name: str, data: bytes, config: str) -> bytes:
        write(tmp_path, name, data=data, config=config)
        found = AdapterFolder(tmp_path).find(name)
        assert found is not None
        return found.digest

    same = digest("a", b"1234", "{}")
    assert digest("other-name", b"1234", "{}") == same
    assert digest("a", b"1235", "{}") != same
    assert digest("a", b"1234", "{ }") != same
    assert len(same) == 16


def test_what_changes_is_read_again_and_what_stays_is_not(tmp_path: Path) -> None:
    folder = AdapterFolder(tmp_path)
    weights = write(tmp_path, "a")
    first = folder.find("a")
    stat = weights.stat()
    assert folder.find("a") is first
    weights.write_bytes(weights.read_bytes()[:-1] + b"9")
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert folder.find("a") not in (None, first), "of the same size, dated back"


def test_an_adapter_that_leaves_is_gone_and_may_come_back(tmp_path: Path) -> None:
    folder = AdapterFolder(tmp_path)
    write(tmp_path, "a")
    before = folder.scan()
    (tmp_path / "a").rename(tmp_path / ".a")
    assert folder.scan() == () and folder.find("a") is None
    (tmp_path / ".a").rename(tmp_path / "a")
    assert folder.scan() == before


@pytest.mark.parametrize("num_bytes", [0, 4, 8, 30, -1])
def test_a_file_that_is_still_being_copied_is_not_there_yet(num_bytes: int, tmp_path: Path) -> None:
    weights = write(tmp_path, "a")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:num_bytes])
    folder = AdapterFolder(tmp_path)
    assert folder.scan() == ()
    weights.write_bytes(whole)
    assert names(folder) == ["a"]


def test_what_is_no_weights_file_is_no_adapter(tmp_path: Path) -> None:
    weights = write(tmp_path, "a")
    for header in (b"[]", b"{}}", b'{"a": 1}', b'{"a": {"data_offsets": 3}}', b"\xff\xff"):
        weights.write_bytes(struct.pack("<Q", len(header)) + header)
        assert AdapterFolder(tmp_path).scan() == (), header


def test_a_folder_that_is_not_there_holds_none(tmp_path: Path) -> None:
    assert AdapterFolder(tmp_path / "nowhere").scan() == ()
