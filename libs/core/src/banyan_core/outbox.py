"""What a worker still owes its gateways: every sequence's tokens, kept until they have arrived.

A sequence's record is the worker's own list of its tokens. A stream is only a cursor into these
lists, so a slow stream costs no memory beyond them, and a new stream goes on wherever the gateway
says. A record goes when its end was acknowledged, or the grace time after its end has passed; a
gateway whose stream stays away for the grace time loses its sequences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from banyan_core.types import (
    Finish,
    OutputToken,
    SequenceFigures,
    SequenceReport,
    SequenceSpec,
)


@dataclass(slots=True)
class _Record:
    sequence_id: str
    gateway_id: str
    first_index: int
    next_index: int  # of the token that the stream sends next
    tokens: list[OutputToken] = field(default_factory=list)
    finish: Finish | None = None
    error: str = ""
    figures: SequenceFigures | None = None
    figures_due: bool = False
    prompt_logprobs: tuple[OutputToken, ...] = ()
    prompt_due: bool = False
    ended_ns: int = 0

    def rewind(self, wanted_index: int) -> None:
        """Send again from `wanted_index` on, as far as these tokens are the record's."""
        last = self.first_index + len(self.tokens)
        self.next_index = min(max(wanted_index, self.first_index), last)
        self.figures_due = self.figures is not None
        self.prompt_due = bool(self.prompt_logprobs)

    def take(self) -> SequenceReport:
        """What the stream has not sent yet."""
        start = self.next_index
        tokens = tuple(self.tokens[start - self.first_index :])
        figures = self.figures if self.figures_due else None
        prompt_logprobs = self.prompt_logprobs if self.prompt_due else ()
        self.next_index += len(tokens)
        self.figures_due = self.prompt_due = False
        return SequenceReport(
            self.sequence_id, start, tokens, self.finish, self.error, figures, prompt_logprobs
        )


@dataclass(slots=True)
class _Gateway:
    epoch: int
    away_since_ns: int
    stream: int | None = None
    due: dict[str, None] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


class StaleGateway(Exception):
    """An older life of this gateway speaks; a newer one is already known."""


class Outbox:
    """Plain state, without I/O. Methods that return ids name sequences that must be cancelled."""

    def __init__(self, grace_ns: int) -> None:
        self._grace_ns = grace_ns
        self._records: dict[str, _Record] = {}
        self._gateways: dict[str, _Gateway] = {}
        self._num_streams = 0

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, sequence_id: str) -> bool:
        return sequence_id in self._records

    def running_ids(self) -> tuple[str, ...]:
        return tuple(r.sequence_id for r in self._records.values() if r.finish is None)

    @property
    def num_owed(self) -> int:
        """Sequences whose end a gateway that is connected has not acknowledged."""
        return sum(self._gateways[r.gateway_id].stream is not None for r in self._records.values())

    # ------------------------------------------------------------ sequences

    def open(self, now: int, spec: SequenceSpec) -> list[str]:
        """A sequence is admitted. Raises StaleGateway."""
        outdated = self._meet(now, spec.gateway_id, spec.gateway_epoch)
        first = len(spec.output_token_ids)
        self._records[spec.sequence_id] = _Record(
            spec.sequence_id, spec.gateway_id, first_index=first, next_index=first
        )
        return outdated

    def add(self, now: int, reports: Sequence[SequenceReport]) -> None:
        """News of sequences. Those of forgotten ones are dropped."""
        for report in reports:
            record = self._records.get(report.sequence_id)
            if record is None or record.finish is not None:
                continue
            record.tokens.extend(report.tokens)
            if report.figures is not None:
                record.figures, record.figures_due = report.figures, True
            if report.prompt_logprobs:
                record.prompt_logprobs, record.prompt_due = report.prompt_logprobs, True
            if report.finish is not None:
                record.finish, record.error = report.finish, report.error
                record.ended_ns = now
            self._gateways[record.gateway_id].due[record.sequence_id] = None

    def ack(self, sequence_ids: Sequence[str]) -> None:
        """The ends of these have arrived."""
        for sequence_id in sequence_ids:
            record = self._records.get(sequence_id)
            if record is not None and record.finish is not None:
                self._forget(record)

    def _forget(self, record: _Record) -> None:
        del self._records[record.sequence_id]
        self._gateways[record.gateway_id].due.pop(record.sequence_id, None)

    # ------------------------------------------------------------ streams

    def attach(
        self, now: int, gateway_id: str, epoch: int, resume: Mapping[str, int]
    ) -> tuple[int, list[str]]:
        """A stream opened: its number, and sequences of older lives of the gateway.

        It replaces the gateway's previous stream. `resume` maps sequence ids to the next wanted
        index; a sequence it does not name is sent from its start. Raises StaleGateway.
        """
        outdated = self._meet(now, gateway_id, epoch)
        gateway = self._gateways[gateway_id]
        self._num_streams += 1
        gateway.stream = self._num_streams
        gateway.unknown = [name for name in resume if name not in self._records]
        for record in self._of(gateway_id):
            record.rewind(resume.get(record.sequence_id, record.first_index))
            if record.tokens or record.finish is not None:
                gateway.due[record.sequence_id] = None
        return gateway.stream, outdated

    def detach(self, now: int, gateway_id: str, stream: int) -> None:
        """A stream is gone; its gateway's grace begins, unless a newer stream is there."""
        gateway = self._gateways.get(gateway_id)
        if gateway is not None and gateway.stream == stream:
            gateway.stream, gateway.away_since_ns = None, now

    def collect(self, gateway_id: str, stream: int) -> tuple[SequenceReport, ...] | None:
        """What this stream has to send now. None: a newer stream took its place."""
        gateway = self._gateways.get(gateway_id)
        if gateway is None or gateway.stream != stream:
            return None
        due, gateway.due = gateway.due, {}
        unknown, gateway.unknown = gateway.unknown, []
        lost = tuple(SequenceReport(name, 0, finish=Finish.UNKNOWN) for name in unknown)
        return (*lost, *(self._records[name].take() for name in due))

    # ------------------------------------------------------------ time

    def expire(self, now: int) -> list[str]:
        """Forget what has been unwanted for the grace time."""
        for record in list(self._records.values()):
            if record.finish is not None and now - record.ended_ns >= self._grace_ns:
                self._forget(record)
        cancelled: list[str] = []
        for gateway_id, gateway in list(self._gateways.items()):
            away = gateway.stream is None and now - gateway.away_since_ns >= self._grace_ns
            if away:
                cancelled += self._drop(gateway_id)
                del self._gateways[gateway_id]
        return cancelled

    def _meet(self, now: int, gateway_id: str, epoch: int) -> list[str]:
        """Know this life of the gateway, and no older one."""
        gateway = self._gateways.get(gateway_id)
        if gateway is None:
            self._gateways[gateway_id] = _Gateway(epoch, away_since_ns=now)
            return []
        if epoch < gateway.epoch:
            raise StaleGateway(f"gateway {gateway_id} has epoch {gateway.epoch}, not {epoch}")
        if epoch == gateway.epoch:
            return []
        outdated = self._drop(gateway_id)
        self._gateways[gateway_id] = _Gateway(epoch, away_since_ns=now)
        return outdated

    def _drop(self, gateway_id: str) -> list[str]:
        """Forget a gateway's records; those that still run."""
        records = self._of(gateway_id)
        for record in records:
            self._forget(record)
        return [record.sequence_id for record in records if record.finish is None]

    def _of(self, gateway_id: str) -> list[_Record]:
        return [r for r in self._records.values() if r.gateway_id == gateway_id]
