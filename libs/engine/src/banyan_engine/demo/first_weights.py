"""The first weights: random, but for two layers that are set up to look back.

From plain random weights, a model this small spends most of its training on
finding one circuit: note at each token which tokens came just before it, then
look for an earlier place with the same tokens before it, and copy what stood
there.  That search is a long plateau, so its two parts are laid out at the
start; what to do with them is learnt.

- Layer 0: head h attends h + 1 tokens back.  For that all embeddings share one
  constant channel, which gives queries and keys a part that depends on position
  alone, rotated so that it fits best at that distance.
- Layer 1: keys hold what stood one token further back than queries hold, in the
  slow channels of the rotation, so that equal words match at any distance.
"""

from typing import Final

import torch
from torch import Tensor, nn

from banyan_engine.demo.model import Llama

EMBEDDING_STD: Final = 0.06
CONSTANT: Final = 0.48
OUTPUT_SHARE: Final = 0.06
QUIET_SHARE: Final = 0.3
POSITION_GAIN: Final = 0.9
FAST_FREQUENCY: Final = 0.1
SLOW_FREQUENCY: Final = 0.02
NOTE_SCALE: Final = 0.09
MATCH_GAIN: Final = 2.0
NUM_NOTED: Final = 5


@torch.no_grad()
def set_first_weights(model: Llama) -> None:
    """Overwrite all weights of a new model."""
    nn.init.normal_(model.embed_tokens.weight, std=EMBEDDING_STD)
    model.embed_tokens.weight[:, 0] = CONSTANT
    for name, weight in model.layers.named_parameters():
        if weight.dim() == 2:
            share = OUTPUT_SHARE if "o_proj" in name or "down_proj" in name else 1.0
            nn.init.normal_(weight, std=share * weight.shape[1] ** -0.5)
    notes = _lay_out_look_back(model)
    _lay_out_matching(model, notes)


def _projection(model: Llama, layer: int, kind: str) -> Tensor:
    return model.get_parameter(f"layers.{layer}.self_attn.{kind}_proj.weight")


def _frequencies(model: Llama) -> Tensor:
    dim = model.shape.head_dim
    return model.shape.rope_theta ** -(torch.arange(0, dim, 2).float() / dim)


def _lay_out_look_back(model: Llama) -> list[Tensor]:
    """Set up layer 0; return the matrices that read a token and its noted neighbours."""
    dim, width = model.shape.head_dim, model.shape.hidden_size
    frequencies = _frequencies(model)
    gain = POSITION_GAIN * (frequencies > FAST_FREQUENCY).float()
    _projection(model, 0, "q").mul_(QUIET_SHARE)
    _projection(model, 0, "k").mul_(QUIET_SHARE)
    for head, rows in enumerate(_projection(model, 0, "q").chunk(model.shape.num_attention_heads)):
        angles = -frequencies * (head + 1)
        rows[:, 0] = torch.cat((gain * angles.cos(), gain * angles.sin()))
    for rows in _projection(model, 0, "k").chunk(model.shape.num_key_value_heads):
        rows[:, 0] = torch.cat((gain, torch.zeros_like(gain)))
    reader = torch.randn(dim, width) * width**-0.5
    reader[:, 0] = 0.0
    for rows in _projection(model, 0, "v").chunk(model.shape.num_key_value_heads):
        rows.copy_(reader)
    notes = [reader]
    for columns in _projection(model, 0, "o").chunk(model.shape.num_attention_heads, dim=1)[
        :NUM_NOTED
    ]:
        basis, _ = torch.linalg.qr(torch.randn(width, dim))
        columns.copy_(NOTE_SCALE * basis)
        notes.append(basis.T)
    return notes


def _lay_out_matching(model: Llama, notes: list[Tensor]) -> None:
    """Set up layer 1 so that queries and keys compare the same words."""
    slow = (_frequencies(model) < SLOW_FREQUENCY).repeat(2).unsqueeze(1)
    group = model.shape.num_attention_heads // model.shape.num_key_value_heads
    for head, rows in enumerate(_projection(model, 1, "q").chunk(model.shape.num_attention_heads)):
        rows.mul_(QUIET_SHARE).add_(MATCH_GAIN * slow * notes[head // group])
    for head, rows in enumerate(_projection(model, 1, "k").chunk(model.shape.num_key_value_heads)):
        rows.mul_(QUIET_SHARE).add_(MATCH_GAIN * slow * notes[head + 1])
