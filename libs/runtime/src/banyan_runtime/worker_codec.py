"""Workers between the wire and core: roles, references, model cards, loads."""

from __future__ import annotations

from google.protobuf.message import Message

from banyan.v1 import common_pb2, worker_pb2
from banyan_core.types import (
    KvLayer,
    KvLayout,
    ModelCard,
    Role,
    WorkerLoad,
    WorkerRef,
    equal_layers,
)

MAX_LAYERS = 1024
"""A card that names more is taken for broken; only its number of layers could be that large."""

_ROLE_TO_PB = {Role.PREFILL: common_pb2.ROLE_PREFILL, Role.DECODE: common_pb2.ROLE_DECODE}
_ROLE_FROM_PB = {number: role for role, number in _ROLE_TO_PB.items()}


def require(message: Message, *fields: str) -> None:
    for name in fields:
        if not message.HasField(name):
            raise ValueError(f"{name}: missing in {message.DESCRIPTOR.name}")


def role_to_pb(role: Role) -> common_pb2.Role.ValueType:
    return _ROLE_TO_PB[role]


def role_from_pb(number: int) -> Role:
    """Raises ValueError for an unset or unknown role."""
    if number not in _ROLE_FROM_PB:
        raise ValueError(f"role: {number} is not a known role")
    return _ROLE_FROM_PB[common_pb2.Role.ValueType(number)]


def worker_ref_to_pb(ref: WorkerRef) -> common_pb2.WorkerRef:
    return common_pb2.WorkerRef(
        worker_id=ref.worker_id,
        epoch=ref.epoch,
        address=ref.address,
        role=role_to_pb(ref.role),
    )


def worker_ref_from_pb(message: common_pb2.WorkerRef) -> WorkerRef:
    return WorkerRef(message.worker_id, message.epoch, message.address, role_from_pb(message.role))


def model_card_to_pb(card: ModelCard) -> common_pb2.ModelCard:
    return common_pb2.ModelCard(
        name=card.name,
        weights_digest=card.weights_digest,
        tokenizer_digest=card.tokenizer_digest,
        context_tokens=card.context_tokens,
        end_token_ids=card.end_token_ids,
        block_size=card.block_size,
        kv_layout=_kv_layout_to_pb(card.kv_layout),
        numerics=card.numerics,
    )


def model_card_from_pb(message: common_pb2.ModelCard) -> ModelCard:
    require(message, "kv_layout")
    return ModelCard(
        name=message.name,
        weights_digest=message.weights_digest,
        tokenizer_digest=message.tokenizer_digest,
        context_tokens=message.context_tokens,
        end_token_ids=tuple(message.end_token_ids),
        block_size=message.block_size,
        kv_layout=_kv_layout_from_pb(message.kv_layout),
        numerics=message.numerics,
    )


def _kv_layout_to_pb(layout: KvLayout) -> common_pb2.KvLayout:
    first = layout.layers[0] if layout.layers else KvLayer(0, 0, 0)
    message = common_pb2.KvLayout(
        num_layers=layout.num_layers,
        num_kv_heads=first.num_kv_heads,
        head_dim=first.key_dim,
        dtype=layout.dtype,
    )
    for layer in layout.layers:
        message.layers.add(
            num_kv_heads=layer.num_kv_heads,
            key_dim=layer.key_dim,
            value_dim=layer.value_dim,
            window=layer.window or 0,
        )
    return message


def _kv_layout_from_pb(message: common_pb2.KvLayout) -> KvLayout:
    if message.num_layers > MAX_LAYERS:
        raise ValueError(f"num_layers: {message.num_layers}, expected at most {MAX_LAYERS}")
    if not message.layers:
        return equal_layers(
            message.num_layers, message.num_kv_heads, message.head_dim, message.dtype
        )
    layers = (
        KvLayer(layer.num_kv_heads, layer.key_dim, layer.value_dim, layer.window or None)
        for layer in message.layers
    )
    return KvLayout(tuple(layers), message.dtype)


def worker_load_to_pb(load: WorkerLoad) -> worker_pb2.WorkerLoad:
    return worker_pb2.WorkerLoad(
        num_waiting=load.num_waiting,
        num_running=load.num_running,
        num_free_blocks=load.num_free_blocks,
        num_waiting_tokens=load.num_waiting_tokens,
        prefill_tokens_per_s=load.prefill_tokens_per_s,
        step_s=load.step_s,
        draining=load.draining,
        admitted=load.admitted,
    )


def worker_load_from_pb(message: worker_pb2.WorkerLoad) -> WorkerLoad:
    return WorkerLoad(
        num_waiting=message.num_waiting,
        num_running=message.num_running,
        num_free_blocks=message.num_free_blocks,
        num_waiting_tokens=message.num_waiting_tokens,
        prefill_tokens_per_s=message.prefill_tokens_per_s,
        step_s=message.step_s,
        draining=message.draining,
        admitted=tuple(message.admitted),
    )
