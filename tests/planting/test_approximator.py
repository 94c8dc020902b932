import numpy as np
import pytest
import torch

from lotterykit.errors import ArgumentError
from lotterykit.planting.approximator import univariate

FUNCTIONS = {
    "square": torch.square,
    "sin": lambda x: torch.sin(3 * x),
    "bump": lambda x: (x - 0.3).abs().sqrt(),
}


def error(g, f, knots):
    """Largest distance from linear interpolation, the last slope continued beyond the knots."""
    ends = np.append(knots, knots[-1] + knots[1] - knots[0])
    x = np.random.default_rng(0).uniform(ends[0], ends[-1], 2000)
    want = np.interp(x, ends, f(torch.from_numpy(ends)).numpy())
    return np.abs(g(torch.from_numpy(x)).numpy() - want).max()


@pytest.mark.parametrize("last_sign", [None, 1, -1])
@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_interpolates_at_random_knots(name, last_sign):
    rng = np.random.default_rng(7)
    for n in (2, 3, 10, 17):
        knots = np.sort(rng.uniform(-2, 2, n))
        g = univariate(FUNCTIONS[name], torch.from_numpy(knots), last_sign=last_sign)
        assert error(g, FUNCTIONS[name], knots) < 1e-11
        assert g.signs[0] == 1 or n == 1
        if last_sign is not None and n > 1:
            assert g.signs[-1] == last_sign


def test_the_papers_first_slope_is_wrong():
    """Mutation check: without the sum over the negative signs the interpolation is off."""
    knots = np.linspace(0, 1, 10)
    g = univariate(torch.square, torch.from_numpy(knots))
    assert error(g, torch.square, knots) < 1e-12
    g.slopes[0] -= g.slopes[1:][g.signs[1:] < 0].sum()
    assert error(g, torch.square, knots) > 0.1


@pytest.mark.parametrize("knots", [[0.0], [], [0.0, 0.0], [1.0, 0.0], [0.0, float("inf")], [[0.0, 1.0]]])
def test_bad_knots(knots):
    with pytest.raises(ArgumentError, match="knots"):
        univariate(torch.square, knots)


def test_bad_sign_and_function():
    with pytest.raises(ArgumentError, match="last_sign"):
        univariate(torch.square, [0.0, 1.0], last_sign=0)
    with pytest.raises(ArgumentError, match="finite"):
        univariate(lambda x: x / 0, [0.0, 1.0])
