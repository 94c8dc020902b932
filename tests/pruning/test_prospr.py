"""ProsPr's scores against finite differences on the mask, of training that is derived or run without it."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from lotterykit.errors import ArgumentError
from lotterykit.nn.models import mlp
from lotterykit.pruning.prune import prune_
from lotterykit.pruning.scores import scores

CE = nn.functional.cross_entropy
STEP = 1e-6


def batches(count: int, *shape: int, classes: int = 4) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(3)
    return [
        (torch.randn(8, *shape, generator=g, dtype=torch.float64), torch.randint(classes, (8,), generator=g))
        for _ in range(count)
    ]


def loss_after_sgd(
    model: nn.Module, name: str, mask: Tensor, data: list[tuple[Tensor, Tensor]], steps: int, lr: float
) -> float:
    """The loss on batch `steps` after `torch.optim.SGD` on those before it, `mask` times `name` first."""
    twin = copy.deepcopy(model).eval()
    with torch.no_grad():
        twin.get_parameter(name).mul_(mask)
    optimizer = torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], lr=lr)
    turns = itertools.islice(itertools.cycle(data), steps + 1)
    for turn, (x, y) in enumerate(turns):
        loss = CE(twin(x), y)
        if turn < steps:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return float(loss.detach())


def differences(
    model: nn.Module, name: str, data: list[tuple[Tensor, Tensor]], steps: int, lr: float
) -> Tensor:
    """|dL/dm| of every entry of the mask of `name`, by central differences."""
    weight = model.get_parameter(name).detach()
    found = torch.zeros(weight.numel(), dtype=torch.float64)
    for i in range(weight.numel()):
        ends = []
        for sign in (1.0, -1.0):
            mask = torch.ones_like(weight)
            mask.view(-1)[i] += sign * STEP
            ends.append(loss_after_sgd(model, name, mask, data, steps, lr))
        found[i] = abs(ends[0] - ends[1]) / (2 * STEP)
    return found.view_as(weight)


def unrolled_loss(w1: Tensor, w2: Tensor, data: list[tuple[Tensor, Tensor]], lr: float) -> float:
    """Two layers with tanh, squared error, gradients by hand: a step of SGD on each batch but the last."""
    for turn, (x, y) in enumerate(data):
        hidden = torch.tanh(x @ w1.T)
        error = hidden @ w2.T - y
        if turn == len(data) - 1:
            return float((error**2).mean())
        g = 2 * error / error.numel()
        back = (g @ w2) * (1 - hidden**2)
        w1, w2 = w1 - lr * back.T @ x, w2 - lr * g.T @ hidden
    raise AssertionError("data holds no batch")


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_agrees_with_two_layers_unrolled_by_hand(steps: int) -> None:
    g = torch.Generator().manual_seed(0)
    data = [
        (
            torch.randn(7, 3, generator=g, dtype=torch.float64),
            torch.randn(7, 2, generator=g, dtype=torch.float64),
        )
        for _ in range(steps + 1)
    ]
    model = nn.Sequential(nn.Linear(3, 5, bias=False), nn.Tanh(), nn.Linear(5, 2, bias=False)).double()
    weights = [model[0].weight.detach(), model[2].weight.detach()]
    found = scores(
        model, "prospr", data=data, loss_fn=nn.functional.mse_loss, options={"steps": steps, "lr": 0.3}
    )
    for layer, score in enumerate(found.values()):
        for i in range(score.numel()):
            ends = []
            for sign in (1.0, -1.0):
                changed = [w.clone() for w in weights]
                changed[layer].view(-1)[i] *= 1 + sign * STEP
                ends.append(unrolled_loss(changed[0], changed[1], data, 0.3))
            assert float(score.view(-1)[i]) == pytest.approx(abs(ends[0] - ends[1]) / (2 * STEP), abs=1e-8)


def convolutional() -> nn.Sequential:
    """A convolution, batch-norm with statistics of its own, a frozen bias, a linear layer."""
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Softplus(), nn.Flatten(), nn.Linear(48, 4)
    ).double()
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2.0)
    model[4].bias.requires_grad_(False)
    return model


@pytest.mark.parametrize("held", [1, 2, 4, 6])
def test_agrees_with_torchs_sgd_on_any_module_and_leaves_batch_norm(held: int) -> None:
    """3 steps and their loss read 4 batches: fewer are read again, more are not read."""
    model, data = convolutional(), batches(held, 2, 4, 4)
    before = copy.deepcopy(model.state_dict())
    found = scores(model, "prospr", data=data, loss_fn=CE, options={"lr": 0.2})
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    expected = differences(model, "0.weight", data, 3, 0.2)
    assert torch.allclose(found["0.weight"], expected, atol=1e-7)
    assert float(expected.max()) > 1e-3


def test_pruned_weights_stay_absent_through_the_steps_and_may_hold_anything() -> None:
    model, data = mlp([3, 6, 5, 4], seed=1, dtype=torch.float64), batches(4, 3)
    masks = prune_(model, "random", density=0.6, seed=2)
    expected = {name: differences(model, name, data, 3, 0.1) for name in masks}
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name)[~mask] = float("nan")
    found = scores(model, "prospr", data=data, loss_fn=CE)  # steps 3, lr 0.1
    for name, mask in masks.items():
        assert torch.allclose(found[name], expected[name], atol=1e-7)
        assert not bool(found[name][~mask].any())


def test_no_step_is_snip_on_the_first_batch() -> None:
    model, data = mlp([3, 6, 4], seed=1, dtype=torch.float64), batches(3, 3)
    found = scores(model, "prospr", data=data, loss_fn=CE, options={"steps": 0}, prune_bias=True)
    expected = scores(model, "snip", data=data[:1], loss_fn=CE, prune_bias=True)
    total = sum(float(f.sum()) for f in found.values())
    assert set(found) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    for name, score in found.items():
        assert torch.allclose(score / total, expected[name], rtol=1e-12)


def test_a_one_shot_iterator_serves_where_it_holds_enough() -> None:
    model, data = mlp([3, 6, 4], seed=1, dtype=torch.float64), batches(4, 3)
    whole = scores(model, "prospr", data=data, loss_fn=CE)
    assert all(
        torch.equal(f, whole[n]) for n, f in scores(model, "prospr", data=iter(data), loss_fn=CE).items()
    )
    for held in (0, 3):
        with pytest.raises(
            ArgumentError, match=f"one-shot iterator of {held} batches, and this method reads 4"
        ):
            scores(model, "prospr", data=iter(data[:held]), loss_fn=CE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps must be an int >= 0, got -1"),
        ({"steps": 1.0}, "steps must be an int"),
        ({"steps": True}, "steps must be an int"),
        ({"lr": 0.0}, "lr must be a finite number > 0"),
        ({"lr": float("inf")}, "lr must be a finite number > 0"),
        ({"lr": "fast"}, "lr must be a finite number > 0, got 'fast'"),
        ({"lr": 1e200}, "end at a loss of (nan|inf): lower lr"),
        ({"momentum": 0.9}, "unknown option of prospr"),
    ],
)
def test_refusals(options: dict, message: str) -> None:
    model = mlp([3, 6, 4], seed=1, dtype=torch.float64)
    with pytest.raises(ArgumentError, match=message):
        scores(model, "prospr", data=batches(2, 3), loss_fn=CE, options=options)


def test_data_without_a_batch_and_frozen_weights() -> None:
    model = mlp([3, 6, 4], seed=1, dtype=torch.float64)
    with pytest.raises(ArgumentError, match="no batch"):
        scores(model, "prospr", data=[], loss_fn=CE)
    with pytest.raises(ArgumentError, match="pass data"):
        scores(model, "prospr")
    model[2].weight.requires_grad_(False)
    with pytest.raises(ArgumentError, match=r"2\.weight has requires_grad=False"):
        scores(model, "prospr", data=batches(1, 3), loss_fn=CE)
