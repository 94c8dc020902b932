"""`train(scores=...)`: like the replicas for fully connected networks, and any network in pieces."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from lotterykit.errors import ArgumentError
from lotterykit.nn.convert import convert_
from lotterykit.nn.masked import MaskedConv2d, MaskedLinear
from lotterykit.nn.models import mlp
from lotterykit.ops.dispatch import use_backend
from lotterykit.training.recipe import Recipe, Split
from lotterykit.training.replicas import RunSpec, train_replicas
from lotterykit.training.scored import ScoreTraining
from lotterykit.training.single import train
from lotterykit.training.source import Loaders

LAYERS = (5, 24, 17, 4)
RULES = {
    "sgd": {"optimizer": "sgd", "lr": 0.2, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "cosine"},
    "adam": {"lr": 0.01, "weight_decay": 1e-3},
}
TRAININGS = {
    "layer": ScoreTraining(density=0.3),
    "global": ScoreTraining(density=0.1, scope="global"),
    "annealed": ScoreTraining(density=0.1, anneal=True),
    "global annealed": ScoreTraining(density=0.05, anneal=True, scope="global"),
    "gradual": ScoreTraining(density=0.05, gradual_every=2, scope="global", penalty=1e-3),
    "all": ScoreTraining(density=1.0),
    "gem": ScoreTraining("gem-miner", 0.1, penalty=1e-3, freeze_every=2),
    "gem layer": ScoreTraining("gem-miner", 0.3, scope="layer", freeze_every=1),
    "gem zero": ScoreTraining("gem-miner", penalty=1e-2),
}


def split(loss: str = "cross_entropy", n: int = 300) -> Split:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, LAYERS[0], generator=g, dtype=torch.float64)
    y = x[:, :4].argmax(1) if loss == "cross_entropy" else x[:, :4].square()
    return Split(x[:-60], y[:-60], x[-60:], y[-60:])


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_module_trains_like_a_replica(name: str, rule: str, loss: str, backend: str) -> None:
    """float64, 5 epochs of 8 steps: the same curve, scores and masks."""
    training, recipe = TRAININGS[name], Recipe(loss, epochs=5, batch_size=32, **RULES[rule])
    model, data = mlp(list(LAYERS), seed=4, dtype=torch.float64), split(loss)
    weights = {k: w.clone() for k, w in model.state_dict().items()}
    spec = RunSpec(LAYERS, data, recipe, weights=weights, seed=7, scores=training)
    with use_backend(backend, ops=["train_scores"]):
        (replica,) = train_replicas([spec])
    result = train(model, data, recipe, seed=7, scores=training)
    assert result.steps == replica.steps
    for ours, theirs in zip([*result.curve, result.metrics], [*replica.curve, replica.metrics], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9)
    assert list(result.scores) == list(replica.scores)
    for key, scores in replica.scores.items():
        torch.testing.assert_close(result.scores[key], scores, rtol=0, atol=1e-10)
        assert torch.equal(result.masks[key], replica.masks[key])
        assert torch.equal(model.get_buffer(f"{key}_mask"), replica.masks[key])
    for key, weight in weights.items():
        assert torch.equal(model.get_parameter(key), weight)


@pytest.mark.parametrize("name", ["layer", "gem"])
def test_ties_fall_as_in_replicas(name: str) -> None:
    """Scores of few values and a learning rate of 0: the masks are those of the seed."""
    g = torch.Generator().manual_seed(1)
    shapes = {"0.weight": (24, 5), "2.weight": (17, 24), "4.weight": (4, 17)}
    start = {k: torch.randint(0, 3, s, generator=g).double() / 2 for k, s in shapes.items()}
    for scope in ("layer", "global"):
        training = replace(TRAININGS[name], scope=scope, start=start)
        recipe = Recipe("cross_entropy", epochs=3, lr=0.0, optimizer="sgd")
        model = mlp(list(LAYERS), dtype=torch.float64)
        spec = RunSpec(LAYERS, split(), recipe, weights=model.state_dict(), seed=3, scores=training)
        (replica,) = train_replicas([spec])
        result = train(model, split(), recipe, seed=3, scores=training)
        assert all(torch.equal(result.masks[k], replica.masks[k]) for k in start)


def test_masks_of_biases_hold() -> None:
    mask = {"2.bias": torch.arange(17) % 2 == 0}
    recipe, model = Recipe("cross_entropy", epochs=2, **RULES["sgd"]), mlp(list(LAYERS), dtype=torch.float64)
    nn.init.normal_(model[2].bias)
    weights = {k: w.clone() for k, w in model.state_dict().items()}
    spec = RunSpec(LAYERS, split(), recipe, weights=weights, masks=mask, scores=TRAININGS["layer"])
    (replica,) = train_replicas([spec])
    result = train(model, split(), recipe, masks=mask, scores=TRAININGS["layer"])
    torch.testing.assert_close(result.scores["2.weight"], replica.scores["2.weight"], rtol=0, atol=1e-10)
    assert not bool(model[2].bias.detach()[~mask["2.bias"]].any())


def network() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, 2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(72, 3),
    )


def images(n: int = 96) -> Split:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 1, 8, 8, generator=g)
    y = torch.arange(n) % 3
    x[y == 0, :, :3] += 1.0
    x[y == 1, :, 5:] += 1.0
    return Split(x[:-24], y[:-24], x[-24:], y[-24:])


@pytest.mark.parametrize("name", ["layer", "global annealed", "gradual", "gem", "gem zero"])
@pytest.mark.parametrize("cut", [11, 18])
def test_in_two_pieces_bitwise(name: str, cut: int) -> None:
    """Cut inside an epoch (of 9 steps) and at the end of the second, before a freezing."""
    training, recipe = TRAININGS[name], Recipe("cross_entropy", epochs=5, batch_size=8, **RULES["sgd"])
    whole, pieces = network(), network()
    wanted = train(whole, images(), recipe, seed=5, scores=training)
    first = train(pieces, images(), recipe, seed=5, scores=training, steps=cut)
    freezes = training.method == "gem-miner" and training.density is not None
    if not freezes:  # what was kept by then is not what may be kept
        convert_(pieces, masks={k: torch.ones_like(mask) for k, mask in first.masks.items()})
    rest = train(
        pieces, images(), recipe, seed=5, first=cut, optimizer=first.optimizer,
        scores=replace(training, start=first.scores),
    )  # fmt: skip
    assert rest.metrics == wanted.metrics
    assert rest.curve == wanted.curve[-len(rest.curve) :]
    if cut == 18:  # where a training in one piece is evaluated as well
        assert first.curve == wanted.curve[: len(first.curve)]
    for key, scores in wanted.scores.items():
        assert torch.equal(rest.scores[key], scores)
        assert torch.equal(rest.masks[key], wanted.masks[key])
    for key, value in rest.optimizer.items():
        assert torch.equal(wanted.optimizer[key], value)


def test_loaders_unscored_layers_and_no_steps() -> None:
    data, recipe = images(), Recipe("cross_entropy", epochs=2, **RULES["sgd"])
    batches = list(zip(data.x_train.split(8), data.y_train.split(8), strict=True))
    loaders = Loaders(batches, [(data.x_test, data.y_test)])
    model = network()
    result = train(model, loaders, recipe, scores=TRAININGS["layer"], unscored=["8"])
    assert list(result.masks) == list(result.scores) == ["0.weight", "3.weight"]
    assert [type(model[i]) for i in (0, 3, 8)] == [MaskedConv2d, MaskedConv2d, nn.Linear]
    for steps, epochs in ((0, 2), (None, 0)):
        model = network()
        result = train(
            model, data, replace(recipe, epochs=epochs), scores=TRAININGS["layer"], steps=steps, seed=1
        )
        assert result.curve == []
        assert all(int(m.sum()) == round(0.3 * m.numel()) for m in result.masks.values())
        assert isinstance(model[8], MaskedLinear)
    assert train(network(), data, recipe, steps=1).masks == {}


def test_the_last_evaluation_is_of_the_mask_found() -> None:
    """Gem-Miner keeps all that is not frozen, p below .5 too."""
    model, recipe = network(), Recipe("cross_entropy", epochs=5, **RULES["sgd"])
    result = train(model, images(), recipe, scores=TRAININGS["gem"])
    total = sum(m.numel() for m in result.masks.values())
    assert sum(int(m.sum()) for m in result.masks.values()) == round(0.1 * total)
    data = images()
    with torch.no_grad():
        output = model.eval()(data.x_test)
    loss = float(nn.functional.cross_entropy(output, data.y_test))
    assert result.metrics["loss"] == result.curve[-1]["loss"] == loss


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"masks": {"0.weight": torch.ones(6, 1, 3, 3, dtype=torch.bool)}}, "leave out their masks"),
        ({"masks": {"9.bias": torch.ones(3, dtype=torch.bool)}}, "does not have: 9.bias"),
        ({"scores": ScoreTraining(density=0.5, bias=True)}, "bias must be False"),
        ({"scores": ScoreTraining("gem-miner", 0.5)}, "more than 5 epochs, got 2"),
        ({"unscored": ["10"]}, "unscored names no layer"),
        ({"first": -1}, "first must be"),
    ],
)
def test_refused_before_anything_changes(options: dict, words: str) -> None:
    model = network()
    with pytest.raises(ArgumentError, match=words):
        train(model, images(), Recipe("mse", epochs=2), **{"scores": TRAININGS["layer"], **options})
    assert type(model[0]) is nn.Conv2d
    assert all(p.requires_grad for p in model.parameters())
