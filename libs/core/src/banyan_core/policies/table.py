"""How a policy is made from its name and the parameters of `infra/policies.toml`.

A policy is a frozen dataclass: its fields are its parameters, their defaults the documented ones,
and `__post_init__` may refuse values. So one function checks every kind the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from typing import Any, TypeVar

P = TypeVar("P")


class UnknownPolicy(ValueError):
    """No policy of this kind has this name."""


class BadParameter(ValueError):
    """A policy has no such parameter, or not with such a value."""


@dataclass(frozen=True, slots=True)
class PolicyChoice:
    """A policy by name, with the parameters that differ from its defaults."""

    policy: str
    parameters: Mapping[str, object]


def make(kind: str, table: Mapping[str, type[P]], choice: PolicyChoice) -> P:
    """The policy that `choice` names. Raises UnknownPolicy or BadParameter."""
    policy = table.get(choice.policy)
    if policy is None:
        known = ", ".join(sorted(table))
        raise UnknownPolicy(f"{kind} policy {choice.policy!r} is not known; known are: {known}")
    where = f"[{kind}.{choice.policy}]"
    known_fields = {f.name: f for f in fields(policy)}  # type: ignore[arg-type] # all are dataclasses
    values: dict[str, Any] = {}
    for name, value in choice.parameters.items():
        if name not in known_fields:
            known = ", ".join(known_fields) or "none"
            raise BadParameter(f"{where} has no parameter {name!r}; it takes: {known}")
        values[name] = _checked(where, known_fields[name], value)
    try:
        return policy(**values)
    except ValueError as error:
        raise BadParameter(f"{where} {error}") from error


def _checked(where: str, parameter: Field[Any], value: object) -> object:
    """`value` as the type of the parameter's default; a whole number may stand for a float."""
    wanted = type(parameter.default)
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
        raise BadParameter(
            f"{where} {parameter.name} must be {names.get(wanted, wanted.__name__)}, not {value!r}"
        )
    return value
