"""Where requests wait: order, bounds, the gate, the measured rate, the budget."""

from __future__ import annotations

import pytest

from banyan_core.drain_rate import DrainRate
from banyan_core.queue import Queue, QueueLimits
from banyan_core.retry_budget import RetryBudget, RetryLimits
from banyan_core.types import (
    NS_PER_MS,
    NS_PER_S,
    ShedReason,
)
from banyan_core.waiting_line import Ticket, WaitingLine

LIMITS = QueueLimits(max_waiting=4, max_wait_ns=NS_PER_S, max_asking=2)


def ticket(name: str, priority: int = 0, number: int = 0, due_ns: int = 0) -> Ticket:
    return Ticket(name, 0, priority, due_ns, number, num_tokens=10)


def shut(queue: Queue) -> None:
    """Let the routers say that no worker has room, at instant 0."""
    probe = ticket("probe", priority=-99)
    queue.join(probe)
    assert queue.next_turn(0) is probe
    queue.gate.no_room(0, probe.name, NS_PER_S)


def names(queue: Queue, now: int) -> list[str]:
    """Everyone who asks now, each taken at once."""
    taken = []
    while (turn := queue.next_turn(now)) is not None:
        queue.taken(turn)
        taken.append(turn.request_id)
    return taken


# ---------------------------------------------------------------- order


def test_class_then_running_answers_then_due_time_then_arrival() -> None:
    queue = Queue(LIMITS)
    shut(queue)
    for waiting in (
        ticket("late", number=4, due_ns=9),
        ticket("early", number=3, due_ns=9),
        ticket("hurried", number=5, due_ns=1),
        Ticket("started", 0, 0, 99, 6, 10, started=True),
        ticket("best class", priority=-1, number=7, due_ns=99),
    ):
        queue.join(waiting)
    assert names(queue, 2 * NS_PER_S) == ["best class", "started", "hurried", "early", "late"]


def test_who_steps_aside_does_not_block_and_comes_back_to_its_place() -> None:
    line = WaitingLine()
    line.add(ticket("first", number=1), not_before_ns=10)
    line.add(ticket("second", number=2))
    best = line.best()
    assert best is not None and best.request_id == "second"
    line.come_back(10)
    best = line.best()
    assert best is not None and best.request_id == "first"


# ---------------------------------------------------------------- the gate


def test_a_full_mesh_is_asked_by_one_then_by_more_as_they_are_taken() -> None:
    queue = Queue(QueueLimits())
    shut(queue)
    for number in range(20):
        queue.join(ticket(f"r{number}", number=number))
    assert queue.next_turn(NS_PER_S - 1) is None
    asking: list[Ticket] = []
    sizes = []
    for _ in range(4):
        while (turn := queue.next_turn(NS_PER_S)) is not None:
            asking.append(turn)
        sizes.append(len(asking))
        while asking:
            queue.taken(asking.pop())
    assert sizes == [1, 2, 4, 8]


def test_an_end_of_our_own_lets_one_through_a_shut_gate() -> None:
    queue = Queue(QueueLimits())
    shut(queue)
    for number in range(3):
        queue.join(ticket(f"r{number}", number=number))
    queue.gate.left_place("d0")
    assert names(queue, 1) == ["r0"]


def test_a_worker_that_refused_is_left_alone_for_longer_each_time() -> None:
    gate = Queue(LIMITS).gate
    gate.worker_full(0, "d0", 5 * NS_PER_MS)
    assert gate.full_workers(20 * NS_PER_MS - 1) == ("d0",)
    assert gate.full_workers(20 * NS_PER_MS) == ()
    gate.worker_full(0, "d0", 5 * NS_PER_MS)
    assert gate.full_workers(40 * NS_PER_MS - 1) == ("d0",)
    gate.worker_free("d0")
    assert gate.full_workers(1) == ()


def test_asks_without_an_answer_do_not_hold_up_others_for_ever() -> None:
    queue = Queue(LIMITS)
    for number in range(3):
        queue.join(ticket(f"r{number}", number=number))
    assert queue.next_turn(0) and queue.next_turn(0)
    assert queue.next_turn(0) is None
    assert queue.next_wake(0) == NS_PER_S
    queue.pass_time(NS_PER_S)
    turn = queue.next_turn(NS_PER_S)
    assert turn is not None and turn.request_id == "r2"


# ---------------------------------------------------------------- the rate


def test_the_rate_counts_full_time_only_and_better_classes_cost_their_share() -> None:
    drain = DrainRate()
    drain.pass_time(100 * NS_PER_S, full=False)
    for quarter in range(1, 41):
        drain.pass_time(100 * NS_PER_S + quarter * NS_PER_S // 4, full=True)
        drain.took_one(-1 if quarter % 4 == 0 else 0)
    assert drain.wait_ns(8, priority=-1) == 2 * NS_PER_S
    assert drain.wait_ns(6, priority=0) == pytest.approx(2 * NS_PER_S, rel=0.1)


def test_a_few_takings_or_an_outage_are_no_measurement() -> None:
    drain = DrainRate()
    drain.pass_time(NS_PER_S, full=True)
    for _ in range(3):
        drain.took_one(0)
    assert drain.wait_ns(1, 0) is None
    after_outage = DrainRate()
    after_outage.pass_time(90 * NS_PER_S, full=True)
    after_outage.took_one(0)
    after_outage.pass_time(91 * NS_PER_S, full=True)
    for _ in range(3):
        after_outage.took_one(0)
    assert after_outage.wait_ns(4, 0) == NS_PER_S


def test_in_measured_overload_a_long_wait_ends_but_not_because_of_an_outage() -> None:
    queue = Queue(QueueLimits(max_wait_ns=NS_PER_S, max_asking=1))
    shut(queue)
    waits = ticket("waits", priority=9)
    queue.join(waits)
    now = 0
    for number in range(12):
        now += NS_PER_S // 4
        queue.pass_time(now)
        assert not queue.overdue(now, waits, now - 3 * NS_PER_S) or number >= 4
        served = ticket(f"r{number}", number=number)
        queue.join(served)
        queue.gate.left_place("d0")
        assert names(queue, now)[0] == served.request_id
        queue.join(waits)
    assert queue.overdue(now, waits, 0)
    assert not queue.overdue(now, waits, now - 2 * NS_PER_S)
    queue.pass_time(now + 5 * NS_PER_S)
    assert not queue.overdue(now + 5 * NS_PER_S, waits, 0)
    outage_ended = now + 5 * NS_PER_S
    queue.join(ticket("after"))
    assert names(queue, outage_ended)[0] == "after"
    queue.join(waits)
    queue.pass_time(outage_ended + NS_PER_S)
    assert not queue.overdue(outage_ended + NS_PER_S, waits, 0)


# ---------------------------------------------------------------- the bounds


def full_queue(num_taken: int) -> Queue:
    """At 1 s, shut; took `num_taken` in the last second."""
    queue = Queue(LIMITS)
    shut(queue)
    for number in range(num_taken):
        queue.join(ticket(f"before{number}"))
        queue.gate.left_place("d0")
        assert names(queue, 1)
    queue.pass_time(NS_PER_S - 1)
    return queue


def test_past_the_number_or_the_time_the_worst_is_shed() -> None:
    queue = full_queue(4)
    now = NS_PER_S - 1
    for number in range(4):
        waiting = ticket(f"r{number}", number=number)
        if number < 3:
            assert queue.judge(now, waiting, None) is None
        queue.join(waiting)
    last = ticket("last", number=9)
    shed = queue.judge(now, last, None)
    assert shed is not None and shed.ticket is last and shed.reason is ShedReason.QUEUE_FULL
    better = queue.judge(now, ticket("better", priority=-1, number=10), None)
    assert better is not None
    assert (better.ticket.request_id, better.reason) == ("r3", ShedReason.PUSHED_OUT)


def test_who_is_shed_unread_would_be_shed_when_it_joins_and_a_better_class_is_read() -> None:
    queue = full_queue(4)
    now = NS_PER_S - 1
    assert queue.judge_unread(now, 99) is None
    for number in range(4):
        queue.join(ticket(f"r{number}", number=number))
    for priority in (0, 1):
        shed = queue.judge_unread(now, priority)
        last = ticket("last", priority, number=9)
        joined = queue.judge(now, last, None)
        assert shed is not None and joined is not None and joined.ticket is last
        assert (shed.reason, shed.message) == (joined.reason, joined.message)
    assert queue.judge_unread(now, -1) is None


def test_who_cannot_start_before_its_deadline_is_told_at_once() -> None:
    queue = full_queue(4)
    now = NS_PER_S - 1
    queue.join(ticket("ahead", number=1))
    hurried = ticket("hurried", number=2)
    shed = queue.judge(now, hurried, now + 400 * NS_PER_MS)
    assert shed is not None and shed.reason is ShedReason.DEADLINE
    assert queue.judge(now, hurried, now + 600 * NS_PER_MS) is None


def test_a_full_queue_of_a_mesh_that_takes_nothing_says_so() -> None:
    queue = full_queue(0)
    for number in range(4):
        queue.join(ticket(f"r{number}", number=number))
    shed = queue.judge(NS_PER_S - 1, ticket("last", number=9), None)
    assert shed is not None and shed.reason is ShedReason.NO_CAPACITY


def test_retry_after_is_the_time_that_those_who_wait_will_take_and_spread() -> None:
    queue = full_queue(4)
    for number in range(39):
        queue.join(ticket(f"r{number}", number=number))
    told = {queue.retry_after_ns(f"shed{number}") // NS_PER_S for number in range(50)}
    assert min(told) >= 10 and max(told) <= 15 and len(told) > 3


# ---------------------------------------------------------------- the budget


def test_the_budget_is_a_burst_a_share_and_a_floor() -> None:
    budget = RetryBudget(RetryLimits(percent=50, per_s=2, burst=3))
    assert [budget.take(0) for _ in range(4)] == [True, True, True, False]
    assert budget.next_ns(0) == NS_PER_S // 2
    assert budget.take(NS_PER_S // 2)
    budget.request_placed(NS_PER_S // 2)
    assert not budget.take(NS_PER_S // 2)
    budget.request_placed(NS_PER_S // 2)
    assert budget.take(NS_PER_S // 2)
    assert budget.num_left(100 * NS_PER_S) == 3


def test_a_retry_without_budget_waits_for_it_and_holds_up_nobody() -> None:
    queue = Queue(QueueLimits(retry=RetryLimits(percent=0, per_s=2, burst=1)))
    for number in range(2):
        queue.join(Ticket(f"lost{number}", 0, 0, 0, number, 10, started=True, retry=True))
    queue.join(ticket("fresh", number=9))
    assert names(queue, 0) == ["lost0", "fresh"]
    assert queue.next_wake(0) == NS_PER_S // 2
    queue.pass_time(NS_PER_S // 2)
    assert names(queue, NS_PER_S // 2) == ["lost1"]
