"""The engine loop under everything at once, drawn at random."""

from __future__ import annotations

from collections.abc import Iterable

import hypothesis.strategies as st
from hypothesis import given, settings
from tests.core.engines import Bench, echoed, engine_with, hashes_of, imported, spec

from banyan_core.engine_messages import BlocksFilled, Cancel, Release, Submit
from banyan_core.policies.batching import BatchingPolicy, Chunked, DecodeFirst, PrefillFirst
from banyan_core.policies.engine_admission import EngineAdmissionPolicy, PastFuture, Watermark
from banyan_core.scheduler import EngineLimits
from banyan_core.types import Finish, SamplingParams, SequenceSpec

PROMPTS = st.builds(
    lambda shared, own, n: tuple([*range(200, 200 + shared), *range(300 + own, 300 + own + n)]),
    st.integers(0, 12),
    st.integers(0, 3),
    st.integers(1, 12),
)


BATCHINGS: st.SearchStrategy[BatchingPolicy] = st.sampled_from(
    (Chunked(), PrefillFirst(), DecodeFirst())
)
ADMISSIONS: st.SearchStrategy[EngineAdmissionPolicy] = st.sampled_from(
    (Watermark(), PastFuture(min_lengths=1))
)


def check_addresses(bench: Bench, asked: Iterable[SequenceSpec]) -> None:
    """No block has the address of tokens that were never said: rejected drafts, above all."""
    true = {h for one in asked for h in hashes_of((*one.prompt_token_ids, *echoed(one)))}
    filled = {h for c in bench.commands if isinstance(c, BlocksFilled) for h in c.hashes}
    assert filled <= true


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_mix_gives_the_expected_tokens_and_leaves_nothing(data: st.DataObject) -> None:
    budget = data.draw(st.integers(4, 40))
    limits = EngineLimits(
        max_step_tokens=budget,
        max_running=data.draw(st.integers(1, 4)),
        max_draft_tokens=data.draw(st.sampled_from((0, 3))),
        batching=data.draw(BATCHINGS),
        admission=data.draw(ADMISSIONS),
    )
    bench = Bench(num_blocks=data.draw(st.integers(12, 24)), limits=limits)
    asked = {}
    cancelled: set[str] = set()
    prompts: dict[int, tuple[int, ...]] = {}
    for number in range(data.draw(st.integers(1, 10))):
        name = f"r{number // 3}/{number % 3}/0"
        prompt = prompts.setdefault(
            number // data.draw(st.sampled_from((1, 3))), data.draw(PROMPTS)
        )
        seed = data.draw(st.integers(0, 3))
        sampling = SamplingParams(
            temperature=float(seed), seed=seed, max_tokens=data.draw(st.integers(1, 20))
        )
        asked[name] = spec(name, prompt, sampling=sampling, priority=data.draw(st.integers(0, 2)))
        import_id = ""
        if data.draw(st.integers(0, 2)) == 0:
            num = data.draw(st.integers(0, 5))
            import_id = imported(engine_with(prompt), bench, prompt, num, f"import-{name}")
        hold = data.draw(st.integers(0, 4)) == 0
        bench.feed(Submit(asked[name], hold=hold, import_id=import_id))
        for _ in range(data.draw(st.integers(0, 4))):
            bench.advance(hears=data.draw(st.integers(0, 3)) > 0)
        if data.draw(st.integers(0, 3)) == 0:
            target = data.draw(st.sampled_from(sorted(asked)))
            cancelled.add(target)
            bench.feed(Cancel((target,)))
        if data.draw(st.integers(0, 3)) == 0 and bench.loop.lease_ids():
            bench.feed(Release(bench.loop.lease_ids()[:1]))
    for _ in range(len(asked) + 1):
        bench.run()
        bench.feed(Release(bench.loop.lease_ids()))
    for name, one in asked.items():
        expected = echoed(one)
        assert bench.output(name) == expected[: len(bench.output(name))]
        failed = bench.finish(name) is Finish.FAILED
        assert name in cancelled or failed or bench.output(name) in (expected, expected[:1])
        computed = {p for span in bench.stepped.get(name, []) for p in range(*span)}
        num_prompt = len(one.prompt_token_ids)
        num_cached = num_prompt - len(computed & set(range(num_prompt)))
        assert bench.figures(name).num_cached_tokens == num_cached
    assert bench.loop.idle and bench.loop.num_used_blocks == 0
    check_addresses(bench, asked.values())
