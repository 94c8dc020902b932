"""The first test of the main job: the planted ticket computes its target, on every seed, at every gain."""

import pytest
import torch

from lotterykit.data.planted import TASKS
from lotterykit.nn.models import mlp
from lotterykit.planting.match import MATCHINGS, SCALINGS, match
from lotterykit.planting.plant import plant, write
from lotterykit.planting.targets import TARGETS

SEEDS = 50
WIDTH = 100
GAINS = (0.0, 0.5, 1.0)
# Relative to the target's largest value; worst seen: 5.8e-6 and 1.4e-14, both on Helix
TOLERANCE = {torch.float32: 5e-5, torch.float64: 1e-12}


def mother_of(target, seed, dtype=torch.float32, width=WIDTH):
    return mlp([target.widths[0], *[width] * (target.depth - 2), target.widths[-1]], seed=seed, dtype=dtype)


def oracle_output(planted, x):
    """The documented convention: mask weights and biases, evaluate, times the output scale."""
    dtype = next(planted.network.parameters()).dtype
    with torch.no_grad():
        return planted.oracle()(x.to(dtype)).double() * planted.output_scale


def score(task, output, y):
    """Accuracy of logits, or mean squared error."""
    if task.kind == "classification":
        return float((output.argmax(1) == y).double().mean())
    return float((output - y.double()).square().mean())


def check_score(task, output, want, y, error):
    """The oracle scores what the target scores, up to what an output error of `error` can do."""
    got, expected = score(task, output, y), score(task, want, y)
    if task.kind == "classification":
        top = want.topk(2, dim=1).values  # only samples on a boundary may change side
        assert abs(got - expected) <= float((top[:, 0] - top[:, 1] <= 2 * error).double().mean())
    else:  # |mean (r + d)^2 - mean r^2| <= 2 rms(r) max|d| + max|d|^2
        assert abs(got - expected) <= 2 * expected**0.5 * error + error**2


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("depth", [3, 4, 5, 6, 10])
@pytest.mark.parametrize("name", list(TARGETS))
def test_oracle_computes_the_target(name, depth, dtype):
    task, target = TASKS[name], TARGETS[name](depth)
    *_, x, y = task.sample(3000, 0.01, depth)
    want = target(x)
    error = TOLERANCE[dtype] * float(want.abs().max())
    for seed in range(SEEDS):
        mother = mother_of(target, seed, dtype)
        for matching in MATCHINGS:
            matched = match(target, mother, matching=matching, seed=seed)
            for gain in GAINS:
                planted = write(matched, mother, gain=gain)
                output = oracle_output(planted, x)
                assert float((output - want).abs().max()) <= error, (seed, matching, gain)
                assert planted.output_scale == (
                    1.0 if gain == 1 else pytest.approx(matched.scale ** (1 - gain))
                )
                check_score(task, output, want, y, error)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("matching", MATCHINGS)
@pytest.mark.parametrize("name", list(TARGETS))
def test_plant_is_exact_with_every_matching_and_scaling(name, matching, scaling):
    target = TARGETS[name](5)
    *_, x, _ = TASKS[name].sample(1000, 0.0, 1)
    want = target(x)
    for seed in range(5):
        mother = mother_of(target, seed, torch.float64)
        planted = plant(target, mother, matching=matching, scaling=scaling, gain=0.3, seed=seed)
        error = float((oracle_output(planted, x) - want).abs().max())
        assert error <= 1e-12 * float(want.abs().max())


@pytest.mark.parametrize("init", ["glorot_normal", "signed_constant", "he_uniform_scaled"])
@pytest.mark.parametrize("name", list(TARGETS))
def test_plant_is_exact_in_mothers_of_other_inits(name, init):
    target = TARGETS[name](5)
    *_, x, _ = TASKS[name].sample(1000, 0.0, 2)
    mother = mlp([target.widths[0], 60, 60, 60, target.widths[-1]], init=init, seed=3, dtype=torch.float64)
    want = target(x)
    for gain in GAINS:
        error = float((oracle_output(plant(target, mother, gain=gain), x) - want).abs().max())
        assert error <= 1e-12 * float(want.abs().max())


def test_a_mother_as_narrow_as_the_target_is_filled():
    target = TARGETS["circle"](5)
    mother = mlp(list(target.widths), seed=0, dtype=torch.float64)
    *_, x, _ = TASKS["circle"].sample(1000, 0.0, 0)
    for matching in MATCHINGS:
        want, got = target(x), oracle_output(plant(target, mother, matching=matching, gain=0.0), x)
        assert float((got - want).abs().max()) <= 1e-12 * float(want.abs().max())


def test_float32_and_float64_mothers_of_a_seed_get_the_same_ticket():
    target = TARGETS["circle"](6)
    tickets = [plant(target, mother_of(target, 4, dtype)).ticket for dtype in TOLERANCE]
    assert all(torch.equal(tickets[0][name], tickets[1][name]) for name in tickets[0])
