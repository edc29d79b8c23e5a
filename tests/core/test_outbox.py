"""The outbox: whatever breaks, a gateway that resumes gets every token, and nothing stays."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from tests.core.engines import spec

from banyan_core.outbox import Outbox, StaleGateway
from banyan_core.types import Finish, OutputToken, SequenceFigures, SequenceReport

GRACE = 100


def news(name: str, first: int, *token_ids: int, finish: Finish | None = None) -> SequenceReport:
    tokens = tuple(OutputToken(token_id) for token_id in token_ids)
    return SequenceReport(name, first, tokens, finish, figures=SequenceFigures())


def opened(*names: str) -> tuple[Outbox, int]:
    """An outbox with these sequences and the gateway's stream."""
    outbox = Outbox(GRACE)
    for name in names:
        outbox.open(0, spec(name, (1, 2, 3)))
    stream, outdated = outbox.attach(0, "gateway", 1, {})
    assert outdated == []
    return outbox, stream


def test_a_slow_stream_gets_several_steps_in_one_report() -> None:
    outbox, stream = opened("a")
    outbox.add(1, [news("a", 0, 7)])
    outbox.add(2, [news("a", 1, 8)])
    (report,) = outbox.collect("gateway", stream) or ()
    assert [token.token_id for token in report.tokens] == [7, 8]
    assert report.figures is not None
    assert outbox.collect("gateway", stream) == ()


def test_prompt_logprobs_go_out_once_and_again_on_a_new_stream() -> None:
    outbox, old = opened("a")
    likely = (OutputToken(2, -0.5), OutputToken(3, -0.25))
    outbox.add(1, [replace(news("a", 0, 7), prompt_logprobs=likely), news("a", 1, 8)])
    (report,) = outbox.collect("gateway", old) or ()
    assert report.prompt_logprobs == likely
    outbox.add(2, [news("a", 2, 9)])
    (report,) = outbox.collect("gateway", old) or ()
    assert report.prompt_logprobs == ()
    new, _ = outbox.attach(3, "gateway", 1, {"a": 1})
    (report,) = outbox.collect("gateway", new) or ()
    assert report.prompt_logprobs == likely


def test_a_new_stream_replaces_the_old_and_sends_again_from_the_wanted_index() -> None:
    outbox, old = opened("a")
    outbox.add(1, [news("a", 0, 7, 8, 9)])
    outbox.collect("gateway", old)
    new, _ = outbox.attach(2, "gateway", 1, {"a": 1})
    assert outbox.collect("gateway", old) is None
    (report,) = outbox.collect("gateway", new) or ()
    assert (report.first_index, len(report.tokens)) == (1, 2)
    outbox.detach(3, "gateway", old)
    assert outbox.collect("gateway", new) == (), "the old stream's end is not the new one's"


def test_a_sequence_that_the_hello_does_not_name_is_sent_whole() -> None:
    outbox, old = opened("a")
    outbox.add(1, [news("a", 0, 7, 8)])
    outbox.collect("gateway", old)
    new, _ = outbox.attach(2, "gateway", 1, {})
    (report,) = outbox.collect("gateway", new) or ()
    assert (report.first_index, len(report.tokens)) == (0, 2)


def test_what_is_not_known_is_said_to_be_unknown() -> None:
    outbox = Outbox(GRACE)
    stream, _ = outbox.attach(0, "gateway", 1, {"lost": 4})
    assert outbox.collect("gateway", stream) == (SequenceReport("lost", 0, finish=Finish.UNKNOWN),)
    assert outbox.collect("gateway", stream) == ()


def test_only_an_end_can_be_acknowledged() -> None:
    outbox, _ = opened("a")
    outbox.ack(["a", "nobody"])
    assert "a" in outbox
    outbox.add(1, [news("a", 0, 7, finish=Finish.STOP)])
    assert outbox.num_owed == 1
    outbox.ack(["a"])
    assert len(outbox) == 0 == outbox.num_owed


def test_an_unacknowledged_end_is_kept_for_the_grace() -> None:
    outbox, _ = opened("a")
    outbox.add(10, [news("a", 0, 7, finish=Finish.STOP)])
    assert outbox.expire(109) == [] and "a" in outbox
    assert outbox.expire(110) == [] and "a" not in outbox


def test_news_of_forgotten_or_ended_sequences_is_dropped() -> None:
    outbox, stream = opened("a")
    outbox.add(1, [news("a", 0, finish=Finish.CANCELLED), news("a", 0, 7), news("b", 0, 7)])
    (report,) = outbox.collect("gateway", stream) or ()
    assert (report.finish, report.tokens) == (Finish.CANCELLED, ())


def test_a_gateway_that_stays_away_loses_what_runs() -> None:
    outbox, stream = opened("a", "b")
    outbox.add(1, [news("b", 0, 7, finish=Finish.STOP)])
    outbox.detach(50, "gateway", stream)
    assert outbox.expire(149) == []
    assert outbox.expire(150) == ["a"]
    assert len(outbox) == 0


def test_a_newer_life_of_a_gateway_ends_the_older_ones_work() -> None:
    outbox, _ = opened("a")
    _, outdated = outbox.attach(1, "gateway", 2, {})
    assert outdated == ["a"]
    with pytest.raises(StaleGateway, match="has epoch 2, not 1"):
        outbox.open(2, spec("late", (1,)))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_token_arrives_once_per_stream_whatever_breaks(data: st.DataObject) -> None:
    """Streams break at any point, with the last message lost; the gateway resumes by index."""
    outbox = Outbox(GRACE)
    length = data.draw(st.integers(1, 12))
    outbox.open(0, spec("a", (1, 2, 3)))
    known: list[int] = []
    produced = 0
    finished = False
    stream, _ = outbox.attach(0, "gateway", 1, {"a": 0})
    for _ in range(200):
        action = data.draw(st.sampled_from(["step", "step", "read", "lose", "break"]))
        if action == "step" and produced < length:
            produced += 1
            finish = Finish.LENGTH if produced == length else None
            outbox.add(0, [news("a", produced - 1, 100 + produced, finish=finish)])
        elif action in ("read", "lose"):
            for report in outbox.collect("gateway", stream) or ():
                if action == "read":
                    assert report.first_index == len(known)
                    known += [token.token_id for token in report.tokens]
                    finished = report.finish is not None
        if action in ("lose", "break"):
            outbox.detach(0, "gateway", stream)
            stream, _ = outbox.attach(0, "gateway", 1, {"a": len(known)})
        if finished:
            break
    else:
        for _ in range(length - produced):
            produced += 1
            finish = Finish.LENGTH if produced == length else None
            outbox.add(0, [news("a", produced - 1, 100 + produced, finish=finish)])
        for report in outbox.collect("gateway", stream) or ():
            known += [token.token_id for token in report.tokens]
    assert known == [101 + index for index in range(length)]
