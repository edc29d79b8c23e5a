"""The files between the autoscaler and `banyan up`, and wrong settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from banyan_autoscaler.actuators import ActuatorError, LocalActuator
from banyan_autoscaler.main import run
from banyan_core.types import Role


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_wish_is_written_whole_and_the_other_role_kept(tmp_path: Path) -> None:
    actuator = LocalActuator(tmp_path)
    assert await actuator.set_replicas(Role.DECODE, 3)
    assert await actuator.set_replicas(Role.PREFILL, 2)
    assert await actuator.set_replicas(Role.DECODE, 1)
    assert json.loads((tmp_path / "scale.json").read_text()) == {"decode": 1, "prefill": 2}
    assert names(tmp_path) == ["scale.json"], "no draft is left"


async def test_counts_what_the_supervisor_lists(tmp_path: Path) -> None:
    mesh = {"decode": ["127.0.0.1:7002", "127.0.0.1:7003"], "router": ["127.0.0.1:7000"]}
    (tmp_path / "mesh.json").write_text(json.dumps(mesh))
    assert await LocalActuator(tmp_path).replicas() == {Role.PREFILL: 0, Role.DECODE: 2}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "mesh.json cannot be read"),
        ("{", "mesh.json cannot be read"),
        ("[]", "expected an object, got list"),
        ('{"decode": 2}', "decode: expected a list of addresses"),
    ],
)
async def test_unusable_mesh_file(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "mesh.json").write_text(content)
    with pytest.raises(ActuatorError, match=words):
        await LocalActuator(tmp_path).replicas()


async def test_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(ActuatorError, match="cannot be written"):
        await LocalActuator(tmp_path / "gone").set_replicas(Role.DECODE, 1)


@pytest.mark.parametrize(
    ("policies", "change", "words"),
    [
        (
            '[scaling.decode]\npolicy = "magic"',
            {},
            "'magic' is not known; known are: fixed, target_tracking",
        ),
        (
            '[scaling.decode]\npolicy = "fixed"\nmax_replica = 1',
            {},
            "scaling.decode.max_replica is not known",
        ),
        ("", {"BANYAN_AUTOSCALER_ACTUATOR": "magic"}, "expected one of compose, local, dry-run"),
        ("", {"BANYAN_AUTOSCALER_ACTUATOR": "compose"}, "BANYAN_AUTOSCALER_COMPOSE_PROJECT"),
        ("", {"BANYAN_AUTOSCALER_DOCKER_URL": "docker.sock"}, "expected unix:///PATH, tcp://"),
        ("", {"BANYAN_AUTOSCALER_ACTUATOR": "local"}, "BANYAN_AUTOSCALER_STATE_FOLDER"),
        ("", {"BANYAN_DIRECTORY": "somewhere"}, "BANYAN_DIRECTORY=somewhere: expected static:"),
        ("", {"BANYAN_AUTOSCALER_ADDRESS": None}, "BANYAN_AUTOSCALER_ADDRESS is not set"),
    ],
)
def test_wrong_setting_is_one_sentence_and_exit_2(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    policies: str,
    change: dict[str, str | None],
    words: str,
) -> None:
    (tmp_path / "policies.toml").write_text(policies)
    env: dict[str, str | None] = {
        "BANYAN_AUTOSCALER_ID": "autoscaler-0",
        "BANYAN_AUTOSCALER_ADDRESS": "127.0.0.1:0",
        "BANYAN_AUTOSCALER_METRICS_ADDRESS": "127.0.0.1:0",
        "BANYAN_BUS_URL": "redis://127.0.0.1:1",
        "BANYAN_DIRECTORY": "static:decode=127.0.0.1:7001",
        "BANYAN_POLICIES": str(tmp_path / "policies.toml"),
        **change,
    }
    assert run({key: text for key, text in env.items() if text is not None}) == 2
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    assert words in sentence
