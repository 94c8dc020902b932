"""Piecewise-linear approximation of a function of one variable by one hidden ReLU layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lotterykit.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class Univariate:
    """`g(x) = sum_j a_j relu(p_j (x - s_j)) + b`; every tensor is float64 `[N]`, N = number of knots.

    `signs` are the p_j (the hidden weights), `hidden_biases` the -p_j s_j, `slopes` the outer weights a_j,
    `offset` is b. Right of the first knot g interpolates f at the knots.
    """

    signs: Tensor
    hidden_biases: Tensor
    slopes: Tensor
    offset: float

    def __call__(self, x: Tensor) -> Tensor:
        """g at every entry of `x` (any shape), in float64."""
        hidden = torch.relu(x.double()[..., None] * self.signs + self.hidden_biases)
        return hidden @ self.slopes + self.offset


def univariate(
    f: Callable[[Tensor], Tensor], knots: Tensor | list[float], *, last_sign: int | None = None
) -> Univariate:
    """Interpolate `f` (float64 tensor -> tensor, entry by entry) at increasing `knots` `[N]`, N >= 2.

    Signs alternate +1, -1 from the first knot; `last_sign` (+1 or -1) overrides that of the last one. The
    segment after the last knot has the slope towards `f(s_N + (s_2 - s_1))`. Raises `ArgumentError`.

    >>> g = univariate(torch.square, [0.0, 0.5, 1.0])
    >>> g(torch.tensor([0.0, 0.25, 0.5, 1.0])).tolist()
    [0.0, 0.125, 0.25, 1.0]

    Source: Plant 'n' Seek, A.4.3, whose a_1 = m_1 lacks the sum over the negative signs.
    """
    s = torch.as_tensor(knots, dtype=torch.float64)
    if s.dim() != 1 or len(s) < 2 or not bool((s.diff() > 0).all()) or not bool(s.isfinite().all()):
        raise ArgumentError(f"knots must be at least two increasing finite numbers, got {s.tolist()}")
    if last_sign not in (None, 1, -1):
        raise ArgumentError(f"last_sign must be 1, -1 or None, got {last_sign!r}")
    p = torch.ones_like(s)
    p[1::2] = -1.0
    if last_sign is not None:
        p[-1] = float(last_sign)
    ends = torch.cat([s, (s[-1] + (s[1] - s[0]))[None]])
    values = torch.as_tensor(f(ends), dtype=torch.float64)
    if values.shape != ends.shape or not bool(values.isfinite().all()):
        raise ArgumentError(f"f must give one finite number per knot, got shape {tuple(values.shape)}")
    m = values.diff() / ends.diff()
    a = torch.cat([m[:1], m.diff()])
    # left of their knot the negative units are on, with slope -a_j each: the first unit pays for them
    a[0] += a[1:][p[1:] < 0].sum()
    offset = values[0] - (a * torch.relu(p * (s[0] - s))).sum()
    return Univariate(p, -p * s, a, float(offset))
