"""`score_` and `bake_`: layers become scored ones in place and masked ones again, masks they had hold."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from residual_network import Net
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from lotterykit.errors import ArgumentError
from lotterykit.mask import Masks
from lotterykit.nn.convert import convert_
from lotterykit.nn.masked import MaskedConv1d, MaskedConv2d, MaskedLinear
from lotterykit.nn.scored import Scored, ScoredConv1d, ScoredConv2d, ScoredLinear, ranked_together
from lotterykit.nn.supermask import bake_, draw_scores, score_, scored_layers
from lotterykit.ops.topk_mask import topk_mask


def mixed() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, groups=2, padding=1),
        nn.BatchNorm2d(6),
        nn.Flatten(2),
        nn.Conv1d(6, 4, 5, stride=2, padding=2, padding_mode="circular"),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 18, 3),
    )


@pytest.mark.parametrize("method", ["edge-popup", "gem-miner"])
def test_there_and_back(method: str) -> None:
    """Classes change, objects stay, and the baked network computes what the scored one did."""
    model, x = mixed().double(), torch.randn(3, 2, 6, 6, dtype=torch.float64)
    before = {name: (p, p.detach().clone()) for name, p in model.named_parameters()}
    density = 0.4 if method == "edge-popup" else None
    assert score_(model, method, density, seed=3) is model
    assert [type(model[i]) for i in (0, 3, 6)] == [ScoredConv2d, ScoredConv1d, ScoredLinear]
    assert list(scored_layers(model)) == ["0.weight", "3.weight", "6.weight"]
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == set(scored_layers(model))
    for name, layer in scored_layers(model).items():
        assert layer.weight is before[name][0]
        if density is not None:
            assert int(layer.weight_mask.sum()) == round(density * layer.weight.numel())
    masks = {name: layer.weight_mask for name, layer in scored_layers(model).items()}
    y = model.eval()(x)
    bake_(model)
    assert [type(model[i]) for i in (0, 3, 6)] == [MaskedConv2d, MaskedConv1d, MaskedLinear]
    torch.testing.assert_close(model(x), y)
    for name, mask in Masks.from_model(model).items():
        assert torch.equal(mask, masks[name])
    for name, p in model.named_parameters():
        assert p is before[name][0]
        assert torch.equal(p, before[name][1])  # pruned entries too
        assert p.requires_grad
    assert not any("score" in name or "active" in name for name in model.state_dict())
    assert not any({"_guess", "method", "seed", "density"} & set(vars(model[i])) for i in (0, 3, 6))


def test_forward_and_gradients_of_one_dimension() -> None:
    for options in (
        {"padding": "same", "dilation": 2},
        {"padding": 1, "padding_mode": "reflect", "stride": 2},
    ):
        layer = ScoredConv1d(4, 6, 3, groups=2, density=0.4, dtype=torch.float64, **options)
        for x in (torch.randn(2, 4, 9).double(), torch.randn(4, 9).double()):
            twin = nn.Conv1d(4, 6, 3, groups=2, dtype=torch.float64, **options)
            twin.load_state_dict({"weight": layer.weight * layer.weight_mask, "bias": layer.bias})
            y, wanted = layer(x), twin(x)
            torch.testing.assert_close(y, wanted)
            g = torch.randn_like(y)
            (got,) = torch.autograd.grad(y, layer.weight_score, g)
            (want,) = torch.autograd.grad(wanted, twin.weight, g)
            torch.testing.assert_close(got, want * layer.weight * layer.weight_score.sign())


def test_the_root_itself_and_given_scores() -> None:
    start = torch.tensor([[1.0, -3.0, 2.0, 0.5]])
    layer = score_(nn.Linear(4, 1), "edge-popup", 0.5, scores={"weight": start})
    assert type(layer) is ScoredLinear
    assert layer.weight_mask.tolist() == [[False, True, True, False]]
    start.zero_()  # the layer has a copy
    assert float(layer.weight_score.detach().abs().max()) == 3.0
    with ranked_together(layer, density=0.25):
        bake_(layer)
    assert layer.weight_mask.tolist() == [[False, True, False, False]]


def test_scores_are_drawn_by_the_seed_alone() -> None:
    models = [mixed() for _ in range(3)]
    state = torch.get_rng_state()
    one, two, other = (score_(m, "edge-popup", 0.5, seed=s) for m, s in zip(models, (5, 5, 6), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    for i in (0, 3, 6):
        assert torch.equal(one[i].weight_score, two[i].weight_score)
        assert not torch.equal(one[i].weight_score, other[i].weight_score)
    shapes = {"a.weight": (50, 8, 3, 3), "a.bias": (4000,)}
    drawn, bound = draw_scores("edge-popup", shapes, 0), 1 / math.sqrt(72)
    for scores in drawn.values():
        assert 0.99 * bound < float(scores.abs().max()) <= bound
        assert abs(float(scores.mean())) < 0.05 * bound
    drawn = draw_scores("gem-miner", shapes, 0)
    assert 0 <= float(drawn["a.weight"].min()) < 0.01
    assert 0.99 < float(drawn["a.weight"].max()) <= 1


@pytest.mark.parametrize("method", ["edge-popup", "gem-miner"])
def test_carried_masks_hold(method: str) -> None:
    """Infinite where pruned, as masked layers allow: never seen again, never kept again."""
    model, x = mixed(), torch.randn(8, 2, 6, 6)
    g = torch.Generator().manual_seed(0)
    masks = {f"{i}.weight": torch.rand(model[i].weight.shape, generator=g) < 0.6 for i in (0, 3, 6)}
    masks["6.bias"] = torch.tensor([True, False, True])
    convert_(model, masks=masks)
    with torch.no_grad():
        for i in (0, 3, 6):
            model[i].weight[~model[i].weight_mask] = torch.inf
        model[6].bias[1] = torch.inf
    score_(model, method, 0.3 if method == "edge-popup" else None, seed=2)
    parameters = [layer.weight_score for layer in scored_layers(model).values()]
    optimizer = torch.optim.Adam(parameters, 0.05, weight_decay=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    for name, layer in scored_layers(model).items():
        assert not bool((layer.weight_mask & ~masks[name]).any())
        assert float(layer.weight_score.detach()[~masks[name]].abs().max()) == 0
        if method == "edge-popup":
            assert int(layer.weight_mask.sum()) == round(0.3 * layer.weight.numel())
            layer.density = 0.9  # more than there are
            assert torch.equal(layer.weight_mask, masks[name])
            layer.density = 0.3
    bake_(model.eval())
    assert torch.equal(model[6].bias_mask, masks["6.bias"])
    assert bool(model(x).isfinite().all())


def test_active_weights_travel_with_the_state() -> None:
    layer = score_(nn.Linear(6, 5), "gem-miner", seed=1)
    active = torch.arange(30).view(5, 6) % 3 == 0
    layer.restrict_(active)
    assert not bool((layer.weight_mask & ~active).any())
    fresh = score_(nn.Linear(6, 5), "gem-miner", seed=2)
    fresh.load_state_dict(layer.state_dict())
    for twin in (fresh, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin.weight_active, active)
        assert torch.equal(twin.weight_mask, layer.weight_mask)
    fresh.load_state_dict(nn.Linear(6, 5).state_dict())  # a plain checkpoint: scores and active stay
    assert torch.equal(fresh.weight_active, active)
    assert torch.equal(fresh.weight_score, layer.weight_score)


def test_any_network_and_layers_left_out() -> None:
    """A network with residuals, depthwise convolutions and a padding of its own; two layers stay plain."""
    model, x = Net(2).eval(), torch.randn(2, 3, 8, 8)
    score_(model, "edge-popup", 0.5, unscored=("stem", "head"))
    assert type(model.stem) is nn.Conv2d
    assert type(model.head) is nn.Linear
    layers = scored_layers(model)
    assert len(layers) == 8
    y = model(x)
    twin = Net(2).eval()
    state = {k: v for k, v in model.state_dict().items() if "weight_score" not in k}
    twin.load_state_dict(state)
    Masks({name: layer.weight_mask for name, layer in layers.items()}).apply_(twin)
    torch.testing.assert_close(y, twin(x))


def test_encoders_do_not_take_the_path_past_the_scores() -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 5, 8)
    score_(encoder, "edge-popup", 0.2, seed=1)
    with torch.no_grad():
        fast = encoder(x)
    slow = encoder(x.requires_grad_(True)).detach()
    torch.testing.assert_close(fast, slow)
    bake_(encoder)
    torch.testing.assert_close(encoder(x).detach(), slow)


def test_ties_fall_by_the_seed_of_each_layer() -> None:
    start = {f"{i}.weight": torch.ones(20, 20) for i in range(2)}
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
    score_(model, "edge-popup", 0.5, scores=start)
    masks = [layer.weight_mask for layer in model]
    assert [int(mask.sum()) for mask in masks] == [200, 200]
    assert not torch.equal(*masks)
    (again,) = topk_mask([torch.ones(20, 20)], k=200, seed=model[0].seed)
    assert torch.equal(masks[0], again)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.two.weight = self.one.weight


def pruned_by_torch() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3))
    prune.l1_unstructured(model[0], "weight", 2)
    return model


REFUSALS = {
    "method": (lambda: score_(mixed(), "edge-pop", 0.5), "did you mean 'edge-popup'"),
    "density": (lambda: score_(mixed(), "edge-popup"), "density must be a number"),
    "gem density": (lambda: score_(mixed(), "gem-miner", 0.5), "density must be None"),
    "seed": (lambda: score_(mixed(), "gem-miner", seed=-1), "seed must be"),
    "nothing": (lambda: score_(nn.ReLU(), "gem-miner"), "ReLU has no Linear, Conv1d or Conv2d layer"),
    "all out": (lambda: score_(nn.Sequential(nn.Linear(2, 2)), "gem-miner", unscored=["0"]), "has no Linear"),
    "unknown": (lambda: score_(mixed(), "gem-miner", unscored=["0", "head"]), "no layer of Sequential: head"),
    "a string": (lambda: score_(mixed(), "gem-miner", unscored="0"), "collection of layer names"),
    "sparse": (lambda: score_(convert_(mixed(), format="sparse"), "gem-miner"), "format='masked'"),
    "twice": (lambda: score_(score_(mixed(), "gem-miner"), "gem-miner"), "bake_.model. first"),
    "3d": (lambda: score_(nn.Sequential(nn.Linear(2, 2), nn.Conv3d(1, 1, 1)), "gem-miner"), "form of Conv3d"),
    "shared": (lambda: score_(Tied(), "gem-miner"), "'one' and 'two' share one weight"),
    "torch's": (lambda: score_(pruned_by_torch(), "gem-miner"), "remove its reparametrization"),
    "meta": (lambda: score_(nn.Linear(2, 2, device="meta"), "gem-miner"), "on meta"),
    "which": (lambda: score_(nn.Linear(2, 2), "gem-miner", scores={}), "scores must be those of weight"),
    "shape": (
        lambda: score_(nn.Linear(2, 2), "gem-miner", scores={"weight": torch.ones(2)}),
        r"floating \[2, 2\], got torch.float32 \[2\]",
    ),
    "nan": (
        lambda: score_(nn.Linear(2, 2), "edge-popup", 0.5, scores={"weight": torch.full((2, 2), math.nan)}),
        "hold NaN",
    ),
    "range": (
        lambda: score_(nn.Linear(2, 2), "gem-miner", scores={"weight": torch.full((2, 2), 1.5)}),
        r"lie in \[0, 1\]",
    ),
    "bake": (lambda: bake_(mixed()), "no scored layer to bake"),
    "mask": (
        lambda: bake_(score_(nn.Linear(2, 2), "gem-miner"), masks={"weight": torch.ones(2, 2)}),
        r"bool \[2, 2\], got torch.float32",
    ),
    "mask name": (
        lambda: bake_(score_(nn.Linear(2, 2), "gem-miner"), masks={"bias": torch.ones(2).bool()}),
        "one of 'weight'",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str) -> None:
    call, words = REFUSALS[name]
    with pytest.raises(ArgumentError, match=words):
        call()


def test_a_refused_network_is_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Conv3d(1, 1, 1))
    with pytest.raises(ArgumentError):
        score_(model, "gem-miner")
    assert not any(isinstance(layer, Scored) for layer in model)
    assert model[0].weight.requires_grad
    assert F.linear(torch.ones(2), model[0].weight).shape == (2,)
