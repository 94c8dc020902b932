"""Densities and counts per layer: the papers' formulas by hand, sums, caps, monotone rounds, refusals."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import nn

from lotterykit.errors import ArgumentError
from lotterykit.mask import Masks
from lotterykit.nn.convert import convert_
from lotterykit.nn.models import mlp
from lotterykit.pruning.allocation import ALLOCATIONS, apportioned, layer_densities
from lotterykit.pruning.prune import Pruner, prune_
from lotterykit.pruning.schedules import SCHEDULES, density_after

SMART = ("smart-ratio", "smart-ratio-vgg")


def convolutional() -> nn.Sequential:
    """Weights of 108, 288, 64, 90 and 20 entries; the last linear layer is the last."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(9, 10), nn.Linear(10, 2)
    )


def sizes(model: nn.Module) -> dict[str, int]:
    return {name: mask.numel() for name, mask in Masks.from_model(model).weights().items()}


def kept_by(densities: dict[str, float], model: nn.Module) -> float:
    return sum(densities[name] * size for name, size in sizes(model).items())


def random_model(generator: random.Random) -> nn.Sequential:
    """1 to 6 layers that need not fit each other, some of one entry or none, the last one linear."""
    side = lambda: generator.choice([0, 1, 1, 2, 3, 7, 20])  # noqa: E731
    layers: list[nn.Module] = []
    for _ in range(generator.randrange(6)):
        if generator.random() < 0.5:
            groups = generator.choice([1, 2])
            inside, outside = (max(1, side()) * groups for _ in range(2))
            layers.append(nn.Conv2d(inside, outside, (1, generator.choice([1, 3])), groups=groups))
        else:
            layers.append(nn.Linear(side(), side()))
    return nn.Sequential(*layers, nn.Linear(1 + side(), 1 + side()))


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_random_shapes_sum_to_the_density_and_stay_within_their_layers(allocation: str) -> None:
    generator, reached = random.Random(7), 0
    for case in range(150):
        model = random_model(generator)
        total = sum(sizes(model).values())
        density = generator.choice([generator.uniform(0.001, 1.0), 1 / total, 0.5, 0.9, 1.0])
        last = model[-1].weight.numel()
        if allocation in SMART and not 0.3 * last < density * total <= total - 0.7 * last:
            with pytest.raises(ArgumentError, match=f"gives {len(model) - 1}.weight density 0.3"):
                layer_densities(model, allocation, density)
            continue
        found = layer_densities(model, allocation, density)
        reached += 1
        assert list(found) == list(sizes(model))
        assert all(0.0 <= rate <= 1.0 for rate in found.values()), (case, found)
        assert kept_by(found, model) == pytest.approx(density * total, rel=1e-9)
        masks = prune_(model, "random", density=density, allocation=allocation, seed=case)
        counts = masks.counts()
        assert sum(kept for kept, _ in counts.values()) == round(density * total), case
        for name, (kept, size) in counts.items():
            share = found[name] * size
            assert math.floor(share - 1e-6) <= kept <= min(size, math.ceil(share + 1e-6)), (case, name)
    assert reached > (40 if allocation in SMART else 149)


def test_smart_ratio_by_hand() -> None:
    """L = 5: proportions 30, 20, 12, 6 and .3 of the last. 114 = 570 * .2 weights, 6 of them in the last
    layer, so 108 over 108 * 30 + 288 * 20 + 64 * 12 + 90 * 6 = 10308: gamma = 108 / 10308."""
    found = layer_densities(convolutional(), "smart-ratio", 0.2)
    gamma = 108 / 10308
    expected = [30 * gamma, 20 * gamma, 12 * gamma, 6 * gamma, 0.3]
    assert list(found.values()) == pytest.approx(expected, rel=1e-12)
    assert found["0.weight"] == pytest.approx(0.31431897, abs=1e-8)


def test_smart_ratio_of_a_vgg_by_hand() -> None:
    """Divided by l^2: 30, 5, 4/3, 3/8 over 108 * 30 + 288 * 5 + 64 * 4/3 + 90 * 3/8 = 4799.0833."""
    found = layer_densities(convolutional(), "smart-ratio-vgg", 0.2)
    gamma = 108 / (3240 + 1440 + 256 / 3 + 33.75)
    assert list(found.values()) == pytest.approx(
        [30 * gamma, 5 * gamma, 4 / 3 * gamma, 0.375 * gamma, 0.3], rel=1e-12
    )


def test_smart_ratio_hands_on_what_exceeds_1() -> None:
    """.9 of 570 is 513, 507 without the last layer; gamma = 507 / 10308 makes the first layer 1.4755 and,
    with its 51.4 weights more, the second 1.1619: both 1, and 46.6 weights go to the third (.5902 + .7285:
    1), and 20.4 of them to the fourth (.2951 + .2267)."""
    found = list(layer_densities(convolutional(), "smart-ratio", 0.9).values())
    assert found[:3] == [1.0, 1.0, 1.0]
    assert found[3] == pytest.approx((507 - 108 - 288 - 64) / 90, rel=1e-12)
    assert found[4] == 0.3
    partly = list(layer_densities(convolutional(), "smart-ratio", 0.7).values())
    gamma = (0.7 * 570 - 6) / 10308
    assert partly[0] == 1.0
    assert 30 * gamma > 1.0
    assert partly[1] == pytest.approx(20 * gamma + (30 * gamma - 1) * 108 / 288, rel=1e-12)
    assert partly[2:4] == pytest.approx([12 * gamma, 6 * gamma], rel=1e-12)


def test_smart_ratio_of_lenet() -> None:
    """Only the last of its linear layers has .3."""
    model = mlp([784, 300, 100, 10], seed=0)
    found = layer_densities(model, "smart-ratio", 0.05)
    gamma = (0.05 * 266_200 - 300) / (235_200 * 12 + 30_000 * 6)
    assert list(found.values()) == pytest.approx([12 * gamma, 6 * gamma, 0.3], rel=1e-12)
    half = layer_densities(model, "smart-ratio", 0.05, last=0.5)
    assert half["4.weight"] == 0.5
    assert kept_by(half, model) == pytest.approx(0.05 * 266_200, rel=1e-12)


def test_smart_ratio_without_a_linear_layer_fixes_none() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 1))  # 18 and 4 weights, proportions 6 and 2
    found = layer_densities(model, "smart-ratio", 0.5)
    gamma = 11 / (18 * 6 + 4 * 2)
    assert list(found.values()) == pytest.approx([6 * gamma, 2 * gamma], rel=1e-12)


def test_erk_by_hand() -> None:
    """Sums of dimensions 13, 18, 18, 19, 12 are proportional to the weights kept; 1 - .2 of 570 remain.
    Scale 114 / 80 makes the last layer 17.1 of 20: none is capped."""
    found = layer_densities(convolutional(), "erk", 0.2)
    kept = [rate * size for rate, size in zip(found.values(), sizes(convolutional()).values(), strict=True)]
    assert kept == pytest.approx([s * 114 / 80 for s in (13, 18, 18, 19, 12)], rel=1e-12)


def test_erk_solves_again_without_the_layers_it_fills() -> None:
    """At .5 the last layer (285 * 12 / 80 = 42.75 of 20), then 265 over 68: the third (70.1 of 64), then 201
    over 50."""
    found = list(layer_densities(convolutional(), "erk", 0.5).values())
    assert found[2] == found[4] == 1.0
    assert [found[0] * 108, found[1] * 288, found[3] * 90] == pytest.approx(
        [13 * 201 / 50, 18 * 201 / 50, 19 * 201 / 50], rel=1e-12
    )
    assert set(layer_densities(convolutional(), "erk", 1.0).values()) == {1.0}


def test_a_mapping_names_some_layers_and_the_others_share_the_rest() -> None:
    model = mlp([4, 10, 10, 2], seed=0)  # 40, 100, 20
    found = layer_densities(model, {"4.weight": 0.5, "0.weight": 1}, 0.4)
    assert found == {"0.weight": 1.0, "2.weight": pytest.approx(14 / 100), "4.weight": 0.5}
    assert layer_densities(model, {}, 0.4) == dict.fromkeys(found, 0.4)
    assert layer_densities(model, {"0.weight": 0.1, "4.weight": 0.3}, 0.0625)["2.weight"] == 0.0


def test_a_tickets_own_densities_give_its_counts() -> None:
    for seed in range(20):
        ticket = prune_(mlp([7, 31, 17, 4], seed=seed), "magnitude", density=0.05 + 0.04 * seed, seed=seed)
        masks = prune_(
            mlp([7, 31, 17, 4], seed=seed), "random", density=ticket.density(), allocation=ticket.per_layer()
        )
        assert masks.counts() == ticket.counts()


def test_uniform_sums_exactly_where_local_scope_does_not() -> None:
    widths = [3, 5, 5, 5, 3]
    local = prune_(mlp(widths, seed=0), "magnitude", density=0.3, scope="local")
    exact = prune_(mlp(widths, seed=0), "magnitude", density=0.3, allocation="uniform")
    assert [kept for kept, _ in local.counts().values()] == [4, 8, 8, 4]
    assert [kept for kept, _ in exact.counts().values()] == [5, 8, 7, 4]  # 4.5, 7.5, 7.5, 4.5
    assert round(0.3 * 80) == 24


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("allocation", ["erk", "smart-ratio", {"2.weight": 0.01}, {"0.weight": 0.0}])
@pytest.mark.parametrize("method", ["magnitude", "synflow"])
def test_each_layer_follows_the_schedule_and_never_grows(schedule: str, allocation, method: str) -> None:
    model = mlp([8, 30, 20, 5], seed=0)
    prune_(model, "random", density=0.8, seed=1)
    starts = Masks.from_model(model).per_layer()
    ends = layer_densities(model, allocation, 0.1)
    pruner = Pruner(
        model, method, density=0.1, rounds=7, schedule=schedule, allocation=allocation, scope="local"
    )
    before = Masks.from_model(model)
    for number in range(1, 8):
        masks = pruner.step()
        for name, (kept, size) in masks.counts().items():
            assert not bool((masks[name] & ~before[name]).any())
            if number < 7 and ends[name]:
                rate = density_after(schedule, end=ends[name], round=number, rounds=7, start=starts[name])
                assert abs(kept - rate * size) <= 1.0
        before = masks
    assert sum(kept for kept, _ in masks.counts().values()) == round(0.1 * 940)


def test_synflow_in_one_call_counts_as_round_by_round() -> None:
    found = []
    for together in (True, False):
        model = mlp([8, 30, 20, 5], seed=0)
        pruner = Pruner(model, "synflow", density=0.05, rounds=20, allocation="erk", seed=4)
        found.append(pruner.run() if together else [pruner.step() for _ in range(20)][-1])
        assert len(pruner.history) == 20
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_sparse_and_masked_models_have_the_densities_of_plain_ones() -> None:
    model = convolutional()
    expected = layer_densities(model, "erk", 0.3)
    masks = prune_(model, "random", density=0.9)
    assert layer_densities(model, "erk", 0.3) == expected
    convert_(model, masks=masks, format="sparse")
    assert layer_densities(model, "erk", 0.3) == expected


@pytest.mark.parametrize(
    ("allocation", "density", "message"),
    [
        ("smart-ratio", 0.0105, r"gives 4\.weight density 0\.3, 6 of 570 weights.*\(0\.0105263, 0\.975439\]"),
        ("smart-ratio", 0.98, r"4\.weight density 0\.3.*0\.975439\], got 0\.98"),
        ("smart-ratios", 0.5, "did you mean 'smart-ratio'"),
        (None, 0.5, "unknown allocation 'None'"),
        ({"4.wait": 0.5}, 0.5, r"unknown layer in allocation '4\.wait'; did you mean '4\.weight'"),
        ({"4.weight": 1.5}, 0.5, r"gives 4\.weight a density that must lie in \[0, 1\], got 1\.5"),
        ({"4.weight": True}, 0.5, r"4\.weight.*got True"),
        ({"4.weight": float("nan")}, 0.5, r"4\.weight.*got nan"),
        ({"1.weight": 1.0}, 0.3, r"leaves 0\.weight, 2\.weight.*-0\.41.*\[0\.505263, 1\], got 0\.3"),
        ({"1.weight": 0.0}, 0.9, r"leaves 0\.weight.*\[0, 0\.494737\], got 0\.9"),
        (dict.fromkeys(("0.weight", "1.weight", "2.weight", "3.weight", "4.weight"), 0.5), 0.4, "285 of 570"),
        ("erk", 0.0, r"\(0, 1\]"),
        ("erk", "half", "density must be a number"),
    ],
)
def test_refusals(allocation, density, message: str) -> None:
    model = convolutional()
    with pytest.raises(ArgumentError, match=message):
        layer_densities(model, allocation, density)
    if allocation is not None:
        with pytest.raises(ArgumentError, match=message):
            prune_(model, "magnitude", density=density, allocation=allocation)
        assert type(model[0]) is nn.Conv2d


def test_refusals_of_last() -> None:
    for last in (0.0, 1.5, "all"):
        with pytest.raises(ArgumentError, match="last"):
            layer_densities(convolutional(), "smart-ratio", 0.2, last=last)
    with pytest.raises(ArgumentError, match=r"0\.weight density 0\.3"):
        layer_densities(nn.Sequential(nn.Linear(4, 5)), "smart-ratio", 0.5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"scope": "global"}, "pass one of them"),
        ({"prune_bias": True}, "excludes prune_bias"),
        ({"scope": "layer"}, "unknown scope"),
    ],
)
def test_what_an_allocation_excludes(kwargs: dict, message: str) -> None:
    model = mlp([4, 10, 2], seed=0)
    with pytest.raises(ArgumentError, match=message):
        prune_(model, "magnitude", density=0.5, allocation="erk", **kwargs)
    assert type(model[0]) is nn.Linear


def test_a_layer_with_too_few_weights_left_is_named() -> None:
    model = mlp([4, 10, 10, 2], seed=0)
    prune_(model, "random", density=0.5, allocation={"4.weight": 0.1})
    with pytest.raises(ArgumentError, match=r"monotone: 4\.weight was given density 0\.3, 6 of 20.*only 2"):
        prune_(model, "magnitude", density=0.2, allocation="smart-ratio")


def test_the_largest_remainders_are_rounded_up_the_first_of_equal_ones() -> None:
    full = dict.fromkeys("abcd", 9)
    assert apportioned({"a": 1.2, "b": 2.7, "c": 3.6, "d": 0.5}, full, 8) == {"a": 1, "b": 3, "c": 4, "d": 0}
    assert apportioned({"a": 0.5, "b": 0.5, "c": 3.0, "d": 0.5}, full, 5) == {"a": 1, "b": 1, "c": 3, "d": 0}
    assert apportioned({"a": 0.25, "b": 0.25, "c": 0.25, "d": 0.25}, dict.fromkeys("abcd", 1), 1)["a"] == 1
    assert apportioned({}, {}, 0) == {}


def test_weights_that_a_training_loop_prunes_in_between_stay_pruned() -> None:
    model = mlp([8, 30, 20, 5], seed=0)
    pruner = Pruner(model, "magnitude", density=0.1, rounds=3, allocation="erk")
    pruner.step()
    prune_(model, "random", density=0.15, allocation=layer_densities(model, "erk", 0.15))
    between = Masks.from_model(model)
    masks = pruner.step()
    assert all(torch.equal(masks[name], between[name]) for name in masks)  # fewer than round 2 asks for
    assert sum(kept for kept, _ in pruner.step().counts().values()) == 94
