"""`verdict`: jackpot, secondary prize or no ticket, from the accuracies of trained networks; and R_p.

Source: Sanity Checks for Lottery Tickets (Ma et al. 2021), sec. 2.2 (conditions 1 to 5) and 3.1 (R_p).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from lotterykit.errors import ArgumentError, check_density, unknown_name
from lotterykit.experiments.comparison import (
    Accuracies,
    Comparison,
    checked_arm,
    compare,
    is_number,
    mean,
    rounded,
)
from lotterykit.mask import Masks
from lotterykit.ops.topk_mask import topk_mask

ARMS = ("ticket", "reinit", "dense", "small-dense")
ONE_SHOT = "omp"  # an arm that decides nothing: the ticket of one-shot magnitude pruning, beside IMP's
CLEAR_GAP = 0.005  # what a ticket must be ahead of its controls, on every data set
NON_TRIVIAL = 0.6  # share of the weights that must be gone
JACKPOT, SECONDARY, NO_TICKET, UNDECIDED = "jackpot", "secondary prize", "no ticket", "undecided"
OUTCOMES = (JACKPOT, SECONDARY, NO_TICKET)

# Data set, as `lk.data` and as the papers spell it -> by how much a similar accuracy may be lower, as a share
# of the test set.
SIMILAR = {
    "mnist": 0.005,
    "fashion-mnist": 0.005,
    "digits": 0.005,
    "cifar10": 0.005,
    "cifar-10": 0.005,
    "cifar100": 0.01,
    "cifar-100": 0.01,
    "tiny-imagenet": 0.01,
    "imagenet": 0.015,
}
# Epochs that the paper calls sufficient, where it names them.
SUFFICIENT_EPOCHS = dict.fromkeys(("cifar10", "cifar-10", "cifar100", "cifar-100"), 160.0) | {
    "imagenet": 90.0
}


@dataclass(frozen=True)
class Condition:
    """One condition: does it hold (None: undecided), and do the means alone say so (`by_means`)?

    `margin` is what the means have beyond `threshold`, below 0 where they fall short; `confidence` is in
    what they say, None for condition 1, which rests on no random number (and whose margin is the share of
    weights removed). `numbers`: what was compared.
    """

    number: int
    statement: str
    holds: bool | None
    by_means: bool
    threshold: float
    margin: float
    confidence: float | None
    numbers: dict[str, Any]
    text: str

    def __str__(self) -> str:
        word = {True: "holds", False: "violated", None: "undecided"}[self.holds]
        sure = "" if self.confidence is None else f" (confidence {self.confidence:.3f})"
        return f"{self.number} {word}{sure}: {self.statement}: {self.text}"


@dataclass(frozen=True)
class Verdict:
    """`outcome`: "jackpot", "secondary prize", "no ticket" or "undecided"; `possible`: the outcomes that the
    intervals leave; `by_means`: the outcome if the means were exact; `conditions` 1 to 5; `one_shot`: the
    ticket against that of one-shot magnitude pruning, where this was trained (sec. 3.1)."""

    outcome: str
    possible: tuple[str, ...]
    by_means: str
    conditions: tuple[Condition, ...]
    level: float
    one_shot: Comparison | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        lists = {"possible": list(self.possible), "conditions": [asdict(c) for c in self.conditions]}
        return asdict(self) | lists | {"one_shot": self.one_shot and self.one_shot.as_dict()}

    def lines(self) -> list[str]:
        """The outcome, a line for each condition, and one for OMP where it was trained."""
        head = f"{self.outcome} (at confidence {self.level:g})"
        if self.outcome == UNDECIDED:
            head += f": {' or '.join(self.possible)}; more seeds would tell. By the means: {self.by_means}"
        return [
            head,
            *map(str, self.conditions),
            *([] if self.one_shot is None else [_against(self.one_shot)]),
        ]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def verdict(
    accuracies: Mapping[str, Accuracies],
    *,
    density: float,
    epochs: float,
    data: str | None = None,
    similar: float | None = None,
    sufficient_epochs: float | None = None,
    level: float = 0.95,
) -> Verdict:
    """Whether a ticket is a *jackpot* (conditions 1 to 5), a *secondary prize* (1 to 4) or *no ticket*.

    `accuracies`: arm ("ticket", "reinit", "dense", "small-dense") -> learning rate -> test accuracies in
    [0, 1], one a seed: at least 3, at the same 2 or more learning rates in every arm; "omp" may be there as
    well, the ticket of one-shot magnitude pruning that IMP's is compared with. `density`: of the ticket.
    `epochs`: that every arm was trained. `data` gives `similar`, the loss of accuracy that still
    counts as similar, and `sufficient_epochs` where the paper names them; either may be given instead.
    A condition is decided where the interval of its difference lies on one side of its threshold, and the
    verdict where its conditions are; one violated condition of 1 to 4 makes it *no ticket*.
    Raises `ArgumentError`.
    """
    arms = _checked_arms(accuracies)
    if similar is None:
        if data is None:
            raise ArgumentError(
                "verdict needs data= or similar=, the loss of accuracy that counts as similar"
            )
        if data not in SIMILAR:
            raise unknown_name("data set", data, SIMILAR)
        similar = SIMILAR[data]
    _check_share("similar", similar)
    if sufficient_epochs is None and data is not None:
        sufficient_epochs = SUFFICIENT_EPOCHS.get(data)
    ticket, reinit, dense, small = (arms[arm] for arm in ARMS)
    same_rate = max(ticket, key=lambda lr: (mean(ticket[lr]) - mean(dense[lr]), -lr))
    conditions = (
        _non_trivial(check_density(density), epochs, sufficient_epochs),
        _clear_gap(2, "small-dense", compare(ticket, small, level=level)),
        _clear_gap(3, "reinit", compare(ticket, reinit, level=level)),
        _similar(4, similar, compare(ticket, dense, rates=(same_rate, same_rate), level=level)),
        _similar(5, similar, compare(ticket, dense, level=level)),
    )
    possible = tuple(outcome for outcome in OUTCOMES if _allows(outcome, [c.holds for c in conditions]))
    by_means = next(outcome for outcome in OUTCOMES if _allows(outcome, [c.by_means for c in conditions]))
    outcome = possible[0] if len(possible) == 1 else UNDECIDED
    one_shot = compare(ticket, arms[ONE_SHOT], level=level) if ONE_SHOT in arms else None
    return Verdict(outcome, possible, by_means, conditions, level, one_shot)


def correlation_indicator(
    theta: Mapping[str, Tensor], theta2: Mapping[str, Tensor], masks: Masks, p: float = 0.1, *, seed: int = 0
) -> float:
    """R_p: the share of the p largest kept weights by magnitude of `theta` that are among those of `theta2`.

    Over all kept weights together (biases do not count): near p where the two are unrelated, 1 where they
    agree. The two sets hold exactly round(p * kept) weights each; ties fall by `seed`, alike on both sides.
    Raises `ArgumentError` for a weight that is missing, of another shape or NaN, and for an empty set.
    """
    _check_share("p", p)
    weights = masks.weights()
    kept = sum(count for count, _ in weights.counts().values())
    k = round(p * kept)
    if k == 0:
        raise ArgumentError(f"p = {p} of {kept} kept weights is none")
    largest = []
    for label, state in (("theta", theta), ("theta2", theta2)):
        magnitudes = []
        for name, mask in weights.items():
            if name not in state or state[name].shape != mask.shape:
                got = list(state[name].shape) if name in state else "none"
                raise ArgumentError(f"{label}: the mask of {name!r} is {list(mask.shape)}, its weight {got}")
            magnitudes.append(state[name].detach().cpu().double().abs())
            if bool((magnitudes[-1].isnan() & mask.cpu()).any()):
                raise ArgumentError(f"{label}: a kept weight of {name!r} is NaN, which has no rank")
        within = [mask.cpu() for mask in weights.values()]
        largest.append(topk_mask(magnitudes, k=k, seed=seed, within=within))
    return sum(int((a & b).count_nonzero()) for a, b in zip(*largest, strict=True)) / k


def _non_trivial(density: float, epochs: float, sufficient: float | None) -> Condition:
    for what, value in (("epochs", epochs), ("sufficient_epochs", sufficient)):
        if value is not None and not (is_number(value) and 0.0 < value < math.inf):
            raise ArgumentError(f"{what} must be a finite number above 0, got {value!r}")
    removed = 1.0 - density
    enough = sufficient is None or epochs >= sufficient
    margin = rounded(removed - NON_TRIVIAL)
    said = "the paper names no number" if sufficient is None else f"at least {sufficient:g}"
    return Condition(
        1,
        "a non-trivial sparsity and sufficient training",
        holds=margin > 0 and enough,
        by_means=margin > 0 and enough,
        threshold=NON_TRIVIAL,
        margin=margin,
        confidence=None,
        numbers={
            "removed": removed,
            "density": density,
            "epochs": float(epochs),
            "sufficient_epochs": None if sufficient is None else float(sufficient),
        },
        text=f"{removed:.4f} of the weights removed (more than {NON_TRIVIAL:g}), {epochs:g} epochs ({said})",
    )


def _clear_gap(number: int, arm: str, gap: Comparison) -> Condition:
    """The ticket at its best learning rate is more than CLEAR_GAP above the arm at any."""
    return Condition(
        number,
        f"clearly above {arm} at any learning rate",
        holds=gap.above(CLEAR_GAP, inclusive=False),
        by_means=gap.margin(CLEAR_GAP) > 0,
        threshold=CLEAR_GAP,
        margin=gap.margin(CLEAR_GAP),
        confidence=gap.confidence(CLEAR_GAP),
        numbers={"arms": ["ticket", arm], **gap.as_dict()},
        text=_text(arm, gap) + f", must exceed {CLEAR_GAP:g}",
    )


def _similar(number: int, similar: float, gap: Comparison) -> Condition:
    """The ticket is at most `similar` below the dense network."""
    where = "dense at the same learning rate" if number == 4 else "dense at its best learning rate"
    return Condition(
        number,
        f"similar to {where}",
        holds=gap.above(-similar, inclusive=True),
        by_means=gap.margin(-similar) >= 0,
        threshold=-similar,
        margin=gap.margin(-similar),
        confidence=gap.confidence(-similar),
        numbers={"arms": ["ticket", "dense"], **gap.as_dict()},
        text=_text("dense", gap) + f", must be at least {-similar:g}",
    )


def _against(gap: Comparison) -> str:
    """IMP against OMP: which is ahead, where the interval of their difference leaves out 0."""
    word = "undecided"
    if gap.above(0.0, inclusive=False) is not None and gap.difference != 0:
        word = "the ticket is ahead" if gap.difference > 0 else "OMP is ahead"
    return f"OMP: {word} (confidence {gap.confidence(0.0):.3f}): {_text(ONE_SHOT, gap)}"


def _check_share(what: str, value: object) -> None:
    if not is_number(value) or not 0.0 < value <= 1.0:  # type: ignore[operator]
        raise ArgumentError(f"{what} must be a number in (0, 1], got {value!r}")


def _text(arm: str, gap: Comparison) -> str:
    return (
        f"ticket {gap.first:.4f} at lr {gap.first_lr:g}, {arm} {gap.second:.4f} at lr {gap.second_lr:g}: "
        f"difference {gap.difference:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]"
    )


def _allows(outcome: str, holds: Sequence[bool | None]) -> bool:
    """May this be the outcome, where conditions 1 to 5 hold, don't (False) or are open (None)?"""
    first, last = holds[:4], holds[4]
    if outcome == NO_TICKET:
        return not all(first)
    return False not in first and last is not (outcome == SECONDARY)


def _checked_arms(accuracies: object) -> dict[str, dict[float, list[float]]]:
    """The arms with their accuracies as floats; raises `ArgumentError` unless all are there, on one grid."""
    if not isinstance(accuracies, Mapping) or set(accuracies) - {ONE_SHOT} != set(ARMS):
        got = (
            ", ".join(map(str, accuracies)) if isinstance(accuracies, Mapping) else type(accuracies).__name__
        )
        raise ArgumentError(f"accuracies must be of the arms {', '.join(ARMS)}, got {got or 'none'}")
    arms = {arm: checked_arm(arm, rates) for arm, rates in accuracies.items()}
    grid = sorted({lr for rates in arms.values() for lr in rates})
    if len(grid) < 2:
        raise ArgumentError(
            f"a verdict needs at least 2 learning rates, got {grid[0]:g} alone: "
            "conditions 4 and 5 would be the same"
        )
    for arm, rates in arms.items():
        if lacking := [f"{lr:g}" for lr in grid if lr not in rates]:
            raise ArgumentError(f"{arm} lacks the learning rates {', '.join(lacking)}, which others have")
    return arms
