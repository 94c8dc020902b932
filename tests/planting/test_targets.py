import math

import numpy as np
import pytest
import torch

from lotterykit.data.planted import TASKS
from lotterykit.errors import ArgumentError
from lotterykit.planting.targets import TARGETS, circle, helix, relu

DEPTHS = range(3, 11)


def uniform(n, inputs, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, inputs, generator=generator, dtype=torch.float64) * 2 - 1


def interpolated(f, knots, x):
    """Independent oracle: linear interpolation, with the last slope continued."""
    end = knots[-1] + (knots[1] - knots[0])
    knots = np.append(knots, end)
    return np.interp(x, knots, f(knots))


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("name", list(TARGETS))
def test_shapes_and_depth(name, depth):
    target = TARGETS[name](depth)
    task = TASKS[name]
    assert target.depth == depth == len(target.weights) + 1 == len(target.biases) + 1
    assert (target.widths[0], target.widths[-1]) == (task.inputs, task.outputs)
    assert all(p.dtype == torch.float64 for p in (*target.weights, *target.biases))
    # no noise weights: every non-zero parameter counts (the published Helix plants 25 of size 1e-15)
    assert all(float(p[p != 0].abs().min()) > 1e-3 for p in target.weights)
    x = uniform(50, task.inputs)
    torch.testing.assert_close(target.module(torch.float64)(x), target(x), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("depth", DEPTHS)
def test_relu_is_exact(depth):
    x = uniform(1000, 1)
    assert torch.equal(relu(depth)(x), x.clamp_min(0))
    assert relu(depth).nonzeros() == (depth - 1, 0)


@pytest.mark.parametrize("depth", DEPTHS)
def test_helix_interpolates_its_functions(depth):
    x = uniform(2000, 1)
    out, knots = helix(depth)(x).numpy(), np.linspace(-1, 1, 30)
    for i, curve in enumerate((np.cos, np.sin)):
        f = lambda s, curve=curve: (5 + 3 * s) * np.pi * curve((5 + 3 * s) * np.pi) / (8 * np.pi)  # noqa: E731
        np.testing.assert_allclose(out[:, i], interpolated(f, knots, x[:, 0].numpy()), atol=1e-12)
    np.testing.assert_allclose(out[:, 2], (5 + 3 * x[:, 0].numpy()) / 8, atol=1e-13)
    assert 2.0e-4 < float((torch.from_numpy(out) - TASKS["helix"].function(x)).square().mean()) < 2.4e-4


def folded(x, mirrors):
    """Independent of the network: fold the angle of each point, then its components along the last axis."""
    radius, angle = np.hypot(*x.T), np.arctan2(np.abs(x[:, 1]), np.abs(x[:, 0]))
    axis = math.pi / 2
    for _ in range(mirrors):
        axis /= 2
        angle = np.where(angle > axis, 2 * axis - angle, angle)
    return radius * np.cos(axis - angle), radius * np.abs(np.sin(axis - angle)), axis


@pytest.mark.parametrize("depth", DEPTHS)
def test_circle_logits_are_lines_over_the_interpolated_square(depth):
    x = uniform(3000, 2, seed=depth)
    if depth == 3:
        parts = [interpolated(np.square, np.linspace(-1, 1, 10), c) for c in x.T.numpy()]
    elif depth <= 5:
        parts = [interpolated(np.square, np.linspace(0, 1, 10), np.abs(c)) for c in x.T.numpy()]
    else:
        parallel, perpendicular, axis = folded(x.numpy(), depth - 5)
        c = math.sin(axis) * math.sqrt(0.7) + 0.01
        n = min(17, math.ceil(20 * math.sqrt(2) / (c + math.sqrt(2))))
        # beyond its last knot the perpendicular square goes on with its last slope
        h = c / (20 - n - 1)
        slope = 2 * c + h
        square = np.where(
            perpendicular > c,
            c**2 + slope * (perpendicular - c),
            interpolated(np.square, np.linspace(0, c, 20 - n), perpendicular),
        )
        parts = [interpolated(np.square, np.linspace(0, math.sqrt(2), n), parallel), square]
    g = parts[0] + parts[1]
    want = np.stack([5 * g, 10 * g - 1, 20 * g - 6, 40 * g - 20], axis=1)
    np.testing.assert_allclose(circle(depth)(x).numpy(), want, atol=1e-11)


@pytest.mark.parametrize(
    ("depth", "least"), [(3, 0.955), (4, 0.985), (5, 0.985), (6, 0.98), (8, 0.99), (10, 0.995)]
)
def test_circle_accuracy_on_clean_samples(depth, least):
    x = uniform(10_000, 2)
    assert float((circle(depth)(x).argmax(1) == TASKS["circle"].function(x)).double().mean()) > least


def test_check_figures():
    assert circle(3).density(100) == pytest.approx(100 / 600)
    assert relu(3).density(100) == pytest.approx(0.01)
    assert helix(3).density(100) == pytest.approx(0.2275)
    assert circle(5).nonzeros() == (108, 22)
    assert relu(5).nonzeros() == (4, 0)
    assert helix(5).nonzeros()[0] == 95
    assert circle(5).widths == (2, 4, 2, 20, 4)
    assert circle(6).widths == (2, 4, 2, 3, 20, 4)


def test_circle_accuracy_under_label_noise():
    x, y, *_ = TASKS["circle"].sample(20_000, 0.01, 0)
    assert float((circle(5)(x).argmax(1) == y).double().mean()) == pytest.approx(0.98, abs=0.005)


@pytest.mark.parametrize("depth", [2, 0, -1, 3.0, "5", True])
@pytest.mark.parametrize("name", list(TARGETS))
def test_bad_depth(name, depth):
    with pytest.raises(ArgumentError, match="at least 3"):
        TARGETS[name](depth)


@pytest.mark.parametrize("width", [29, 0, 30.0])
def test_density_needs_room(width):
    with pytest.raises(ArgumentError, match="width 30 or more"):
        helix(5).density(width)
