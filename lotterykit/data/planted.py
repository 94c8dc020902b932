"""The tasks whose solution is planted: circle, relu and helix (Plant 'n' Seek, sec. 2.3 and B.1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lotterykit.errors import ArgumentError, check_seed

Split = tuple[Tensor, Tensor, Tensor, Tensor]  # x_train, y_train, x_test, y_test

BOUNDARIES = (0.2, 0.5, 0.7)
"""Class boundaries of the circle task, on the squared radius."""

TEST_FRACTION = 0.1


def circle_class(x: Tensor) -> Tensor:
    """The ring each point lies in: `x [N, 2]` -> int64 `[N]` in 0..3, by its squared radius."""
    return _ring(x)[0]


def relu_value(x: Tensor) -> Tensor:
    """`max(x, 0)`: `x [N, 1]` -> `[N, 1]`."""
    return x.clamp_min(0.0)


def helix_value(x: Tensor) -> Tensor:
    """A conical helix: `x [N, 1]` -> `[N, 3]`, `t (cos t, sin t, 1) / (8 pi)` with `t = 5 pi + 3 pi x`."""
    t = 5.0 * math.pi + 3.0 * math.pi * x
    return torch.cat([t * t.cos(), t * t.sin(), t], dim=1) / (8.0 * math.pi)


def circle(n: int = 10_000, label_noise: float = 0.01, seed: int = 0) -> Split:
    """Points of the square, labelled by the ring they lie in.

    Returns x float32 `[N, 2]` uniform on [-1, 1]^2 and y int64 `[N]` in 0..3, the last tenth held out of
    the same draw. Each label moves with probability `label_noise` to the next closest class: the ring on
    the other side of the nearest boundary (in squared radius). Draws of one seed share x, and labels moved
    at a small noise are moved at a larger one. Raises `ArgumentError`.
    """
    x, noise = _draw(n, 2, seed)
    _check_noise("label_noise", label_noise, most=1.0)
    label, neighbour = _ring(x)
    moved = torch.rand(n, generator=noise, dtype=torch.float64) < label_noise
    return _split(x, torch.where(moved, neighbour, label))


def relu(n: int = 10_000, noise_std: float = 0.01, seed: int = 0) -> Split:
    """Regression of `max(x, 0)`: x float32 `[N, 1]` uniform on [-1, 1], y float32 `[N, 1]` with Gaussian
    noise of standard deviation `noise_std`; the last tenth is held out. Raises `ArgumentError`."""
    return _regression(relu_value, 1, n, noise_std, seed)


def helix(n: int = 10_000, noise_std: float = 0.01, seed: int = 0) -> Split:
    """Regression of the helix: x float32 `[N, 1]` uniform on [-1, 1], y float32 `[N, 3]` with Gaussian
    noise of standard deviation `noise_std` per output; the last tenth is held out. Raises `ArgumentError`."""
    return _regression(helix_value, 3, n, noise_std, seed)


def _regression(
    function: Callable[[Tensor], Tensor], outputs: int, n: int, noise_std: float, seed: int
) -> Split:
    x, noise = _draw(n, 1, seed)
    _check_noise("noise_std", noise_std, most=math.inf)
    y = function(x.double()) + noise_std * torch.randn(n, outputs, generator=noise, dtype=torch.float64)
    return _split(x, y.float())


def _ring(x: Tensor) -> tuple[Tensor, Tensor]:
    """The class of each point, and its next closest class."""
    g = x.double().square().sum(1)
    bounds = torch.tensor(BOUNDARIES, dtype=torch.float64, device=x.device)
    label = torch.bucketize(g, bounds)
    nearest = (g[:, None] - bounds).abs().argmin(1)
    # boundary j separates classes j and j + 1
    return label, torch.where(label == nearest, nearest + 1, nearest)


def _draw(n: int, inputs: int, seed: int) -> tuple[Tensor, torch.Generator]:
    """x float32 `[n, inputs]`, uniform on [-1, 1], and a second generator for the noise."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 10:
        raise ArgumentError(f"n must be an int of at least 10 (a tenth is held out), got {n!r}")
    points = torch.Generator().manual_seed(check_seed(seed))
    noise = torch.Generator()
    noise.manual_seed(int(torch.randint(2**62, (), generator=points)))
    # float32 first: a label belongs to the x that is stored
    x = (torch.rand(n, inputs, generator=points, dtype=torch.float64) * 2.0 - 1.0).float()
    return x, noise


def _split(x: Tensor, y: Tensor) -> Split:
    train = x.shape[0] - round(TEST_FRACTION * x.shape[0])
    return x[:train], y[:train], x[train:], y[train:]


def _check_noise(what: str, value: object, most: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0.0 <= value <= most or not math.isfinite(value):  # type: ignore[operator, arg-type]
        limit = "[0, 1]" if most == 1.0 else "[0, inf)"
        raise ArgumentError(f"{what} must be a number in {limit}, got {value!r}")


@dataclass(frozen=True)
class Task:
    """A planted task: its clean function and its sampler.

    `function`: x `[N, inputs]` -> clean y (int64 classes `[N]`, or `[N, outputs]` in x's dtype);
    `sample(n, noise, seed)` -> (x_train, y_train, x_test, y_test). `outputs` is the width of the output
    layer (for a classification, the number of classes).
    """

    name: str
    kind: Literal["classification", "regression"]
    inputs: int
    outputs: int
    function: Callable[[Tensor], Tensor]
    sample: Callable[[int, float, int], Split]


TASKS: dict[str, Task] = {
    "circle": Task("circle", "classification", 2, 4, circle_class, circle),
    "relu": Task("relu", "regression", 1, 1, relu_value, relu),
    "helix": Task("helix", "regression", 1, 3, helix_value, helix),
}
