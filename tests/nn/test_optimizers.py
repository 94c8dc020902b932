"""Optimizers and layers of every format: the same training, state that follows, memory of kept weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lotterykit.errors import ArgumentError
from lotterykit.nn.convert import convert_, revert_
from lotterykit.training.optimizer import mask_optimizer_

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 0.05, weight_decay=0.1, amsgrad=True),
    "fused adam": lambda p: torch.optim.Adam(p, 0.05, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.5),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.1),
}


def network(density: float = 0.4) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3)).double()
    masks = {n: torch.rand_like(p) < density for n, p in model.named_parameters() if "weight" in n}
    return convert_(model, masks=masks)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        x, y = (torch.randn(8, *n, generator=generator, dtype=torch.float64) for n in ((2, 5), (3,)))
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_formats_train_alike_and_an_optimizer_follows_conversions(make) -> None:
    masked = network()
    moving = copy.deepcopy(masked)
    optimizer = mask_optimizer_(make(masked.parameters()), masked)
    follower = mask_optimizer_(make(moving.parameters()), moving)
    for format in ("masked", "sparse", "masked", "sparse"):
        convert_(moving, format=format, optimizer=follower)
        steps(masked, optimizer, 3)
        steps(moving, follower, 3)
        for index in (0, 3):
            mask = masked[index].weight_mask
            assert not masked[index].weight[~mask].any()
            assert not moving[index].weight[~mask].any()
            torch.testing.assert_close(moving[index].weight.clone(), masked[index].weight.detach())
        for parameter in moving.parameters():
            for value in follower.state.get(parameter, {}).values():
                assert not isinstance(value, torch.Tensor) or value.shape in ((), parameter.shape)
    assert moving[3].values.numel() == int(masked[3].weight_mask.sum())
    revert_(moving, optimizer=follower)
    steps(moving, follower, 1)


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_an_optimizer_that_was_not_passed_fails_loudly_or_has_no_state(name) -> None:
    model = network()
    fresh = OPTIMIZERS[name](model.parameters())
    convert_(model, format="sparse")
    steps(model, fresh, 2)
    convert_(model)
    with pytest.raises(RuntimeError):
        steps(model, fresh, 1)


def test_state_dicts_of_optimizers_of_sparse_layers_load() -> None:
    model = convert_(network(), format="sparse")
    optimizer = OPTIMIZERS["adam"](model.parameters())
    steps(model, optimizer, 2)
    other = convert_(network(0.7), format="sparse")
    resumed = OPTIMIZERS["adam"](other.parameters())
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(model, optimizer, 2)
    steps(other, resumed, 2)
    assert torch.equal(model[0].values, other[0].values)


def test_state_that_cannot_be_carried_is_refused_first() -> None:
    model = network()
    optimizer = torch.optim.Adafactor(model.parameters(), 0.1)
    steps(model, optimizer, 1)
    before = dict(model.named_parameters())
    with pytest.raises(ArgumentError, match="Adafactor holds 'row_var'"):
        convert_(model, format="sparse", optimizer=optimizer)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())


def nbytes(*tensors: torch.Tensor) -> int:
    """Bytes of the storages behind the tensors, each once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def held(layer: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of parameter, mask or structure, and optimizer state of a layer without bias."""
    parameters, structure = list(layer.parameters()), layer.csr.tensors if layer.format == "sparse" else []
    state = [v for p in parameters for v in optimizer.state[p].values()]
    others = [v for v in vars(layer).values() if isinstance(v, torch.Tensor)]  # nothing cached beside
    return nbytes(*parameters, *layer.buffers(), *structure, *state, *others)


def test_a_sparse_layer_with_adam_takes_a_25th_of_the_memory_at_density_one_percent() -> None:
    masked = nn.Linear(512, 512, bias=False)
    convert_(masked, masks={"weight": torch.rand(512, 512) < 0.01})
    sparse = convert_(copy.deepcopy(masked), format="sparse")
    sizes = {}
    for layer in (masked, sparse):
        optimizer = mask_optimizer_(torch.optim.Adam(layer.parameters()), layer)
        for _ in range(2):
            layer(torch.randn(4, 512)).sum().backward()
            optimizer.step()
        sizes[layer.format] = held(layer, optimizer)
    assert sizes["sparse"] * 25 <= sizes["masked"], sizes
