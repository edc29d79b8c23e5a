"""Folds what gateways say of their requests into one end per request.

The bus delivers at least once and may lose: duplicates are ignored, gaps are counted, and what
can still be known is made up for. Each request that was heard of leaves by exactly one `Closed`:

- its gateway told its end: that end;
- its gateway has a newer epoch, or its lease ended: failed, "gateway lost";
- its end was lost on the way: `told=False`, its outcome is not known. This shows when the
  gateway says that it has no requests at all, or when too many requests are open.

A lease runs only while the bus can be heard. When every producer falls silent, it is the bus
that is gone, and nobody's requests are called lost for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from banyan_core.events import Event, GatewayAlive, Heard, RequestAccepted, RequestEnded
from banyan_core.machine import Stepped
from banyan_core.types import NS_PER_S, Outcome

DEFAULT_LEASE_NS = 5 * NS_PER_S
AUDIBLE_NS = NS_PER_S
"""Silence of all producers beyond this does not count against any lease."""
MAX_OPEN = 20_000
MAX_CLOSED = 20_000
MAX_GATEWAYS = 1_000
GATEWAY_LOST = "gateway lost"
END_NOT_HEARD = "end not heard"


@dataclass(frozen=True, slots=True)
class Open:
    """An accepted request without an end yet."""

    gateway_id: str
    epoch: int
    accepted_unix_ns: int
    accepted: RequestAccepted


@dataclass(frozen=True, slots=True)
class BusHeard:
    """Some other producer was heard: the bus is there."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The one end of a request. `told` is False when its outcome is not known (event lost)."""

    gateway_id: str
    time_unix_ns: int
    ended: RequestEnded
    told: bool = True


RequestFact = Event | BusHeard


@dataclass(slots=True)
class _Gateway:
    heard: Heard = field(default_factory=Heard)
    lease_ns: int = DEFAULT_LEASE_NS
    due: int = 0  # on the audible clock
    last_unix_ns: int = 0
    open_ids: dict[str, None] = field(default_factory=dict)


class RequestFold:
    """`step(now, facts)`: events of the topic of requests in, ends of requests out."""

    def __init__(self) -> None:
        self._gateways: dict[str, _Gateway] = {}
        self._open: dict[tuple[str, str], Open] = {}
        self._closed: dict[tuple[str, str], None] = {}
        self._heard_at = 0
        self._audible_when_heard = 0
        self.num_duplicates = 0
        self.num_late_ends = 0
        self._num_missing_of_forgotten = 0

    @property
    def num_open(self) -> int:
        return len(self._open)

    @property
    def num_missing(self) -> int:
        """Events that gateways numbered and that never came."""
        known = sum(gateway.heard.num_missing for gateway in self._gateways.values())
        return known + self._num_missing_of_forgotten

    def open_requests(self) -> list[Open]:
        """Requests without an end, oldest first."""
        return list(self._open.values())

    def step(self, now: int, facts: Sequence[RequestFact]) -> Stepped[Closed]:
        closed: list[Closed] = []
        if facts:
            self._audible_when_heard, self._heard_at = self._audible(now), now
        for fact in facts:
            if isinstance(fact, Event):
                self._apply(fact, closed)
        self._end_leases(now, closed)
        self._bound(closed)
        return Stepped(closed, self._next_wake(now))

    def _audible(self, now: int) -> int:
        """A clock on which leases run: it stands while the whole bus is silent."""
        return self._audible_when_heard + min(now - self._heard_at, AUDIBLE_NS)

    def _next_wake(self, now: int) -> int | None:
        dues = [gateway.due for gateway in self._gateways.values() if gateway.open_ids]
        if not dues:
            return None
        due_at = self._heard_at + min(dues) - self._audible_when_heard
        return due_at if due_at <= self._heard_at + AUDIBLE_NS else None

    # ------------------------------------------------------------ facts

    def _apply(self, event: Event, closed: list[Closed]) -> None:
        if not isinstance(event.payload, RequestAccepted | RequestEnded | GatewayAlive):
            return
        gateway = self._gateways.setdefault(event.producer, _Gateway())
        older_epoch = gateway.heard.epoch
        if not gateway.heard.is_news(event.epoch, event.seq):
            self.num_duplicates += 1
            return
        if event.epoch != older_epoch:
            self._lose(event.producer, gateway, closed)
        gateway.last_unix_ns = event.time_unix_ns
        if isinstance(event.payload, RequestAccepted):
            self._accept(event, gateway, event.payload)
        elif isinstance(event.payload, RequestEnded):
            self._end(event, gateway, event.payload, closed)
        else:
            self._alive(event.producer, gateway, event.payload, closed)
        gateway.due = self._audible_when_heard + gateway.lease_ns

    def _accept(self, event: Event, gateway: _Gateway, accepted: RequestAccepted) -> None:
        key = (event.producer, accepted.request_id)
        if key in self._closed or key in self._open:
            return
        self._open[key] = Open(event.producer, event.epoch, event.time_unix_ns, accepted)
        gateway.open_ids[accepted.request_id] = None

    def _end(
        self, event: Event, gateway: _Gateway, ended: RequestEnded, closed: list[Closed]
    ) -> None:
        key = (event.producer, ended.request_id)
        if key in self._closed:
            self.num_late_ends += 1
            return
        self._close(key, Closed(event.producer, event.time_unix_ns, ended), closed)

    def _alive(
        self, gateway_id: str, gateway: _Gateway, alive: GatewayAlive, closed: list[Closed]
    ) -> None:
        gateway.lease_ns = alive.lease_ns
        if alive.num_requests == 0:
            for request_id in list(gateway.open_ids):
                self._close_unheard((gateway_id, request_id), closed)

    # ------------------------------------------------------------ ends

    def _close(self, key: tuple[str, str], end: Closed, closed: list[Closed]) -> None:
        self._open.pop(key, None)
        gateway = self._gateways.get(key[0])
        if gateway is not None:
            gateway.open_ids.pop(key[1], None)
        self._closed[key] = None
        closed.append(end)

    def _close_unheard(self, key: tuple[str, str], closed: list[Closed]) -> None:
        end = self._end_without_word(key, END_NOT_HEARD)
        self._close(key, replace(end, told=False), closed)

    def _end_without_word(self, key: tuple[str, str], reason: str) -> Closed:
        request = self._open[key]
        accepted, until = request.accepted, self._gateways[key[0]].last_unix_ns
        ended = RequestEnded(
            accepted.request_id,
            accepted.tenant,
            accepted.model,
            Outcome.FAILED,
            reason,
            num_prompt_tokens=accepted.num_prompt_tokens,
            e2e_ns=max(0, until - request.accepted_unix_ns),
        )
        return Closed(key[0], until, ended)

    def _lose(self, gateway_id: str, gateway: _Gateway, closed: list[Closed]) -> None:
        for request_id in list(gateway.open_ids):
            key = (gateway_id, request_id)
            self._close(key, self._end_without_word(key, GATEWAY_LOST), closed)

    def _end_leases(self, now: int, closed: list[Closed]) -> None:
        audible = self._audible(now)
        for gateway_id, gateway in self._gateways.items():
            if gateway.open_ids and gateway.due <= audible:
                self._lose(gateway_id, gateway, closed)

    def _bound(self, closed: list[Closed]) -> None:
        while len(self._open) > MAX_OPEN:
            self._close_unheard(next(iter(self._open)), closed)
        while len(self._closed) > MAX_CLOSED:
            del self._closed[next(iter(self._closed))]
        while len(self._gateways) > MAX_GATEWAYS:
            oldest = min(self._gateways, key=lambda name: self._gateways[name].last_unix_ns)
            self._lose(oldest, self._gateways[oldest], closed)
            self._num_missing_of_forgotten += self._gateways.pop(oldest).heard.num_missing
