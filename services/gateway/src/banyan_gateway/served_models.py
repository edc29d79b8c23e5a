"""What a request may name as its model: the model itself, and the LoRA adapters beside it.

Adapters are whatever the folder holds. It is looked at again every second, so one that is put
there is served, and one that is taken away is refused, without a word to any process.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from banyan_core.types import Adapter, ModelCard
from banyan_gateway.errors import ApiError
from banyan_runtime.lifespan import Tasks
from banyan_runtime.offload import Offload
from banyan_text.adapter_folder import AdapterFolder

RESCAN_S = 1.0


class ServedModels:
    """`watch` keeps the list of adapters true. An adapter with the model's own name is hidden."""

    def __init__(self, card: ModelCard, started_unix_s: int) -> None:
        self._card = card
        self._started_unix_s = started_unix_s
        self._adapters: dict[str, Adapter] = {}
        self._tasks = Tasks()

    async def watch(self, path: Path, offload: Offload, logger: logging.Logger) -> None:
        """Returns when the folder was read; goes on reading it until `close`."""
        folder = AdapterFolder(path)
        self._take(await offload.run(folder.scan), logger)
        self._tasks.spawn("adapters", self._rescan(folder, offload, logger))

    async def close(self) -> None:
        await self._tasks.cancel_all()

    def adapter_of(self, model: str | None) -> Adapter | None:
        """The adapter that a request names; None is the model itself. Raises ApiError 404."""
        if model is None or model == self._card.name:
            return None
        adapter = self._adapters.get(model)
        if adapter is None:
            message = f"model {model!r} is not served here, see /v1/models"
            raise ApiError(404, message, "model", "model_not_found")
        return adapter

    @property
    def names(self) -> tuple[str, ...]:
        """All that a request may name, the model first."""
        return (self._card.name, *self._adapters)

    def listed(self) -> list[dict[str, object]]:
        return [self.described(name) for name in self.names]

    def described(self, model: str) -> dict[str, object]:
        """Raises ApiError 404."""
        adapter = self.adapter_of(model)
        return {
            "id": self._card.name if adapter is None else adapter.name,
            "object": "model",
            "created": self._started_unix_s,
            "owned_by": "banyan",
            "root": self._card.name,
            "parent": None if adapter is None else self._card.name,
            "max_model_len": self._card.context_tokens,
        }

    async def _rescan(
        self, folder: AdapterFolder, offload: Offload, logger: logging.Logger
    ) -> None:
        while True:
            await asyncio.sleep(RESCAN_S)
            self._take(await offload.run(folder.scan), logger)

    def _take(self, found: tuple[Adapter, ...], logger: logging.Logger) -> None:
        adapters = {each.name: each for each in found if each.name != self._card.name}
        if adapters != self._adapters:
            self._adapters = adapters
            logger.info("adapters", extra={"adapters": sorted(adapters)})
