"""The `[scaling]` section of the policy file, as values.

[scaling]
period_s = 15.0
[scaling.decode]                       # a role without a section is left alone
policy = "target_tracking"
max_replicas = 4
down_rate = { replicas = 1, percent = 0, period_s = 60 }   # or up_rate; all three are needed
[scaling.decode.target_tracking]       # parameters of that policy, for this role
target = 8.0
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from banyan_core.policies import SCALING, PolicyChoice, make
from banyan_core.policies.scaling_limits import Limits, Rate
from banyan_core.scaling_loop import PERIOD_NS, RoleScaling
from banyan_core.types import NS_PER_S, Role

_ROLES = tuple(role.value for role in Role)
_COUNTS = ("min_replicas", "max_replicas")
_DELAYS = ("down_window_s", "up_window_s", "cooldown_s")
_RATES = ("up_rate", "down_rate")


@dataclass(frozen=True, slots=True)
class ScalingConfig:
    """How each role is scaled, and how often that is decided."""

    roles: Mapping[Role, RoleScaling]
    period_ns: int = PERIOD_NS


def scaling_config(section: Mapping[str, object]) -> ScalingConfig:
    """Raises ValueError with a sentence that names the field and what was expected."""
    _refuse_unknown("scaling", section, ("period_s", *_ROLES))
    period_s = _seconds("scaling.period_s", section.get("period_s", PERIOD_NS / NS_PER_S))
    if period_s == 0:
        raise ValueError("scaling.period_s must be above 0")
    roles = {
        role: _role(f"scaling.{role.value}", section[role.value])
        for role in Role
        if role.value in section
    }
    return ScalingConfig(roles, round(period_s * NS_PER_S))


def _role(where: str, table: object) -> RoleScaling:
    if not isinstance(table, Mapping):
        raise ValueError(f"{where} must be a table, not {table!r}")
    _refuse_unknown(where, table, ("policy", *_COUNTS, *_DELAYS, *_RATES, *SCALING))
    name = table.get("policy")
    if not isinstance(name, str):
        raise ValueError(f"{where}.policy is not set: expected one of {', '.join(sorted(SCALING))}")
    parameters = {other: _parameters(where, table, other) for other in SCALING}
    for other in SCALING:  # also those not chosen: a slip shows when it is written
        make(where, SCALING, PolicyChoice(other, parameters[other]))
    policy = make(where, SCALING, PolicyChoice(name, parameters.get(name, {})))
    return RoleScaling(name, policy, _limits(where, table))


def _parameters(where: str, table: Mapping[str, object], name: str) -> Mapping[str, object]:
    parameters = table.get(name, {})
    if not isinstance(parameters, Mapping):
        raise ValueError(f"{where}.{name} must be a table of parameters, not {parameters!r}")
    return parameters


def _limits(where: str, table: Mapping[str, object]) -> Limits:
    default = Limits()
    least = _count(f"{where}.min_replicas", table.get("min_replicas", default.min_replicas))
    most = _count(f"{where}.max_replicas", table.get("max_replicas", max(least, 1)))
    if most < least:
        raise ValueError(f"{where}.max_replicas must be at least min_replicas {least}, not {most}")
    down_s, up_s, cooldown_s = (
        _seconds(f"{where}.{key}", table.get(key, known / NS_PER_S))
        for key, known in (
            ("down_window_s", default.down_window_ns),
            ("up_window_s", default.up_window_ns),
            ("cooldown_s", default.cooldown_ns),
        )
    )
    return Limits(
        least,
        most,
        round(down_s * NS_PER_S),
        round(up_s * NS_PER_S),
        round(cooldown_s * NS_PER_S),
        _rate(f"{where}.up_rate", table.get("up_rate"), default.up_rate),
        _rate(f"{where}.down_rate", table.get("down_rate"), default.down_rate),
    )


def _rate(where: str, table: object, default: Rate) -> Rate:
    if table is None:
        return default
    if not isinstance(table, Mapping) or set(table) != {"replicas", "percent", "period_s"}:
        raise ValueError(f"{where} must be a table of replicas, percent and period_s, not {table}")
    num_replicas = _count(f"{where}.replicas", table["replicas"])
    percent = _count(f"{where}.percent", table["percent"])
    if not num_replicas and not percent:
        raise ValueError(f"{where} must allow some change: replicas or percent above 0")
    period_s = _seconds(f"{where}.period_s", table["period_s"])
    return Rate(num_replicas, float(percent), round(period_s * NS_PER_S))


def _count(where: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{where} must be a whole number from 0, not {value!r}")
    return value


def _seconds(where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 86_400:
        raise ValueError(f"{where} must be seconds from 0 to 86400, not {value!r}")
    return float(value)


def _refuse_unknown(where: str, table: Mapping[str, object], known: tuple[str, ...]) -> None:
    for key in table:
        if key not in known:
            raise ValueError(f"{where}.{key} is not known: expected one of {', '.join(known)}")
