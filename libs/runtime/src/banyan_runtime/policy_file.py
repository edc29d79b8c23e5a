"""Reads `infra/policies.toml`: a section per kind of policy, named and parameterised.

    [routing]
    policy = "prefix_cost"      # which one
    [routing.prefix_cost]       # its parameters; other policies' sections may stand beside it
    split_above_tokens = 32

Everything in the file is checked, also the policies that are not chosen: a misspelt parameter is
found when it is written, not on the day somebody switches to it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from banyan_core.policies import BadParameter, PolicyChoice, UnknownPolicy, make
from banyan_runtime.settings import SettingsError

P = TypeVar("P")

KINDS = ("routing", "scaling", "slo", "batching", "engine_admission", "onboard")


class PolicyFile:
    """The sections of one file. Every complaint is a SettingsError of one sentence."""

    def __init__(self, path: Path, sections: Mapping[str, Mapping[str, object]]) -> None:
        self._path = path
        self._sections = sections

    def section(self, kind: str) -> Mapping[str, object]:
        """All keys of one section; empty when the file has none."""
        return self._sections.get(kind, {})

    def policy(self, kind: str, table: Mapping[str, type[P]], others: Sequence[str] = ()) -> P:
        """The policy that `[kind]` chooses out of `table`.

        `others` are the keys of the section that are no parameters of a policy; who passes them
        reads them by `section`.
        """
        section = self.section(kind)
        known = ("policy", *others, *table)
        for key in section:
            if key not in known:
                raise self._error(f"[{kind}] {key} is not known: expected one of {_list(known)}")
        name = section.get("policy")
        if not isinstance(name, str):
            raise self._error(f"[{kind}] policy is not set: expected one of {_list(tuple(table))}")
        try:
            for other in table:
                if other in section:
                    make(kind, table, PolicyChoice(other, self._parameters(kind, other)))
            return make(kind, table, PolicyChoice(name, self._parameters(kind, name)))
        except (UnknownPolicy, BadParameter) as error:
            raise self._error(str(error)) from None

    def _parameters(self, kind: str, policy: str) -> Mapping[str, object]:
        parameters = self.section(kind).get(policy, {})
        if not isinstance(parameters, dict):
            raise self._error(f"[{kind}] {policy} must be a table of parameters")
        return parameters

    def _error(self, problem: str) -> SettingsError:
        return SettingsError(f"{self._path}: {problem}.")


def read_policy_file(path: Path) -> PolicyFile:
    """Raises SettingsError when the file is not there, not TOML, or has an unknown section."""
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        expected = f"expected a readable policies file ({reason})"
        raise SettingsError(f"BANYAN_POLICIES={path}: {expected}.") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: not TOML: {error}.") from None
    for name, section in content.items():
        if name not in KINDS or not isinstance(section, dict):
            problem = f"{name!r} is not a section: expected one of {_list(KINDS)}"
            raise SettingsError(f"{path}: {problem}.")
    return PolicyFile(path, content)


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)
