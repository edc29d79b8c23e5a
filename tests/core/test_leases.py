from __future__ import annotations

from banyan_core.leases import Expired, Grant, LeaseTable, Released, Renew


def test_a_lease_ends_at_its_time_and_not_before() -> None:
    table = LeaseTable()
    assert table.step(100, [Grant("a", 50)]) == ([], 150)
    assert table.step(149, []) == ([], 150)
    assert table.step(150, []) == ([Expired("a")], None)
    assert not table.holds("a")


def test_a_renewal_only_ever_prolongs() -> None:
    table = LeaseTable()
    table.step(0, [Grant("a", 100)])
    assert table.step(10, [Renew("a", 20)]).next_wake == 100
    assert table.step(90, [Renew("a", 50)]).next_wake == 140


def test_a_released_or_ended_lease_stays_ended() -> None:
    table = LeaseTable()
    table.step(0, [Grant("a", 10), Released("a")])
    assert table.step(20, [Renew("a", 100), Released("a")]) == ([], None)
    assert len(table) == 0


def test_the_next_wake_is_the_earliest_end() -> None:
    table = LeaseTable()
    assert table.step(0, [Grant("late", 90), Grant("early", 30)]).next_wake == 30
    assert table.step(30, []) == ([Expired("early")], 90)
