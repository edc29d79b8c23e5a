"""`infra/policies.toml`: what is in it is known, and what is not is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from banyan_core.policies import ROUTING
from banyan_core.policies.routing import PrefixCost, Random
from banyan_runtime.policy_file import read_policy_file
from banyan_runtime.settings import SettingsError

POLICIES = Path(__file__).parents[2] / "infra" / "policies.toml"


def written(folder: Path, text: str) -> Path:
    path = folder / "policies.toml"
    path.write_text(text)
    return path


def test_the_committed_file_holds_the_documented_defaults() -> None:
    assert read_policy_file(POLICIES).policy("routing", ROUTING) == PrefixCost()


def test_the_chosen_policy_gets_its_parameters(tmp_path: Path) -> None:
    path = written(tmp_path, '[routing]\npolicy="random"\n[routing.random]\nsplit_above_tokens=7\n')
    assert read_policy_file(path).policy("routing", ROUTING) == Random(split_above_tokens=7)


def test_keys_that_are_no_parameters_are_left_to_who_asks(tmp_path: Path) -> None:
    path = written(tmp_path, '[routing]\npolicy="random"\nlimit=3\n')
    file = read_policy_file(path)
    assert file.policy("routing", ROUTING, others=("limit",)) == Random()
    assert file.section("routing")["limit"] == 3
    assert file.section("scaling") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[routing", "not TOML"),
        ("[ruoting]\n", "'ruoting' is not a section: expected one of routing, scaling"),
        ("routing = 3\n", "'routing' is not a section"),
        ("[routing]\n", r"\[routing\] policy is not set: expected one of random"),
        ('[routing]\npolicy="best"\n', "'best' is not known; known are: least_tokens, prefix_cost"),
        ('[routing]\npolicy="random"\nrnadom={}\n', r"\[routing\] rnadom is not known: expected"),
        ('[routing]\npolicy="random"\nrandom=3\n', r"\[routing\] random must be a table"),
        (
            '[routing]\npolicy="random"\n[routing.prefix_cost]\nsplit=1\n',
            r"\[routing.prefix_cost\] has no parameter 'split'; it takes: split_above_tokens",
        ),
    ],
)
def test_what_is_not_known_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SettingsError, match=message) as caught:
        read_policy_file(path).policy("routing", ROUTING)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="expected a readable policies file"):
        read_policy_file(tmp_path / "none.toml")
