import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from lotterykit.errors import ArgumentError
from lotterykit.nn.masked import MASKED, MaskedConv2d, MaskedLinear

SHAPES = {
    nn.Linear: ((6, 4), (3, 6)),
    nn.Conv1d: ((2, 4, 3), (3, 2, 9)),
    nn.Conv2d: ((2, 4, 3), (3, 2, 7, 8)),
    nn.Conv3d: ((2, 4, 3), (3, 2, 5, 5, 5)),
}


def masked_and_input(plain, **kwargs):
    arguments, shape = SHAPES[plain]
    layer = MASKED[plain](*arguments, **kwargs)
    layer.weight_mask.copy_(torch.rand_like(layer.weight) < 0.5)
    return layer, torch.randn(shape)


@pytest.mark.parametrize("plain", MASKED)
def test_forward_and_gradient_ignore_pruned_weights(plain):
    layer, x = masked_and_input(plain)
    twin = plain(*SHAPES[plain][0])
    with torch.no_grad():
        twin.weight.copy_(torch.where(layer.weight_mask, layer.weight, 0.0))
        twin.bias.copy_(layer.bias)
        layer.weight.masked_fill_(~layer.weight_mask, float("nan"))
    torch.testing.assert_close(layer(x), twin(x))
    layer(x).square().sum().backward()
    twin(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, torch.where(layer.weight_mask, twin.weight.grad, 0.0))
    torch.testing.assert_close(layer.bias.grad, twin.bias.grad)


@pytest.mark.parametrize("plain", MASKED)
def test_bias_mask(plain):
    layer, x = masked_and_input(plain, bias_mask=True)
    assert "bias_mask" in layer.state_dict()
    layer.bias_mask[0] = False
    with torch.no_grad():
        layer.bias[0] = float("inf")
    assert layer(x).isfinite().all()
    assert "bias_mask" not in MASKED[plain](*SHAPES[plain][0]).state_dict()
    with pytest.raises(ArgumentError, match="needs a layer with a bias"):
        MASKED[plain](*SHAPES[plain][0], bias=False, bias_mask=True)


def test_conv_options():
    layer = MaskedConv2d(4, 6, 3, stride=2, padding=1, groups=2, padding_mode="circular", bias=False)
    plain = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, padding_mode="circular", bias=False)
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(layer(x), plain(x))


@pytest.mark.parametrize("plain", MASKED)
def test_round_trip_and_plain_checkpoints(plain):
    layer, x = masked_and_input(plain)
    other = MASKED[plain](*SHAPES[plain][0])
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    mask = layer.weight_mask.clone()
    dense = plain(*SHAPES[plain][0])
    layer.load_state_dict(dense.state_dict())
    assert torch.equal(layer.weight, dense.weight)
    assert torch.equal(layer.weight_mask, mask)
    fresh = MASKED[plain](*SHAPES[plain][0])
    fresh.load_state_dict(dense.state_dict(), assign=True)
    assert torch.equal(fresh(x), dense(x))


@pytest.mark.parametrize("plain", MASKED)
def test_checkpoint_of_torch_prune(plain):
    layer = plain(*SHAPES[plain][0])
    prune.random_unstructured(layer, "weight", 0.4)
    prune.random_unstructured(layer, "bias", 0.3)
    state = nn.Sequential(layer).state_dict()
    keys = set(state)
    model = nn.Sequential(MASKED[plain](*SHAPES[plain][0]))
    model.load_state_dict(state)
    x = torch.randn(SHAPES[plain][1])
    torch.testing.assert_close(model(x), layer(x))
    assert torch.equal(model[0].weight, layer.weight_orig)
    assert model[0].weight_mask.dtype == torch.bool
    assert set(state) == keys


def test_checkpoint_of_a_parametrization():
    class Times(nn.Module):
        def __init__(self, mask):
            super().__init__()
            self.register_buffer("mask", mask)

        def forward(self, weight):
            return weight * self.mask

    layer = nn.Linear(5, 3)
    for _ in range(2):
        parametrize.register_parametrization(layer, "weight", Times((torch.rand(3, 5) < 0.7).float()))
    masked = MaskedLinear(5, 3)
    masked.load_state_dict(layer.state_dict())
    x = torch.randn(2, 5)
    torch.testing.assert_close(masked(x), layer(x))


def test_checkpoint_with_a_bias_mask_gives_the_layer_one():
    source, target = MaskedLinear(3, 2, bias_mask=True), MaskedLinear(3, 2)
    source.bias_mask[1] = False
    target.load_state_dict(source.state_dict())
    assert torch.equal(target.bias_mask, source.bias_mask)


def test_wrong_checkpoints_are_still_refused():
    layer = MaskedLinear(3, 2)
    with pytest.raises(RuntimeError, match="size mismatch"):
        layer.load_state_dict({"weight": torch.ones(2, 4), "bias": torch.ones(2)})
    with pytest.raises(RuntimeError, match=r"Missing key.*bias"):
        layer.load_state_dict({"weight": torch.ones(2, 3)})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        layer.load_state_dict({"weight": torch.ones(2, 3), "bias": torch.ones(2), "scale": torch.ones(1)})


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(duplicate):
    layer, x = masked_and_input(nn.Linear)
    y = layer(x)
    other = duplicate(layer)
    assert torch.equal(other(x), y)
    other.weight_mask.fill_(False)
    assert torch.equal(layer(x), y)
    assert torch.equal(other(x), other.bias.expand(3, 4))


def test_repr_and_moves():
    layer = MaskedLinear(4, 2)
    layer.weight_mask[0] = False
    assert repr(layer) == "MaskedLinear(in_features=4, out_features=2, bias=True, density=0.5)"
    assert layer.to(torch.bfloat16).weight_mask.dtype == torch.bool
    assert layer(torch.randn(1, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert "density=unknown" in repr(layer.to("meta"))


def test_compile_fullgraph():
    model = nn.Sequential(
        MaskedLinear(6, 5, bias_mask=True), nn.ReLU(), nn.Unflatten(1, (1, 5)), MASKED[nn.Conv1d](1, 2, 3)
    )
    for layer in (model[0], model[3]):
        layer.weight_mask.copy_(torch.rand_like(layer.weight) < 0.5)
    x = torch.randn(3, 6)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))
