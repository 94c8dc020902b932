"""Trainings cut in pieces, started at a later step, and fed by loaders."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lotterykit.data.augment import flip_and_crop
from lotterykit.errors import ArgumentError
from lotterykit.nn import mlp
from lotterykit.ops import dispatch
from lotterykit.training import Loaders, Recipe, RunSpec, ScoreTraining, Split, train, train_replicas
from lotterykit.training.recipe import metrics

LAYERS = (6, 9, 7, 3)
ANNEALED = ScoreTraining(density=0.1, anneal=True, scope="global", penalty=1e-3)


def blobs(shape=(6,), n=75):
    x, y = torch.randn(n + 20, *shape), torch.randint(3, (n + 20,))
    return Split(x[:n], y[:n], x[n:], y[n:])


def conv_net():
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(0.4), nn.Flatten(),
        nn.Linear(5 * 36, 3),
    )  # fmt: skip


def recipe(optimizer, **more):
    return Recipe(
        "cross_entropy", epochs=3, batch_size=10, optimizer=optimizer, lr=0.02, schedule="cosine",
        momentum=0.9 if optimizer == "sgd" else 0.0, weight_decay=1e-3, **more,
    )  # fmt: skip


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("cut", [1, 8, 13, 24])
def test_a_training_in_two_pieces_is_bitwise_that_in_one(optimizer, cut):
    data, how = blobs((2, 6, 6)), recipe(optimizer, evaluate_every=4)
    model = conv_net()
    masks = {"0.weight": torch.rand(5, 2, 3, 3) < 0.5}
    other = copy.deepcopy(model)
    more = {"masks": masks, "seed": 7, "augment": flip_and_crop}
    before = torch.random.get_rng_state()
    whole = train(model, data, how, **more)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)  # what has been drawn elsewhere is nothing to it
    part = train(other, data, how, steps=cut, **more)
    rest = train(other, data, how, first=cut, optimizer=part.optimizer, **more)
    assert_same(model.state_dict(), other.state_dict())
    assert_same(whole.optimizer, rest.optimizer)
    assert rest.metrics == whole.metrics
    assert whole.steps[len(whole.steps) - len(rest.steps) :] == rest.steps
    assert whole.curve[len(whole.steps) - len(rest.steps) :] == rest.curve


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("cut", [3, 8, 11])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_replicas_in_two_pieces_are_bitwise_those_in_one(optimizer, cut, backend):
    if backend == "cpu" and dispatch.missing("cpu") is not None:
        pytest.skip(str(dispatch.missing("cpu")))
    data, how = blobs(), recipe(optimizer)
    masks = {f"{2 * i}.weight": torch.rand(n, m) < 0.6 for i, (m, n) in enumerate(itertools.pairwise(LAYERS))}
    specs = [RunSpec(LAYERS, data, how, masks=masks, seed=seed) for seed in (1, 2)]
    with dispatch.use_backend(backend):
        whole = train_replicas(specs)
        parts = train_replicas(specs, steps=cut)
        later = [
            RunSpec(LAYERS, data, how, weights=p.weights, masks=masks, seed=s.seed, optimizer=p.optimizer)
            for s, p in zip(specs, parts, strict=True)
        ]
        rests = train_replicas(later, first=cut)
    for one, two in zip(whole, rests, strict=True):
        assert_same(one.weights, two.weights)
        assert_same(one.optimizer, two.optimizer)
        assert one.curve[-len(two.curve) :] == two.curve
        assert one.metrics == two.metrics


@pytest.mark.parametrize(
    "training",
    [
        ScoreTraining(density=0.3),
        ANNEALED,
        ScoreTraining(density=0.2, gradual_every=1, bias=True),
        ScoreTraining("gem-miner"),
        ScoreTraining("gem-miner", 0.2, freeze_every=1, penalty=1e-3),
        ScoreTraining("gem-miner", 0.2, freeze_every=2, scope="layer"),
    ],
    ids=str,
)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("cut", [8, 16])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_scores_of_replicas_in_two_pieces_are_bitwise_those_in_one(training, optimizer, cut, backend):
    """Cut at the ends of epochs; where Gem-Miner freezes, what is evaluated there is not all it may keep."""
    if backend == "cpu" and dispatch.missing("cpu") is not None:
        pytest.skip(str(dispatch.missing("cpu")))
    data, how = blobs(), replace(recipe(optimizer), evaluate_every=4)
    specs = [RunSpec(LAYERS, data, how, seed=seed, scores=training) for seed in (1, 2)]
    with dispatch.use_backend(backend, ops=["train_scores"]):
        whole = train_replicas(specs)
        parts = train_replicas(specs, steps=cut)
        later = [
            replace(
                spec, scores=replace(training, start=p.scores), optimizer=p.optimizer,
                active=p.masks if training.freezes else None,
            )
            for spec, p in zip(specs, parts, strict=True)
        ]  # fmt: skip
        rests = train_replicas(later, first=cut)
    for one, part, rest in zip(whole, parts, rests, strict=True):
        assert one.curve == part.curve + rest.curve
        assert one.metrics == rest.metrics
        for kind in ("scores", "masks", "weights", "optimizer"):
            assert_same(getattr(one, kind), getattr(rest, kind))


@pytest.mark.parametrize("training", [ANNEALED, ScoreTraining("gem-miner", 0.2, freeze_every=1)], ids=str)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("cut", [8, 16, 24])
def test_nothing_left_to_train_gives_the_masks_and_metrics_that_were_there(training, backend, cut):
    """Metrics are those of the masks returned, in replicas and in a module, also where a training stops."""
    if backend == "cpu" and dispatch.missing("cpu") is not None:
        pytest.skip(str(dispatch.missing("cpu")))
    data = Split(*(t.double() if t.is_floating_point() else t for t in blobs()))
    how, model = recipe("sgd"), mlp(LAYERS, dtype=torch.float64)
    spec = RunSpec(LAYERS, data, how, weights=model.state_dict(), seed=2, scores=training)
    with dispatch.use_backend(backend, ops=["train_scores"]):
        (part,) = train_replicas([spec], steps=cut)
        active = part.masks if training.freezes else None
        later = replace(spec, scores=replace(training, start=part.scores), active=active)
        (rest,) = train_replicas([later], first=cut, steps=cut)
    assert rest.metrics == part.metrics
    assert_same(rest.masks, part.masks)
    plain = mlp(LAYERS, dtype=torch.float64)
    plain.load_state_dict({k: w * part.masks[k] if k in part.masks else w for k, w in part.weights.items()})
    found = metrics(plain(data.x_test).detach(), data.y_test, how.loss)
    assert part.metrics == pytest.approx(found, rel=1e-9)
    alone = mlp(LAYERS, dtype=torch.float64)
    result = train(alone, data, how, seed=2, scores=training, steps=cut)
    assert_same(result.masks, part.masks)
    assert result.metrics == metrics(alone(data.x_test).detach(), data.y_test, how.loss)
    if not training.freezes:  # what was kept by then is not what may be kept
        alone = mlp(LAYERS, dtype=torch.float64)
    start = replace(training, start=result.scores)
    rest = train(alone, data, how, seed=2, scores=start, first=cut, steps=cut)
    assert_same(rest.masks, result.masks)
    assert rest.metrics == result.metrics


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_later_start_takes_rates_and_batches_of_its_step(backend):
    """From step 11 of 24 with a fresh optimizer, against the single loop, which counts them itself."""
    if backend == "cpu" and dispatch.missing("cpu") is not None:
        pytest.skip(str(dispatch.missing("cpu")))
    data = Split(*(t.double() if t.is_floating_point() else t for t in blobs()))
    model = mlp(LAYERS, seed=3, dtype=torch.float64)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    for how in (recipe("adam"), recipe("sgd")):
        with dispatch.use_backend(backend):
            (found,) = train_replicas([RunSpec(LAYERS, data, how, weights=weights, seed=5)], first=11)
        model.load_state_dict(weights)
        seen = []
        train(model, data, how, seed=5, first=11, on_step=seen.append)
        assert seen == list(range(12, 25))
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found.weights[name], parameter.detach(), rtol=1e-9, atol=1e-12)


def test_nothing_left_to_train_evaluates():
    data, model = blobs(), mlp(LAYERS)
    result = train(model, data, recipe("adam"), first=24)
    assert result.steps == []
    assert result.optimizer == {}
    (replica,) = train_replicas([RunSpec(LAYERS, data, recipe("adam"), weights=model.state_dict())], first=30)
    assert replica.metrics["accuracy"] == result.metrics["accuracy"]


def test_loaders_train_like_the_tensors_they_hold():
    data, how = blobs(), recipe("sgd")
    held = data.x_test[:5], data.y_test[:5]
    # batches of any size and any kind; an epoch reads them in their order
    batches = [(data.x_train[i : i + 25], data.y_train[i : i + 25]) for i in (0, 25, 50)]
    loaders = Loaders(batches, [(data.x_test, data.y_test)], [held])
    model = mlp(LAYERS, dtype=torch.float32)
    expected = copy.deepcopy(model)
    result = train(model, loaders, how)
    optimizer = torch.optim.SGD(expected.parameters(), 0.02, 0.9, weight_decay=1e-3)
    for step in range(9):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 + torch.tensor(torch.pi * step / 9).cos().item()) / 2
        optimizer.zero_grad()
        nn.functional.cross_entropy(expected(batches[step % 3][0]), batches[step % 3][1]).backward()
        optimizer.step()
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert result.steps == [3, 6, 9]
    assert result.early_stop().metrics in result.curve


def test_a_shuffling_loader_is_a_function_of_the_seed_and_can_be_cut():
    data = blobs()
    set_ = TensorDataset(data.x_train, data.y_train)
    loaders = Loaders(DataLoader(set_, 10, shuffle=True), DataLoader(TensorDataset(*data[2:]), 10))
    start = mlp(LAYERS)
    found = []
    for seed, cut in ((1, None), (1, 11), (2, None)):
        model = copy.deepcopy(start)
        torch.rand(3)
        part = train(model, loaders, recipe("adam"), seed=seed, steps=cut)
        if cut is not None:
            train(model, loaders, recipe("adam"), seed=seed, first=cut, optimizer=part.optimizer)
        found.append(model.state_dict())
    assert_same(found[0], found[1])
    assert not torch.equal(found[0]["0.weight"], found[2]["0.weight"])


class Short(list):
    """Batches that are fewer than they say."""

    def __len__(self):
        return 5


def test_refusals():
    data, model = blobs(), mlp(LAYERS)
    batches = [(data.x_train, data.y_train)]
    for wrong in (iter(batches), [], 3, (b for b in batches)):
        with pytest.raises(ArgumentError, match="train must"):
            Loaders(wrong, batches)
    with pytest.raises(ArgumentError, match="5 batches by its length, epoch 0 gave 1"):
        train(model, Loaders(Short(batches), batches), recipe("adam"))
    with pytest.raises(ArgumentError, match=r"Loaders\.validation"):
        train(model, Loaders(batches, batches), recipe("adam"), validation=batches[0])
    for first in (-1, 1.5, True):
        with pytest.raises(ArgumentError, match="first must be an int of at least 0"):
            train(model, data, recipe("adam"), first=first)
        with pytest.raises(ArgumentError, match="first must be an int of at least 0"):
            train_replicas([RunSpec(LAYERS, data, recipe("adam"))], first=first)
    with pytest.raises(ArgumentError, match=r"'0\.weight/exp_avg' \[2\] is of another network"):
        train(model, data, recipe("adam"), optimizer={"0.weight/exp_avg": torch.zeros(2)})
    scored = RunSpec(LAYERS, data, recipe("sgd"), scores=ScoreTraining(density=0.5))
    with pytest.raises(ArgumentError, match="goes on at the start of an epoch of 8 steps, first is 3"):
        train_replicas([scored], first=3)
