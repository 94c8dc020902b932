"""Scored layers against plain layers of the weights that their scores keep."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from lotterykit.errors import ArgumentError
from lotterykit.nn.scored import ScoredConv2d, ScoredLinear, ranked_together
from lotterykit.ops import score_thresholds, topk_mask

CONVOLUTIONS = [
    {"padding": 1},
    {"stride": 2, "groups": 2, "bias": False},
    {"padding": "same", "dilation": 2},
    {"padding": 2, "padding_mode": "circular"},
]


def plain(layer: nn.Module) -> nn.Module:
    """The layer of torch that computes what `layer` does."""
    if isinstance(layer, nn.Linear):
        twin = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
    else:
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        given = {name: getattr(layer, name) for name in names}
        twin = nn.Conv2d(**given, bias=layer.bias is not None, padding_mode=layer.padding_mode)
    twin = twin.to(layer.weight.dtype)
    state = {"weight": layer.weight * layer.weight_mask, "bias": layer.bias}
    twin.load_state_dict({k: v for k, v in state.items() if v is not None})
    return twin


def layers():
    yield ScoredLinear(6, 5, density=0.3), torch.randn(3, 6)
    yield ScoredLinear(6, 5, bias=False, method="gem-miner"), torch.randn(2, 3, 6)
    for number, options in enumerate(CONVOLUTIONS):
        method = {"method": "gem-miner"} if number == 1 else {"density": 0.4}
        yield ScoredConv2d(4, 6, 3, **options, **method), torch.randn(2, 4, 7, 6)


def test_forward_and_gradients_are_those_of_the_kept_weights():
    for layer, x in layers():
        layer, x = layer.double(), x.double().requires_grad_(True)
        twin = plain(layer)
        y, wanted = layer(x), twin(x)
        torch.testing.assert_close(y, wanted)
        g = torch.randn_like(y)
        parameters = [p for p in (layer.weight_score, layer.bias) if p is not None]
        dx, dscore, *dbias = torch.autograd.grad(y, (x, *parameters), g)
        wx, dweight, *wbias = torch.autograd.grad(wanted, (x, *twin.parameters()), g)
        sign = layer.weight_score.sign() if layer.method == "edge-popup" else 1.0
        torch.testing.assert_close([dx, dscore, *dbias], [wx, dweight * layer.weight * sign, *wbias])


def test_the_masks_are_topk_masks():
    layer = ScoredLinear(40, 30, density=0.1, seed=3)
    (wanted,) = topk_mask([layer.weight_score.abs()], density=0.1, seed=3)
    assert torch.equal(layer.weight_mask, wanted)
    layer.density = 0.5
    assert int(layer.weight_mask.sum()) == 600
    gem = ScoredConv2d(3, 4, 3, method="gem-miner")
    assert torch.equal(gem.weight_mask, gem.weight_score >= 0.5)
    assert bool(((gem.weight_score >= 0) & (gem.weight_score <= 1)).all())


def test_only_scores_and_bias_train_and_the_mask_moves():
    torch.manual_seed(0)
    model = nn.Sequential(ScoredLinear(8, 64, density=0.3), nn.ReLU(), ScoredLinear(64, 3, density=0.3))
    for layer in (model[0], model[2]):  # 30 % of weights of the default's size give logits near 0
        layer.weight.mul_(3)
    frozen, before = model[0].weight.clone(), model[0].weight_mask
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {"0.weight", "2.weight"}
    x = torch.randn(200, 8)
    y = x[:, :3].argmax(1)
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=0.02)
    losses = []
    for _ in range(100):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert torch.equal(model[0].weight, frozen)
    assert not torch.equal(model[0].weight_mask, before)
    assert int(model[0].weight_mask.sum()) == round(0.3 * 512)


def test_layers_ranked_together_share_one_count():
    model = nn.Sequential(ScoredLinear(20, 10, density=1.0), ScoredConv2d(2, 3, 3, density=1.0))
    own = [layer.weight_mask for layer in model]
    with ranked_together(model, density=0.2, seed=4):
        scores = [layer.weight_score for layer in model]
        for layer, mask in zip(model, topk_mask([s.abs() for s in scores], density=0.2, seed=4), strict=True):
            assert torch.equal(layer.weight_mask, mask)
        assert score_thresholds(scores, density=0.2, seed=4)[1].offset == 200 == model[1].threshold().offset
    assert all(torch.equal(layer.weight_mask, mask) for layer, mask in zip(model, own, strict=True))
    with (
        pytest.raises(ArgumentError, match="no layer scored by edge-popup"),
        ranked_together(nn.ReLU(), density=0.5),
    ):
        pass


def test_checkpoints_copies_and_functional_call():
    for layer, x in layers():
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(twin(x), layer(x))
        other = copy.deepcopy(layer)
        other.reset_scores()
        other.load_state_dict(layer.state_dict())
        assert torch.equal(other(x), layer(x))
        state = {k: v for k, v in layer.state_dict().items() if k != "weight_score"}
        score = other.weight_score.clone()
        other.load_state_dict(state)  # a plain layer's
        assert torch.equal(other.weight_score, score)
        turned = functional_call(layer, {"weight": -layer.weight}, x)
        bias = 0 if layer.bias is None else layer.bias.view(-1, *[1] * (2 if x.dim() == 4 else 0))
        torch.testing.assert_close(turned - bias, bias - layer(x))


def test_compile_fullgraph():
    model = nn.Sequential(ScoredConv2d(2, 3, 3, density=0.3), nn.Flatten(), ScoredLinear(27, 4, density=0.3))
    x = torch.randn(2, 2, 5, 5)
    y, wanted = torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x)
    torch.testing.assert_close(y, wanted)
    parameters = [p for p in model.parameters() if p.requires_grad]
    got, want = (torch.autograd.grad(out.square().sum(), parameters) for out in (y, wanted))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "density must be a number"),
        ({"density": 0.0}, r"must lie in \(0, 1\]"),
        ({"density": 0.5, "method": "edge-pop"}, "did you mean 'edge-popup'"),
        ({"density": 0.5, "method": "gem-miner"}, "density must be None, got 0.5"),
        ({"density": 0.5, "seed": -1}, "seed must be"),
    ],
)
def test_bad_arguments(options, words):
    for make in (lambda: ScoredLinear(3, 4, **options), lambda: ScoredConv2d(3, 4, 2, **options)):
        with pytest.raises(ArgumentError, match=words):
            make()
