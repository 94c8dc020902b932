"""Recipes: bad values, schedules, batch order and metrics."""

from __future__ import annotations

import math

import pytest
import torch

from lotterykit.errors import ArgumentError
from lotterykit.training.recipe import Recipe, batch_order, fitted_scale, metrics


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"loss": "cross-entropy"}, "did you mean 'cross_entropy'"),
        ({"loss": "mse", "optimizer": "adamw"}, "did you mean 'adam'"),
        ({"loss": "mse", "schedule": "cosin"}, "did you mean 'cosine'"),
        ({"loss": "mse", "batch_size": 0}, "batch_size must be >= 1|batch_size >= 1"),
        ({"loss": "mse", "lr": float("nan")}, "lr"),
        ({"loss": "mse", "milestone_unit": "step"}, "did you mean 'steps'"),
        ({"loss": "mse", "warmup": -1}, "warmup must be an int of at least 0"),
        ({"loss": "mse", "warmup": 2.5}, "warmup must be an int"),
    ],
)
def test_bad_recipes_say_what_is_allowed(kwargs: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Recipe(**kwargs)


def test_schedules() -> None:
    cosine = Recipe("mse", epochs=2, lr=0.2, schedule="cosine")
    assert cosine.learning_rate(0, 10) == 0.2
    assert cosine.learning_rate(10, 10) == pytest.approx(0.1)
    assert cosine.learning_rate(19, 10) == pytest.approx(0.1 * (1 + math.cos(math.pi * 0.95)))
    step = Recipe("mse", epochs=4, lr=1.0, schedule="step", milestones=(1, 3))
    rates = [step.learning_rate(epoch * 10, 10) for epoch in range(4)]
    assert rates == pytest.approx([1.0, 0.1, 0.1, 0.01])


def test_milestones_in_steps_and_warm_up() -> None:
    """The Lottery Ticket Hypothesis, sec. 4, Resnet-18: to 0.03 in 20,000 steps, / 10 at 20K and 25K."""
    recipe = Recipe(
        "cross_entropy",
        epochs=86,
        lr=0.03,
        schedule="step",
        milestones=(20_000, 25_000),
        milestone_unit="steps",
        warmup=20_000,
    )
    rates = {step: recipe.learning_rate(step, 352) for step in (0, 1, 10_000, 19_999, 20_000, 24_999, 25_000)}
    assert rates == pytest.approx(
        {
            0: 0.0,
            1: 0.03 / 20_000,
            10_000: 0.015,
            19_999: 0.03 * 19_999 / 20_000,
            20_000: 0.003,
            24_999: 0.003,
            25_000: 0.0003,
        }
    )


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_warm_up_scales_any_schedule(schedule: str) -> None:
    plain, warm = (
        Recipe("mse", epochs=4, lr=0.3, schedule=schedule, milestones=(1,), warmup=w) for w in (0, 15)
    )
    for step in range(40):
        share = min(1.0, step / 15)
        assert warm.learning_rate(step, 10) == pytest.approx(share * plain.learning_rate(step, 10))


def test_batch_order_is_a_permutation_of_seed_and_epoch() -> None:
    orders = {(s, e): tuple(batch_order(50, s, e).tolist()) for s in range(4) for e in range(4)}
    assert len(set(orders.values())) == 16
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    assert orders[2, 3] == tuple(batch_order(50, 2, 3).tolist())


def test_fitted_scale_is_the_least_squares_factor() -> None:
    torch.manual_seed(0)
    output, noise = torch.randn(200, 3), torch.randn(200, 3)
    y = 40.0 * output + noise
    best = fitted_scale(output, y)
    errors = [float((s * output - y).square().mean()) for s in (best * 0.999, best, best * 1.001)]
    assert errors[1] == min(errors)
    assert fitted_scale(output, -y) == 0.0
    assert fitted_scale(torch.zeros(5, 1), torch.ones(5, 1)) == 0.0


def test_metrics() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    found = metrics(logits, torch.tensor([0, 1, 1]), "cross_entropy")
    assert found["accuracy"] == pytest.approx(2 / 3)
    with pytest.raises(ArgumentError, match=r"\[3, 1\]"):
        metrics(torch.ones(3, 1), torch.ones(3), "mse")
    assert metrics(torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [0.0]]), "mse")["mse"] == 5.0
