"""The definitions by table, the sketch against sorted values, targets, windows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banyan_core import slo, slo_windows
from banyan_core.events import RequestEnded
from banyan_core.sketch import RELATIVE_ERROR, Sketch
from banyan_core.slo import SloClass, SloTable, SloTarget
from banyan_core.slo_windows import BUCKET_NS, MAX_BUCKETS, MAX_PAIRS, OTHER, SloWindows
from banyan_core.types import NS_PER_MS, NS_PER_S, Outcome

MS = NS_PER_MS


@pytest.mark.parametrize(
    ("received", "written", "end", "ttft", "itl", "tpot"),
    [
        (100, (), 400, None, (), None),
        (100, (150,), 160, 50, (), None),
        (100, (150, 170), 180, 50, (20,), 30),
        (0, (10, 20, 60), 60, 10, (10, 40), 25),
        (0, (10, 10, 10), 11, 10, (0, 0), 0),
    ],
)
def test_definitions(
    received: int,
    written: tuple[int, ...],
    end: int,
    ttft: int | None,
    itl: tuple[int, ...],
    tpot: int | None,
) -> None:
    assert slo.ttft_ns(received, written) == ttft
    assert slo.itl_ns(written) == itl
    assert slo.tpot_ns(ttft, end - received, len(written)) == tpot


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([], 0.5, None),
        ([7], 0.99, 7),
        ([4, 1, 3, 2], 0.5, 2),
        ([4, 1, 3, 2], 0.75, 3),
        ([4, 1, 3, 2], 0.76, 4),
        ([4, 1, 3, 2], 0.0, 1),
        (list(range(1, 101)), 0.99, 99),
    ],
)
def test_nearest_rank(values: list[int], share: float, expected: int | None) -> None:
    assert slo.nearest_rank(values, share) == expected


def test_attainment_and_goodput() -> None:
    assert slo.attainment(0, 0) is None
    assert slo.attainment(3, 4) == 0.75
    assert slo.goodput(30, 60 * NS_PER_S) == 0.5
    assert slo.goodput(1, 0) == 0.0


def ended(
    outcome: Outcome = Outcome.FINISHED,
    *,
    tenant: str = "t",
    ttft_ms: int | None = 100,
    e2e_ms: int = 300,
    tokens: int = 11,
    gaps_ms: tuple[int, ...] = (20,) * 10,
) -> RequestEnded:
    return RequestEnded(
        "r",
        tenant,
        "m",
        outcome,
        num_prompt_tokens=10,
        num_output_tokens=tokens,
        ttft_ns=None if ttft_ms is None else ttft_ms * MS,
        e2e_ns=e2e_ms * MS,
        itl_ns=tuple(gap * MS for gap in gaps_ms),
        ledger=(("queue", 5 * MS),),
    )


@pytest.mark.parametrize(
    ("request_", "target", "met"),
    [
        (ended(), SloTarget(), True),
        (ended(), SloTarget(0.1, 0.02, 0.02, 0.3), True),  # bounds are inclusive
        (ended(), SloTarget(ttft_s=0.099), False),
        (ended(), SloTarget(tpot_s=0.019), False),
        (ended(), SloTarget(e2e_s=0.299), False),
        (ended(gaps_ms=(20,) * 99 + (500,)), SloTarget(itl_s=0.02), True),
        (ended(gaps_ms=(20,) * 98 + (500,) * 2), SloTarget(itl_s=0.02), False),
        (ended(tokens=1, gaps_ms=()), SloTarget(tpot_s=0.001, itl_s=0.001), True),
        (ended(ttft_ms=None, tokens=0, gaps_ms=()), SloTarget(ttft_s=0.001), True),
        (ended(Outcome.FAILED), SloTarget(), False),
        (ended(Outcome.SHED), SloTarget(), False),
        (ended(Outcome.CANCELLED), SloTarget(), None),
    ],
)
def test_verdict(request_: RequestEnded, target: SloTarget, met: bool | None) -> None:
    assert slo.met_slo(request_, target) is met


def test_first_matching_class_wins() -> None:
    table = SloTable(
        SloTarget(ttft_s=9),
        (
            SloClass("gold", "*", SloTarget(ttft_s=1)),
            SloClass("*", "small", SloTarget(ttft_s=2)),
        ),
    )
    assert table.target("gold", "small").ttft_s == 1
    assert table.target("other", "small").ttft_s == 2
    assert table.target("other", "big").ttft_s == 9


def test_section_becomes_a_table() -> None:
    table = slo.slo_table({"default": {"ttft_s": 2}, "classes": [{"tenant": "gold", "e2e_s": 1.5}]})
    assert table == SloTable(SloTarget(ttft_s=2.0), (SloClass("gold", "*", SloTarget(e2e_s=1.5)),))
    assert slo.slo_table({}) == SloTable()


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"defualt": {}}, "slo.defualt: unknown"),
        ({"default": 3}, "slo.default: expected a table"),
        ({"default": {"ttft": 1}}, "slo.default.ttft: unknown"),
        ({"default": {"ttft_s": 0}}, "slo.default.ttft_s: expected seconds above 0"),
        ({"default": {"ttft_s": True}}, "slo.default.ttft_s: expected seconds above 0"),
        ({"default": {"tenant": "x"}}, "slo.default.tenant: unknown"),
        ({"classes": {}}, "slo.classes: expected a list"),
        ({"classes": ["x"]}, r"slo.classes\[0\]: expected a table"),
        ({"classes": [{"tenant": 3}]}, r"slo.classes\[0\].tenant: expected a name"),
    ],
)
def test_bad_section_names_the_field(section: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        slo.slo_table(section)


# ---------------------------------------------------------------- sketch

durations = st.lists(st.integers(1_000, 3_600 * NS_PER_S), min_size=1, max_size=200)


@given(durations, st.floats(0, 1))
def test_percentile_is_right_to_one_per_cent(values: list[int], share: float) -> None:
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    exact = slo.nearest_rank(values, share)
    assert exact is not None
    assert sketch.percentile(share) == pytest.approx(exact, rel=RELATIVE_ERROR * 1.001)


@given(durations, durations)
def test_merged_sketches_equal_one_sketch(left: list[int], right: list[int]) -> None:
    one, other, both = Sketch(), Sketch(), Sketch()
    for value in left:
        one.add(value)
        both.add(value)
    for value in right:
        other.add(value)
        both.add(value)
    one.merge(other)
    assert one == both


def test_sketch_is_bounded_at_both_ends() -> None:
    sketch = Sketch()
    assert sketch.percentile(0.5) is None
    sketch.add(0)
    sketch.add(10**30)
    assert len(sketch.counts) == 2
    low, high = sketch.percentile(0), sketch.percentile(1)
    assert low == pytest.approx(1_000, rel=0.011)
    assert high == pytest.approx(86_400 * NS_PER_S, rel=0.011)


# ---------------------------------------------------------------- windows

NOW = 1_000 * BUCKET_NS


def test_window_holds_what_ended_in_it() -> None:
    windows = SloWindows()
    windows.add(NOW - 5 * BUCKET_NS, ended(), True)
    windows.add(NOW - 1, ended(), True)
    windows.add(NOW, ended(Outcome.FAILED), False)
    windows.add(NOW, ended(Outcome.CANCELLED), None)
    total, pairs = windows.figures(NOW + BUCKET_NS // 2, 2 * BUCKET_NS)
    assert [(pair.tenant, pair.model) for pair in pairs] == [("t", "m")]
    assert total.tally == pairs[0].tally
    assert total.tally.outcomes == {Outcome.FINISHED: 1, Outcome.FAILED: 1, Outcome.CANCELLED: 1}
    assert total.attainment == 0.5
    assert total.window_ns == BUCKET_NS * 3 // 2
    assert total.goodput == pytest.approx(1 / 15)
    assert total.tally.ttft.num_values == 1, "latencies are those of finished requests"
    assert total.tally.ledger_ns == {"queue": 15 * MS}
    everything, _ = windows.figures(NOW, slo_windows.MAX_WINDOW_NS)
    assert everything.tally.outcomes[Outcome.FINISHED] == 2


def test_windows_are_bounded_in_time_and_pairs() -> None:
    windows = SloWindows()
    for i in range(3 * MAX_BUCKETS):
        windows.add(NOW + i * BUCKET_NS, ended(tenant=f"t{i}"), True)
    windows.add(NOW, ended(), True)
    assert windows.num_too_old == 1
    last = NOW + (3 * MAX_BUCKETS - 1) * BUCKET_NS
    _, pairs = windows.figures(last, 100 * slo_windows.MAX_WINDOW_NS)
    assert len(pairs) <= MAX_PAIRS + 1
    assert sum(pair.tally.num_judged for pair in pairs) == MAX_BUCKETS
    assert (OTHER, OTHER) in [(pair.tenant, pair.model) for pair in pairs]
