"""Initialisations, drawn in float64 from a generator of their own.

Each takes the weight shapes `[out, in, *kernel]` of a network's layers in order. n_in is in * kernel,
n_out is out * kernel, as in `torch.nn.init`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Shapes = Sequence[Sequence[int]]  # [out, in, *kernel] a layer
Parameters = tuple[list[Tensor], list[Tensor]]  # weights and biases [out], a pair a layer, float64


def linear_shapes(widths: Sequence[int]) -> list[tuple[int, int]]:
    """The weight shapes `[out, in]` of a fully connected network of these widths, its input included."""
    return [(fan_out, fan_in) for fan_in, fan_out in itertools.pairwise(widths)]


def he_scaled(shapes: Shapes, generator: torch.Generator) -> Parameters:
    """He normal weights with non-zero biases that keep the scale of the signal.

    `W[l] ~ N(0, 2 / n_in)`, `b[l] ~ N(0, prod_{k<=l} 2 / n_in[k])` (variances). Source: Plant 'n' Seek,
    sec. 3 ("He initialization with nonzero biases", Fischer et al. 2021).
    """
    weights, biases, bias_std = [], [], 1.0
    for shape in shapes:
        std = math.sqrt(2.0 / _fans(shape)[0])
        bias_std *= std
        weights.append(_normal(generator, *shape) * std)
        biases.append(_normal(generator, shape[0]) * bias_std)
    return weights, biases


def he_uniform_scaled(shapes: Shapes, generator: torch.Generator) -> Parameters:
    """The uniform twin: `W[l] ~ U[-a_l, a_l]`, `b[l] ~ U[-prod_{k<=l} a_k, ...]` with `a_l = sqrt(6 / n_in)`.

    The weights have He's variance 2 / n_in. Source: Plant 'n' Seek, Thm. 2.
    """
    weights, biases, bias_bound = [], [], 1.0
    for shape in shapes:
        bound = math.sqrt(6.0 / _fans(shape)[0])
        bias_bound *= bound
        weights.append(_uniform(generator, *shape) * bound)
        biases.append(_uniform(generator, shape[0]) * bias_bound)
    return weights, biases


def glorot_normal(shapes: Shapes, generator: torch.Generator) -> Parameters:
    """`W[l] ~ N(0, 2 / (n_in + n_out))`, biases 0. Source: The Lottery Ticket Hypothesis, sec. 2."""
    return _weights_only(shapes, lambda s: _normal(generator, *s) * math.sqrt(2.0 / sum(_fans(s))))


def kaiming_normal(shapes: Shapes, generator: torch.Generator) -> Parameters:
    """`W[l] ~ N(0, 2 / n_in)`, biases 0. Source: He et al. 2015."""
    return _weights_only(shapes, lambda s: _normal(generator, *s) * math.sqrt(2.0 / _fans(s)[0]))


def signed_constant(shapes: Shapes, generator: torch.Generator) -> Parameters:
    """Weights `+-sqrt(2 / n_in)`, signs by a fair coin, biases 0.

    Source: Rare Gems, sec. 4 (signed Kaiming constant), after Ramanujan et al. 2020.
    """

    def draw(shape: Sequence[int]) -> Tensor:
        sign = torch.randint(2, tuple(shape), generator=generator).double() * 2.0 - 1.0
        return sign * math.sqrt(2.0 / _fans(shape)[0])

    return _weights_only(shapes, draw)


def _fans(shape: Sequence[int]) -> tuple[int, int]:
    """n_in and n_out of a weight."""
    kernel = math.prod(shape[2:])
    return shape[1] * kernel, shape[0] * kernel


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _uniform(generator: torch.Generator, *shape: int) -> Tensor:
    """Uniform on [-1, 1)."""
    return torch.rand(shape, generator=generator, dtype=torch.float64) * 2.0 - 1.0


def _weights_only(shapes: Shapes, draw: Callable[[Sequence[int]], Tensor]) -> Parameters:
    weights = [draw(shape) for shape in shapes]
    return weights, [torch.zeros(w.shape[0], dtype=torch.float64) for w in weights]


CHAIN_INITS = ("he_scaled", "he_uniform_scaled")  # their biases follow the signal along a chain of layers
INITS: dict[str, Callable[[Shapes, torch.Generator], Parameters]] = {
    "he_scaled": he_scaled,
    "he_uniform_scaled": he_uniform_scaled,
    "glorot_normal": glorot_normal,
    "kaiming_normal": kaiming_normal,
    "signed_constant": signed_constant,
}
