"""Blocks that others need: held after a prefill, pinned for an export, imported."""

from __future__ import annotations

import pytest
from tests.core.engines import (
    BLOCK_SIZE,
    PROMPT,
    Bench,
    echoed,
    engine_with,
    hashes_of,
    imported,
    spec,
)

from banyan_core.engine_messages import (
    BlocksEvicted,
    BlocksFilled,
    Cancel,
    Held,
    ImportDone,
    ImportReady,
    ImportRefused,
    ImportWanted,
    Pinned,
    PinWanted,
    Release,
    Submit,
)
from banyan_core.scheduler import EngineLimits
from banyan_core.types import Finish


def test_a_held_sequence_keeps_its_blocks_until_release() -> None:
    bench = Bench()
    bench.feed(Submit(spec("a", PROMPT), hold=True))
    commands = bench.finish_step()
    assert Held("a", (PROMPT[0],)) in commands
    assert bench.output("a") == [PROMPT[0]] and bench.finish("a") is Finish.LENGTH
    assert bench.loop.num_used_blocks == 6 and bench.loop.lease_ids() == ("a",)
    bench.feed(Release(("a",)))
    assert bench.loop.num_used_blocks == 0


def test_a_cancel_gives_back_what_is_held() -> None:
    bench = Bench()
    bench.feed(Submit(spec("a", PROMPT), hold=True))
    bench.run()
    bench.feed(Cancel(("a",)))
    assert bench.loop.num_used_blocks == 0


def test_a_cancel_that_comes_with_the_end_of_the_step_leaves_nothing_held() -> None:
    bench = Bench()
    bench.feed(Submit(spec("a", PROMPT), hold=True))
    bench.finish_step(Cancel(("a",)))
    assert not bench.loop.is_held("a") and bench.loop.num_used_blocks == 0


def test_an_import_leaves_a_block_for_each_that_runs() -> None:
    bench = Bench(num_blocks=11)
    bench.feed(Submit(spec("a", PROMPT, max_tokens=6), hold=False))
    (refused,) = bench.feed(ImportWanted("import", hashes_of(tuple(range(20)))))
    assert isinstance(refused, ImportRefused)
    (ready,) = bench.feed(ImportWanted("import", hashes_of(tuple(range(16)))))
    assert isinstance(ready, ImportReady)


def test_imports_of_those_who_wait_go_before_anyone_is_preempted() -> None:
    bench = Bench(num_blocks=8, limits=EngineLimits(max_running=1))
    bench.feed(ImportWanted("import", hashes_of(tuple(range(8)))))
    bench.feed(
        ImportDone("import", hashes_of(tuple(range(8)))),
        Submit(spec("a", PROMPT, max_tokens=10), hold=False),
        Submit(spec("b", tuple(range(9))), hold=False, import_id="import"),
    )
    bench.run()
    assert bench.figures("a").num_preemptions == 0
    assert bench.output("b") == echoed(spec("b", tuple(range(9))))


def test_pins_keep_cached_blocks_from_eviction() -> None:
    bench = Bench(num_blocks=8)
    bench.feed(Submit(spec("a", PROMPT, max_tokens=1), hold=False))
    bench.run()
    hashes = hashes_of(PROMPT)
    (pinned,) = bench.feed(PinWanted("pin", (*hashes, b"absent")))
    assert isinstance(pinned, Pinned) and pinned.hashes == hashes
    other = spec("b", tuple(range(9)), max_tokens=2)
    bench.feed(Submit(other, hold=False))
    bench.run()
    assert bench.output("b") == echoed(other)
    assert all(bench.loop.block_of(one) is not None for one in hashes)
    bench.feed(Release(("pin",)))
    bench.feed(Submit(spec("c", tuple(range(50, 80)), max_tokens=2), hold=False))
    bench.run()
    gone = [h for c in bench.commands if isinstance(c, BlocksEvicted) for h in c.hashes]
    assert hashes[4] in gone


@pytest.mark.parametrize("num_blocks", [0, 2, 5])
def test_a_sequence_goes_on_with_imported_blocks(num_blocks: int) -> None:
    prefill, decode = engine_with(PROMPT), Bench()
    import_id = imported(prefill, decode, PROMPT, num_blocks)
    asked = spec("d", PROMPT, output=(prefill.output("p")[0],))
    decode.feed(Submit(asked, hold=False, import_id=import_id))
    decode.run()
    assert decode.output("d") == echoed(asked)
    assert decode.figures("d").num_cached_tokens == num_blocks * BLOCK_SIZE
    assert decode.loop.lease_ids() == () and decode.loop.num_used_blocks == 0


def test_an_import_without_room_is_refused_and_the_sequence_recomputes() -> None:
    bench = Bench(num_blocks=7)
    bench.feed(Submit(spec("a", PROMPT, max_tokens=4), hold=True))
    bench.run()
    (refused,) = bench.feed(ImportWanted("import", hashes_of(tuple(range(8)))))
    assert isinstance(refused, ImportRefused)
    bench.feed(Release(("a",)), Submit(spec("b", tuple(range(8))), False, import_id="import"))
    bench.run()
    assert bench.output("b") == echoed(spec("b", tuple(range(8))))


def test_a_fill_is_announced_before_its_block_is_taken_again() -> None:
    bench = Bench(num_blocks=6)
    bench.feed(Submit(spec("a", PROMPT, max_tokens=1), hold=False))
    commands = bench.finish_step(ImportWanted("import", hashes_of(tuple(range(24)))))
    kinds = [type(command) for command in commands]
    assert kinds.index(BlocksFilled) < kinds.index(BlocksEvicted) < kinds.index(ImportReady)


def test_imports_of_those_who_wait_do_not_stop_the_engine() -> None:
    bench = Bench(num_blocks=10)
    bench.feed(ImportWanted("one", hashes_of(PROMPT)))
    bench.feed(ImportWanted("two", hashes_of(tuple(range(20)))))
    bench.feed(
        ImportDone("one", hashes_of(PROMPT)),
        ImportDone("two", hashes_of(tuple(range(20)))),
        Submit(spec("a", PROMPT), hold=False, import_id="one"),
        Submit(spec("b", tuple(range(21))), hold=False, import_id="two"),
    )
    bench.run()
    assert set(bench.finished) == {"a", "b"} and bench.loop.num_used_blocks == 0
