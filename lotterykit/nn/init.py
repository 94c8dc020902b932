"""Initialisations of fully connected networks, drawn in float64 from a generator of their own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Parameters = tuple[list[Tensor], list[Tensor]]  # weights [out, in] and biases [out], a pair a layer, float64


def he_scaled(widths: Sequence[int], generator: torch.Generator) -> Parameters:
    """He normal weights with non-zero biases that keep the scale of the signal.

    `W[l] ~ N(0, 2 / n_in)`, `b[l] ~ N(0, prod_{k<=l} 2 / n_in[k])` (variances). Source: Plant 'n' Seek,
    sec. 3 ("He initialization with nonzero biases", Fischer et al. 2021).
    """
    weights, biases, bias_std = [], [], 1.0
    for fan_in, fan_out in _layers(widths):
        std = math.sqrt(2.0 / fan_in)
        bias_std *= std
        weights.append(_normal(generator, fan_out, fan_in) * std)
        biases.append(_normal(generator, fan_out) * bias_std)
    return weights, biases


def he_uniform_scaled(widths: Sequence[int], generator: torch.Generator) -> Parameters:
    """The uniform twin: `W[l] ~ U[-a_l, a_l]`, `b[l] ~ U[-prod_{k<=l} a_k, ...]` with `a_l = sqrt(6 / n_in)`.

    The weights have He's variance 2 / n_in. Source: Plant 'n' Seek, Thm. 2.
    """
    weights, biases, bias_bound = [], [], 1.0
    for fan_in, fan_out in _layers(widths):
        bound = math.sqrt(6.0 / fan_in)
        bias_bound *= bound
        weights.append(_uniform(generator, fan_out, fan_in) * bound)
        biases.append(_uniform(generator, fan_out) * bias_bound)
    return weights, biases


def glorot_normal(widths: Sequence[int], generator: torch.Generator) -> Parameters:
    """`W[l] ~ N(0, 2 / (n_in + n_out))`, biases 0. Source: The Lottery Ticket Hypothesis, sec. 2."""
    return _weights_only(widths, lambda i, o: _normal(generator, o, i) * math.sqrt(2.0 / (i + o)))


def kaiming_normal(widths: Sequence[int], generator: torch.Generator) -> Parameters:
    """`W[l] ~ N(0, 2 / n_in)`, biases 0. Source: He et al. 2015."""
    return _weights_only(widths, lambda i, o: _normal(generator, o, i) * math.sqrt(2.0 / i))


def signed_constant(widths: Sequence[int], generator: torch.Generator) -> Parameters:
    """Weights `+-sqrt(2 / n_in)`, signs by a fair coin, biases 0.

    Source: Rare Gems, sec. 4 (signed Kaiming constant), after Ramanujan et al. 2020.
    """

    def draw(fan_in: int, fan_out: int) -> Tensor:
        sign = torch.randint(2, (fan_out, fan_in), generator=generator).double() * 2.0 - 1.0
        return sign * math.sqrt(2.0 / fan_in)

    return _weights_only(widths, draw)


def _layers(widths: Sequence[int]) -> list[tuple[int, int]]:
    return list(itertools.pairwise(widths))


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _uniform(generator: torch.Generator, *shape: int) -> Tensor:
    """Uniform on [-1, 1)."""
    return torch.rand(shape, generator=generator, dtype=torch.float64) * 2.0 - 1.0


def _weights_only(widths: Sequence[int], draw: Callable[[int, int], Tensor]) -> Parameters:
    weights = [draw(fan_in, fan_out) for fan_in, fan_out in _layers(widths)]
    return weights, [torch.zeros(w.shape[0], dtype=torch.float64) for w in weights]


INITS: dict[str, Callable[[Sequence[int], torch.Generator], Parameters]] = {
    "he_scaled": he_scaled,
    "he_uniform_scaled": he_uniform_scaled,
    "glorot_normal": glorot_normal,
    "kaiming_normal": kaiming_normal,
    "signed_constant": signed_constant,
}
