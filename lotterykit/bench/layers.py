"""The layer that a user gets who converts with `format="auto"`, as a contender."""

from __future__ import annotations

import torch
from torch import nn

from lotterykit.bench.contender import Contender, through_autograd
from lotterykit.bench.setting import Layer, Problem
from lotterykit.nn.convert import convert_
from lotterykit.nn.sparse import SparseLinear


def auto_linear(problem: Problem) -> Contender:
    """`convert_(linear, masks=..., format="auto")`: masked or sparse, as the crossovers choose."""
    inputs: Layer = problem.inputs
    n_out, n_in = inputs.weight.shape
    linear = nn.Linear(n_in, n_out, bias=False, device=inputs.weight.device, dtype=inputs.weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(inputs.weight)
    layer = convert_(linear, masks={"weight": inputs.mask}, format="auto")
    if isinstance(layer, SparseLinear):
        return through_autograd(problem, layer, layer.values, lambda d: d)
    return through_autograd(problem, layer, layer.weight, inputs.csr.gather)
