"""`gem_miner_step_`: Gem-Miner's update of its scores, SGD, L2 penalty and projection in one pass.

The arithmetic is that of training/batched_scores.py, which takes torch's optimizer for it (Rare Gems,
Alg. 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lotterykit.errors import ArgumentError
from lotterykit.ops.dispatch import Call, load, select


def gem_miner_step_(
    scores: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momenta: Sequence[Tensor],
    *,
    lr: float,
    momentum: float = 0.9,
    penalty: float = 0.0,
    active: Sequence[Tensor] | None = None,
) -> None:
    """Update p and its momentum m in place: g = dL/dp + 2 penalty p, 0 where frozen; m = momentum m + g;
    p = p - lr m, projected to [0, 1].

    scores, gradients, momenta: tensors of one floating dtype and device, of the same shapes, each of them and
    its `active` all contiguous or all channels-last; momenta start as zeros, frozen scores and their momenta
    are 0 already. active: bool tensors, False = frozen, or None. lr, momentum, penalty: finite, at least 0. A
    NaN stays. A CUDA graph keeps the numbers of its capture. Raises `ArgumentError`.

    >>> p, m = torch.tensor([0.5, 0.9]), torch.zeros(2)
    >>> gem_miner_step_([p], [torch.tensor([1.0, -2.0])], [m], lr=0.1)
    >>> p
    tensor([0.4000, 1.0000])
    """
    for name, number in (("lr", lr), ("momentum", momentum), ("penalty", penalty)):
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < math.inf:
            raise ArgumentError(f"gem_miner_step_: {name} must be a finite number >= 0, got {number!r}")
    _check(scores, gradients, momenta, active)
    if scores:
        with torch.no_grad():
            route = select(_call(scores))
            load(route)(scores, gradients, momenta, active, float(lr), float(momentum), 2.0 * penalty)
            if route.backend == "triton":  # torch sees no kernel's writes
                for tensor in (*scores, *momenta):
                    torch.autograd.graph.increment_version(tensor)


def gem_miner_step_reference(
    scores: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momenta: Sequence[Tensor],
    active: Sequence[Tensor] | None,
    rate: float,
    inertia: float,
    slope: float,
) -> None:
    """`gem_miner_step_` in plain torch, on any device."""
    for number, (p, g, m) in enumerate(zip(scores, gradients, momenta, strict=True)):
        g = g + p * slope
        if active is not None:
            g = g.masked_fill_(~active[number], 0.0)
        m.mul_(inertia).add_(g)
        p.add_(m, alpha=-rate).clamp_(0.0, 1.0)


def call_of(scores: Sequence[Tensor], *_: object, **__: object) -> Call:
    """What dispatch may know of `gem_miner_step_(...)`."""
    return _call(scores) if scores else Call("gem_miner_step", "cpu", torch.get_default_dtype())


def _call(scores: Sequence[Tensor]) -> Call:
    return Call("gem_miner_step", scores[0].device.type, scores[0].dtype)


def is_laid_as(t: Tensor, scores: Tensor) -> bool:
    """Whether both are read in one order by who reads them as they lie in memory."""
    if scores.is_contiguous():
        return t.is_contiguous()
    last = torch.channels_last
    return scores.is_contiguous(memory_format=last) and t.is_contiguous(memory_format=last)


def _check(scores: object, gradients: object, momenta: object, active: object) -> None:
    given = {"scores": scores, "gradients": gradients, "momenta": momenta}
    if active is not None:
        given["active"] = active
    for name, tensors in given.items():
        if isinstance(tensors, Tensor) or not isinstance(tensors, Sequence):
            raise ArgumentError(
                f"gem_miner_step_: {name} must be a sequence of tensors, got {type(tensors).__name__}"
            )
    assert isinstance(scores, Sequence)
    for name, tensors in given.items():
        assert isinstance(tensors, Sequence)
        if len(tensors) != len(scores):
            raise ArgumentError(
                f"gem_miner_step_: {len(scores)} scores need as many {name}, got {len(tensors)}"
            )
        for number, (t, p) in enumerate(zip(tensors, scores, strict=True)):
            if not isinstance(t, Tensor) or t.layout is not torch.strided:
                raise ArgumentError(f"gem_miner_step_: {name}[{number}] must be a dense tensor")
            wanted = torch.bool if name == "active" else scores[0].dtype
            if t.dtype != wanted or t.shape != p.shape or t.device != scores[0].device:
                raise ArgumentError(
                    f"gem_miner_step_: {name}[{number}] must be {wanted} {tuple(p.shape)} on "
                    f"{scores[0].device}, got {t.dtype} {tuple(t.shape)} on {t.device}"
                )
            if not is_laid_as(t, p):
                raise ArgumentError(
                    f"gem_miner_step_: {name}[{number}] must be contiguous, "
                    f"or channels-last where scores[{number}] is"
                )
            if not p.is_floating_point():
                raise ArgumentError(f"gem_miner_step_: scores[{number}] must be floating, got {p.dtype}")
