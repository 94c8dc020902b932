"""Iterative magnitude pruning against a loop written by hand in float64, and its counts."""

from __future__ import annotations

import copy
import itertools
import math
import random

import pytest
import torch
from torch import nn

from lotterykit.errors import ArgumentError
from lotterykit.experiments.imp import IMP, level_counts, pruned
from lotterykit.experiments.searches import run_together
from lotterykit.experiments.setup import Setup
from lotterykit.experiments.trainings import Trained
from lotterykit.mask import Masks
from lotterykit.nn import mlp
from lotterykit.training.recipe import Recipe, Split, batch_order

WIDTHS = (6, 12, 9, 3)
NAMES = ["0.weight", "2.weight", "4.weight"]
FRACTIONS = {"0.weight": 0.3, "2.weight": 0.3, "4.weight": 0.15}
RECIPE = Recipe("cross_entropy", epochs=3, batch_size=10, optimizer="sgd", lr=0.2, momentum=0.9,
                weight_decay=1e-2, schedule="step", milestones=(2,))  # fmt: skip
STEPS = 24


def blobs() -> Split:
    x, y = torch.randn(90, 6, dtype=torch.float64), torch.randint(3, (90,))
    return Split(x[:80], y[:80], x[80:], y[80:])


def by_hand(data, state, masks, first, recipe=RECIPE, until=STEPS):
    """The trained weights: SGD with momentum and decay on kept weights, from step `first` of the schedule."""
    weights = {name: tensor.clone() for name, tensor in state.items()}
    keep = {
        name: masks[name].double() if name in masks else torch.ones_like(t) for name, t in weights.items()
    }
    velocity = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    for name in weights:
        weights[name] *= keep[name]
    for step in range(first, until):
        order = batch_order(80, 5, step // 8)[step % 8 * 10 : step % 8 * 10 + 10]
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
        h = data.x_train[order]
        for layer in (0, 2, 4):
            h = h @ leaves[f"{layer}.weight"].T + leaves[f"{layer}.bias"]
            h = h.clamp(min=0) if layer < 4 else h
        nn.functional.cross_entropy(h, data.y_train[order]).backward()
        lr = recipe.lr * (0.1 if recipe.schedule == "step" and step >= 16 else 1.0)
        for name, leaf in leaves.items():
            velocity[name] = (0.9 * velocity[name] + leaf.grad + 1e-2 * weights[name]) * keep[name]
            weights[name] = weights[name] - lr * velocity[name]
    return weights


def cut(weights, masks, counts):
    """The largest magnitudes of each layer among those kept, so many of each."""
    found = {}
    for name, count in counts.items():
        magnitude = torch.where(masks[name], weights[name].abs(), -1.0).flatten()
        found[name] = torch.zeros_like(magnitude, dtype=torch.bool)
        found[name][magnitude.argsort(descending=True)[:count]] = True
        found[name] = found[name].view(weights[name].shape)
    return found


@pytest.mark.parametrize("rewind", [0, 5])
@pytest.mark.parametrize("after", ["rewind", "continue", "learning-rate", "fine-tune"])
def test_every_way_is_that_of_a_loop_by_hand(after, rewind):
    data = blobs()
    network = mlp(WIDTHS, seed=1, dtype=torch.float64)
    state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    imp = IMP(RECIPE, FRACTIONS, 0.3, 8, STEPS, after=after, rewind=rewind, seed=5)
    ticket = run_together({"": imp.search(state)}, Setup(lambda: copy.deepcopy(network), data))[""]

    masks = {name: torch.ones_like(state[name], dtype=torch.bool) for name in NAMES}
    # a training until the rewind point, then each level
    point = state
    if rewind:
        point = by_hand(data, state, {}, 0, until=rewind)
        torch.testing.assert_close(dict(ticket.snapshots["5it"]), point, rtol=1e-9, atol=1e-12)
    start, trained = point, None
    for counts in level_counts({n: m.numel() for n, m in masks.items()}, FRACTIONS, 0.3):
        first = 0 if after == "continue" and trained is not None else rewind
        trained = by_hand(data, start, masks, first, _tuned(after, trained))
        masks = cut(trained, masks, counts)
        start = point if after == "rewind" else trained
    if after == "continue":
        start, trained = point, None
    final = by_hand(data, start, masks, rewind, _tuned(after, trained))
    assert all(torch.equal(ticket.masks[name], masks[name]) for name in NAMES)
    for name, tensor in ticket.snapshots["final"].items():
        torch.testing.assert_close(tensor, final[name], rtol=1e-8, atol=1e-11)
    assert sum(int(m.sum()) for m in masks.values()) == round(0.3 * sum(m.numel() for m in masks.values()))


def _tuned(after, trained):
    """Fine-tuning goes on at the schedule's last rate."""
    if after == "fine-tune" and trained is not None:
        return Recipe("cross_entropy", epochs=3, batch_size=10, optimizer="sgd", lr=0.2 * 0.1)
    return RECIPE


def test_levels_are_reported_with_costs_and_collapse():
    data, network = blobs(), mlp(WIDTHS, seed=1, dtype=torch.float64)
    state = dict(network.state_dict())
    held = data.x_test, data.y_test
    seen = []
    imp = IMP(RECIPE, FRACTIONS, 0.5, 8, STEPS)
    ticket = run_together(
        {"": imp.search(state, recipe={"who": "me"}, on_level=lambda n, t: seen.append((n, t.density())))},
        Setup(lambda: mlp(WIDTHS, dtype=torch.float64), data, held),
    )[""]
    levels = ticket.results["levels"]
    assert seen == [(row["level"], row["density"]) for row in levels]
    assert [row["epochs"] for row in levels] == [3.0 * n for n in range(len(levels))]
    assert levels[0]["density"] == 1.0
    assert levels[-1]["density"] == ticket.density() == 104 / 207
    assert all(row["stop_step"] in (8, 16, 24) and row["empty_layers"] == [] for row in levels)
    assert ticket.recipe == {"who": "me"}
    empty = pruned(ticket.masks, ticket.snapshots["final"], dict.fromkeys(NAMES, 0), [NAMES], 0)
    assert not any(bool(mask.any()) for mask in empty.values())


def test_one_shot_prunes_once_and_global_ranks_layers_together():
    data, network = blobs(), mlp(WIDTHS, seed=1, dtype=torch.float64)
    state = dict(network.state_dict())
    setup = Setup(lambda: mlp(WIDTHS, dtype=torch.float64), data)
    fractions = dict.fromkeys(NAMES, 0.2) | {"4.weight": 0.0}
    imp = IMP(RECIPE, fractions, 0.4, 8, STEPS, scope="global", one_shot=True, seed=5)
    ticket = run_together({"": imp.search(state)}, setup)[""]
    assert len(ticket.results["levels"]) == 2
    assert bool(ticket.masks["4.weight"].all())
    weights = by_hand(data, state, {}, 0)
    both = torch.cat([weights[name].abs().flatten() for name in NAMES[:2]])
    total = sum(state[name].numel() for name in NAMES)
    threshold = both.sort(descending=True).values[round(0.4 * total) - state["4.weight"].numel() - 1]
    for name in NAMES[:2]:
        assert torch.equal(ticket.masks[name], weights[name].abs() >= threshold)


def test_counts_fall_to_exactly_the_density():
    rng = random.Random(torch.initial_seed())
    for _ in range(300):
        sizes = {str(i): rng.choice([1, 2, 7, 100, 3000]) for i in range(rng.randint(1, 6))}
        fractions = {name: rng.choice([0.05, 0.1, 0.2, 0.5, 0.9]) for name in sizes}
        density = rng.choice([1.0, 0.9, 0.5, 0.1, 0.02])
        try:
            levels = level_counts(sizes, fractions, density)
        except ArgumentError:  # rounding keeps the last few weights of small layers
            assert sum(sizes.values()) < 1000 or density < 0.1
            continue
        before = sizes
        for counts in levels:
            assert all(0 <= counts[name] <= before[name] for name in sizes)
            before = counts
        assert sum(before.values()) == round(density * sum(sizes.values()))
        for name in sizes if len(levels) > 1 else ():
            assert levels[0][name] == round(sizes[name] * (1 - fractions[name]))
    assert len(level_counts({"a": 10**6}, {"a": 0.2}, 0.01)) == math.ceil(math.log(0.01) / math.log(0.8))


def test_refusals():
    state = {"a": torch.zeros(10)}
    for message, arguments in (
        ("a are never pruned", {"fractions": {"a": 0.0}}),
        (r"prune fraction of 'a' must lie in \[0, 1\), got 1.0", {"fractions": {"a": 1.0}}),
        ("density is kept", {"density": 0.0}),
        ("rewind must be a step", {"rewind": 24}),
        ("rewind must be a step", {"rewind": 0.5}),
        ("after", {"after": "resume"}),
        ("scope", {"scope": "layer"}),
        ("must be equal", {"scope": "global", "fractions": {"a": 0.1, "b": 0.2}}),
    ):
        given = {"fractions": {"a": 0.2}, "density": 0.5} | arguments
        with pytest.raises(ArgumentError, match=message):
            next(IMP(RECIPE, per_epoch=8, steps=STEPS, **given).search(state))


@pytest.mark.parametrize(
    ("after", "rewind", "epochs"),
    [("rewind", 0, 2850), ("rewind", 150, 2850 - 18), ("learning-rate", 0, 3000), ("fine-tune", 0, 3000),
     ("continue", 0, 2850)],
)  # fmt: skip
def test_costs_are_those_of_rare_gems_table_1(after, rewind, epochs):
    """19 levels of 150 epochs: what finding the ticket takes, without the training of what was found."""
    state = {"a": torch.randn(10_000)}
    imp = IMP(Recipe("mse"), {"a": 0.2}, 0.0145, 150, 150 * 150, after=after, rewind=rewind)
    assert ended(imp.search(state)).results["epochs"] == epochs


def ended(search):
    """The ticket of a search whose trainings change no weight."""
    asked = next(search)
    while True:
        try:
            asked = search.send(Trained(dict(asked.state), {"loss": 1.0}, asked.masks))
        except StopIteration as end:
            return end.value


def test_tensors_ranked_together_are_counted_together():
    """Each level drops the share of their sum: rounding in each would leave two of every small tensor."""
    state = {str(i): torch.randn(3) for i in range(40)} | {"head": torch.randn(7)}
    fractions = dict.fromkeys(state, 0.2) | {"head": 0.0}
    levels = []
    imp = IMP(Recipe("mse"), fractions, 20 / 127, 8, STEPS, scope="global")
    ticket = ended(imp.search(state, on_level=lambda n, t: levels.append(t.masks.counts())))
    kept = [sum(k for name, (k, _) in counts.items() if name != "head") for counts in levels]
    assert kept[-1] == 20 - 7
    for before, after in itertools.pairwise(kept[:-1]):
        assert after == round(0.8 * before)
    assert ticket.masks["head"].all()
    magnitudes = torch.cat([state[str(i)].abs() for i in range(40)])
    assert {float(v) for v in magnitudes.sort(descending=True).values[:13]} == {
        float(v) for i in range(40) for v in state[str(i)].abs()[ticket.masks[str(i)]]
    }


def test_a_training_that_diverged_is_told_apart():
    """Metrics without a number are None in the ticket; weights without one cannot be ranked."""
    nan = float("nan")
    state = {"a": torch.ones(4)}
    masks = Masks({"a": torch.ones(4, dtype=torch.bool)})
    search = IMP(Recipe("mse"), {"a": 0.5}, 0.5, 8, STEPS, seed=2**63 - 1).search(state)
    next(search)
    search.send(
        Trained(state, {"loss": float("inf"), "mse": nan}, masks, [{"loss": nan}], [8], [{"loss": nan}])
    )
    with pytest.raises(StopIteration) as end:
        search.send(Trained(state, {"loss": nan}, masks))
    levels = end.value.value.results["levels"]
    assert (levels[0]["loss"], levels[0]["mse"], levels[1]["loss"]) == (None, None, None)
    assert levels[0]["stop_validation"] == {"loss": None}
    search = IMP(Recipe("mse"), {"a": 0.5}, 0.5, 8, STEPS).search(state)
    next(search)
    with pytest.raises(ArgumentError, match="the training diverged, a hold NaN"):
        search.send(Trained({"a": torch.tensor([1.0, nan, 2.0, 3.0])}, {"loss": nan}, masks))
