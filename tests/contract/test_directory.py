"""Directories: the setting that names one, and what each finds."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from banyan_runtime.directories import parse_directory


async def test_static_gives_what_was_written_sorted() -> None:
    directory = parse_directory("static:prefill=b:7002,a:7001;decode=[::1]:7003;router=")
    assert await directory.addresses("prefill") == ("a:7001", "b:7002")
    assert await directory.addresses("decode") == ("[::1]:7003",)
    assert await directory.addresses("router") == ()
    assert await directory.addresses("kvstore") == ()


async def test_file_follows_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "mesh.json"
    directory = parse_directory(f"file:{path}")
    assert await directory.addresses("prefill") == ()

    def write(content: object) -> None:
        draft = path.with_suffix(".new")
        draft.write_text(content if isinstance(content, str) else json.dumps(content))
        draft.replace(path)

    write({"prefill": ["h:2", "h:1"]})
    assert await directory.addresses("prefill") == ("h:1", "h:2")
    write({"prefill": ["h:3"], "decode": ["h:4"]})
    assert await directory.addresses("prefill") == ("h:3",)
    assert await directory.addresses("decode") == ("h:4",)
    write("{ not json")
    assert await directory.addresses("prefill") == ("h:3",), "a damaged file changes nothing"
    path.unlink()
    assert await directory.addresses("prefill") == ("h:3",)


async def test_file_is_read_again_when_only_its_time_changed(tmp_path: Path) -> None:
    path = tmp_path / "mesh.json"
    path.write_text('{"router": ["h:1"]}')
    directory = parse_directory(f"file:{path}")
    assert await directory.addresses("router") == ("h:1",)
    path.write_text('{"router": ["h:2"]}')
    os.utime(path, ns=(1, 1))
    assert await directory.addresses("router") == ("h:2",)


async def test_dns_gives_every_address_of_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        if host == "gone":
            raise socket.gaierror("no such name")
        tcp = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        found = {"workers": ["10.0.0.2", "10.0.0.1", "10.0.0.2"], "six": ["fd00::1"]}
        return [(*tcp, (address, port)) for address in found[host]]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    directory = parse_directory("dns:prefill=workers:7001,six:7002;decode=gone:7001")
    assert await directory.addresses("prefill") == (
        "10.0.0.1:7001",
        "10.0.0.2:7001",
        "[fd00::1]:7002",
    )
    assert await directory.addresses("decode") == ()
    assert await directory.addresses("router") == ()


async def test_dns_is_not_asked_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    answers = iter(["10.0.0.1", "10.0.0.2"])

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    now_s = loop.time()
    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(loop, "time", lambda: now_s)
    directory = parse_directory("dns:router=routers:7001")
    assert await directory.addresses("router") == ("10.0.0.1:7001",)
    assert await directory.addresses("router") == ("10.0.0.1:7001",)
    now_s += 0.6
    assert await directory.addresses("router") == ("10.0.0.2:7001",)


async def test_dns_resolves_a_real_name() -> None:
    directory = parse_directory("dns:router=localhost:7001")
    assert "127.0.0.1:7001" in await directory.addresses("router")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("", "expected static:"),
        ("file:", "expected static:"),
        ("consul:x", "expected static:"),
        ("static:prefill", "expected SERVICE=HOST:PORT"),
        ("static:=h:1", "expected SERVICE=HOST:PORT"),
        ("static:prefill=h", "'h' of prefill: expected HOST:PORT"),
        ("static:prefill=h:0", "'h:0' of prefill: expected HOST:PORT"),
        ("dns:prefill=h:70000", "'h:70000' of prefill: expected HOST:PORT"),
        ("static:prefill=h:1;prefill=h:2", "prefill is named twice"),
    ],
)
def test_a_wrong_setting_says_what_was_expected(spec: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        parse_directory(spec)
