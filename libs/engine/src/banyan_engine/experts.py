"""Gated MLPs, and mixtures of them.

A mixture computes each expert once, over the rows that chose it: that is right for one token as
for many. The compiled helper does a whole mixture in one call. But then the shape of a product
depends on who else is in the batch. Deterministic mode therefore gives every expert the whole
tile, whichever rows chose it, and lets the others out when the sum is made.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from banyan_core.model_spec import ExpertsSpec
from banyan_engine.kernels import grouped, native
from banyan_engine.lora import LoraRows, product
from banyan_engine.rowwise import gate
from banyan_engine.weights import ExpertsWeights, MlpWeights


def gated(
    x: Tensor,
    weights: MlpWeights,
    activation: str,
    lora: LoraRows | None = None,
    layer: int = 0,
) -> Tensor:
    """x [rows, hidden] through one gated MLP; `lora` adds to it as to that of `layer`."""
    both = product(x, weights.gate_up, weights.gate_up_bias, lora, layer, "gate_up")
    return product(gate(both, activation), weights.down, weights.down_bias, lora, layer, "down")


def mixture(
    x: Tensor, spec: ExpertsSpec, weights: ExpertsWeights, activation: str, *, whole: bool
) -> Tensor:
    """x [rows, hidden] through the experts that each row chooses; `whole`: see above."""
    if weights.grouped is not None and not whole and (helper := native.library()) is not None:
        return grouped.mixture(
            x,
            weights.grouped,
            num_chosen=spec.num_chosen,
            renormalise=spec.renormalise,
            activation=activation,
            helper=helper,
        )
    shares, chosen = _choose(x, spec, weights.router)
    sum_up = _sum_whole if whole else _sum_grouped
    mixed = sum_up(x, shares, chosen, weights.experts, activation)
    if weights.shared is None or weights.shared_gate is None:
        return mixed
    share = F.linear(x, weights.shared_gate).sigmoid()
    return mixed + share * gated(x, weights.shared, activation)


def _choose(x: Tensor, spec: ExpertsSpec, router: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and numbers of the chosen experts, each [rows, num_chosen]."""
    scores = F.linear(x, router).softmax(dim=-1, dtype=torch.float32)
    shares, chosen = scores.topk(spec.num_chosen, dim=-1)
    if spec.renormalise:
        shares = shares / shares.sum(dim=-1, keepdim=True)
    return shares.to(x.dtype), chosen


def _sum_grouped(
    x: Tensor, shares: Tensor, chosen: Tensor, experts: tuple[MlpWeights, ...], activation: str
) -> Tensor:
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    rows, shares = order // chosen.shape[1], shares.flatten()[order, None]
    mixed = torch.zeros_like(x)
    begin = 0
    for expert, num_rows in enumerate(flat.bincount(minlength=len(experts)).tolist()):
        if num_rows:
            part = slice(begin, begin + num_rows)
            made = gated(x[rows[part]], experts[expert], activation) * shares[part]
            mixed.index_add_(0, rows[part], made)
            begin += num_rows
    return mixed


def _sum_whole(
    x: Tensor, shares: Tensor, chosen: Tensor, experts: tuple[MlpWeights, ...], activation: str
) -> Tensor:
    mixed = torch.zeros_like(x)
    for expert in sorted(set(chosen.flatten().tolist())):
        hit = chosen == expert
        share = (shares * hit).sum(dim=-1, keepdim=True)
        made = gated(x, experts[expert], activation) * share
        mixed = torch.where(hit.any(dim=-1, keepdim=True), mixed + made, mixed)
    return mixed
