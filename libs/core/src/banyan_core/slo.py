"""The mesh's words for speed, as formulas: TTFT, ITL, TPOT, E2E, SLO attainment, goodput.

All instants are the gateway's, in integer nanoseconds: a request is received, tokens are
written, the request ends. What a client can feel is judged, so a request that failed or was shed
missed its targets, and one that its client cancelled is not judged at all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from banyan_core.events import RequestEnded
from banyan_core.types import NS_PER_S, Outcome

ANY = "*"


def ttft_ns(received_ns: int, written_ns: Sequence[int]) -> int | None:
    """Request received to first token written; None when no token was written."""
    return written_ns[0] - received_ns if written_ns else None


def itl_ns(written_ns: Sequence[int]) -> tuple[int, ...]:
    """Gaps between consecutive tokens: one fewer than there are tokens."""
    return tuple(b - a for a, b in itertools.pairwise(written_ns))


def tpot_ns(ttft: int | None, e2e_ns: int, num_output_tokens: int) -> int | None:
    """(E2E - TTFT) / (output tokens - 1); None for fewer than two tokens."""
    if ttft is None or num_output_tokens < 2:
        return None
    return (e2e_ns - ttft) // (num_output_tokens - 1)


def nearest_rank(values: Sequence[int], share: float) -> int | None:
    """The smallest of `values` that at least `share` (0 to 1) of them do not exceed."""
    if not values:
        return None
    return sorted(values)[max(1, math.ceil(share * len(values))) - 1]


@dataclass(frozen=True, slots=True)
class SloTarget:
    """Upper bounds in seconds; None asks nothing. `itl_s` bounds a request's own p99 gap."""

    ttft_s: float | None = None
    itl_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None


@dataclass(frozen=True, slots=True)
class SloClass:
    """Which requests a target is for; `*` matches any tenant or model."""

    tenant: str
    model: str
    target: SloTarget

    def matches(self, tenant: str, model: str) -> bool:
        return self.tenant in (ANY, tenant) and self.model in (ANY, model)


@dataclass(frozen=True, slots=True)
class SloTable:
    """The first class that matches gives the target, else the default."""

    default: SloTarget = SloTarget()
    classes: tuple[SloClass, ...] = ()

    def target(self, tenant: str, model: str) -> SloTarget:
        for row in self.classes:
            if row.matches(tenant, model):
                return row.target
        return self.default


def met_slo(ended: RequestEnded, target: SloTarget) -> bool | None:
    """Whether a request met all its targets; None when it is not judged (client cancelled).

    A target whose figure does not exist (TPOT of one token) asks nothing of that request.
    """
    if ended.outcome is Outcome.CANCELLED:
        return None
    if ended.outcome is not Outcome.FINISHED:
        return False
    figures = (
        (ended.ttft_ns, target.ttft_s),
        (nearest_rank(ended.itl_ns, 0.99), target.itl_s),
        (tpot_ns(ended.ttft_ns, ended.e2e_ns, ended.num_output_tokens), target.tpot_s),
        (ended.e2e_ns, target.e2e_s),
    )
    return all(
        figure is None or bound is None or figure <= bound * NS_PER_S for figure, bound in figures
    )


def attainment(num_met: int, num_judged: int) -> float | None:
    """Share of judged requests that met all their targets; None when none was judged."""
    return num_met / num_judged if num_judged else None


def goodput(num_met: int, window_ns: int) -> float:
    """Requests per second that met all their targets."""
    return num_met * NS_PER_S / window_ns if window_ns > 0 else 0.0


_BOUNDS = ("ttft_s", "itl_s", "tpot_s", "e2e_s")


def slo_table(section: Mapping[str, object]) -> SloTable:
    """The `[slo]` section of the policy file: `default = {ttft_s = ...}` and `[[slo.classes]]`.

    Raises ValueError with a sentence that names the field and what was expected.
    """
    _refuse_unknown(section, ("default", "classes"), "slo")
    rows = section.get("classes", [])
    if not isinstance(rows, list):
        raise ValueError("slo.classes: expected a list of tables")
    return SloTable(
        _target(section.get("default", {}), "slo.default", _BOUNDS),
        tuple(_class(row, f"slo.classes[{i}]") for i, row in enumerate(rows)),
    )


def _class(row: object, name: str) -> SloClass:
    target = _target(row, name, (*_BOUNDS, "tenant", "model"))
    assert isinstance(row, Mapping)
    texts = {key: row.get(key, ANY) for key in ("tenant", "model")}
    for key, text in texts.items():
        if not isinstance(text, str) or not text:
            raise ValueError(f"{name}.{key}: expected a name or '*', got {text!r}")
    return SloClass(texts["tenant"], texts["model"], target)


def _target(table: object, name: str, known: Sequence[str]) -> SloTarget:
    if not isinstance(table, Mapping):
        raise ValueError(f"{name}: expected a table, got {table!r}")
    _refuse_unknown(table, known, name)
    bounds: dict[str, float] = {}
    for key in _BOUNDS:
        bound = table.get(key)
        if bound is None:
            continue
        if isinstance(bound, bool) or not isinstance(bound, int | float) or not bound > 0:
            raise ValueError(f"{name}.{key}: expected seconds above 0, got {bound!r}")
        bounds[key] = float(bound)
    return SloTarget(**bounds)


def _refuse_unknown(table: Mapping[str, object], known: Sequence[str], name: str) -> None:
    unknown = sorted(key for key in table if key not in known)
    if unknown:
        raise ValueError(f"{name}.{unknown[0]}: unknown; known are {', '.join(known)}")
