import pytest
import torch
from torch import nn

from lotterykit.errors import ArgumentError
from lotterykit.nn.init import INITS, linear_shapes
from lotterykit.nn.models import chain, mlp


def test_layers_and_names():
    network = mlp([2, 100, 100, 4])
    assert [type(m) for m in network] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert [n for n, _ in network.named_parameters()] == [
        f"{i}.{k}" for i in (0, 2, 4) for k in ("weight", "bias")
    ]
    assert network(torch.zeros(5, 2)).shape == (5, 4)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in network.parameters())


@pytest.mark.parametrize("init", list(INITS))
def test_dtypes_hold_the_same_network(init):
    single, double = (mlp([3, 20, 2], init=init, seed=5, dtype=d) for d in (torch.float32, torch.float64))
    for a, b in zip(single.parameters(), double.parameters(), strict=True):
        assert torch.equal(a, b.float())
    weights, biases = INITS[init](linear_shapes([3, 20, 2]), torch.Generator().manual_seed(5))
    assert torch.equal(double[0].weight, weights[0])
    assert torch.equal(double[2].bias, biases[1])


def test_the_global_random_state_is_not_touched():
    before = torch.get_rng_state()
    mlp([2, 10, 2], seed=3)
    assert torch.equal(before, torch.get_rng_state())


def test_seeds_differ():
    assert not torch.equal(mlp([2, 10, 2], seed=0)[0].weight, mlp([2, 10, 2], seed=1)[0].weight)


def test_chain_copies():
    weight, bias = torch.ones(2, 3, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    network = chain([weight], [bias], dtype=torch.float64)
    weight.zero_()
    assert network(torch.ones(1, 3, dtype=torch.float64)).sum().item() == 6.0


@pytest.mark.parametrize("widths", [[2], [], [2, 0, 1], [2, 2.5, 1], [2, True, 1], "abc", 5, [2, -1]])
def test_bad_widths(widths):
    with pytest.raises(ArgumentError, match="widths"):
        mlp(widths)


def test_bad_options():
    with pytest.raises(ArgumentError, match="did you mean 'he_scaled'"):
        mlp([2, 2], init="he_scale")
    with pytest.raises(ArgumentError, match="seed"):
        mlp([2, 2], seed=-1)
    with pytest.raises(ArgumentError, match="dtype"):
        mlp([2, 2], dtype=torch.int64)
