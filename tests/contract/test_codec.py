"""The codec: whatever core can hold crosses the wire and comes back equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from banyan.v1 import common_pb2, router_pb2, worker_pb2
from banyan_core import placement, types
from banyan_runtime import codec

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
I32 = st.integers(-(2**31), 2**31 - 1)
DOUBLE = st.floats(allow_nan=False)
NAME = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
BYTES = st.binary(max_size=16)
HASHES = st.lists(st.binary(min_size=16, max_size=16), max_size=4).map(tuple)
TOKENS = st.lists(U32, max_size=5).map(tuple)
ROLE = st.sampled_from(types.Role)


def some(items: st.SearchStrategy[Any], most: int = 3) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(items, max_size=most).map(tuple)


REF = st.builds(types.WorkerRef, NAME, U64, NAME, ROLE)
LAYER = st.builds(types.KvLayer, U32, U32, U32, st.none() | st.integers(1, 2**32 - 1))
LAYERS = st.lists(LAYER, min_size=1, max_size=4).map(tuple)
LAYOUT = st.builds(types.KvLayout, LAYERS, NAME)
CARD = st.builds(types.ModelCard, NAME, BYTES, BYTES, U32, TOKENS, U32, LAYOUT, NAME)
LOAD = st.builds(types.WorkerLoad, U32, U32, U32, U32, DOUBLE, DOUBLE, st.booleans(), some(NAME))
BIASES = st.dictionaries(U32, DOUBLE, max_size=3).map(lambda d: tuple(sorted(d.items())))
SAMPLING = st.builds(
    types.SamplingParams,
    temperature=DOUBLE,
    top_p=DOUBLE,
    top_k=U32,
    min_p=DOUBLE,
    presence_penalty=DOUBLE,
    frequency_penalty=DOUBLE,
    repetition_penalty=DOUBLE,
    logit_bias=BIASES,
    seed=U64,
    max_tokens=U32,
    min_tokens=U32,
    ignore_eos=st.booleans(),
    stop_token_ids=TOKENS,
    logprobs=st.booleans(),
    num_top_logprobs=U32,
    typical_p=DOUBLE,
    bad_words=some(TOKENS),
    allowed_token_ids=TOKENS,
    num_prompt_logprobs=st.none() | U32,
    grammar=st.none() | st.builds(types.Grammar, st.sampled_from(types.GrammarKind), NAME),
)
ADAPTER = st.builds(types.Adapter, NAME, BYTES)
SPEC = st.builds(
    types.SequenceSpec,
    NAME,
    NAME,
    U64,
    BYTES,
    TOKENS,
    TOKENS,
    SAMPLING,
    BYTES,
    I32,
    U64,
    st.none() | ADAPTER,
)
OUTPUT = st.builds(types.OutputToken, U32) | st.builds(
    types.OutputToken, U32, DOUBLE, some(st.tuples(U32, DOUBLE))
)
FIGURES = st.builds(types.SequenceFigures, U32, U32, U64, U64, U64, U32, U32, U32)
REPORT = st.builds(
    types.SequenceReport,
    NAME,
    U32,
    some(OUTPUT),
    st.none() | st.sampled_from(types.Finish),
    NAME,
    st.none() | FIGURES,
    some(OUTPUT),
)
SCORE = st.builds(placement.Score, NAME, DOUBLE, DOUBLE)
CANDIDATE = st.builds(placement.Candidate, NAME, ROLE, NAME, some(SCORE), DOUBLE)
DECISION = st.builds(placement.Decision, NAME, U64, some(CANDIDATE), NAME, U64)
PLACEMENT = st.builds(placement.Placement, REF, st.none() | REF, U32)
REFUSAL = st.builds(types.Refusal, NAME, U64)
QUERY = st.builds(
    placement.PlaceQuery, NAME, U32, U32, BYTES, HASHES, U32, U32, U32, I32, some(NAME), NAME
)

PAIRS: list[tuple[st.SearchStrategy[Any], Callable[[Any], Message], Callable[[Any], Any]]] = [
    (REF, codec.worker_ref_to_pb, codec.worker_ref_from_pb),
    (CARD, codec.model_card_to_pb, codec.model_card_from_pb),
    (LOAD, codec.worker_load_to_pb, codec.worker_load_from_pb),
    (SAMPLING, codec.sampling_to_pb, codec.sampling_from_pb),
    (SPEC, codec.sequence_spec_to_pb, codec.sequence_spec_from_pb),
    (st.builds(types.LeasedKv, REF, NAME), codec.leased_kv_to_pb, codec.leased_kv_from_pb),
    (OUTPUT, codec.output_token_to_pb, codec.output_token_from_pb),
    (FIGURES, codec.figures_to_pb, codec.figures_from_pb),
    (REPORT, codec.sequence_report_to_pb, codec.sequence_report_from_pb),
    (PLACEMENT, codec.placement_to_pb, codec.placement_from_pb),
    (DECISION, codec.decision_to_pb, codec.decision_from_pb),
    (QUERY, codec.place_query_to_pb, codec.place_query_from_pb),
    (
        st.tuples(PLACEMENT | REFUSAL, DECISION),
        lambda value: codec.place_response_to_pb(*value),
        codec.place_response_from_pb,
    ),
    (
        st.none() | REFUSAL,
        lambda value: codec.admission_to_pb(value, epoch=5),
        codec.admission_from_pb,
    ),
]


@pytest.mark.parametrize(("values", "encode", "decode"), PAIRS)
@given(data=st.data())
def test_what_core_holds_crosses_the_wire_unchanged(
    values: st.SearchStrategy[Any],
    encode: Callable[[Any], Message],
    decode: Callable[[Any], Any],
    data: st.DataObject,
) -> None:
    value = data.draw(values)
    message = encode(value)
    assert decode(type(message).FromString(message.SerializeToString())) == value


@given(CARD)
def test_a_card_keeps_its_digest(card: types.ModelCard) -> None:
    assert codec.model_card_from_pb(codec.model_card_to_pb(card)).digest == card.digest


@pytest.mark.parametrize(
    ("decode", "message", "field"),
    [
        (codec.worker_ref_from_pb, common_pb2.WorkerRef(worker_id="w"), "role"),
        (codec.place_query_from_pb, router_pb2.PlaceRequest(block_hashes=b"abc"), "block_hashes"),
        (codec.place_response_from_pb, router_pb2.PlaceResponse(), "outcome"),
        (codec.placement_from_pb, router_pb2.Placement(), "decode"),
        (codec.sequence_spec_from_pb, worker_pb2.SequenceSpec(), "sampling"),
        (codec.model_card_from_pb, common_pb2.ModelCard(), "kv_layout"),
        (codec.leased_kv_from_pb, worker_pb2.LeasedKv(lease_id="x"), "worker"),
    ],
)
def test_a_broken_message_names_its_field(
    decode: Callable[[Any], Any], message: Message, field: str
) -> None:
    with pytest.raises(ValueError, match=field):
        decode(message)
