"""Asks a simulated mesh, and knows the right answer without asking: the echo runner's rule."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from banyan_core.hashing import derive
from banyan_core.types import SamplingParams
from banyan_gateway.ports import Delta, GenerationRequest, RequestFailed, Usage
from banyan_sim.mesh import SimMesh


@dataclass(frozen=True)
class Question:
    """A prompt of byte tokens; `temperature` above 0 draws by `seed`.

    `age_ns`: how long ago the request was received when it reaches the gateway.
    """

    request_id: str
    prompt: tuple[int, ...]
    max_tokens: int = 40
    temperature: float = 0.0
    seed: int = 7
    n: int = 1
    stop: tuple[str, ...] = ()
    deadline_ns: int | None = None
    traceparent: str | None = None
    priority: int = 0
    age_ns: int = 0
    num_prompt_logprobs: int | None = None

    def right_answer(self, choice: int = 0) -> list[int]:
        """What the echo runner says for this choice when nothing ever goes wrong."""
        seed = derive(self.seed, choice)
        places = (i if self.temperature == 0 else derive(seed, i) for i in range(self.max_tokens))
        return [self.prompt[place % len(self.prompt)] for place in places]


def prompt_of(num_tokens: int, start: int = 0) -> tuple[int, ...]:
    """Printable bytes, no two neighbouring positions alike."""
    letters = itertools.islice(itertools.cycle(range(95)), start, start + num_tokens)
    return tuple(32 + (letter * 7 + i // 95) % 95 for i, letter in enumerate(letters))


@dataclass
class Answer:
    """Everything that the client saw."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    finishes: dict[int, str] = field(default_factory=dict)
    prompts: dict[int, list[int]] = field(default_factory=dict)
    usage: Usage | None = None
    failure: RequestFailed | None = None

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.tokens.values()))

    def take(self, delta: Delta) -> None:
        if delta.prompt_logprobs:
            assert delta.choice not in self.prompts, "a prompt came twice"
            assert not self.tokens.get(delta.choice), "a prompt came after its output"
            self.prompts[delta.choice] = [token.token_id for token in delta.prompt_logprobs]
        ids = [token.token_id for token in delta.tokens]
        self.tokens.setdefault(delta.choice, []).extend(ids)
        self.texts[delta.choice] = self.texts.get(delta.choice, "") + delta.text
        if delta.finish_reason is not None:
            assert delta.choice not in self.finishes, "a choice ended twice"
            self.finishes[delta.choice] = delta.finish_reason


def request_of(mesh: SimMesh, question: Question) -> GenerationRequest:
    return GenerationRequest(
        request_id=question.request_id,
        tenant="tenant",
        share_group="tenant",
        model="echo",
        prompt_token_ids=question.prompt,
        sampling=SamplingParams(
            temperature=question.temperature,
            seed=question.seed,
            max_tokens=question.max_tokens,
            num_prompt_logprobs=question.num_prompt_logprobs,
        ),
        n=question.n,
        stop=question.stop,
        include_stop=False,
        cache_salt="",
        priority=question.priority,
        stream=True,
        deadline_ns=question.deadline_ns,
        received_ns=mesh.loop.clock.now_ns() - question.age_ns,
        traceparent=question.traceparent,
    )


async def one_by_one(
    stream: AsyncGenerator[list[Delta | Usage], None],
) -> AsyncGenerator[Delta | Usage, None]:
    """A gateway's news, item by item."""
    async with aclosing(stream):
        async for items in stream:
            for item in items:
                yield item


async def ask(
    mesh: SimMesh,
    question: Question,
    *,
    on_news: Callable[[Answer], None] | None = None,
    gateway: str = "gateway-0",
) -> Answer:
    """Read the whole answer; `on_news` sees it after each delta, and may do harm."""
    answer = Answer()
    stream = one_by_one(mesh.gateway_of(gateway).generate(request_of(mesh, question)))
    try:
        async with aclosing(stream):
            async for item in stream:
                if isinstance(item, Usage):
                    answer.usage = item
                else:
                    answer.take(item)
                    if on_news is not None:
                        on_news(answer)
    except RequestFailed as failure:
        answer.failure = failure
    return answer


def assert_right(question: Question, answer: Answer) -> None:
    """The client got exactly the fault-free answer, every choice, nothing twice."""
    assert answer.failure is None, answer.failure
    for choice in range(question.n):
        assert answer.tokens[choice] == question.right_answer(choice), f"choice {choice}"
        assert answer.finishes[choice] == "length"
        if question.num_prompt_logprobs is not None:
            assert answer.prompts[choice] == list(question.prompt[1:]), f"choice {choice}"
    assert answer.usage is not None
    assert answer.usage.num_output_tokens == question.n * question.max_tokens


def streaming_worker(mesh: SimMesh, request_id: str) -> str:
    """The host that will send the next token of this request's first open choice."""
    view = mesh.gateway.request_view(request_id)
    assert view is not None
    running = [leg for leg in view["workers"] if not leg["end"]]
    assert running, "nothing streams"
    return str(running[-1]["worker_id"])
