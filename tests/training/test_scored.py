"""Score training against a re-derivation by autograd, one network at a time, with masks by sorting."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lotterykit.errors import ArgumentError
from lotterykit.nn.models import mlp
from lotterykit.training.recipe import Recipe, Split, batch_order
from lotterykit.training.replicas import RunSpec, train_replicas
from lotterykit.training.scored import ScoreTraining, initial_scores

SGD = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "cosine"}
LAYERS = {"cross_entropy": (2, 30, 17, 4), "mse": (2, 30, 17, 3)}
WEIGHTS = ("0.weight", "2.weight", "4.weight")
POPUP = [
    ScoreTraining(density=0.3),
    ScoreTraining(density=0.05, anneal=True),
    ScoreTraining(density=0.2, scope="global"),
    ScoreTraining(density=0.1, scope="global", anneal=True),
    ScoreTraining(density=1.0),
    ScoreTraining(density=0.05, gradual_every=2, scope="global", penalty=1e-2),
    ScoreTraining(density=0.3, gradual_every=1, penalty=1e-3),
]
BIASED = [ScoreTraining(density=0.4, bias=True), ScoreTraining(density=0.4, scope="global", bias=True)]
GEMS = [
    ScoreTraining("gem-miner", 0.1, penalty=1e-3, freeze_every=2),
    ScoreTraining("gem-miner", 0.3, scope="layer", freeze_every=1),
    ScoreTraining("gem-miner", penalty=1e-2),
    ScoreTraining("gem-miner", 0),
]


def data(loss: str, seed: int, dtype: torch.dtype = torch.float64, n: int = 1300) -> Split:
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 2, generator=g, dtype=torch.float64) * 2 - 1
    square = x.square().sum(1)
    if loss == "mse":
        y = torch.stack([square, x[:, 0] * x[:, 1], x[:, 0]], 1).to(dtype)
    else:
        y = (square > 0.2).long() + (square > 0.5).long() + (square > 0.7).long()
    x = x.to(dtype)
    return Split(x[:-50], y[:-50], x[-50:], y[-50:])


def specs(
    recipe: Recipe, trainings: list[ScoreTraining], dtype: torch.dtype = torch.float64
) -> list[RunSpec]:
    layers, split = LAYERS[recipe.loss], [data(recipe.loss, s, dtype) for s in range(2)]
    found = []
    for r, training in enumerate(trainings):
        weights = mlp(list(layers), seed=r, dtype=dtype).state_dict()
        masks = {"2.bias": torch.arange(17) % 2 == 0} if r % 2 and not training.bias else None
        found.append(
            RunSpec(layers, split[r % 2], recipe, weights=weights, masks=masks, seed=r, scores=training)
        )
    return found


def highest(values: list[Tensor], k: int) -> list[Tensor]:
    """Masks of the k highest of all values, by sorting; there are no ties that matter."""
    flat = torch.cat([v.flatten() for v in values])
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[flat.sort(descending=True, stable=True).indices[:k]] = True
    parts = mask.split([v.numel() for v in values])
    return [part.view(v.shape) for part, v in zip(parts, values, strict=True)]


def per_scope(scope: str | None, values: list[Tensor], count: Callable[[int], int]) -> list[Tensor]:
    if scope == "global":
        return highest(values, count(sum(v.numel() for v in values)))
    return [highest([v], count(v.numel()))[0] for v in values]


class Alone:
    """One network, autograd and torch.optim: w_effective = w * (mask + p - p.detach()), p = |score| for
    edge-popup."""

    def __init__(self, spec: RunSpec) -> None:
        assert spec.scores is not None
        assert spec.weights is not None
        self.spec, self.training = spec, spec.scores
        self.weights = {n: w.clone() for n, w in spec.weights.items()}
        for name, mask in (spec.masks or {}).items():
            self.weights[name] *= mask
        shapes = {name: w.shape for name, w in self.weights.items()}
        start = initial_scores(self.training, shapes, spec.seed, spec.dtype)
        self.scores = {name: s.clone().requires_grad_() for name, s in start.items()}
        self.active = {name: torch.ones_like(s, dtype=torch.bool) for name, s in start.items()}
        self.masks: dict[str, Tensor] = {}

    def density(self, epoch: int) -> float:
        t = self.training
        assert t.density is not None
        if t.gradual_every is not None:
            falls = (self.spec.recipe.epochs - 1) // t.gradual_every
            return t.density ** ((epoch - 1) // t.gradual_every / falls)
        return t.density ** (epoch / self.spec.recipe.epochs) if t.anneal else t.density

    def mask(self, epoch: int, final: bool = False) -> None:
        with torch.no_grad():
            if self.training.method == "edge-popup":
                values = [s.detach().abs() for s in self.scores.values()]
                found = per_scope(self.training.scope, values, lambda n: round(self.density(epoch) * n))
            elif final and self.training.density:
                found = list(self.active.values())
            else:
                found = [
                    (s >= 0.5) & a for s, a in zip(self.scores.values(), self.active.values(), strict=True)
                ]
            self.masks = dict(zip(self.scores, found, strict=True))

    def freeze(self, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        """After epoch `epoch`, counted from 1."""
        t, epochs = self.training, self.spec.recipe.epochs
        if t.method != "gem-miner" or not t.density or epoch % t.freeze_every or epoch == epochs:
            return
        n = (epochs - 1) // t.freeze_every
        share = t.density ** (epoch / t.freeze_every / n)
        ranked = [
            s.detach() + a.double() for s, a in zip(self.scores.values(), self.active.values(), strict=True)
        ]
        kept = per_scope(t.scope, ranked, lambda size: round(share * size))
        self.active = {n: k & self.active[n] for n, k in zip(self.scores, kept, strict=True)}
        for name, scores in self.scores.items():
            gone = ~self.active[name]
            scores.data[gone] = 0.0
            for value in optimizer.state[scores].values():
                if value is not None and value.shape == scores.shape:
                    value[gone] = 0.0

    def output(self, x: Tensor) -> Tensor:
        effective = {}
        for name, w in self.weights.items():
            if name in self.scores:
                s = self.scores[name]
                s = s.abs() if self.training.method == "edge-popup" else s
                w = w * (self.masks[name].double() + s - s.detach())
            effective[name] = w
        names = list(effective)
        for i in range(0, len(names), 2):
            x = torch.nn.functional.linear(x, effective[names[i]], effective[names[i + 1]])
            x = x.relu() if i + 2 < len(names) else x
        return x

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        kind = self.spec.recipe.loss
        return (
            torch.nn.functional.cross_entropy if kind == "cross_entropy" else torch.nn.functional.mse_loss
        )(self.output(x), y)

    def train(self, steps: int) -> list[float]:
        recipe, split, step, curve = self.spec.recipe, self.spec.data, 0, []
        kind = torch.optim.SGD if recipe.optimizer == "sgd" else torch.optim.Adam
        options = {"momentum": recipe.momentum} if recipe.optimizer == "sgd" else {}
        optimizer = kind(self.scores.values(), lr=recipe.lr, weight_decay=recipe.weight_decay, **options)
        per_epoch = math.ceil(len(split.x_train) / recipe.batch_size)
        for epoch in range(1, recipe.epochs + 1):
            for index in batch_order(len(split.x_train), self.spec.seed, epoch - 1).split(recipe.batch_size):
                if step == steps:
                    break
                self.mask(epoch)
                optimizer.param_groups[0]["lr"] = recipe.learning_rate(step, per_epoch)
                optimizer.zero_grad()
                loss = self.loss(split.x_train[index], split.y_train[index])
                for s in self.scores.values():
                    loss = loss + self.training.penalty * s.square().sum()
                loss.backward()
                for name, s in self.scores.items():
                    s.grad *= self.active[name]
                optimizer.step()
                if self.training.method == "gem-miner":
                    for s in self.scores.values():
                        s.data.clamp_(0, 1)
                step += 1
            done = step == steps or epoch == recipe.epochs
            self.mask(epoch, final=done)
            curve.append(float(self.loss(split.x_test, split.y_test).detach()))
            if done:
                break
            self.freeze(epoch, optimizer)
        return curve


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("options", [SGD, {"lr": 0.01}], ids=["sgd", "adam"])
@pytest.mark.parametrize("trainings", [POPUP, BIASED, GEMS], ids=["edge-popup", "with biases", "gem-miner"])
def test_as_by_autograd(loss: str, options: dict, trainings: list[ScoreTraining]) -> None:
    """float64, 5 epochs of 40 steps."""
    runs = specs(Recipe(loss, epochs=5, **options), trainings)
    for spec, result in zip(runs, train_replicas(runs), strict=True):
        alone = Alone(spec)
        curve = alone.train(10**9)
        assert [values["loss"] for values in result.curve] == pytest.approx(curve, rel=1e-8)
        assert result.metrics == result.curve[-1]
        for name, scores in alone.scores.items():
            assert float((result.scores[name] - scores.detach()).abs().max()) < 1e-9
            assert torch.equal(result.masks[name], alone.masks[name])
        for name, weight in (spec.weights or {}).items():
            expected = weight * spec.masks[name] if spec.masks and name in spec.masks else weight
            assert torch.equal(result.weights[name], expected)


def test_every_step_matters() -> None:
    """The comparison above would see a trainer that is one step off; stopping early keeps the last mask."""
    (spec,) = specs(Recipe("mse", epochs=5, **SGD), [POPUP[1]])
    alone, (result,) = Alone(spec), train_replicas([spec], steps=50)
    alone.train(50)
    assert torch.equal(result.masks["2.weight"], alone.masks["2.weight"])
    alone = Alone(spec)
    alone.train(49)
    assert float((result.scores["2.weight"] - alone.scores["2.weight"].detach()).abs().max()) > 1e-6


@pytest.mark.parametrize("trainings", [POPUP, GEMS], ids=["edge-popup", "gem-miner"])
def test_counts_are_exact(trainings: list[ScoreTraining]) -> None:
    runs = specs(Recipe("cross_entropy", epochs=3, **SGD), trainings, torch.float32)
    for spec, result in zip(runs, train_replicas(runs), strict=True):
        training = spec.scores
        assert training is not None
        if not training.density:
            for name, scores in result.scores.items():
                assert torch.equal(result.masks[name], scores >= 0.5)
            continue
        masks = [result.masks[name] for name in result.scores]
        for group in [masks] if training.scope == "global" else [[mask] for mask in masks]:
            size = sum(mask.numel() for mask in group)
            assert sum(int(mask.sum()) for mask in group) == round(training.density * size)


def test_densities_of_the_schedules() -> None:
    """Rare Gems' ResNet-20: n = floor(149 / 5) = 29 falls of .0059^(1/29) each; long: every 150 epochs."""
    for training in (
        ScoreTraining("gem-miner", 0.0059),
        ScoreTraining(density=0.0059, gradual_every=5, scope="global"),
    ):
        densities = [training.density_in(epoch, 150) for epoch in range(150)]
        assert densities[:5] == [1.0] * 5
        assert densities[5] == pytest.approx(math.exp(math.log(0.0059) / 29))
        assert densities[145:] == pytest.approx([0.0059] * 5)
        assert len(set(densities)) == 30
        assert densities == sorted(densities, reverse=True)
    long = ScoreTraining("gem-miner", 0.01, freeze_every=150)
    assert [long.density_in(epoch, 301) for epoch in (0, 149, 150, 299, 300)] == [1.0, 1.0, 0.1, 0.1, 0.01]


def test_ties_are_drawn_by_the_seed() -> None:
    """All scores equal and a learning rate of 0: exact counts, another seed keeps other entries."""
    start = {f"{i}.weight": torch.full(s, 0.25) for i, s in ((0, (30, 2)), (2, (17, 30)), (4, (4, 17)))}
    for training in (
        ScoreTraining(density=0.5, start=start),
        ScoreTraining("gem-miner", 0.5, freeze_every=1, start=start),
    ):
        (spec,) = specs(Recipe("cross_entropy", epochs=2, lr=0.0), [training], torch.float32)
        other = RunSpec(spec.layers, spec.data, spec.recipe, weights=spec.weights, seed=7, scores=training)
        first, again, second = train_replicas([spec, spec, other])
        assert sum(int(m.sum()) for m in first.masks.values()) == 30 + 255 + 34
        assert torch.equal(first.masks["2.weight"], again.masks["2.weight"])
        assert not torch.equal(first.masks["2.weight"], second.masks["2.weight"])


@pytest.mark.parametrize("trainings", [POPUP, BIASED, GEMS], ids=["edge-popup", "with biases", "gem-miner"])
def test_bitwise_in_any_company(trainings: list[ScoreTraining]) -> None:
    runs = specs(Recipe("cross_entropy", epochs=3, **SGD), trainings * 4, torch.float32)
    plain = RunSpec(runs[0].layers, runs[0].data, runs[0].recipe, weights=runs[0].weights)
    together = train_replicas([*runs, plain])
    for members in ([0], [3, 1], list(range(len(runs) - 1, -1, -1))):
        for i, result in zip(members, train_replicas([runs[i] for i in members]), strict=True):
            assert result.curve == together[i].curve
            for name, scores in result.scores.items():
                assert torch.equal(scores, together[i].scores[name])
                assert torch.equal(result.masks[name], together[i].masks[name])
    assert together[-1].scores == {}
    assert together[-1].optimizer


def test_no_epochs_and_no_steps_evaluate() -> None:
    for epochs, steps in ((0, None), (3, 0)):
        runs = specs(Recipe("mse", epochs=epochs, **SGD), POPUP[:2])
        for result in train_replicas(runs, steps=steps):
            assert result.curve == []
            assert result.metrics["mse"] > 0
            assert result.masks


def test_diverged_scores_rank_last() -> None:
    """A learning rate beyond all bounds: NaN scores, and counts that are exact all the same."""
    for training in (ScoreTraining(density=0.25), ScoreTraining("gem-miner", 0.25, freeze_every=1)):
        recipe = Recipe("mse", epochs=3, optimizer="sgd", lr=1e300, momentum=0.9)
        (spec,) = specs(recipe, [training])
        (result,) = train_replicas([spec])
        size = sum(mask.numel() for mask in result.masks.values())
        assert sum(int(mask.sum()) for mask in result.masks.values()) == pytest.approx(size / 4, abs=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "edge-popop"}, "edge-popup"),
        ({"density": None}, "density"),
        ({"density": 0.0}, "density"),
        ({"density": 1.5}, "density"),
        ({"scope": "local"}, "layer"),
        ({"penalty_norm": 3}, "penalty_norm must be 1 or 2, got 3"),
        ({"freeze_every": 3}, "gem-miner"),
        ({"gradual_every": 0}, "gradual_every must be an int >= 1"),
        ({"gradual_every": 5, "anneal": True}, "two schedules"),
        ({"method": "gem-miner", "anneal": True}, "edge-popup"),
        ({"method": "gem-miner", "gradual_every": 5}, "edge-popup"),
        ({"method": "gem-miner", "penalty": math.nan}, "penalty"),
        ({"method": "gem-miner", "freeze_every": 0}, "freeze_every"),
    ],
)
def test_bad_trainings(change: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ScoreTraining(**{"density": 0.5, **change})


@pytest.mark.parametrize(
    ("training", "change", "message"),
    [
        (POPUP[0], {"masks": {"0.weight": torch.ones(30, 2, dtype=torch.bool)}}, "0.weight"),
        (POPUP[0], {"optimizer": {"momentum_buffer": torch.ones(3)}}, "optimizer 'momentum_buffer' must be"),
        (POPUP[0], {"active": {}}, "active is for gem-miner with a density"),
        (ScoreTraining("gem-miner"), {"active": {}}, "active is for gem-miner with a density"),
        (ScoreTraining("gem-miner", 0.1, freeze_every=1), {"active": {}}, "active must name 0.weight"),
        (ScoreTraining("gem-miner", 0.1, freeze_every=1), {"active": dict.fromkeys(WEIGHTS, torch.ones(3))},
         r"active '0\.weight' must be bool \[30, 2\], got torch.float32 \[3\]"),
        (ScoreTraining("gem-miner", 0.1), {}, "more than 5 epochs, got 3"),
        (ScoreTraining(density=0.1, gradual_every=3), {}, "edge-popup lowers .* more than 3 epochs, got 3"),
        (ScoreTraining(density=0.1, penalty=1e-4, penalty_norm=1), {}, "replicas know penalty_norm 2 only"),
        (ScoreTraining(density=0.5, start={"0.weight": torch.ones(30, 2)}), {}, "must hold scores of"),
        (ScoreTraining(density=0.5, start=dict.fromkeys(WEIGHTS, torch.ones(3))), {}, r"\[30, 2\]"),
    ],
)  # fmt: skip
def test_bad_specs(training: ScoreTraining, change: dict, message: str) -> None:
    (spec,) = specs(Recipe("mse", epochs=3), [training])
    fields = {**{f: getattr(spec, f) for f in spec.__dataclass_fields__}, **change}
    with pytest.raises(ArgumentError, match=message):
        train_replicas([RunSpec(**fields)])
