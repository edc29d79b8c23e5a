"""The seam between the gateway's HTTP half and the half that drives requests.

The HTTP half (`api` and what it uses) turns bytes into a `GenerationRequest` and news of choices
into bytes; it knows nothing of workers. The driving half (`gateway`) knows nothing of HTTP. Both
meet here and nowhere else, so that tests of either side need only this page.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from prometheus_client.registry import Collector

from banyan_core.types import Adapter, OutputToken, SamplingParams


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt and `n` choices, already valid for the model: nothing in it needs a check.

    `sampling.seed` is always set; choice i uses H(seed, i). `request_id` is unique in the mesh:
    the HTTP half makes it and never takes it from a client. `deadline_ns` is a duration from
    `received_ns`, the instant (on the process's clock) at which the HTTP layer saw the request.
    `shown` are special tokens that the text spells out. `model` is what the client named: the
    model, or `adapter`. `operation` is "chat" or "text_completion", `traceparent` the client's
    trace as it wrote it.
    """

    request_id: str
    tenant: str
    share_group: str
    model: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    n: int
    stop: tuple[str, ...]
    include_stop: bool
    cache_salt: str
    priority: int
    stream: bool
    deadline_ns: int | None
    received_ns: int
    operation: str = "chat"
    traceparent: str | None = None
    adapter: Adapter | None = None
    shown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unread:
    """A request of which only its class is known yet."""

    request_id: str
    tenant: str
    priority: int
    received_ns: int


class Delta(NamedTuple):
    """News of one choice.

    `text` is final. `tokens` are the tokens that this text releases, with or without logprobs;
    none of them lies wholly in a stop string. `finish_reason` is "stop" or "length", in the last
    delta of the choice. `prompt_logprobs`, if asked for, come once: one entry for each token of
    the prompt after the first.
    """

    choice: int
    text: str
    tokens: tuple[OutputToken, ...]
    finish_reason: str | None = None
    prompt_logprobs: tuple[OutputToken, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of the whole request. Output tokens are those of all choices, counted up to
    and including the token that completed a stop string."""

    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int


class RequestFailed(Exception):
    """The request ends without an answer, before or after its first delta.

    `code` is a short stable word for programs ("queue_full", "deadline", "failed");
    `http_status` holds if no byte was sent yet, otherwise the same goes out as an error event.
    """

    def __init__(
        self,
        code: str,
        message: str,
        retry_after_s: float | None = None,
        http_status: int = 500,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s
        self.http_status = http_status


class GatewayPort(Protocol):
    @property
    def metrics(self) -> Collector:
        """Figures of requests, for the registry behind /metrics."""
        ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[list[Delta | Usage], None]:
        """Drive one request. Yields what is new, one or more at a time: deltas of all its
        choices, then one `Usage`, last of all. Then it ends.

        Raises RequestFailed at any point instead. Closing the generator means that the client is
        gone: work stops at once. A reader that does not come back for the next item is cut off at
        the request's buffer bound with RequestFailed.
        """
        ...

    def refusal(self, waited_ns: int = 0) -> RequestFailed | None:
        """What a request that comes now, after such a wait to begin, is told without being read:
        that the gateway stops, holds as many as it may, or cannot keep up with those who come.
        None when there is room; each refusal is counted."""
        ...

    def sheds(self, priority: int) -> bool:
        """Whether a new request of this class would be shed for certain, whatever else it is."""
        ...

    def shed(self, unread: Unread) -> RequestFailed | None:
        """What it is told, if it is shed without being read; that is its end, and is written down
        like any other. None: it must be read, and `generate` judges it."""
        ...

    def request_view(self, request_id: str) -> dict[str, object] | None:
        """Placement, candidates, reasons and time ledger of a request, JSON-ready; None when it
        is not known (any more)."""
        ...

    async def ready(self) -> tuple[bool, str]:
        """Whether requests can be served now, and the one sentence that says why not."""
        ...
