"""The hand-made tickets that are planted: relu, circle and helix at every depth from 3 on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lotterykit.errors import ArgumentError
from lotterykit.nn.models import chain
from lotterykit.planting.approximator import univariate

CIRCLE_KNOTS = 10
HELIX_KNOTS = 30
CIRCLE_LOGITS = torch.tensor([[5.0, 0.0], [10.0, -1.0], [20.0, -6.0], [40.0, -20.0]], dtype=torch.float64)
"""Slope and offset of each class's logit over the squared radius: they meet at .2, .5 and .7."""


@dataclass(frozen=True, eq=False)
class TargetNetwork:
    """A small exact network: `weights[l]` float64 `[out, in]`, `biases[l]` float64 `[out]`, ReLU between.

    Depth counts the input layer: depth 5 has 4 weight matrices.
    """

    name: str
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]

    @property
    def depth(self) -> int:
        """Number of layers of neurons, the input layer included."""
        return len(self.weights) + 1

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of neurons of each layer, from the inputs to the outputs."""
        return (self.weights[0].shape[1], *(w.shape[0] for w in self.weights))

    def __call__(self, x: Tensor) -> Tensor:
        """The target's function in float64: x `[N, in]` -> `[N, out]`, no softmax."""
        h = x.double()
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            h = torch.relu(h @ weight.T + bias)
        return h @ self.weights[-1].T + self.biases[-1]

    def module(self, dtype: torch.dtype = torch.float32) -> nn.Sequential:
        """The target as Linear, ReLU, ..., Linear with parameters rounded to `dtype`."""
        return chain(self.weights, self.biases, dtype=dtype)

    def nonzeros(self) -> tuple[int, int]:
        """(non-zero weights, non-zero biases)."""
        return sum(int(w.count_nonzero()) for w in self.weights), sum(
            int(b.count_nonzero()) for b in self.biases
        )

    def density(self, width: int) -> float:
        """Non-zero weights / all weights of a mother of this depth with hidden layers of `width`.

        Raises `ArgumentError` where the target does not fit into such a mother.
        """
        widest = max(self.widths[1:-1])
        if isinstance(width, bool) or not isinstance(width, int) or width < widest:
            raise ArgumentError(f"{self.name} needs a mother of width {widest} or more, got {width!r}")
        mother = [self.widths[0], *[width] * (self.depth - 2), self.widths[-1]]
        return self.nonzeros()[0] / sum(a * b for a, b in itertools.pairwise(mother))


def relu(depth: int = 5) -> TargetNetwork:
    """`max(x, 0)` of one input by one path of weights 1 without biases (Plant 'n' Seek, A.4.1)."""
    layers = _check_depth(depth) - 1
    ones, zeros = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    return TargetNetwork("relu", (ones,) * layers, (zeros,) * layers)


def circle(depth: int = 5) -> TargetNetwork:
    """Four rings of the square, boundaries .2, .5, .7 on the squared radius: `[N, 2]` -> 4 logits.

    |x1| and |x2|; above depth 5, mirrored to an ever smaller wedge; then x^2 of each component by knots;
    then the logits. Depth 3 puts the knots on the inputs themselves, depth 4 folds |x| into the knot
    layer. Raises `ArgumentError`. Source: Plant 'n' Seek, sec. 2.3 and A.4.2.
    """
    if _check_depth(depth) == 3:
        s = torch.linspace(-1.0, 1.0, CIRCLE_KNOTS, dtype=torch.float64)
        return _circle_on_components([], torch.eye(2, dtype=torch.float64), [s, s], last_sign=-1)
    sides = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    components = sides.abs().T  # |x1|, |x2| read from the four half-lines
    s = torch.linspace(0.0, 1.0, CIRCLE_KNOTS, dtype=torch.float64)
    if depth == 4:
        return _circle_on_components([sides], components, [s, s], last_sign=-1)
    if depth == 5:
        return _circle_on_components(
            [sides, components], torch.eye(2, dtype=torch.float64), [s, s], last_sign=1
        )
    mirrors, components, angle = _mirrors(depth - 5)
    return _circle_on_components(
        [sides, sides.abs().T, *mirrors], components, _wedge_knots(angle), last_sign=1
    )


def _mirrors(count: int) -> tuple[list[Tensor], Tensor, float]:
    """Mirror layers at pi/4, pi/8, ...: their weights, how the components (parallel, |perpendicular|) are
    read from the last of them `[2, 3]`, and its angle."""
    layers: list[Tensor] = []
    point = torch.eye(2, dtype=torch.float64)  # the point (x, y) as rows over the layer before
    angle = math.pi / 2
    for _ in range(count):
        angle /= 2
        axis = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        normal = torch.tensor([math.sin(angle), -math.cos(angle)], dtype=torch.float64)
        perpendicular = normal @ point
        layers.append(torch.stack([axis @ point, perpendicular, -perpendicular]))
        # the half above the axis is folded onto the half below it
        point = torch.stack([axis, normal, normal], dim=1)
    return layers, torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]], dtype=torch.float64), angle


def _wedge_knots(angle: float) -> list[Tensor]:
    """Twice ten knots, shared between the parallel component on [0, sqrt 2] and the other on [0, c]."""
    c = math.sin(angle) * math.sqrt(0.7) + 0.01
    total = 2 * CIRCLE_KNOTS
    parallel = min(math.ceil(total * math.sqrt(2.0) / (c + math.sqrt(2.0))), total - 3)
    ranges = [(math.sqrt(2.0), parallel), (c, total - parallel)]
    return [torch.linspace(0.0, end, count, dtype=torch.float64) for end, count in ranges]


def _circle_on_components(
    layers: list[Tensor], components: Tensor, knots: list[Tensor], last_sign: int
) -> TargetNetwork:
    """Bias-free `layers`, then x^2 of both `components` `[2, n]` (rows over the layer before) by their
    `knots`, then the logits over the sum of the squares."""
    squares = [univariate(torch.square, s, last_sign=last_sign) for s in knots]
    inner = torch.cat([g.signs[:, None] * c for g, c in zip(squares, components, strict=True)])
    radius, offset = torch.cat([g.slopes for g in squares]), sum(g.offset for g in squares)
    slope, beta = CIRCLE_LOGITS.unbind(1)
    weights = (*layers, inner, slope[:, None] * radius)
    zero = [torch.zeros(w.shape[0], dtype=torch.float64) for w in layers]
    biases = (*zero, torch.cat([g.hidden_biases for g in squares]), slope * offset + beta)
    return TargetNetwork("circle", weights, biases)


def helix(depth: int = 5) -> TargetNetwork:
    """A conical helix, `t (cos t, sin t, 1) / (8 pi)` with `t = 5 pi + 3 pi x`: `[N, 1]` -> `[N, 3]`.

    x + 1, then 30 knots on [0, 2], then the three outputs shifted by +1, then identity layers that end in
    a bias of -1. The third output is linear and reads the first knot's unit alone. Depth 3 puts the knots
    on [-1, 1]; depth 4 needs no shift. Raises `ArgumentError`. Source: Plant 'n' Seek, sec. 2.3 and A.4.3.
    """
    shift = 0.0 if _check_depth(depth) == 3 else 1.0
    s = torch.linspace(-1.0, 1.0, HELIX_KNOTS, dtype=torch.float64) + shift
    f1 = univariate(lambda x: _turn(x - shift) * _turn(x - shift).mul(8.0 * math.pi).cos(), s)
    f2 = univariate(lambda x: _turn(x - shift) * _turn(x - shift).mul(8.0 * math.pi).sin(), s)
    f3 = torch.zeros_like(s)
    f3[0] = 3.0 / 8.0
    weights = [f1.signs[:, None], torch.stack([f1.slopes, f2.slopes, f3])]
    biases = [f1.hidden_biases, torch.tensor([f1.offset, f2.offset, 2.0 / 8.0], dtype=torch.float64)]
    if depth > 3:
        weights.insert(0, torch.ones(1, 1, dtype=torch.float64))
        biases.insert(0, torch.ones(1, dtype=torch.float64))
    if depth > 4:
        biases[-1] = biases[-1] + 1.0  # all three outputs exceed -1, so identity layers pass them
        weights += [torch.eye(3, dtype=torch.float64)] * (depth - 4)
        biases += [torch.zeros(3, dtype=torch.float64)] * (depth - 5)
        biases.append(torch.full((3,), -1.0, dtype=torch.float64))
    return TargetNetwork("helix", tuple(weights), tuple(biases))


def _turn(x: Tensor) -> Tensor:
    """The helix's third output t / (8 pi): its radius, and its angle over 8 pi."""
    return 0.625 + 0.375 * x


def _check_depth(depth: object) -> int:
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 3:
        raise ArgumentError(f"depth counts the input layer and must be an int of at least 3, got {depth!r}")
    return depth


TARGETS: dict[str, Callable[[int], TargetNetwork]] = {"relu": relu, "circle": circle, "helix": helix}
