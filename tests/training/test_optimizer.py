"""`mask_optimizer_`: neither momentum nor weight decay revives a pruned weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lotterykit.errors import ArgumentError
from lotterykit.pruning.prune import prune_
from lotterykit.training.optimizer import mask_optimizer_

OPTIMIZERS = [
    lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.1, amsgrad=True),
    lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.5),
    lambda p: torch.optim.RMSprop(p, 0.1, momentum=0.9),
    lambda p: torch.optim.Adagrad(p, 0.1),
]


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_pruned_in_mid_training_stays_pruned(make) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3))
    optimizer = mask_optimizer_(make(model.parameters()), model)
    x, y = torch.randn(64, 6), torch.randn(64, 3)

    def steps(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()

    steps(3)
    masks = prune_(model, "magnitude", density=0.2)
    kept = model[0].weight.detach()[masks["0.weight"]].clone()
    steps(3)
    for name, parameter in model.named_parameters():
        if name in masks:
            assert not parameter.detach()[~masks[name]].any(), name
    assert not torch.equal(kept, model[0].weight.detach()[masks["0.weight"]])


def test_unknown_mask_names() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ArgumentError, match=r"5\.weight"):
        mask_optimizer_(
            torch.optim.SGD(model.parameters(), 0.1), model, {"5.weight": torch.ones(2, 2, dtype=torch.bool)}
        )


def test_a_model_without_linear_layers_trains() -> None:
    model = nn.PReLU(3)
    optimizer = mask_optimizer_(torch.optim.SGD(model.parameters(), 0.1), model)
    model(-torch.ones(2, 3)).sum().backward()
    before = model.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(model.weight.detach(), before)
