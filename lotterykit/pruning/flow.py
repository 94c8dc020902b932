"""SynFlow's products, and what they tell of a network that collapsed: which weights are on a live path."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lotterykit.errors import ArgumentError
from lotterykit.mask import Masks, prunable_layers, refuse_sparse
from lotterykit.nn.evaluation import evaluating
from lotterykit.pruning.chain import chain_of

BATCH_NORM = nn.modules.batchnorm._BatchNorm
MIXING = (
    nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.instancenorm._InstanceNorm, nn.LocalResponseNorm,
    nn.Softmax, nn.LogSoftmax, nn.MultiheadAttention,
)  # fmt: skip
ROUNDING = 1e-9  # a layer's share of the flow below this is what float64 leaves of products that cancel


def flow(model: nn.Module, names: list[str], values: dict[str, Tensor], example: Tensor) -> dict[str, Tensor]:
    """v dR/dv / R for the parameters `names`: R is the sum of the model's outputs for ones like `example`,
    computed with the float64 parameters and buffers `values`.

    All zeros where R = 0 (no live path). Raises `ArgumentError` where R overflows float64."""
    leaves = [values[name].requires_grad_() for name in names]
    ones = torch.ones_like(example, dtype=torch.float64)
    with torch.enable_grad():
        total = functional_call(model, values, (ones,)).sum()
        gradients = torch.autograd.grad(total, leaves, allow_unused=True)
    reach = float(total.detach())
    if not math.isfinite(reach):
        raise ArgumentError(f"synflow's products overflow float64 (R = {reach}): scale the weights down")
    found: dict[str, Tensor] = {}
    for name, leaf, gradient in zip(names, leaves, gradients, strict=True):
        dead = gradient is None or reach == 0.0
        found[name] = torch.zeros_like(leaf.detach()) if dead else leaf.detach() * (gradient / reach)
    return found


def live_weights(model: nn.Module, example_input: Tensor | None = None) -> dict[str, Tensor]:
    """Name -> bool tensor: the kept weights on a path from an input to an output, for any model.

    SynFlow's product with every kept weight 1 / sqrt(fan in), biases 0 and batch-norm the identity: a
    weight is live where its product is positive. Raises `ArgumentError` where that cannot tell: the input's
    shape is unknown, or products are not positive through the dense network either (a softmax at its end,
    other normalisations), and for sparse layers.
    """
    refuse_sparse(model, "finding live paths")
    for layer in model.modules():
        if isinstance(layer, MIXING) or (isinstance(layer, BATCH_NORM) and layer.running_mean is None):
            raise ArgumentError(
                f"{type(layer).__name__} subtracts paths from each other: products tell nothing"
            )
    layers = list(prunable_layers(model))
    names = [f"{prefix}weight" for prefix, _ in layers]
    example = one_input(model, example_input)
    if (chain := chain_of(model, example, bias=False)) is not None:  # the masks alone tell, and at once
        masks = chain.masks or [torch.ones_like(w, dtype=torch.bool) for w in chain.weights]
        return dict(Masks(dict(zip(chain.names, masks, strict=True))).live())
    base = {n: p.detach().double().abs() for n, p in model.named_parameters()} | without_bias(model)
    buffers = {n: b for n, b in model.named_buffers() if n.rpartition(".")[2] == "weight_mask"}
    dense = {name: _even(base[name]) for name in names}
    kept = {n: w * buffers[f"{n}_mask"] if f"{n}_mask" in buffers else w.clone() for n, w in dense.items()}
    with evaluating(model):
        found = flow(model, names, base | kept, example)
        shares = _shares(found)
        if not any(share > 0 for share in shares):
            open_masks = {name: torch.ones_like(mask) for name, mask in buffers.items()}
            if max(_shares(flow(model, names, base | dense | open_masks, example))) < ROUNDING:
                raise ArgumentError("even the dense network has no positive product: nothing can be told")
    mixed = any(bool((score < 0).any()) for score in found.values())
    if mixed or any(0 < share < ROUNDING for share in shares):
        raise ArgumentError("a layer's products cancel out: the model subtracts paths from each other")
    return {name: score > 0 for name, score in found.items()}


def one_input(model: nn.Module, example_input: Tensor | None) -> Tensor:
    """An input of one sample: from `example_input`, else for a first linear layer.

    Raises `ArgumentError` where neither tells its shape."""
    if example_input is not None:
        return example_input[:1]
    first = next(prunable_layers(model))[1]
    if isinstance(first, nn.Linear):
        return torch.empty(1, first.in_features, device=first.weight.device)
    raise ArgumentError("the input's shape is unknown: pass example_input [1, ...] or re-iterable data")


def without_bias(model: nn.Module) -> dict[str, Tensor]:
    """Float64 values that make every bias 0 and every batch-norm the identity."""
    values = {
        n: torch.zeros_like(p, dtype=torch.float64)
        for n, p in model.named_parameters()
        if n.rpartition(".")[2] == "bias"
    }
    for prefix, layer in model.named_modules():
        if isinstance(layer, BATCH_NORM):
            identity = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0 - layer.eps}
            for key, value in identity.items():
                tensor = getattr(layer, key, None)
                if tensor is not None:
                    name = f"{prefix}.{key}" if prefix else key
                    values[name] = torch.full_like(tensor.detach(), value, dtype=torch.float64)
    return values


def _even(weight: Tensor) -> Tensor:
    """1 / sqrt(fan in) everywhere: products then neither overflow nor vanish."""
    return torch.full_like(weight, 1.0 / math.sqrt(max(1, math.prod(weight.shape[1:]))))


def _shares(found: dict[str, Tensor]) -> list[float]:
    """Each layer's share of R: 1 in a chain, 0 where nothing is live."""
    return [float(score.sum()) for score in found.values()]
