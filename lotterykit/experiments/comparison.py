"""`compare`: the mean accuracies of two arms, each at its best learning rate, and how sure their gap is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any

from lotterykit.errors import ArgumentError, LotterykitError

SEEDS = 3  # at least, of every arm at every learning rate
Accuracies = Mapping[float, Sequence[float]]  # learning rate -> test accuracy in [0, 1], one a seed


@dataclass(frozen=True)
class Comparison:
    """Mean accuracies of two arms, each at one learning rate, and their difference (first - second).

    `low`, `high`: Welch's interval of the difference at confidence `level`, for all `candidates` learning
    rates that the better one was chosen from together (Bonferroni). `seeds` of each arm.
    """

    first: float
    first_lr: float
    second: float
    second_lr: float
    low: float
    high: float
    standard_error: float
    freedom: float
    seeds: tuple[int, int]
    candidates: int
    level: float

    @property
    def difference(self) -> float:
        return self.first - self.second

    def margin(self, threshold: float) -> float:
        """By how much the difference of the means lies above `threshold`."""
        return rounded(self.difference - threshold)

    def above(self, threshold: float, *, inclusive: bool) -> bool | None:
        """Is the difference above `threshold`, or at it where inclusive? None: the interval straddles it."""
        low, high = rounded(self.low - threshold), rounded(self.high - threshold)
        if low > 0 or (inclusive and low == 0):
            return True
        return None if high > 0 or (inclusive and high == 0) else False

    def confidence(self, threshold: float) -> float:
        """Confidence, in [0, 1], in the side of `threshold` that the means are on."""
        if self.standard_error == 0.0:
            return 1.0
        tail = _student().stdtr(self.freedom, -abs(self.margin(threshold)) / self.standard_error)
        return max(0.0, 1.0 - 2.0 * self.candidates * float(tail))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self) | {"seeds": list(self.seeds), "difference": self.difference}


def compare(
    first: Accuracies,
    second: Accuracies,
    *,
    rates: tuple[float, float] | None = None,
    level: float = 0.95,
) -> Comparison:
    """Two arms, each at its best learning rate by the mean, or at `rates`: Welch's t interval.

    The interval is widened for the choice among the learning rates of an arm: whichever way it falls, only
    one of the two choices favours it. Arms of one accuracy throughout have the point itself as interval.
    Raises `ArgumentError`, and `LotterykitError` without scipy.
    """
    first, second = checked_arm("first", first), checked_arm("second", second)
    if isinstance(level, bool) or not isinstance(level, float) or not 0.5 <= level < 1.0:
        raise ArgumentError(f"level must be a number in [.5, 1), got {level!r}")
    a, b = (_best(first), _best(second)) if rates is None else rates
    if a not in first or b not in second:
        raise ArgumentError(f"rates must be learning rates of the two arms, got {rates}")
    candidates = max(len(first), len(second))
    parts = [statistics.variance(arm) / len(arm) for arm in (first[a], second[b])]
    error, freedom = math.sqrt(sum(parts)), float(len(first[a]) + len(second[b]) - 2)
    reach = 0.0
    if error > 0.0:
        counts = (len(first[a]), len(second[b]))
        # The parts are scaled by their sum: squares of tiny variances would vanish.
        shares = [part / sum(parts) for part in parts]
        freedom = 1.0 / sum(s * s / (n - 1) for s, n in zip(shares, counts, strict=True))
        reach = -error * float(_student().stdtrit(freedom, (1.0 - level) / 2.0 / candidates))
    means = mean(first[a]), mean(second[b])
    gap = means[0] - means[1]
    seeds = len(first[a]), len(second[b])
    return Comparison(
        means[0], a, means[1], b, gap - reach, gap + reach, error, freedom, seeds, candidates, level
    )


def checked_arm(arm: str, rates: object) -> dict[float, list[float]]:
    """Learning rate -> accuracies; raises `ArgumentError` for fewer than 3 and for what is no accuracy."""
    if not isinstance(rates, Mapping) or not rates:
        raise ArgumentError(f"{arm} must map learning rates to accuracies, got {rates!r}")
    for lr, values in rates.items():
        if not is_number(lr) or not 0.0 < lr < math.inf:
            raise ArgumentError(f"{arm}: learning rates must be finite numbers above 0, got {lr!r}")
        if not isinstance(values, Sequence) or isinstance(values, str) or len(values) < SEEDS:
            raise ArgumentError(f"{arm} at lr {lr:g} needs the accuracies of {SEEDS} seeds, got {values!r}")
        if wrong := [v for v in values if not is_number(v) or not 0.0 <= v <= 1.0]:
            raise ArgumentError(f"{arm} at lr {lr:g}: accuracies must lie in [0, 1], got {wrong[0]!r}")
    return {float(lr): [float(v) for v in values] for lr, values in rates.items()}


def _best(arm: Mapping[float, Sequence[float]]) -> float:
    """The learning rate of the highest mean; of equal ones the smallest."""
    return max(arm, key=lambda lr: (mean(arm[lr]), -lr))


def mean(values: Sequence[float]) -> float:
    """The mean of a learning rate's accuracies."""
    return statistics.fmean(values)


def is_number(value: object) -> bool:
    """Is this a real number, Python's or numpy's?"""
    return isinstance(value, Real) and not isinstance(value, bool)


def rounded(value: float) -> float:
    """Without the last digits: .905 - .9 is .005, and rounding of floats must not decide a verdict."""
    return round(value, 12)


def _student() -> Any:
    """scipy's functions of Student's t distribution, `stdtr` and its inverse `stdtrit`."""
    try:
        from scipy import special
    except ModuleNotFoundError as error:
        raise LotterykitError("intervals of accuracies need scipy: pip install scipy") from error
    return special
