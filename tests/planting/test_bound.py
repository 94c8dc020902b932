import math

import pytest
import torch

from lotterykit.errors import ArgumentError
from lotterykit.planting.bound import existence_bound, homogeneous_bound, parameter_errors, target_bound
from lotterykit.planting.targets import TARGETS, TargetNetwork, circle, helix


def test_figure_6_defaults():
    assert homogeneous_bound() == pytest.approx(0.584, abs=5e-4)
    assert homogeneous_bound() == pytest.approx((1 - 2 * (1 - 0.005**2) ** 100_000) ** 3)


@pytest.mark.parametrize(
    ("field", "better", "worse"),
    [
        ("error", 0.01, 0.002),
        ("degree", 1, 3),
        ("layers", 2, 20),
        ("width", 1, 10),
        ("mother_width", 10**6, 10**4),
    ],
)
def test_figure_6_directions(field, better, worse):
    assert homogeneous_bound(**{field: better}) > homogeneous_bound() > homogeneous_bound(**{field: worse})


def test_normal_init_halves_the_error():
    assert homogeneous_bound(init="normal") == pytest.approx(homogeneous_bound(error=0.0025))


def test_factors_are_clipped_one_by_one():
    """Two negative factors must not multiply to a bound."""
    assert homogeneous_bound(layers=2, mother_width=10) == 0.0


def test_published_circle_figure_is_out_of_reach_at_width_100():
    assert target_bound(circle(5), 100, error=0.005) == 0.0
    assert target_bound(helix(5), 10**6, error=0.005) == 0.0


def test_empty_neuron_always_matches():
    assert existence_bound([0.1], [[0, 0]], [1]) == 1.0


@pytest.mark.parametrize("name", list(TARGETS))
def test_lemma_1_holds(name):
    """Parameters moved by eps_l, signs at random: the output moves by less than epsilon."""
    generator = torch.Generator().manual_seed(0)
    for depth in (3, 5, 6):
        target, epsilon = TARGETS[name](depth), 0.5
        errors = parameter_errors(target, epsilon)
        x = torch.rand(500, target.widths[0], generator=generator, dtype=torch.float64) * 2 - 1
        for _ in range(5):
            moved = []
            for parameters in (target.weights, target.biases):
                signs = [torch.randint(2, p.shape, generator=generator) * 2.0 - 1.0 for p in parameters]
                moved.append(
                    tuple(p + e * s * (p != 0) for p, e, s in zip(parameters, errors, signs, strict=True))
                )
            distance = (TargetNetwork("moved", *moved)(x) - target(x)).norm(dim=1).max()
            assert 0 < float(distance) <= epsilon


def test_lemma_1_by_hand():
    target = TargetNetwork(
        "two", (torch.tensor([[2.0], [-1.0]]).double(), torch.tensor([[3.0, 4.0]]).double()),
        (torch.tensor([0.0, 0.5]).double(), torch.zeros(1).double()),
    )  # fmt: skip
    first, last = parameter_errors(target, 0.1)
    assert first == pytest.approx(0.1 / (2 * math.sqrt(3) * (1 + 1) * (5 + 0.05)))
    assert last == pytest.approx(0.1 / (2 * math.sqrt(2) * (1 + 2 + 1.5)))


def test_bad_input():
    with pytest.raises(ArgumentError, match="epsilon"):
        parameter_errors(circle(5), 0.0)
    with pytest.raises(ArgumentError, match="did you mean 'normal'"):
        homogeneous_bound(init="norml")
    with pytest.raises(ArgumentError, match="one entry per layer"):
        existence_bound([0.1], [[1], [1]], [10])
    with pytest.raises(ArgumentError, match="errors must lie"):
        homogeneous_bound(error=2.0)
    with pytest.raises(ArgumentError, match="either epsilon"):
        target_bound(circle(5), 100)
