"""The networks of the planted tasks: chains of Linear and ReLU."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lotterykit.errors import ArgumentError, check_density, check_seed, unknown_name
from lotterykit.nn.init import INITS


def mlp(
    widths: Sequence[int],
    *,
    init: str = "he_scaled",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    density: float = 1.0,
) -> nn.Sequential:
    """A fully connected network Linear, ReLU, ..., Linear: `[N, widths[0]] -> [N, widths[-1]]`, no softmax.

    `widths` counts the input layer, so its length is the depth (Plant 'n' Seek's count). `init` is a name
    of `INITS`. Parameters are drawn in float64 and then rounded, so that networks of one seed are the same
    network in every dtype; the global random state is not touched. `density` is the share of weights that a
    mask will keep: weights are divided by its square root (scaled init of edge-popup, Ramanujan et al. 2020).
    Raises `ArgumentError`.

    >>> [tuple(p.shape) for p in mlp([2, 100, 4]).parameters()]
    [(100, 2), (100,), (4, 100), (4,)]
    """
    widths = check_widths(widths)
    if init not in INITS:
        raise unknown_name("init", init, INITS)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ArgumentError(f"dtype must be a floating-point torch dtype, got {dtype!r}")
    generator = torch.Generator().manual_seed(check_seed(seed))
    weights, biases = INITS[init](widths, generator)
    if check_density(density) != 1.0:
        weights = [w / math.sqrt(density) for w in weights]
    return chain(weights, biases, dtype=dtype)


def chain(
    weights: Sequence[Tensor], biases: Sequence[Tensor], *, dtype: torch.dtype = torch.float32
) -> nn.Sequential:
    """The network Linear, ReLU, ..., Linear with copies of these weights `[out, in]` and biases `[out]`."""
    layers: list[nn.Module] = []
    for weight, bias in zip(weights, biases, strict=True):
        linear = nn.Linear.__new__(nn.Linear)  # its own __init__ would draw from the global generator
        nn.Module.__init__(linear)
        linear.in_features, linear.out_features = weight.shape[1], weight.shape[0]
        linear.weight = nn.Parameter(weight.detach().to(dtype, copy=True))
        linear.bias = nn.Parameter(bias.detach().to(dtype, copy=True))
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def check_widths(widths: object) -> list[int]:
    """`widths` as a list of at least two positive ints; raises `ArgumentError` otherwise."""
    ok = isinstance(widths, Sequence) and not isinstance(widths, str) and len(widths) >= 2
    if not ok or any(isinstance(w, bool) or not isinstance(w, int) or w < 1 for w in widths):  # type: ignore[attr-defined]
        raise ArgumentError(
            f"widths must be at least two positive ints [in, hidden ..., out], got {widths!r}"
        )
    return list(widths)  # type: ignore[call-overload, no-any-return]
