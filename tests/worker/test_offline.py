"""The engine without a mesh: answers equal to those of one prompt alone, in order, bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from banyan_core.runner import Runner, StepPlan, StepResult
from banyan_core.scheduler import EngineLimits
from banyan_core.types import KvLayout, SamplingParams
from banyan_engine.demo import model_folder
from banyan_text.card import echo_card
from banyan_text.tokenizer import ByteTokenizer
from banyan_worker.offline import LLM
from banyan_worker.offline_engine import OfflineAnswer, OfflineEngine, OfflineRequest
from banyan_worker.runners import RunnerKind, load_runner

QUESTION = "The amber key opens door 4821. Which door does the amber key open?"
GREEDY = SamplingParams(temperature=0.0, max_tokens=12)
DRAWN = SamplingParams(temperature=1.0, max_tokens=12, seed=7)


@pytest.fixture(scope="module")
def llm() -> LLM:
    limits = EngineLimits(max_step_tokens=48, max_running=4, max_waiting=1)
    return LLM(model_folder(), numerics="deterministic", kv_bytes=16 << 20, limits=limits)


def test_a_chat_is_answered_as_the_model_was_trained(llm: LLM) -> None:
    [answer] = llm.chat([[{"role": "user", "content": QUESTION}]], replace(GREEDY, max_tokens=48))
    assert not answer.error
    assert "4821" in answer.choices[0].text
    assert answer.choices[0].finish_reason == "stop"


def test_many_prompts_give_what_each_gives_alone_and_in_order(llm: LLM) -> None:
    prompts = [f"The amber key opens door {1000 + 7 * number}." for number in range(12)]
    together = llm.generate(prompts, DRAWN)
    for prompt, answer in zip(prompts, together, strict=True):
        [alone] = llm.generate([prompt], DRAWN)
        assert answer.choices[0].token_ids == alone.choices[0].token_ids
        assert answer.choices[0].text == alone.choices[0].text
        assert answer.choices[0].finish_reason == alone.choices[0].finish_reason != ""


def test_choices_differ_by_seed_and_repeat_by_seed(llm: LLM) -> None:
    [first] = llm.generate([QUESTION], DRAWN, n=3)
    [again] = llm.generate([QUESTION], DRAWN, n=3)
    [other] = llm.generate([QUESTION], replace(DRAWN, seed=8), n=3)
    tokens = [choice.token_ids for choice in first.choices]
    assert tokens == [choice.token_ids for choice in again.choices]
    assert len({tuple(each) for each in tokens}) == 3
    assert tokens != [choice.token_ids for choice in other.choices]


def test_a_stop_string_ends_the_text_before_it_and_the_engine_work(llm: LLM) -> None:
    [whole] = llm.generate([QUESTION], replace(GREEDY, ignore_eos=True, max_tokens=40))
    text = whole.choices[0].text
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    [cut] = llm.generate([QUESTION], replace(GREEDY, max_tokens=4000, ignore_eos=True), stop=[stop])
    assert cut.choices[0].text == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_logprobs_come_with_the_tokens(llm: LLM) -> None:
    wanted = replace(GREEDY, logprobs=True, num_top_logprobs=2, max_tokens=4, ignore_eos=True)
    [answer] = llm.generate([QUESTION], wanted)
    assert len(answer.choices[0].tokens) == 4
    for token in answer.choices[0].tokens:
        assert token.logprob is not None and token.logprob <= 0
        assert token.top[0] == (token.token_id, token.logprob)


def test_a_prefix_that_was_computed_before_is_not_computed_again(llm: LLM) -> None:
    prompt = list(range(20, 100))
    llm.generate([prompt], GREEDY)
    [again] = llm.generate([prompt], GREEDY)
    assert again.num_cached_tokens == 64


@pytest.mark.parametrize(
    ("prompts", "params", "sentence"),
    [
        (["fine", []], None, r"prompts\[1\]: 0 tokens, expected 1 to"),
        ([[1, -1]], None, r"prompts\[0\]: expected token ids from 0 to"),
        ("one string", None, "prompts: expected a list of prompts"),
        (["a", "b"], [GREEDY], "params: 1, expected one for each of 2 prompts"),
    ],
)
def test_wrong_arguments_are_named(
    llm: LLM, prompts: list[str], params: None, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        llm.generate(prompts, params)
    assert llm.generate(["still there"], GREEDY)[0].choices[0].token_ids


def test_a_prompt_longer_than_the_pool_fails_alone() -> None:
    limits = EngineLimits(max_step_tokens=64, max_running=4, max_waiting=1)
    llm = LLM(model_folder(), kv_bytes=1 << 19, limits=limits)
    long, short = list(range(20, 120)) * 4, [20, 21, 22]
    failed, answered = llm.generate([long, short], GREEDY)
    assert "KV blocks" in failed.error
    assert not answered.error and answered.choices[0].token_ids


class Failing:
    """The echo runner, whose steps raise once a prompt with `bad` is among them."""

    def __init__(self, inner: Runner, bad: int, error: BaseException) -> None:
        self._inner, self._bad, self._error = inner, bad, error

    @property
    def layout(self) -> KvLayout:
        return self._inner.layout

    @property
    def num_blocks(self) -> int:
        return self._inner.num_blocks

    @property
    def block_size(self) -> int:
        return self._inner.block_size

    def run(self, plan: StepPlan, on_layer: Callable[[int], None]) -> StepResult:
        if any(self._bad in item.token_ids for item in plan.items):
            raise self._error
        return self._inner.run(plan, on_layer)

    def export_page(self, block_id: int, layer: int) -> bytes:
        return self._inner.export_page(block_id, layer)

    def import_page(self, block_id: int, layer: int, data: bytes) -> None:
        self._inner.import_page(block_id, layer, data)


def echo_engine(
    limits: EngineLimits, bad: int | None = None, error: BaseException | None = None
) -> OfflineEngine:
    loaded = load_runner(
        RunnerKind.ECHO,
        prefix="",
        folder=None,
        name=None,
        numerics="fast",
        block_size=16,
        kv_bytes=1,
        num_blocks=64,
        num_threads=None,
    )
    runner = (
        loaded.runner
        if bad is None
        else Failing(loaded.runner, bad, error or MemoryError("no room"))
    )
    return OfflineEngine(runner, echo_card(16, "fast"), ByteTokenizer(), limits)


def requests(num: int) -> Iterator[OfflineRequest]:
    for index in range(num):
        prompt = tuple(f"{index:3d}".encode())
        yield OfflineRequest(request_id=str(index), prompt_token_ids=prompt, sampling=GREEDY)


def test_requests_are_taken_as_there_is_room() -> None:
    engine = echo_engine(EngineLimits(max_step_tokens=64, max_running=4, max_waiting=2))
    num_taken = num_ended = most_open = 0

    def counted() -> Iterator[OfflineRequest]:
        nonlocal num_taken, most_open
        for request in requests(100):
            num_taken += 1
            most_open = max(most_open, num_taken - num_ended)
            yield request

    for answer in engine.answers(counted()):
        num_ended += 1
        assert answer.choices[0].text == (f"{int(answer.request_id):3d}" * 4)
    assert num_ended == 100
    # An answer that has ended is handed over after its step, when others may have been taken.
    assert most_open <= 6 + 4


def test_leaving_early_ends_what_runs_and_the_engine_goes_on() -> None:
    engine = echo_engine(EngineLimits(max_step_tokens=64, max_running=4, max_waiting=2))
    running = engine.answers(requests(50))
    next(iter(running))
    running.close()  # type: ignore[attr-defined]
    assert len(list(engine.answers(requests(3)))) == 3


def test_a_step_that_raises_fails_its_requests_only() -> None:
    limits = EngineLimits(max_step_tokens=64, max_running=1, max_waiting=1)
    engine = echo_engine(limits, bad=ord("5"))
    answers: list[OfflineAnswer] = list(engine.answers(requests(8)))
    assert {answer.request_id for answer in answers if answer.error} == {"5"}
    assert "no room" in next(answer.error for answer in answers if answer.error)


def test_an_interrupted_step_leaves_an_engine_that_works() -> None:
    limits = EngineLimits(max_step_tokens=64, max_running=4, max_waiting=1)
    engine = echo_engine(limits, ord("5"), KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        list(engine.answers(requests(8)))
    assert len(list(engine.answers(requests(4)))) == 4
