"""`threshold_linear`: y = x (W where its score is kept)^T + b, straight-through gradients to the scores."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lotterykit.errors import ArgumentError
from lotterykit.ops import dispatch
from lotterykit.ops.autocast import autocast
from lotterykit.ops.threshold import Threshold, check_threshold, fixed_threshold, score_thresholds
from lotterykit.ops.threshold_autograd import threshold_product
from lotterykit.ops.threshold_products import (
    effective_weight,
    op_of,
    product_cpu,
)

Arguments = tuple[Tensor, Tensor, Tensor, Threshold, Tensor | None]


def threshold_linear(
    x: Tensor, weight: Tensor, scores: Tensor, threshold: Threshold, bias: Tensor | None = None
) -> Tensor:
    """A linear layer whose scores choose its weights: y = x (W where S is kept, else absent)^T + bias.

    x: `[..., in]`; weight, scores: `[out, in]`; threshold: what of `scores` is kept, from `score_thresholds`
    (the k highest |S| of this layer or of several) or `fixed_threshold` (S >= .5); bias: `[out]` or None.
    Returns `[..., out]`. Every score, kept or not, gets the straight-through gradient dS = dW_eff * W, times
    sign(S) where |S| is ranked (Ramanujan et al. 2020; Rare Gems, Alg. 1), so pruned weights must be finite
    for it; weight, x and bias get their own, weight only where kept. Differentiable any number of times.
    Under autocast x, weight and bias are cast as `F.linear` casts them, scores never. Inside `torch.func`
    transforms the reference runs. Raises `ArgumentError` on shapes, dtypes or devices that do not fit.

    >>> scores = torch.tensor([[3.0, -4.0, 1.0]])
    >>> (threshold,) = score_thresholds([scores], k=2)
    >>> threshold_linear(torch.ones(3), torch.tensor([[1.0, 10.0, 100.0]]), scores, threshold)
    tensor([11.])
    """
    check_tensors("threshold_linear", x, weight, scores, bias)
    scored = weight.dtype
    x, weight, bias = autocast(x, weight, bias)
    check_layer("threshold_linear", x, weight, scores, threshold, bias, 2, scored)
    if x.dim() < 1 or x.shape[-1] != weight.shape[1]:
        raise ArgumentError(f"threshold_linear: x must be [..., {weight.shape[1]}], got {tuple(x.shape)}")
    return threshold_product(x, weight, scores, threshold, bias, [])


def threshold_linear_reference(
    x: Tensor, weight: Tensor, scores: Tensor, threshold: Threshold, bias: Tensor | None = None
) -> Tensor:
    """`threshold_linear` in plain torch: any floating dtype, any device, autograd by itself."""
    return F.linear(x, effective_weight(weight, scores, threshold), bias)


def threshold_linear_cpu(
    x: Tensor, weight: Tensor, scores: Tensor, threshold: Threshold, bias: Tensor | None = None
) -> Tensor:
    """`threshold_linear`, without its gradient, through lotterykit._cpu."""
    return product_cpu(x, weight, scores, threshold, bias, [])


def call_of(
    x: Tensor, weight: Tensor, scores: Tensor, threshold: Threshold, bias: Tensor | None = None
) -> dispatch.Call:
    """What dispatch sees of a call: device and dtype; how many weights are kept is not known before."""
    return dispatch.Call(op_of([]), x.device.type, x.dtype)


def sample_inputs(
    *, dtype: torch.dtype = torch.float64, seed: int = 0, requires_grad: bool = False
) -> list[Arguments]:
    """Small arguments of `threshold_linear` for tests: odd, empty, transposed, batched, tied, all and none
    kept, both kinds of threshold, one counted over two tensors."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    samples: list[Arguments] = []
    for lead, n_in, n_out, density, bias in (
        ((3,), 4, 5, 0.5, True),
        ((2, 3), 7, 2, 0.3, False),
        ((), 3, 4, 0.5, True),
        ((1,), 1, 1, 1.0, True),
        ((4,), 9, 3, 0.01, True),
        ((0,), 3, 2, 0.5, True),
        ((2,), 0, 3, 0.5, True),
        ((2,), 3, 0, 0.5, False),
    ):
        scores = normal(n_out, n_in)
        (threshold,) = score_thresholds([scores], density=density, seed=seed)
        bias_or_none = normal(n_out) if bias else None
        samples.append((normal(*lead, n_in), normal(n_out, n_in), scores, threshold, bias_or_none))
    ties = normal(5, 6).sign()
    thresholds = score_thresholds([normal(3), ties], k=14, seed=7)
    samples.append((normal(6, 4).T, normal(6, 5).T, ties, thresholds[1], normal(10)[::2]))
    p = torch.rand(7, 5, generator=generator, dtype=torch.float64).to(dtype).T
    samples.append((normal(2, 14)[:, ::2], normal(10, 7)[::2], p, fixed_threshold(0.5), None))
    for sample in samples if requires_grad else ():
        for tensor in (*sample[:3], sample[4]):
            if tensor is not None:
                tensor.requires_grad_(True)
    return samples


def check_tensors(op: str, x: object, weight: object, scores: object, bias: object) -> None:
    """Raises `ArgumentError` unless the operands are dense floating tensors."""
    for name, tensor in (("x", x), ("weight", weight), ("scores", scores), ("bias", bias)):
        if tensor is None and name == "bias":
            continue
        if not isinstance(tensor, Tensor):
            raise ArgumentError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
        if not tensor.is_floating_point() or tensor.layout is not torch.strided:
            raise ArgumentError(
                f"{op}: {name} must be dense and floating, got {tensor.layout}, {tensor.dtype}"
            )


def check_layer(
    op: str,
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    threshold: object,
    bias: Tensor | None,
    dimensions: int,
    scored: torch.dtype,
) -> None:
    """Raises `ArgumentError` unless the operands fit each other; scores have the dtype `scored`."""
    for name, tensor in (("weight", weight), ("scores", scores), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.device != x.device:
            raise ArgumentError(f"{op}: x is on {x.device}, but {name} on {tensor.device}")
        wanted = scored if name == "scores" else x.dtype
        if tensor.dtype != wanted:
            raise ArgumentError(f"{op}: {name} must be {wanted}, got {tensor.dtype}")
    if weight.dim() != dimensions or scores.shape != weight.shape:
        sides = "[out, in]" if dimensions == 2 else "[out, in / groups, kh, kw]"
        raise ArgumentError(
            f"{op}: weight and scores must both be {sides}, "
            f"got {tuple(weight.shape)} and {tuple(scores.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ArgumentError(f"{op}: bias must be [{weight.shape[0]}], got {tuple(bias.shape)}")
    check_threshold(op, threshold, scores)
