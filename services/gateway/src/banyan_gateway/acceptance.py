"""Makes of a validated request what its journey begins with: salt, block hashes, deadline."""

from __future__ import annotations

from banyan_core.hashing import block_hashes, cache_salt
from banyan_core.journey_messages import Accepted
from banyan_core.types import ModelCard
from banyan_gateway.ports import GenerationRequest
from banyan_runtime.offload import Offload

HASH_INLINE_TOKENS = 2048
"""Longer prompts are hashed off the event loop: 1 us a block would hold up others' tokens."""


class Acceptance:
    """Of one gateway."""

    def __init__(self, mesh_secret: bytes, card: ModelCard, offload: Offload) -> None:
        self._mesh_secret = mesh_secret
        self._block_size = card.block_size
        self._card_digest = card.digest
        self._offload = offload

    async def accept(self, request: GenerationRequest) -> Accepted:
        salt = cache_salt(
            self._mesh_secret,
            request.share_group,
            request.cache_salt,
            self._card_digest,
            None if request.adapter is None else request.adapter.digest,
        )
        tokens, size = request.prompt_token_ids, self._block_size
        if len(tokens) > HASH_INLINE_TOKENS:
            hashes = await self._offload.run(block_hashes, tokens, size, salt)
        else:
            hashes = block_hashes(tokens, size, salt)
        deadline = request.deadline_ns
        return Accepted(
            request_id=request.request_id,
            tenant=request.tenant,
            model=request.model,
            card_digest=self._card_digest,
            prompt_token_ids=tokens,
            block_hashes=hashes,
            salt=salt,
            sampling=request.sampling,
            num_choices=request.n,
            priority=request.priority,
            received_ns=request.received_ns,
            deadline_ns=None if deadline is None else request.received_ns + deadline,
            stream=request.stream,
            adapter=request.adapter,
        )
