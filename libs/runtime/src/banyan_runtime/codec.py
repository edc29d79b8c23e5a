"""Between the wire and core: one pair of functions per message that several services use.

`x_to_pb` and `x_from_pb` are exact inverses for every value that core can hold. Decoding a
message that breaks a rule (an unset enum, hashes of a wrong length, a part that is missing)
raises ValueError that names the field. Events have `event_codec`.
"""

from __future__ import annotations

from banyan_runtime.placement_codec import (
    decision_from_pb,
    decision_to_pb,
    place_query_from_pb,
    place_query_to_pb,
    place_response_from_pb,
    place_response_to_pb,
    placement_from_pb,
    placement_to_pb,
)
from banyan_runtime.sequence_codec import (
    admission_from_pb,
    admission_to_pb,
    figures_from_pb,
    figures_to_pb,
    leased_kv_from_pb,
    leased_kv_to_pb,
    output_token_from_pb,
    output_token_to_pb,
    sampling_from_pb,
    sampling_to_pb,
    sequence_report_from_pb,
    sequence_report_to_pb,
    sequence_spec_from_pb,
    sequence_spec_to_pb,
)
from banyan_runtime.worker_codec import (
    model_card_from_pb,
    model_card_to_pb,
    role_from_pb,
    role_to_pb,
    worker_load_from_pb,
    worker_load_to_pb,
    worker_ref_from_pb,
    worker_ref_to_pb,
)

__all__ = [
    "admission_from_pb",
    "admission_to_pb",
    "decision_from_pb",
    "decision_to_pb",
    "figures_from_pb",
    "figures_to_pb",
    "leased_kv_from_pb",
    "leased_kv_to_pb",
    "model_card_from_pb",
    "model_card_to_pb",
    "output_token_from_pb",
    "output_token_to_pb",
    "place_query_from_pb",
    "place_query_to_pb",
    "place_response_from_pb",
    "place_response_to_pb",
    "placement_from_pb",
    "placement_to_pb",
    "role_from_pb",
    "role_to_pb",
    "sampling_from_pb",
    "sampling_to_pb",
    "sequence_report_from_pb",
    "sequence_report_to_pb",
    "sequence_spec_from_pb",
    "sequence_spec_to_pb",
    "worker_load_from_pb",
    "worker_load_to_pb",
    "worker_ref_from_pb",
    "worker_ref_to_pb",
]
