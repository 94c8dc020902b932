"""Schedules: end points, monotone, and the papers' formulas."""

from __future__ import annotations

import pytest

from lotterykit.errors import ArgumentError
from lotterykit.pruning.schedules import SCHEDULES, after_levels, density_after


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("start", [1.0, 0.4])
def test_falls_from_start_to_exactly_the_end(schedule: str, start: float) -> None:
    densities = [density_after(schedule, end=0.013, round=r, rounds=7, start=start) for r in range(1, 8)]
    assert densities[-1] == 0.013
    assert all(a > b for a, b in zip([start, *densities], densities, strict=False))


def test_formulas() -> None:
    assert density_after("exponential", end=0.01, round=3, rounds=10) == pytest.approx(0.01 ** (3 / 10))
    assert density_after("linear", end=0.2, round=1, rounds=4) == pytest.approx(0.8)
    assert density_after("cubic", end=0.1, round=1, rounds=2) == pytest.approx(0.1 + 0.9 / 8)
    assert after_levels(0.2, 2) == pytest.approx(0.64)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"schedule": "cubical", "end": 0.1, "round": 1, "rounds": 2}, "did you mean 'cubic'"),
        ({"schedule": "linear", "end": 0.0, "round": 1, "rounds": 2}, "density"),
        ({"schedule": "linear", "end": 0.1, "round": 3, "rounds": 2}, "1..2"),
    ],
)
def test_bad_calls(kwargs: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        density_after(kwargs.pop("schedule"), **kwargs)
    with pytest.raises(ArgumentError, match="prune_fraction"):
        after_levels(1.0, 2)
