"""The `[scaling]` section: what it becomes, and how a slip in it is told."""

from __future__ import annotations

import pytest

from banyan_core.policies import BadParameter, UnknownPolicy
from banyan_core.policies.scaling import Fixed, TargetTracking
from banyan_core.policies.scaling_limits import Limits, Rate
from banyan_core.scaling_config import ScalingConfig, scaling_config
from banyan_core.scaling_loop import RoleScaling
from banyan_core.types import NS_PER_S, Role


def test_section_becomes_values() -> None:
    config = scaling_config(
        {
            "period_s": 5,
            "decode": {
                "policy": "target_tracking",
                "max_replicas": 4,
                "cooldown_s": 30,
                "down_rate": {"replicas": 1, "percent": 0, "period_s": 60},
                "target_tracking": {"target": 8},
            },
            "prefill": {"policy": "fixed", "fixed": {"num_replicas": 2}},
        }
    )
    assert list(config.roles) == [Role.PREFILL, Role.DECODE]
    assert config.roles[Role.PREFILL] == RoleScaling("fixed", Fixed(2), Limits())
    assert config.roles[Role.DECODE].policy == TargetTracking(target=8.0)
    assert config.roles[Role.DECODE].limits == Limits(
        1, 4, cooldown_ns=30 * NS_PER_S, down_rate=Rate(1, 0.0, 60 * NS_PER_S)
    )
    assert config.period_ns == 5 * NS_PER_S
    assert scaling_config({}) == ScalingConfig({}, 15 * NS_PER_S)


@pytest.mark.parametrize(
    ("section", "error", "words"),
    [
        ({"decod": {}}, ValueError, "scaling.decod is not known"),
        ({"period_s": 0}, ValueError, "scaling.period_s must be above 0"),
        ({"decode": 3}, ValueError, "scaling.decode must be a table"),
        ({"decode": {}}, ValueError, "scaling.decode.policy is not set"),
        (
            {"decode": {"policy": "magic"}},
            UnknownPolicy,
            "'magic' is not known; known are: fixed, target_tracking",
        ),
        ({"decode": {"policy": "fixed", "fixed": {"n": 1}}}, BadParameter, "no parameter 'n'"),
        ({"decode": {"policy": "fixed", "fixed": 1}}, ValueError, "must be a table of"),
        (
            {"decode": {"policy": "fixed", "target_tracking": {"target": 0}}},
            BadParameter,
            "target must be above 0",
        ),
        ({"decode": {"policy": "fixed", "min_replicas": -1}}, ValueError, "min_replicas must be"),
        (
            {"decode": {"policy": "fixed", "min_replicas": 3, "max_replicas": 2}},
            ValueError,
            "max_replicas must be at least min_replicas 3",
        ),
        (
            {"decode": {"policy": "fixed", "up_rate": {"replicas": 1}}},
            ValueError,
            "scaling.decode.up_rate must be a table of replicas, percent and period_s",
        ),
        (
            {
                "decode": {
                    "policy": "fixed",
                    "down_rate": {"replicas": 0, "percent": 0, "period_s": 1},
                }
            },
            ValueError,
            "scaling.decode.down_rate must allow some change",
        ),
        ({"decode": {"policy": "fixed", "cooldown_s": "x"}}, ValueError, "cooldown_s must be"),
    ],
)
def test_bad_section_names_the_field(
    section: dict[str, object], error: type[ValueError], words: str
) -> None:
    with pytest.raises(error, match=words):
        scaling_config(section)
