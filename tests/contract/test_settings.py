"""Settings: typed, strict, and wrong ones are told in one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import pytest

from banyan_runtime.settings import SettingsError, read_settings, secret, shared


class Mode(StrEnum):
    FAST = "fast"
    DETERMINISTIC = "deterministic"


@dataclass(frozen=True)
class Settings:
    directory: str = shared("BANYAN_DIRECTORY")
    address: str = "127.0.0.1:0"
    queue_size: int = 64
    ratio: float = 0.5
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
