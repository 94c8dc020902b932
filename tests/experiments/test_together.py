"""What is computed once is what would have been computed for each."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lotterykit.experiments import together
from lotterykit.experiments.plant_and_seek import run_batch
from lotterykit.experiments.spec import CellSpec, group
from lotterykit.experiments.together import Evaluator, digest, forward, train_once
from lotterykit.nn.models import mlp
from lotterykit.training.recipe import Recipe, Split
from lotterykit.training.replicas import RunSpec, train_replicas
from lotterykit.training.scored import ScoreTraining


def split(seed: int) -> Split:
    x = torch.rand(200, 2, generator=torch.Generator().manual_seed(seed))
    return Split(x[:150], x[:150], x[150:], x[150:])


def test_specs_that_say_the_same_train_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data, other = split(0), split(1)
    weights = mlp([2, 20, 2]).state_dict()
    full = {"0.weight": torch.ones(20, 2, dtype=torch.bool)}
    base = RunSpec((2, 20, 2), data, Recipe("mse", epochs=2), weights=weights, masks=full)
    specs = [
        base,
        dataclasses.replace(base, weights={n: w.clone() for n, w in weights.items()}),
        dataclasses.replace(base, seed=1),
        dataclasses.replace(base, data=other),
        dataclasses.replace(base, masks={"0.weight": torch.arange(40).view(20, 2) % 2 == 0}),
        dataclasses.replace(base, recipe=Recipe("mse", epochs=1)),
        dataclasses.replace(base, weights={n: w + 1 for n, w in weights.items()}),
        dataclasses.replace(base, masks=None, scores=ScoreTraining(density=0.5)),
        dataclasses.replace(base, masks=None, scores=ScoreTraining(density=0.4)),
        base,
    ]
    trained: list[int] = []

    def counted(specs, **kwargs):
        trained.append(len(specs))
        return train_replicas(specs, **kwargs)

    monkeypatch.setattr(together, "train_replicas", counted)
    epochs: list[int] = []
    found = train_once(specs, epochs.append)
    assert trained == [8]
    assert sum(epochs) == sum(spec.recipe.epochs for spec in specs)
    for result, expected in zip(found, train_replicas(specs), strict=True):
        assert result.curve == expected.curve
        assert digest(result.weights) == digest(expected.weights)
        assert digest(result.scores) == digest(expected.scores)


def test_dense_cells_train_once_and_have_rows_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"width": 40, "samples": 300, "epochs": 1}
    shots = {"pipeline": "multi-shot", "shots": 2, "shot_epochs": 1}
    cells = [
        CellSpec(task="relu", method=m, density=d, **small, **shots)
        for m in ("random", "magnitude") for d in (0.1, 1.0)
    ]  # fmt: skip
    trained: list[int] = []

    def counted(specs, **kwargs):
        trained.append(len(specs))
        return train_replicas(specs, **kwargs)

    monkeypatch.setattr(together, "train_replicas", counted)
    rows = run_batch(cells)
    assert trained == [1, 3, 3]
    assert rows[1]["metrics"] == rows[3]["metrics"]
    assert rows[1]["key"] != rows[3]["key"]
    (batch,) = group(cells)
    assert [c.density for c in batch] == [1.0, 1.0, 0.1, 0.1]


@pytest.mark.parametrize("density", [1.0, 0.3, 0.05, 0.0])
def test_evaluation_is_that_of_the_masked_network(density: float) -> None:
    network = mlp([2, 50, 40, 30, 2], dtype=torch.float64)
    g = torch.Generator().manual_seed(3)
    weights = {n: p.detach() for n, p in network.named_parameters()}
    masks = {n: torch.rand(w.shape, generator=g) < density for n, w in weights.items() if w.dim() == 2}
    masks["2.bias"] = torch.arange(40) % 3 > 0
    x = torch.rand(1500, 2, generator=g, dtype=torch.float64)
    data = Split(x[:1400], x[:1400], x[1400:], x[1400:])
    found = Evaluator().outputs(weights, masks, data, "x_train")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name in masks:
                parameter *= masks[name]
        assert torch.allclose(found, network(data.x_train), rtol=1e-12, atol=1e-14)


def test_a_network_without_hidden_layers() -> None:
    x = torch.rand(5, 2)
    network = mlp([2, 3])
    assert torch.allclose(forward(dict(network.named_parameters()), x), network(x))
