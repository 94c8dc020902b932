"""Levels of iterative magnitude pruning: exact counts, the lowest scores go, nothing returns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lotterykit.errors import ArgumentError
from lotterykit.mask import Masks
from lotterykit.pruning.levels import level_masks

SHAPES = [(5, 7), (1,), (0, 3), (4, 2, 3, 3), (1, 1), (11,), ()]


def case(seed: int, *, values: int | None = None) -> tuple[Masks, dict[str, Tensor]]:
    """Random masks and scores of `SHAPES`; with `values`, that many different scores only."""
    g = torch.Generator().manual_seed(seed)
    density = float(torch.rand(1, generator=g))
    masks = {f"t{i}": torch.rand(shape, generator=g) < density for i, shape in enumerate(SHAPES)}
    scores = {name: torch.randn(mask.shape, generator=g) for name, mask in masks.items()}
    if values is not None:
        scores = {name: (s * values).round().abs().clamp(max=values) for name, s in scores.items()}
    for name, mask in masks.items():
        scores[name] = torch.where(mask, scores[name], float("nan"))  # no one reads those of pruned weights
    return Masks(masks), scores


def kept(mask: Tensor) -> int:
    return int(mask.count_nonzero())


@pytest.mark.parametrize("values", [None, 1])
@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.99])
def test_local_counts_are_exact_and_the_lowest_scores_go(values: int | None, fraction: float) -> None:
    for seed in range(25):
        masks, scores = case(seed, values=values)
        fractions = dict.fromkeys(masks, fraction) | {"t3": 0.1}
        found = level_masks(masks, scores, fractions, seed=seed)
        assert list(found) == list(masks)
        for name, mask in masks.items():
            after = found[name]
            assert after.shape == mask.shape
            assert not bool((after & ~mask).any())
            wanted = round((1 - fractions[name]) * kept(mask))
            assert kept(after) == (max(1, wanted) if kept(mask) else 0), (seed, name)
            gone = mask & ~after
            if kept(gone):
                assert float(scores[name][gone].max()) <= float(scores[name][after].min())


@pytest.mark.parametrize("values", [None, 1])
def test_global_counts_all_tensors_with_a_fraction_together(values: int | None) -> None:
    for seed in range(25):
        masks, scores = case(seed, values=values)
        fractions = dict.fromkeys(masks, 0.3) | {"t0": 0.0}
        found = level_masks(masks, scores, fractions, scope="global", seed=seed)
        assert torch.equal(found["t0"], masks["t0"])
        cut = [name for name in masks if name != "t0"]
        before, after = (sum(kept(m[name]) for name in cut) for m in (masks, found))
        assert after == max(min(before, 1), round(0.7 * before))
        dropped = torch.cat([scores[n][masks[n] & ~found[n]].flatten() for n in cut])
        stayed = torch.cat([scores[n][found[n]].flatten() for n in cut])
        assert not bool((torch.cat([found[n].flatten() & ~masks[n].flatten() for n in cut])).any())
        if len(dropped):
            assert float(dropped.max()) <= float(stayed.min())


def test_p4s_levels_of_lenet() -> None:
    """20 % of each layer, 10 % of the last, level after level, of the weights that are left."""
    g = torch.Generator().manual_seed(0)
    shapes = {"a": (300, 784), "b": (100, 300), "c": (10, 100)}
    masks = Masks({name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()})
    expected = {name: m.numel() for name, m in masks.items()}
    fractions = {"a": 0.2, "b": 0.2, "c": 0.1}
    for level in range(1, 6):
        scores = {name: torch.randn(shape, generator=g).abs() for name, shape in shapes.items()}
        masks = level_masks(masks, scores, fractions, seed=level)
        expected = {name: round((1 - fractions[name]) * count) for name, count in expected.items()}
        assert {name: kept(mask) for name, mask in masks.items()} == expected
    assert masks.density() == pytest.approx(0.8**5, abs=2e-3)


def test_a_tensor_with_one_kept_weight_keeps_it() -> None:
    one, none = torch.tensor([False, True, False]), torch.zeros(3, dtype=torch.bool)
    masks, scores = {"one": one, "none": none}, {"one": torch.zeros(3), "none": torch.zeros(3)}
    found = level_masks(masks, scores, {"one": 0.9, "none": 0.9})
    assert torch.equal(found["one"], one)
    assert not bool(found["none"].any())
    together = level_masks(masks | {"low": one}, scores | {"low": -torch.ones(3)},
                           dict.fromkeys(("one", "none", "low"), 0.9), scope="global")  # fmt: skip
    assert torch.equal(together["one"], one)
    assert not bool(together["low"].any())


def test_ties_are_drawn_by_the_seed_and_apart_for_each_tensor() -> None:
    masks = {name: torch.ones(200, dtype=torch.bool) for name in "ab"}
    scores = {name: torch.zeros(200) for name in "ab"}
    fractions = dict.fromkeys("ab", 0.5)
    first, again, other = (level_masks(masks, scores, fractions, seed=s) for s in (1, 1, 2))
    assert all(torch.equal(first[n], again[n]) for n in "ab")
    assert not torch.equal(first["a"], other["a"])
    assert not torch.equal(first["a"], first["b"])
    assert 25 < kept(first["a"][:100]) < 75  # not the first in order


def test_fraction_0_needs_no_score_and_the_masks_given_stay_as_they_are() -> None:
    masks = {"a": torch.ones(10, dtype=torch.bool), "b": torch.ones(4, dtype=torch.bool)}
    scores = {"a": torch.arange(10.0), "unused": torch.zeros(1)}
    found = level_masks(masks, scores, {"a": 0.3, "b": 0})
    assert found["a"].tolist() == [False] * 3 + [True] * 7
    assert bool(masks["a"].all())
    assert bool(found["b"].all())
    assert level_masks({}, {}, {}, scope="global") == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scope": "layer"}, "unknown scope 'layer'"),
        ({"scope": "global", "fractions": {"a": 0.2, "b": 0.1}}, r"together, got a 0\.2, b 0\.1"),
        ({"fractions": {"a": 0.2}}, "fractions hold none for b"),
        ({"fractions": {"a": 0.2, "b": 0.2, "bb": 0.1}}, "unknown tensor with a fraction 'bb'"),
        ({"fractions": {"a": 1.0, "b": 0.2}}, r"fraction of a .* \[0, 1\), got 1\.0"),
        ({"fractions": {"a": -0.1, "b": 0.2}}, r"\[0, 1\), got -0\.1"),
        ({"fractions": {"a": float("nan"), "b": 0.2}}, r"\[0, 1\), got nan"),
        ({"fractions": {"a": True, "b": 0.2}}, "got True"),
        ({"scores": {"a": torch.zeros(3)}}, "scores hold none for it"),
        ({"scores": {"a": torch.zeros(3), "b": torch.zeros(3)}}, r"scores of b must be .* \[2\]"),
        ({"scores": {"a": torch.zeros(3), "b": [0.0, 0.0]}}, "got list"),
        ({"scores": {"a": torch.zeros(3), "b": torch.tensor([0.0, float("nan")])}}, "scores of b: .*NaN"),
        (
            {"scores": {"a": torch.zeros(3), "b": torch.zeros(2, dtype=torch.int64)}},
            "scores of b: .*floating",
        ),
        ({"seed": -1}, "seed must be an int"),
        ({"masks": {"a": torch.ones(3), "b": torch.ones(2)}}, "must be a bool tensor"),
    ],
)
def test_refusals(changes: dict, message: str) -> None:
    arguments = {
        "masks": {"a": torch.ones(3, dtype=torch.bool), "b": torch.ones(2, dtype=torch.bool)},
        "scores": {"a": torch.zeros(3), "b": torch.zeros(2)},
        "fractions": {"a": 0.2, "b": 0.2},
    } | changes
    with pytest.raises(ArgumentError, match=message):
        level_masks(**arguments)
