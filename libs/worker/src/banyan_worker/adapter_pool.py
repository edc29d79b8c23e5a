"""The LoRA adapters that this worker holds in memory, and for which sequences.

An adapter is loaded by the first sequence that needs it, from this worker's own folder, and known
by its digest: whatever was in the folder when it was loaded, a sequence gets the weights that its
gateway meant, or a reason why not. One that runs keeps its adapter, also when it has left the
folder; of the idle ones the one that was used longest ago makes room.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from banyan_core.runner import AdapterRunner
from banyan_core.types import NS_PER_MS, Adapter, Refusal, SequenceSpec
from banyan_runtime.lifespan import Tasks
from banyan_runtime.offload import Offload
from banyan_text.adapter_folder import AdapterFolder

FULL_RETRY_NS = 100 * NS_PER_MS


class AdapterError(Exception):
    """The adapter cannot be served by anybody: its files are wrong, or not for this model."""


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """Where adapters come from and go to; at most `max_adapters` are in memory."""

    folder: AdapterFolder
    runner: AdapterRunner
    offload: Offload
    max_adapters: int


@dataclass(slots=True)
class _Held:
    adapter: Adapter
    loading: asyncio.Task[None] | None = None
    wrong: str = ""  # why it could not be loaded
    users: set[str] = field(default_factory=set)


class AdapterPool:
    """Without a source there are none. `claim` and `release` belong together."""

    def __init__(self, source: AdapterSource | None, tasks: Tasks) -> None:
        self._source = source
        self._tasks = tasks
        self._held: dict[bytes, _Held] = {}  # least recently used first
        self._used_by: dict[str, bytes] = {}

    def __len__(self) -> int:
        """Adapters in memory."""
        return len(self._held)

    async def missing(self, adapter: Adapter | None) -> Refusal | None:
        """Why this adapter cannot be had here, if it cannot; another worker may have it."""
        if adapter is None or adapter.digest in self._held:
            return None
        if self._source is None:
            return Refusal("adapter: this worker has no folder of adapters")
        found = await self._source.offload.run(self._source.folder.find, adapter.name)
        if found is None:
            return Refusal(f"adapter {adapter.name!r}: not in this worker's folder")
        if found != adapter:
            digests = f"{adapter.digest.hex()}, this worker has {found.digest.hex()}"
            return Refusal(f"adapter {adapter.name!r}: {digests}")
        return None

    def claim(self, spec: SequenceSpec) -> Refusal | None:
        """Keep the sequence's adapter until `release`. A no is for now only."""
        adapter = spec.adapter
        if adapter is None or self._source is None:
            return None
        held = self._held.pop(adapter.digest, None)
        if held is None:
            if not self._make_room(self._source):
                return Refusal(f"all {len(self._held)} adapters are in use", FULL_RETRY_NS)
            held = _Held(adapter)
        self._held[adapter.digest] = held
        held.users.add(spec.sequence_id)
        self._used_by[spec.sequence_id] = adapter.digest
        return None

    def is_ready(self, adapter: Adapter | None) -> bool:
        """Whether a claimed adapter can be computed with at once."""
        if adapter is None or self._source is None:
            return True
        held = self._held[adapter.digest]
        return held.loading is not None and held.loading.done() and not held.wrong

    async def load(self, adapter: Adapter | None) -> None:
        """Returns when a claimed adapter can be computed with. Raises AdapterError."""
        if adapter is None or self._source is None:
            return
        held = self._held[adapter.digest]
        if held.loading is None:
            held.loading = self._tasks.spawn_brief("adapter", self._load(self._source, held))
        await asyncio.shield(held.loading)  # others may wait for it, too
        if held.wrong:
            raise AdapterError(f"adapter {adapter.name!r}: {held.wrong}")

    def release(self, sequence_id: str) -> None:
        """The sequence has ended; any other id is ignored."""
        digest = self._used_by.pop(sequence_id, None)
        if digest is None:
            return
        held = self._held[digest]
        held.users.discard(sequence_id)
        if held.wrong and not held.users:
            del self._held[digest]

    def _make_room(self, source: AdapterSource) -> bool:
        if len(self._held) < source.max_adapters:
            return True
        for digest, held in self._held.items():
            if not held.users and (held.loading is None or held.loading.done()):
                del self._held[digest]
                source.runner.drop_adapter(digest)
                return True
        return False

    async def _load(self, source: AdapterSource, held: _Held) -> None:
        adapter = held.adapter
        folder = source.folder.path / adapter.name
        try:
            await source.offload.run(source.runner.load_adapter, adapter, str(folder))
            now = await source.offload.run(source.folder.find, adapter.name)
        except Exception as error:  # the guard around foreign code and files: its users must end
            known = isinstance(error, ValueError)
            held.wrong = str(error) if known else f"{type(error).__name__}: {error}"
            return
        if now != adapter:
            source.runner.drop_adapter(adapter.digest)
            held.wrong = "its files changed while they were read"
