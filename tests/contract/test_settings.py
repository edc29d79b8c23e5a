"""Settings: typed, strict, and wrong ones are told in one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import pytest

from banyan_runtime.settings import (
    Address,
    Parsed,
    Positive,
    Seconds,
    SettingsError,
    is_address,
    read_settings,
    secret,
    shared,
)


class Mode(StrEnum):
    FAST = "fast"
    DETERMINISTIC = "deterministic"


def _point(text: str) -> complex:
    x, colon, y = text.partition(":")
    if not colon:
        raise ValueError("expected a colon in X:Y")
    return complex(int(x), int(y))


@dataclass(frozen=True)
class Settings:
    directory: str = shared("BANYAN_DIRECTORY")
    address: str = "127.0.0.1:0"
    queue_size: int = 64
    ratio: float = 0.5
    wait_s: Seconds = 1.0
    width: Positive | None = None
    peer: Address = "127.0.0.1:0"
    point: Annotated[complex, Parsed("a point, X:Y", _point)] = 0j
    trace: bool = False
    mode: Mode = Mode.FAST
    folder: Path | None = None
    limit: int | None = 3
    mesh_secret: str = secret(default="")


PREFIX = "BANYAN_ROUTER_"
MINIMAL = {"BANYAN_DIRECTORY": "static:", "PATH": "/bin", "BANYAN_GATEWAY_X": "1"}


def read(**env: str) -> Settings:
    return read_settings(Settings, PREFIX, MINIMAL | env)


def test_defaults_stand_where_nothing_is_set() -> None:
    assert read() == Settings(directory="static:")


def test_every_type_is_read() -> None:
    settings = read(
        BANYAN_ROUTER_ADDRESS="h:1",
        BANYAN_ROUTER_QUEUE_SIZE="7",
        BANYAN_ROUTER_RATIO="1e-3",
        BANYAN_ROUTER_TRACE="yes",
        BANYAN_ROUTER_MODE="deterministic",
        BANYAN_ROUTER_FOLDER="/models/demo",
        BANYAN_ROUTER_LIMIT="",
        BANYAN_ROUTER_WAIT_S="0",
        BANYAN_ROUTER_WIDTH="1",
        BANYAN_ROUTER_PEER="[::1]:65535",
        BANYAN_ROUTER_POINT="3:4",
        BANYAN_ROUTER_MESH_SECRET="s3cret",
    )
    assert settings == Settings(
        directory="static:",
        address="h:1",
        queue_size=7,
        ratio=0.001,
        trace=True,
        mode=Mode.DETERMINISTIC,
        folder=Path("/models/demo"),
        limit=None,
        wait_s=0.0,
        width=1,
        peer="[::1]:65535",
        point=3 + 4j,
        mesh_secret="s3cret",
    )
    assert "s3cret" not in repr(settings)


def test_a_secret_may_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("from a file\n")
    assert read(BANYAN_ROUTER_MESH_SECRET_FILE=str(path)).mesh_secret == "from a file"


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("QUEUE_SIZE", "many", "BANYAN_ROUTER_QUEUE_SIZE=many: expected a whole number."),
        ("QUEUE_SIZE", "", "BANYAN_ROUTER_QUEUE_SIZE=: expected a whole number."),
        ("RATIO", "nan", "BANYAN_ROUTER_RATIO=nan: expected a number."),
        ("TRACE", "maybe", "BANYAN_ROUTER_TRACE=maybe: expected true or false."),
        ("MODE", "slow", "BANYAN_ROUTER_MODE=slow: expected one of fast, deterministic."),
        ("WAIT_S", "-1", "BANYAN_ROUTER_WAIT_S=-1: expected 0 or more seconds."),
        ("WIDTH", "0", "BANYAN_ROUTER_WIDTH=0: expected a whole number from 1 or nothing."),
        ("WIDTH", "wide", "BANYAN_ROUTER_WIDTH=wide: expected a whole number from 1 or nothing."),
        ("PEER", "h", "BANYAN_ROUTER_PEER=h: expected HOST:PORT, port 0 to 65535."),
        ("POINT", "3", "BANYAN_ROUTER_POINT=3: expected a colon in X:Y."),
        ("LIMIT", "x", "BANYAN_ROUTER_LIMIT=x: expected a whole number or nothing."),
        (
            "QUEUE_SIZ",
            "1",
            "BANYAN_ROUTER_QUEUE_SIZ is not a setting: did you mean BANYAN_ROUTER_QUEUE_SIZE?",
        ),
        (
            "MESH_SECRET_FILE",
            "/nowhere",
            "BANYAN_ROUTER_MESH_SECRET_FILE=/nowhere: expected a readable text file.",
        ),
    ],
)
def test_a_wrong_setting_is_one_sentence(key: str, value: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read(**{PREFIX + key: value})
    assert str(caught.value) == sentence


def test_a_key_like_none_lists_what_is_known() -> None:
    with pytest.raises(SettingsError, match=r"expected one of .*BANYAN_ROUTER_TRACE"):
        read(BANYAN_ROUTER_ZZZZZZZZZZZZZZZZZZZZZZ="1")


def test_a_missing_setting_is_one_sentence() -> None:
    with pytest.raises(SettingsError, match=r"^BANYAN_DIRECTORY is not set: expected text\.$"):
        read_settings(Settings, PREFIX, {})


def test_a_secret_set_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="both set"):
        read(BANYAN_ROUTER_MESH_SECRET="a", BANYAN_ROUTER_MESH_SECRET_FILE=str(tmp_path))


@pytest.mark.parametrize("text", ["h:0", "127.0.0.1:65535", "[::]:80", "[fe80::1]:1"])
def test_addresses(text: str) -> None:
    assert is_address(text)


@pytest.mark.parametrize(
    "text", ["", "h", ":80", "h:", "h:65536", "h:-1", "h:٣", "::1:80", "[h]:80", "[::1:80", "h:1 "]
)
def test_what_is_no_address(text: str) -> None:
    assert not is_address(text)


@pytest.mark.parametrize("value", ["", "  "])
def test_what_must_be_set_must_not_be_empty(value: str) -> None:
    with pytest.raises(SettingsError, match=r"^BANYAN_DIRECTORY= *: expected text that is not"):
        read(BANYAN_DIRECTORY=value)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("BANYAN_DIRECTORYY", "did you mean BANYAN_DIRECTORY"),
        ("BANYAN_BUSURL", "did you mean BANYAN_BUS_URL"),
        ("BANYAN_ROTER_QUEUE_SIZE", "did you mean BANYAN_ROUTER_QUEUE_SIZE"),
        ("BANYAN_ZZZ", "expected one of BANYAN_ADAPTERS, "),
    ],
)
def test_a_key_of_the_mesh_that_nobody_owns_is_refused(key: str, hint: str) -> None:
    with pytest.raises(SettingsError, match=f"^{key} is not a setting: {hint}"):
        read(**{key: "1"})


def test_keys_of_others_are_theirs() -> None:
    others = ("BANYAN_BUS_URL", "BANYAN_API_KEY", "BANYAN_MESH_SECRET_FILE", "BANYAN_DECODE_ANY")
    assert read(**dict.fromkeys(others, "x")) == Settings(directory="static:")
