"""`synflow_scores` through the Triton kernels: the chain's vectors and exponents stay on the device.

As in the reference, vectors are rescaled by powers of two; here the exponents are tensors, and the one number
that is waited for is R.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def chain_scores(
    kernels: Any,
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    refuse: Callable[[float], Exception],
) -> list[Tensor]:
    """The scores of a checked chain; `refuse(R)` gives what is raised where the flow is not finite."""
    forward, backward, scores = kernels
    inside: list[Tensor | None] = list(masks) or [None for _ in weights]
    device = weights[0].device
    zero = torch.zeros((), dtype=torch.int64, device=device)
    x, exponents = [torch.ones(weights[0].shape[1], dtype=torch.float64, device=device)], [zero]
    finite = torch.ones((), dtype=torch.bool, device=device)
    for weight, mask, bias in zip(weights, inside, biases, strict=True):
        y, exponent = forward(weight, mask, x[-1]), exponents[-1]
        if bias is not None and bias.numel():
            offset = bias.detach().double().abs()
            most = offset.max()
            common = torch.where(most > 0, torch.maximum(exponent, _exponent(most)), exponent)
            y, exponent = _times(y, exponent - common) + _times(offset, -common), common
        finite = finite & y.isfinite().all()
        y, up = _normalised(y)
        x.append(y)
        exponents.append(exponent + up)
    reach = float(torch.where(finite, x[-1].sum(), torch.inf))
    if not math.isfinite(reach):
        raise refuse(reach)
    g, exponent = torch.full_like(x[-1], 1.0 / reach if reach > 0 else 0.0), zero
    found: list[Tensor] = []
    for i in reversed(range(len(weights))):
        scale = (exponents[i] + exponent - exponents[-1]).clamp(-1074, 1000)
        found.insert(0, scores(weights[i], inside[i], x[i], _times(g, scale)))
        g, up = _normalised(backward(weights[i], inside[i], g))
        exponent = exponent + up
    return found


def _exponent(most: Tensor) -> Tensor:
    """floor(log2) of a positive number; 0 of 0 and of what is not finite."""
    plain = torch.where(most.isfinite(), most, 0.0)
    return torch.where(plain > 0, torch.frexp(plain).exponent.long() - 1, 0)


def _normalised(v: Tensor) -> tuple[Tensor, Tensor]:
    """v over the power of two that brings its largest entry into [1, 2), and the exponent."""
    if not v.numel():
        return v, torch.zeros((), dtype=torch.int64, device=v.device)
    exponent = _exponent(v.max())
    return _times(v, -exponent), exponent


def _times(v: Tensor, exponent: Tensor) -> Tensor:
    """v 2^exponent; in two steps, as each power must be a float64."""
    half = torch.div(exponent, 2, rounding_mode="floor").clamp(-1022, 1022)
    rest = (exponent - half).clamp(-1022, 1022)
    return torch.ldexp(torch.ldexp(v, half), rest)
