"""Verdicts on hand-made accuracies: every outcome, each single violated condition, and R_p."""

from __future__ import annotations

import json
import math
import os
import secrets
import statistics
import sys
from typing import Any

import numpy as np
import pytest
import torch

from lotterykit.errors import ArgumentError, LotterykitError
from lotterykit.experiments.comparison import compare
from lotterykit.experiments.verdict import ARMS, OUTCOMES, SIMILAR, Verdict, correlation_indicator, verdict
from lotterykit.mask import Masks
from lotterykit.ops.topk_mask import topk_mask_reference

SEED = int(os.environ.get("LOTTERYKIT_TEST_SEED") or secrets.randbits(31))

# Mean accuracies in percent at learning rates .01 and .1, on a 10-class set.
JACKPOT = {
    "ticket": (92.0, 91.0), "reinit": (90.0, 90.5), "dense": (92.1, 92.2), "small-dense": (88.0, 87.0),
}  # fmt: skip
LOW = (91.0, 91.2)
FIRST_OR_NONE, SECOND_OR_NONE = ("jackpot", "no ticket"), ("secondary prize", "no ticket")


def runs(percent: dict[str, tuple[float, ...]], spread: float = 0.01, seeds: int = 3) -> dict[str, Any]:
    """Accuracies of `seeds` seeds around these means, `spread` percent apart."""
    steps = [spread * (i - (seeds - 1) / 2) for i in range(seeds)]
    rates = (0.01, 0.1, 0.5)
    return {
        arm: {lr: [(mean + step) / 100 for step in steps] for lr, mean in zip(rates, means, strict=False)}
        for arm, means in percent.items()
    }


def judged(percent: dict[str, tuple[float, ...]], spread: float = 0.01, **given: Any) -> Verdict:
    return verdict(runs(percent, spread), **({"density": 0.1, "epochs": 160, "data": "cifar-10"} | given))


def holds(found: Verdict) -> list[bool | None]:
    assert [c.number for c in found.conditions] == [1, 2, 3, 4, 5]
    return [c.holds for c in found.conditions]


def test_jackpot() -> None:
    found = judged(JACKPOT)
    assert holds(found) == [True] * 5
    assert (found.outcome, found.by_means, found.possible) == ("jackpot", "jackpot", ("jackpot",))


@pytest.mark.parametrize(
    ("changes", "given", "violated", "outcome"),
    [
        ({}, {"density": 0.4}, 1, "no ticket"),
        ({}, {"epochs": 159}, 1, "no ticket"),
        ({"small-dense": (88.0, 91.6)}, {}, 2, "no ticket"),
        ({"reinit": (90.0, 91.6)}, {}, 3, "no ticket"),
        # far below the dense network of the same rate, near the best one where `similar` allows it
        ({"dense": (92.6, 92.6), "ticket": (92.0, 91.0)}, {}, None, "no ticket"),
        ({"dense": (92.1, 93.0)}, {}, 5, "secondary prize"),
        ({"ticket": (91.6, 91.6), "dense": (89.0, 92.2)}, {}, 5, "secondary prize"),
    ],
)
def test_a_single_violated_condition(
    changes: dict[str, tuple[float, float]], given: dict[str, Any], violated: int | None, outcome: str
) -> None:
    found = judged(JACKPOT | changes, **given)
    assert (found.outcome, found.by_means, found.possible) == (outcome, outcome, (outcome,))
    expected = [number not in ((4, 5) if violated is None else (violated,)) for number in range(1, 6)]
    assert holds(found) == expected


def test_condition_4_alone_cannot_fail() -> None:
    """Whoever matches the best dense network matches the one of that learning rate: 5 implies 4."""
    g = torch.Generator().manual_seed(SEED)
    for _ in range(100):
        means = {arm: tuple((90 + 3 * torch.rand(2, generator=g)).tolist()) for arm in ARMS}
        found = judged(means, spread=1e-6)
        fourth, fifth = found.conditions[3], found.conditions[4]
        assert fourth.by_means or not fifth.by_means
        assert fourth.margin >= fifth.margin - 1e-12


def test_the_reinitialised_ticket_counts_at_any_learning_rate() -> None:
    """Condition 3: ahead at the same rate is not enough where another rate serves the control better."""
    means = {**JACKPOT, "ticket": (92.0, 85.0), "reinit": (80.0, 91.8)}
    third = judged(means).conditions[2]
    assert third.holds is False
    assert (third.numbers["first_lr"], third.numbers["second_lr"]) == (0.01, 0.1)
    assert third.margin == pytest.approx(0.002 - 0.005)


def test_condition_4_takes_the_rate_where_the_ticket_does_best_beside_the_dense_network() -> None:
    means = {**JACKPOT, "ticket": (92.0, 91.0), "dense": (93.0, 91.2)}
    found = judged(means)
    assert holds(found) == [True, True, True, True, False]
    assert found.conditions[3].numbers["first_lr"] == found.conditions[3].numbers["second_lr"] == 0.1
    assert found.conditions[4].numbers["second_lr"] == 0.01


@pytest.mark.parametrize("data", SIMILAR)
def test_thresholds_by_data_set(data: str) -> None:
    """A ticket that is exactly as far below the dense network as may be is similar; a hair further is not."""
    similar = 100 * SIMILAR[data]
    for below, outcome in ((similar, "jackpot"), (similar + 1e-6, "no ticket")):
        dense = (92.0 + below,) * 2
        found = judged(JACKPOT | {"dense": dense}, spread=0.0, data=data)
        assert found.outcome == outcome
        assert [c.threshold for c in found.conditions] == [0.6, 0.005, 0.005, -similar / 100, -similar / 100]


def test_a_clear_gap_is_more_than_half_a_percent_on_every_data_set() -> None:
    for data in SIMILAR:
        for ahead, clear in ((0.5, False), (0.500001, True)):
            means = JACKPOT | {"reinit": (92.0 - ahead, 90.0), "small-dense": (92.0 - ahead, 90.0)}
            found = judged(means, spread=0.0, data=data)
            assert [c.holds for c in found.conditions[1:3]] == [clear, clear]


def test_published_numbers() -> None:
    assert [SIMILAR[name] for name in ("cifar-10", "cifar-100", "tiny-imagenet", "imagenet")] == [
        0.005, 0.01, 0.01, 0.015,
    ]  # fmt: skip


def test_own_thresholds_and_epochs_that_no_paper_names() -> None:
    dense = {"dense": (93.0, 93.0)}
    assert judged(JACKPOT | dense, data=None, similar=0.02, epochs=3).outcome == "jackpot"
    assert (
        judged(JACKPOT | dense, data=None, similar=0.02, epochs=3, sufficient_epochs=4).outcome == "no ticket"
    )
    assert judged(JACKPOT | dense, similar=0.02).outcome == "jackpot", "beside a data set"
    found = judged(JACKPOT, data="fashion-mnist", epochs=3)
    assert found.outcome == "jackpot"
    assert "3 epochs (the paper names no number)" in str(found.conditions[0])
    assert found.conditions[0].confidence is None


@pytest.mark.parametrize(
    ("changes", "possible", "by_means"),
    [
        ({"dense": LOW, "reinit": (90.0, 91.3)}, FIRST_OR_NONE, "jackpot"),
        ({"dense": LOW, "reinit": (90.0, 91.7)}, FIRST_OR_NONE, "no ticket"),
        ({"dense": (91.0, 92.4)}, ("jackpot", "secondary prize"), "jackpot"),
        ({"dense": (91.0, 92.7)}, ("jackpot", "secondary prize"), "secondary prize"),
        ({"dense": (91.0, 94.0), "reinit": (90.0, 91.3)}, SECOND_OR_NONE, "secondary prize"),
        ({"dense": (92.4, 92.4), "reinit": (90.0, 91.3)}, OUTCOMES, "jackpot"),
    ],
)
def test_intervals_across_a_threshold_leave_it_open(
    changes: dict[str, tuple[float, float]], possible: tuple[str, ...], by_means: str
) -> None:
    found = judged(JACKPOT | changes, spread=0.2)
    assert (found.outcome, found.possible, found.by_means) == ("undecided", possible, by_means)
    assert found.lines()[0].startswith(f"undecided (at confidence 0.95): {' or '.join(possible)}; more seeds")
    seeds = verdict(runs(JACKPOT | changes, 0.003, seeds=9), density=0.1, epochs=160, data="cifar-10")
    assert seeds.outcome == by_means, "more and closer seeds tell"


def test_a_violated_condition_decides_whatever_is_open() -> None:
    found = judged(JACKPOT | {"reinit": (95.0, 95.0), "dense": (92.1, 92.5)}, spread=0.2)
    assert found.conditions[4].holds is None
    assert found.outcome == "no ticket"


def test_intervals_are_welchs() -> None:
    """Against scipy's own test, at the level that the choice among learning rates leaves."""
    stats = pytest.importorskip("scipy.stats")
    g = torch.Generator().manual_seed(SEED)
    for count in (1, 2, 4):
        rates = [0.01 * 2**i for i in range(count)]
        sizes = torch.randint(3, 9, (2,), generator=g).tolist()
        arms = [
            {lr: (0.9 + 0.02 * torch.rand(n, generator=g, dtype=torch.float64)).tolist() for lr in rates}
            for n in sizes
        ]
        found = compare(*arms, level=0.9)
        a, b = (max(arm.values(), key=statistics.fmean) for arm in arms)
        tested = stats.ttest_ind(a, b, equal_var=False)
        low, high = tested.confidence_interval(1 - 0.1 / count)
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
        assert found.freedom == pytest.approx(tested.df, rel=1e-9)
        p = min(1.0, count * tested.pvalue)
        assert found.confidence(0.0) == pytest.approx(1 - p, abs=1e-7)
        for threshold in (found.low - 1e-6, found.low + 1e-6, found.high - 1e-6, found.high + 1e-6):
            decided = found.above(threshold, inclusive=True)
            assert (decided is None) == (found.confidence(threshold) < 0.9)
            assert decided is None or decided == (threshold < found.low)


def test_intervals_cover_as_often_as_they_say() -> None:
    """2,000 pairs of equal arms of 3 seeds at 3 rates: a decision that is wrong comes in at most 5 %."""
    g = torch.Generator().manual_seed(SEED)
    wrong, trials = 0, 2000
    for _ in range(trials):
        draws = (0.9 + 0.002 * torch.randn(2, 3, 3, generator=g, dtype=torch.float64)).tolist()
        arms = [{lr: arm[i] for i, lr in enumerate((0.01, 0.1, 1.0))} for arm in draws]
        wrong += compare(*arms).above(0.0, inclusive=True) is not None
    assert wrong / trials < 0.05 + 5 * (0.05 * 0.95 / trials) ** 0.5


def test_more_seeds_in_one_arm_and_accuracies_of_numpy() -> None:
    arms = runs(JACKPOT)
    arms["reinit"] = {lr: [*v, *v, *v] for lr, v in arms["reinit"].items()}
    arms["ticket"] = {np.float64(lr): [np.float32(x) for x in v] for lr, v in arms["ticket"].items()}
    found = verdict(arms, density=0.1, epochs=160, data="cifar-10")
    assert found.outcome == "jackpot"
    assert found.conditions[2].numbers["seeds"] == [3, 9]


def test_plain_json_and_lines() -> None:
    for found in (judged(JACKPOT), judged(JACKPOT | {"reinit": (90.0, 91.3)}, spread=0.2)):
        plain = found.as_dict()
        assert json.loads(json.dumps(plain, allow_nan=False)) == plain
        assert len(found.lines()) == 6
        assert str(found).splitlines() == found.lines()
    third = found.lines()[3]
    assert third.startswith("3 undecided (confidence 0.")
    for number in ("ticket 0.9200 at lr 0.01", "reinit 0.9130 at lr 0.1", "+0.0070", "must exceed 0.005"):
        assert number in third


@pytest.mark.parametrize(
    ("omp", "spread", "word"),
    [
        (
            (91.0, 91.2),
            0.01,
            "OMP: the ticket is ahead (confidence 1.000): ticket 0.9200 at lr 0.01, omp 0.9120",
        ),
        ((93.0, 92.0), 0.01, "OMP: OMP is ahead (confidence 1.000): ticket 0.9200 at lr 0.01, omp 0.9300"),
        ((91.9, 92.0), 0.5, "OMP: undecided (confidence 0."),
    ],
)
def test_one_shot_pruning_is_compared_and_decides_nothing(omp, spread, word) -> None:
    arms = runs(JACKPOT)
    without = verdict(arms, density=0.1, epochs=160, data="cifar-10")
    found = verdict(
        arms | {"omp": runs({"omp": omp}, spread)["omp"]}, density=0.1, epochs=160, data="cifar-10"
    )
    assert found.conditions == without.conditions
    assert found.outcome == without.outcome
    assert without.one_shot is None
    assert found.lines()[-1].startswith(word)
    assert found.lines()[:-1] == without.lines()
    plain = found.as_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["one_shot"]["second"] == pytest.approx(max(omp) / 100)


@pytest.mark.parametrize(
    ("change", "given", "message"),
    [
        (
            {"small-dense": None},
            {},
            r"of the arms ticket, reinit, dense, small-dense, got ticket, reinit, dense$",
        ),
        ({"shuffle": {0.1: [0.1] * 3}}, {}, "accuracies must be of the arms"),
        ({"reinit": {0.01: [0.9] * 3}}, {}, "reinit lacks the learning rates 0.1, which others have"),
        (
            {"dense": {0.01: [0.9] * 3, 0.1: [0.9] * 3, 0.2: [0.9] * 3}},
            {},
            "ticket lacks the learning rates 0.2",
        ),
        (
            {"ticket": {0.01: [0.9] * 3, 0.1: [0.9] * 2}},
            {},
            "ticket at lr 0.1 needs the accuracies of 3 seeds",
        ),
        ({"ticket": {0.01: 0.9, 0.1: 0.9}}, {}, "ticket at lr 0.01 needs the accuracies of 3 seeds, got 0.9"),
        ({"ticket": {0.01: [91.0] * 3, 0.1: [0.9] * 3}}, {}, r"accuracies must lie in \[0, 1\], got 91.0"),
        ({"ticket": {0.01: [math.nan] * 3, 0.1: [0.9] * 3}}, {}, r"must lie in \[0, 1\], got nan"),
        ({"ticket": {0.01: ["1"] * 3, 0.1: [0.9] * 3}}, {}, r"must lie in \[0, 1\], got '1'"),
        (
            {"ticket": {"0.01": [0.9] * 3}},
            {},
            "ticket: learning rates must be finite numbers above 0, got '0.01'",
        ),
        ({"ticket": {0: [0.9] * 3}}, {}, "learning rates must be finite numbers above 0, got 0"),
        ({"ticket": {}}, {}, "ticket must map learning rates to accuracies"),
        ({}, {"density": 0.0}, r"must lie in \(0, 1\]"),
        ({}, {"epochs": 0}, "epochs must be a finite number above 0, got 0"),
        ({}, {"epochs": math.inf}, "epochs must be a finite number above 0, got inf"),
        ({}, {"sufficient_epochs": -1}, "sufficient_epochs must be a finite number above 0, got -1"),
        ({}, {"data": "cifr-10"}, "unknown data set 'cifr-10'; did you mean 'cifar-10'"),
        ({}, {"data": None}, "verdict needs data= or similar="),
        ({}, {"similar": "1 %"}, r"similar must be a number in \(0, 1\], got '1 %'"),
        ({}, {"similar": 0.0}, r"similar must be a number in \(0, 1\], got 0.0"),
        ({}, {"level": 1.0}, r"level must be a number in \[.5, 1\), got 1.0"),
        ({}, {"level": "high"}, "level must be a number"),
    ],
)
def test_refusals(change: dict[str, Any], given: dict[str, Any], message: str) -> None:
    arms = {arm: rates for arm, rates in (runs(JACKPOT) | change).items() if rates is not None}
    with pytest.raises(ArgumentError, match=message) as error:
        verdict(arms, **({"density": 0.1, "epochs": 160, "data": "cifar-10"} | given))
    assert "\n" not in str(error.value)


def test_one_learning_rate_is_no_grid() -> None:
    arms = {arm: {0.1: [0.9] * 3} for arm in ARMS}
    with pytest.raises(ArgumentError, match=r"needs at least 2 learning rates, got 0\.1 alone"):
        verdict(arms, density=0.1, epochs=160, data="cifar-10")
    assert compare(arms["ticket"], arms["dense"]).difference == 0.0
    with pytest.raises(ArgumentError, match="rates must be learning rates of the two arms"):
        compare(arms["ticket"], arms["dense"], rates=(0.1, 0.2))


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(LotterykitError, match="need scipy: pip install scipy"):
        judged(JACKPOT)


# The correlation indicator


def random_weights(g: torch.Generator, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    shapes = {"0.weight": (7, 3, 3, 3), "0.bias": (7,), "4.weight": (11, 63), "6.weight": (3, 11)}
    return {n: torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for n, s in shapes.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_indicator_against_the_definition(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(SEED)
    for seed in range(20):
        a, b = random_weights(g, dtype), random_weights(g, dtype)
        b = {n: (t + float(torch.rand((), generator=g)) * 4 * a[n]).to(dtype) for n, t in b.items()}
        masks = Masks({n: torch.rand(t.shape, generator=g) < 0.4 for n, t in a.items()})
        p = float(torch.rand((), generator=g)) * 0.9 + 0.05
        names = [n for n in masks if n.endswith("weight")]
        k = round(p * sum(int(masks[n].sum()) for n in names))
        top = [
            topk_mask_reference(
                [torch.cat([s[n].double().abs().flatten() for n in names])],
                k=k,
                seed=seed,
                within=[torch.cat([masks[n].flatten() for n in names])],
            )[0]
            for s in (a, b)
        ]
        assert correlation_indicator(a, b, masks, p, seed=seed) == int((top[0] & top[1]).sum()) / k
        assert correlation_indicator(a, b, masks, p, seed=seed) == correlation_indicator(
            b, a, masks, p, seed=seed
        )
        assert correlation_indicator(a, {n: -t for n, t in a.items()}, masks, p) == 1.0


def test_indicator_of_unrelated_weights_is_near_p() -> None:
    """Hypergeometric: within 6 standard deviations of p."""
    g = torch.Generator().manual_seed(SEED)
    n = 40_000
    masks = Masks({"w": torch.ones(n, dtype=torch.bool)})
    a, b = ({"w": torch.randn(n, generator=g)} for _ in range(2))
    for p in (0.1, 0.5):
        spread = (p * (1 - p) / (p * n)) ** 0.5
        assert abs(correlation_indicator(a, b, masks, p) - p) < 6 * spread
    assert correlation_indicator(a, b, masks, 1.0) == 1.0


def test_indicator_with_ties_keeps_exact_counts() -> None:
    """Constant magnitudes: the sets are drawn by the seed; against untied weights the overlap is near p."""
    g = torch.Generator().manual_seed(SEED)
    masks = Masks({"w": torch.rand(200, 200, generator=g) < 0.5})
    tied, free = {"w": torch.full((200, 200), -0.3)}, {"w": torch.randn(200, 200, generator=g)}
    kept = int(masks["w"].sum())
    k = round(0.1 * kept)
    found = correlation_indicator(tied, free, masks, seed=1)
    assert found * k == pytest.approx(round(found * k))
    assert abs(found - 0.1) < 6 * (0.09 / k) ** 0.5
    assert found == correlation_indicator(tied, free, masks, seed=1)
    assert len({correlation_indicator(tied, free, masks, seed=s) for s in range(8)}) > 1
    assert correlation_indicator(tied, tied, masks) == 1.0


def test_pruned_weights_do_not_count() -> None:
    masks = Masks({"w": torch.tensor([True, True, True, True, False])})
    a = {"w": torch.tensor([1.0, 2.0, 3.0, 4.0, 100.0])}
    b = {"w": torch.tensor([9.0, 0.0, 0.0, 8.0, math.nan])}
    assert correlation_indicator(a, b, masks, p=0.5) == 0.5


@pytest.mark.parametrize(
    ("theta", "theta2", "p", "message"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0, r"p must be a number in \(0, 1\], got 0.0"),
        ([1.0, 2.0], [1.0, 2.0], 1.5, r"p must be a number in \(0, 1\], got 1.5"),
        ([1.0, 2.0], [1.0, 2.0], 0.1, "p = 0.1 of 2 kept weights is none"),
        ([1.0, 2.0], [1.0, math.nan], 0.5, "theta2: a kept weight of 'w' is NaN"),
        ([1.0], [1.0, 2.0], 0.5, r"theta: the mask of 'w' is \[2\], its weight \[1\]"),
        ([1.0, 2.0], None, 0.5, "theta2: the mask of 'w' is .*, its weight none"),
    ],
)
def test_indicator_refusals(theta: list[float], theta2: list[float] | None, p: float, message: str) -> None:
    masks = Masks({"w": torch.ones(2, dtype=torch.bool)})
    states = [{} if t is None else {"w": torch.tensor(t)} for t in (theta, theta2)]
    with pytest.raises(ArgumentError, match=message):
        correlation_indicator(*states, masks, p)
