"""A trained ticket planted back: what the mother holds, what edge-popup keeps, resuming, refusals.

On a narrow VGG and a few hundred images, Fashion-MNIST where it is at hand.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

import lotterykit as lk
from lotterykit.data.images import DATASETS
from lotterykit.errors import ArgumentError
from lotterykit.experiments.imp import FINAL
from lotterykit.experiments.plant_back import PlantBack, PlantedBack, compared, plant_back
from lotterykit.experiments.recipes import RECIPES
from lotterykit.experiments.trainings import Trained
from lotterykit.mask import Masks, prunable_layers
from lotterykit.nn.init import INITS
from lotterykit.nn.models import NETWORKS
from lotterykit.nn.seeds import derived_seed
from lotterykit.nn.vgg import vgg
from lotterykit.training.recipe import Recipe, Split
from lotterykit.training.scored import ScoreTraining
from lotterykit.training.source import Loaders

SMALL = {
    "net": "narrow VGG", "density": 0.2, "shots": 2, "shot_epochs": 2, "steps": 60, "densities": (0.2, 0.05),
    "levels": 2, "level_epochs": 2, "warmup_epochs": 1, "score_batch": 50, "score_lr": 0.1,
}  # fmt: skip


class Stop(Exception):
    """What a test raises in place of a power cut."""


def narrow_vgg(seed: int, batch_norm: bool = False) -> nn.Module:
    """VGG's structure with 6 to 12 channels, he_scaled as the mother's of the paper."""
    with torch.random.fork_rng([]):
        model = vgg((1, 14, 14), 10, groups=((6, 6), (8, 8), (12,)), batch_norm=batch_norm)
    layers = [layer for _, layer in prunable_layers(model)]
    draw = torch.Generator().manual_seed(seed)
    weights, biases = INITS["he_scaled"]([layer.weight.shape for layer in layers], draw)
    with torch.no_grad():
        for layer, weight, bias in zip(layers, weights, biases, strict=True):
            layer.weight.copy_(weight)
            if layer.bias is not None:
                layer.bias.copy_(bias)
    return model


@pytest.fixture(scope="module")
def data() -> Split:
    """250 training and 200 test images of 14 x 14 pixels."""
    try:
        x, y, x_test, y_test = lk.data.load("fashion-mnist").split
        x, x_test = x[:250, :, ::2, ::2], x_test[:200, :, ::2, ::2]
    except ArgumentError:
        x, y, x_test, y_test = lk.data.load("digits").split
        x, x_test = (nn.functional.pad(images, (3,) * 4) for images in (x[:250], x_test[:200]))
    return Split(x.contiguous(), y[:250], x_test.contiguous(), y_test[:200])


@pytest.fixture(scope="module")
def result(data):
    return plant_back(PlantBack(**SMALL), build=narrow_vgg, data=data)


def outputs(ticket, point, x):
    model = ticket.apply_(narrow_vgg(9), point).eval()
    with torch.no_grad():
        return model.double()(x.double())


def test_the_mother_holds_the_trained_ticket(result, data):
    expected = outputs(result.ticket, FINAL, data.x_test)
    torch.testing.assert_close(
        outputs(result.truth, "init", data.x_test),
        expected,
        rtol=5e-5,
        atol=5e-5 * float(expected.abs().max()),
    )
    assert result.truth.results["accuracy"] == result.ticket.results["accuracy"]
    assert result.truth.results["output_scale"] == 1.0
    assert result.ticket.results["accuracy"] > result.ticket.results["untrained"]["accuracy"]


def test_nothing_but_the_planted_places_differs_from_the_mother(result):
    fresh = narrow_vgg(PlantBack(**SMALL).mother()).state_dict()
    trained = result.ticket.rewind(FINAL)
    for name, mask in result.truth.masks.items():
        state = result.truth.snapshots["init"][name]
        assert torch.equal(state[~mask], fresh[name][~mask])
        assert not (state[mask] == fresh[name][mask]).any()
        # every bias is trained and so not 0: each neuron has a place of its own, with as many weights
        assert sorted(mask.flatten(1).sum(1)) == sorted((trained[name] != 0).flatten(1).sum(1))
    total = sum(mask.numel() for mask in result.ticket.masks.values())
    assert sum(kept for kept, _ in result.truth.masks.counts().values()) == round(0.2 * total)
    for density, ticket in result.unplanted.items():
        assert all(torch.equal(ticket.snapshots["init"][name], fresh[name]) for name in fresh)
        assert set(result.found[density].snapshots) == {"init"}


def test_gain_0_leaves_the_scale_outside(data):
    own = {"gain": 0.0, "unplanted": False, "levels": 1, "densities": (0.2,)}
    found = plant_back(PlantBack(**SMALL | own), build=narrow_vgg, data=data)
    scale = found.truth.results["output_scale"]
    assert abs(scale - 1) > 1e-3  # more than the tolerance below forgives
    expected = outputs(found.ticket, FINAL, data.x_test)
    torch.testing.assert_close(
        outputs(found.truth, "init", data.x_test) * scale,
        expected,
        rtol=5e-5,
        atol=5e-5 * float(expected.abs().max()),
    )
    assert found.truth.results["accuracy"] == found.ticket.results["accuracy"]
    assert not found.unplanted


def test_a_ticket_planted_into_its_own_init_lies_where_it_was(data):
    """Barely trained, each neuron is nearest to itself."""
    own = {"mother_seed": 0, "unplanted": False, "levels": 1, "densities": (0.2,), "steps": 2}
    found = plant_back(PlantBack(**SMALL | own), build=narrow_vgg, data=data)
    assert all(torch.equal(found.truth.masks[name], mask) for name, mask in found.ticket.masks.items())
    start = narrow_vgg(0).state_dict()
    for name, mask in found.truth.masks.items():
        assert torch.equal(found.truth.snapshots["init"][name][~mask], start[name][~mask])


def test_levels_keep_exact_counts(result, data):
    for target, ticket in result.found.items():
        rows = ticket.results["levels"]
        assert [row["level"] for row in rows] == [1, 2]
        for row in rows:
            sizes = [mask.numel() for mask in ticket.masks.values()]
            kept = sum(round(target ** (row["level"] / 2) * size) for size in sizes)
            assert row["density"] == kept / sum(sizes)
        for kept, size in ticket.masks.counts().values():
            assert kept == round(target * size)
    own = {"scope": "global", "levels": 1, "densities": (0.2,)}
    found = plant_back(PlantBack(**SMALL | own), build=narrow_vgg, data=data)
    for ticket in (found.found[0.2], found.unplanted[0.2]):
        counts = ticket.masks.counts()
        assert sum(kept for kept, _ in counts.values()) == round(
            0.2 * sum(size for _, size in counts.values())
        )


def test_levels_are_those_of_the_public_pieces(result, data):
    """Two trainings of scores by `lk.train`, the second from the scores of the first."""
    model = narrow_vgg(0)
    recipe = Recipe(
        "cross_entropy", 2, 50, "sgd", lr=0.1, momentum=0.9, weight_decay=5e-4, warmup=5
    )  # 250 images: 5 steps an epoch
    start = None
    for level, kept in ((1, 0.05**0.5), (2, 0.05)):
        model = narrow_vgg(0)
        model.load_state_dict(result.truth.snapshots["init"])
        training = ScoreTraining("edge-popup", kept, start=start)
        found = lk.train(
            model, data, recipe, seed=derived_seed(f"plant back 0 level {level}"), scores=training
        )
        start = found.scores
        row = result.found[0.05].results["levels"][level - 1]
        assert {name: row[name] for name in found.metrics} == found.metrics
        truth = result.truth.masks
        both = sum(int((found.masks[name] & truth[name]).sum()) for name in truth)
        assert row["recall"] == both / sum(int(mask.sum()) for mask in truth.values())
    assert all(torch.equal(found.masks[name], mask) for name, mask in result.found[0.05].masks.items())


@pytest.mark.parametrize("net", ["narrow VGG", "lenet"])
def test_a_level_goes_on_with_the_scores_of_the_one_before(net, data, tmp_path):
    """At rate 0 the scores stay, so that masks are nested; replicas (LeNet) and modules alike."""
    own = {"net": net, "score_lr": 0.0, "levels": 3, "densities": (0.1,), "level_epochs": 1}
    build = (
        narrow_vgg if net == "narrow VGG" else lambda seed: lk.nn.network(net, input=(1, 14, 14), seed=seed)
    )
    found = plant_back(PlantBack(**SMALL | own), build=build, data=data, folder=tmp_path)
    for kind, tickets in (("planted", found.found), ("unplanted", found.unplanted)):
        files = sorted((tmp_path / f"{kind}-0.1").glob("*.safetensors"))
        journal = [read_masks(path) for path in files]
        assert len(journal) == 3
        for wide, narrow in pairwise(journal):
            assert all(not (narrow[name] & ~wide[name]).any() for name in wide)
        assert all(torch.equal(journal[-1][name], mask) for name, mask in tickets[0.1].masks.items())


def read_masks(path):
    import safetensors.torch

    tensors = safetensors.torch.load_file(path)
    return {name.removeprefix("mask/"): t for name, t in tensors.items() if name.startswith("mask/")}


def test_a_run_that_was_stopped_ends_bitwise_like_one_that_was_not(result, data, tmp_path):
    settings = PlantBack(**SMALL)
    for at in (2, 4, 5, 7):  # in the shots, before the ticket, in the levels
        seen = []

        def stop(name, number, training, at=at, seen=seen):
            seen.append(name)
            if len(seen) == at:
                raise Stop

        with pytest.raises(Stop):
            plant_back(settings, build=narrow_vgg, data=data, folder=tmp_path, progress=stop)
    begun = []
    again = plant_back(
        settings, build=narrow_vgg, data=data, folder=tmp_path, progress=lambda name, *_: begun.append(name)
    )
    assert begun == ["planted-0.2", "planted-0.05", "unplanted-0.2", "unplanted-0.05"]  # their last levels
    assert digests(again) == digests(result)
    begun.clear()
    last = plant_back(
        settings, build=narrow_vgg, data=data, folder=tmp_path, progress=lambda name, *_: begun.append(name)
    )
    assert not begun
    assert digests(last) == digests(result)
    with pytest.raises(ArgumentError, match="is of another search, other data, other settings"):
        plant_back(PlantBack(**SMALL | {"gain": 0.5}), build=narrow_vgg, data=data, folder=tmp_path)


def digests(found):
    tickets = (found.ticket, found.truth, *found.found.values(), *found.unplanted.values())
    return [ticket.digest() for ticket in tickets]


def test_rows_and_lines(result):
    rows = list(result.rows())
    assert [(row["mother"], row["target"], row["level"]) for row in rows] == [
        (mother, target, level)
        for mother in ("planted", "unplanted")
        for target in (0.2, 0.05)
        for level in (1, 2)
    ]
    for row in rows:
        assert 0 <= row["recall"] <= row["reachable"] <= 1
        assert not any(isinstance(value, dict | list) for value in row.values())
    lines = result.lines()
    assert len(lines) == 1 + 2 + len(rows)
    assert f"{result.ticket.results['accuracy']:.4f}" in lines[1]
    layers = result.found[0.2].results["levels"][0]["per_layer"]
    assert list(layers) == list(result.truth.masks)


def test_a_level_that_diverged_leaves_none():
    """The search as a generator: what it asks for, what it makes of a loss that is not finite."""
    state = {"0.weight": torch.ones(2, 3)}
    truth = Masks({"0.weight": torch.tensor([[True, False, False], [True, True, False]])})
    recipe = Recipe("mse", 1, 50, "sgd")
    search = PlantBack(**SMALL | {"levels": 1}).search(state, truth, 0.5, recipe)
    asked = next(search)
    assert (asked.recipe, asked.scores.density, asked.scores.start) == (recipe, 0.5, None)
    with pytest.raises(StopIteration) as end:
        search.send(Trained(state, {"loss": float("inf"), "mse": float("nan")}, truth))
    ticket = end.value.value
    assert (ticket.results["loss"], ticket.results["mse"], ticket.results["recall"]) == (None, None, 1.0)
    shown = PlantedBack(ticket, ticket, {0.5: ticket})
    assert [("diverged" in line) for line in shown.lines()] == [False, True, True, True]


def test_reachable_is_the_recall_of_the_best_mask_of_these_counts():
    truth = Masks({"0.weight": torch.tensor([[True, True, True, False]]), "2.weight": torch.tensor([[True]])})
    found = Masks(
        {"0.weight": torch.tensor([[False, False, True, True]]), "2.weight": torch.tensor([[False]])}
    )
    row = compared(found, truth)
    assert (row["recall"], row["reachable"], row["precision"]) == (0.25, 0.5, 0.5)
    assert row["empty_layers"] == ["2.weight"]
    assert compared(truth, truth)["reachable"] == compared(truth, truth)["recall"] == 1.0


def test_loaders_will_do(data):
    batches = [(data.x_train[i : i + 50], data.y_train[i : i + 50]) for i in range(0, 250, 50)]
    own = {"levels": 1, "densities": (0.2,), "unplanted": False, "shots": 1, "steps": 5, "shot_epochs": 1}
    found = plant_back(
        PlantBack(**SMALL | own), build=narrow_vgg, data=Loaders(batches, [(data.x_test, data.y_test)])
    )
    assert found.truth.results["accuracy"] == found.ticket.results["accuracy"]


def test_the_defaults_are_the_papers():
    paper, own = RECIPES["p0/vgg-16"], PlantBack()
    assert (own.net, own.density, own.densities, own.levels) == (paper.network, 0.01, (0.01,), 10)
    level = (own.score_lr, own.score_batch, own.level_epochs, own.warmup_epochs)
    assert level == (paper.lr, paper.batch_size, paper.epochs, paper.warmup_epochs)
    assert own.mother() != own.seed
    assert own.net in NETWORKS
    assert own.data in DATASETS
    assert own.recipe in RECIPES


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"density": 0.0}, "density is kept / total"),
        ({"densities": ()}, "densities must be different numbers, at least one"),
        ({"densities": 0.1}, "densities must be different numbers, at least one"),
        ({"densities": (0.1, 0.1)}, "densities must be different numbers"),
        ({"densities": (1.5,)}, "each of densities is kept / total"),
        ({"scope": "local"}, "unknown scope 'local'"),
        ({"matching": "bets"}, "unknown matching 'bets'; did you mean 'best'"),
        ({"scaling": "x"}, "unknown scaling"),
        ({"gain": 2.0}, "gain must be a number"),
        ({"levels": 0}, "levels must be an int of at least 1, got 0"),
        ({"level_epochs": 1.5}, "level_epochs must be an int"),
        ({"warmup_epochs": 11}, "the warm-up of 11 epochs must fit into a level of 10"),
        ({"score_lr": -1.0}, "lr"),
        ({"seed": -1}, "seed"),
        ({"mother_seed": "x"}, "seed must be an int"),
        ({"recipe": "p9"}, "unknown recipe 'p9'"),
        ({"net": "vgg-61", "data": "digits"}, "unknown network 'vgg-61'"),
        ({"data": "cfiar10"}, "unknown data set 'cfiar10'; did you mean 'cifar10'"),
        ({"data": "digits"}, "images must be at least 16 pixels high and wide"),
        ({"net": "resnet-20", "recipe": "p4/resnet-18", "data": "digits"}, "must be an nn.Sequential chain"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        plant_back(PlantBack(**fields), progress=trains_nothing)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_planted_is_refused_before_it_is_trained(data):
    with pytest.raises(ArgumentError, match="BatchNorm2d: planting is exact for chains"):
        plant_back(
            PlantBack(**SMALL),
            build=lambda seed: narrow_vgg(seed, batch_norm=True),
            data=data,
            progress=trains_nothing,
        )
    with pytest.raises(ArgumentError, match="device must be 'cpu', 'cuda'"):
        plant_back(PlantBack(**SMALL), build=narrow_vgg, data=data, device="gpu", progress=trains_nothing)


def trains_nothing(name, number, training):
    raise AssertionError(f"{name} trained")
