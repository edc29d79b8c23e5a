"""The tables of policies: one readable dict per kind, name to class.

A new policy is a frozen dataclass in a file of its kind, a line here, and a section in
`infra/policies.toml`. An unknown name stops the start and lists the known ones.
"""

from __future__ import annotations

from banyan_core.policies.batching import BatchingPolicy, Chunked, DecodeFirst, PrefillFirst
from banyan_core.policies.engine_admission import EngineAdmissionPolicy, PastFuture, Watermark
from banyan_core.policies.onboard import Always, Cheapest, Never, OnboardPolicy
from banyan_core.policies.routing import LeastTokens, PrefixCost, Random
from banyan_core.policies.routing_view import RoutingPolicy
from banyan_core.policies.scaling import Fixed, ScalingPolicy, TargetTracking
from banyan_core.policies.table import BadParameter, PolicyChoice, UnknownPolicy, make

ROUTING: dict[str, type[RoutingPolicy]] = {
    "random": Random,
    "least_tokens": LeastTokens,
    "prefix_cost": PrefixCost,
}

SCALING: dict[str, type[ScalingPolicy]] = {
    "fixed": Fixed,
    "target_tracking": TargetTracking,
}

ONBOARD: dict[str, type[OnboardPolicy]] = {
    "cheapest": Cheapest,
    "always": Always,
    "never": Never,
}

BATCHING: dict[str, type[BatchingPolicy]] = {
    "chunked": Chunked,
    "prefill_first": PrefillFirst,
    "decode_first": DecodeFirst,
}

ENGINE_ADMISSION: dict[str, type[EngineAdmissionPolicy]] = {
    "watermark": Watermark,
    "past_future": PastFuture,
}


__all__ = [
    "BATCHING",
    "ENGINE_ADMISSION",
    "ONBOARD",
    "ROUTING",
    "SCALING",
    "BadParameter",
    "BatchingPolicy",
    "EngineAdmissionPolicy",
    "OnboardPolicy",
    "PolicyChoice",
    "RoutingPolicy",
    "ScalingPolicy",
    "UnknownPolicy",
    "make",
]
