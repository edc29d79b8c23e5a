"""Under which names a client may ask what became of its requests: bounded, per tenant."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

_MAX_NAMES = 10_000


class AnswerNames:
    """Answer ids and `x-request-id`s to request ids. A tenant finds its own names only."""

    def __init__(self) -> None:
        self._names: OrderedDict[tuple[str, str], tuple[str, ...]] = OrderedDict()

    def keep(self, tenant: str, names: Sequence[str], request_ids: tuple[str, ...]) -> None:
        """A name that is used again means the newest."""
        for name in names:
            self._names[tenant, name] = request_ids
            self._names.move_to_end((tenant, name))
        while len(self._names) > _MAX_NAMES:
            self._names.popitem(last=False)

    def find(self, tenant: str, name: str) -> tuple[str, ...]:
        return self._names.get((tenant, name), ())
