"""A small real gateway in memory: it echoes the prompt, and can be told to fail or to wait."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from banyan_core.types import OutputToken
from banyan_gateway.ports import Delta, GenerationRequest, RequestFailed, Unread, Usage
from banyan_gateway.request_metrics import QueueFigures, RequestMetrics
from banyan_text.choice_text import ChoiceText
from banyan_text.tokenizer import ByteTokenizer


@dataclass
class Script:
    """What goes differently: after `num_tokens` of each choice it waits, fails, or just ends."""

    num_tokens: int = 1 << 30
    wait_s: float = 0.0
    wait_for: asyncio.Event | None = None
    failure: Exception | None = None
    no_usage: bool = False
    no_reason: bool = False


class EchoGateway:
    """Implements `GatewayPort`. Output token i of every choice is prompt token i mod n."""

    def __init__(self, tokenizer: ByteTokenizer, num_cached_tokens: int = 0) -> None:
        self._tokenizer = tokenizer
        self._num_cached_tokens = num_cached_tokens
        self.script = Script()
        self.requests: list[GenerationRequest] = []
        self.num_running = 0
        self.num_given_up = 0
        self.num_deltas = 0
        self.metrics = RequestMetrics("echo", lambda: QueueFigures(self.num_running, 0, None, 10))
        self.is_ready = (True, "ready")
        self.full: RequestFailed | None = None
        self.shed_above: int | None = None
        self.num_shed = 0
        self._changed = asyncio.Event()

    async def generate(
        self, request: GenerationRequest
    ) -> AsyncGenerator[list[Delta | Usage], None]:
        self.requests.append(request)
        self._run(+1)
        ended = False
        try:
            num_output_tokens = 0
            for choice in range(request.n):
                text = ChoiceText(
                    self._tokenizer, request.stop, request.include_stop, shown=request.shown
                )
                async for delta in self._choice(request, choice, text):
                    self.num_deltas += 1
                    yield [delta]
                num_output_tokens += text.num_output_tokens
            ended = True
            if not self.script.no_usage:
                num_prompt = len(request.prompt_token_ids)
                yield [Usage(num_prompt, num_output_tokens, self._num_cached_tokens)]
        except RequestFailed:
            ended = True
            raise
        finally:
            self._run(-1)
            self.num_given_up += not ended

    async def until_running(self, num_requests: int) -> None:
        async with asyncio.timeout(60):
            while self.num_running != num_requests:
                self._changed.clear()
                await self._changed.wait()

    def _run(self, change: int) -> None:
        self.num_running += change
        self._changed.set()

    async def _choice(
        self, request: GenerationRequest, choice: int, text: ChoiceText
    ) -> AsyncGenerator[Delta, None]:
        prompt = request.prompt_token_ids
        if request.sampling.num_prompt_logprobs is not None:
            top = ((5, -0.1),) * request.sampling.num_prompt_logprobs
            likely = tuple(OutputToken(each, -2.0, top) for each in prompt[1:])
            yield Delta(choice, "", (), None, likely)
        for index in range(request.sampling.max_tokens):
            if index == self.script.num_tokens:
                await asyncio.sleep(self.script.wait_s)
                if self.script.wait_for is not None:
                    await self.script.wait_for.wait()
                if self.script.failure is not None:
                    raise self.script.failure
            token = self._token(request, prompt[index % len(prompt)])
            piece = text.push([token])
            if piece.text or piece.tokens:
                yield Delta(choice, piece.text, piece.tokens)
            if piece.stopped:
                break
        end = text.finish()
        reason = "stop" if end.stopped else "length"
        if self.script.no_reason:
            return
        yield Delta(choice, end.text, end.tokens, reason)

    def _token(self, request: GenerationRequest, token_id: int) -> OutputToken:
        if not request.sampling.logprobs:
            return OutputToken(token_id)
        others = [(token_id, -0.5), (0xE2, float("-inf")), (0xC3, -3.0)]
        return OutputToken(token_id, -0.5, tuple(others[: request.sampling.num_top_logprobs]))

    def refusal(self, waited_ns: int = 0) -> RequestFailed | None:
        return self.full

    def sheds(self, priority: int) -> bool:
        return self.shed_above is not None and priority > self.shed_above

    def shed(self, unread: Unread) -> RequestFailed | None:
        if not self.sheds(unread.priority):
            return None
        self.num_shed += 1
        return RequestFailed("queue_full", "the queue is full", 3.2, 429)

    def request_view(self, request_id: str) -> dict[str, object] | None:
        known = [each for each in self.requests if each.request_id == request_id]
        return {"id": request_id, "tenant": known[0].tenant} if known else None

    async def ready(self) -> tuple[bool, str]:
        return self.is_ready
