import math

import numpy as np
import pytest
import torch

from lotterykit.data.planted import BOUNDARIES, TASKS, circle, helix, relu
from lotterykit.errors import ArgumentError


@pytest.mark.parametrize("name", list(TASKS))
def test_shapes_dtypes_range_and_split(name):
    task = TASKS[name]
    x, y, x_test, y_test = task.sample(1000, 0.01, 3)
    assert (len(x), len(x_test)) == (900, 100) == (len(y), len(y_test))
    both = torch.cat([x, x_test])
    assert both.dtype == torch.float32
    assert both.shape[1] == task.inputs
    assert bool((both.abs() <= 1).all())
    if task.kind == "classification":
        assert y.dtype == torch.int64
        assert y.dim() == 1
        assert set(y.tolist()) == set(range(task.outputs))
    else:
        assert y.dtype == torch.float32
        assert y.shape == (900, task.outputs)


@pytest.mark.parametrize("name", list(TASKS))
def test_seeds(name):
    sample = TASKS[name].sample
    before = torch.get_rng_state()
    a, b, c = sample(100, 0.1, 0), sample(100, 0.1, 0), sample(100, 0.1, 1)
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
    assert not torch.equal(a[0], c[0])
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(a[0], sample(100, 0.0, 0)[0]), "the points do not depend on the noise"


@pytest.mark.parametrize("name", list(TASKS))
def test_no_noise_is_the_function(name):
    task = TASKS[name]
    x, y, x_test, y_test = task.sample(500, 0.0, 2)
    for points, values in ((x, y), (x_test, y_test)):
        clean = task.function(points.double())
        torch.testing.assert_close(values, clean.to(values.dtype), rtol=0, atol=0)


def test_inputs_are_uniform():
    x = torch.cat(circle(40_000, seed=5)[::2])
    for column in (x[:, 0], x[:, 1], helix(40_000, seed=5)[0][:, 0]):
        values = np.sort(column.double().numpy() / 2 + 0.5)
        gap = np.abs(values - (np.arange(len(values)) + 0.5) / len(values)).max()
        assert gap < 2.0 / math.sqrt(len(values))  # Kolmogorov-Smirnov, p < 1e-3


def test_circle_labels_and_neighbours():
    x, y, *_ = circle(20_000, label_noise=0.0, seed=1)
    g = x.double().square().sum(1).numpy()
    assert (y.numpy() == np.digitize(g, BOUNDARIES)).all()
    x, moved, *_ = circle(20_000, label_noise=1.0, seed=1)
    assert bool(((y - moved).abs() == 1).all()), "every label moves to a neighbouring class"
    for label, target, value in zip(y.tolist(), moved.tolist(), g, strict=True):
        distances = {label - 1: abs(value - BOUNDARIES[label - 1])} if label else {}
        if label < 3:
            distances[label + 1] = abs(value - BOUNDARIES[label])
        assert target == min(distances, key=distances.get)


def test_label_noise_rate_and_nesting():
    clean, small, large = (torch.cat(circle(50_000, p, seed=2)[1::2]) for p in (0.0, 0.01, 0.1))
    assert float((small != clean).double().mean()) == pytest.approx(0.01, abs=0.002)
    assert float((large != clean).double().mean()) == pytest.approx(0.1, abs=0.006)
    assert torch.equal(large[small != clean], small[small != clean])


@pytest.mark.parametrize("name", ["relu", "helix"])
def test_regression_noise_is_a_standard_deviation(name):
    task = TASKS[name]
    for noise in (0.01, 0.1):
        x, y, x_test, y_test = task.sample(40_000, noise, 4)
        for points, values in ((x, y), (x_test, y_test)):
            residual = values.double() - task.function(points.double())
            assert float(residual.std()) == pytest.approx(noise, rel=0.04)
            assert abs(float(residual.mean())) < 5 * noise / math.sqrt(residual.numel())


def test_functions():
    x = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    assert TASKS["relu"].function(x).flatten().tolist() == [0.0, 0.0, 1.0]
    want = [[0.25, 0.0, 0.25], [-0.625, 0.0, 0.625], [1.0, 0.0, 1.0]]
    torch.testing.assert_close(
        TASKS["helix"].function(x), torch.tensor(want, dtype=torch.float64), atol=1e-14, rtol=0
    )


@pytest.mark.parametrize("sample", [circle, relu, helix])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5,), "n must be"),
        ((10.0,), "n must be"),
        ((True,), "n must be"),
        ((100, -0.1), "noise"),
        ((100, float("nan")), "noise"),
        ((100, float("inf")), "noise"),
        ((100, "0"), "noise"),
        ((100, 0.01, -1), "seed"),
        ((100, 0.01, 1.5), "seed"),
    ],
)
def test_bad_arguments(sample, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        sample(*arguments)


def test_label_noise_is_a_probability():
    with pytest.raises(ArgumentError, match=r"\[0, 1\]"):
        circle(100, label_noise=1.5)
