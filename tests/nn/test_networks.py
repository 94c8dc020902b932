"""Networks by name: their sizes against the papers' tables, shapes, seeds, what is refused."""

from __future__ import annotations

import pytest
import torch
import torchvision_network
from torch import nn

import lotterykit as lk
from lotterykit.errors import ArgumentError
from lotterykit.mask import prunable_layers
from lotterykit.nn.convert import convert_
from lotterykit.nn.init import INITS
from lotterykit.nn.models import NETWORKS, network, outline, weight_counts


def kinds(model: nn.Module) -> dict[str, int]:
    """Weights of 3x3 convolutions, of 1x1 shortcuts, of linear layers."""
    found = {"conv": 0, "shortcut": 0, "linear": 0}
    for name, layer in prunable_layers(model):
        kind = "shortcut" if "downsample" in name else "linear" if isinstance(layer, nn.Linear) else "conv"
        found[kind] += layer.weight.numel()
    return found


# The Lottery Ticket Hypothesis, Fig. 2, "All/Conv Weights": 266K, 4.3M / 38K, 2.4M / 260K, 1.7M / 1.1M.
# The 1.7M is wrong: after three poolings of 32 x 32 pixels the first of its "256, 256, 10" has 256 * 4 * 4
# inputs, which makes 2.3M (the conv weights agree).
@pytest.mark.parametrize(
    ("name", "conv", "linear"),
    [
        ("lenet", 0, 784 * 300 + 300 * 100 + 100 * 10),
        ("conv-2", 1_728 + 36_864, 64 * 16 * 16 * 256 + 256 * 256 + 2_560),
        ("conv-4", 38_592 + 73_728 + 147_456, 128 * 8 * 8 * 256 + 256 * 256 + 2_560),
        ("conv-6", 259_776 + 294_912 + 589_824, 256 * 4 * 4 * 256 + 256 * 256 + 2_560),
    ],
)
def test_fully_connected_and_conv_networks(name: str, conv: int, linear: int) -> None:
    assert kinds(outline(name)) == {"conv": conv, "shortcut": 0, "linear": linear}
    told = {"lenet": (266, 0), "conv-2": (4_301, 39), "conv-4": (2_425, 260), "conv-6": (2_261, 1_145)}
    assert (round((conv + linear) / 1e3), round(conv / 1e3)) == told[name]


def test_resnet_18_of_the_lottery_ticket_hypothesis() -> None:
    """Fig. 2: 274K / 270K; sec. 4: 271,000 parameters; I.3: 2,560 in shortcuts, 640 in the output."""
    model = outline("resnet-20")
    count = kinds(model)
    assert (count["shortcut"], count["linear"]) == (2_560, 640)
    assert count["conv"] + count["shortcut"] == 270_256
    assert sum(count.values()) == 270_896
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == 20 + 2  # two projections
    floats = [t for t in model.state_dict().values() if t.is_floating_point()]
    assert sum(t.numel() for t in floats) == 274_042  # with batch-norm's parameters and statistics


def test_vgg_19_of_the_lottery_ticket_hypothesis() -> None:
    """Sec. 4: the first two convolutions have 1,728 and 36,864 weights, the last 2.35 million; Fig. 2: 20.0M;
    I.2: 5,120 parameters in the output layer."""
    layers = [layer.weight.numel() for _, layer in prunable_layers(outline("vgg-19-bn"))]
    assert len(layers) == 19 - 3 + 1  # one linear layer instead of ImageNet's three
    assert (layers[0], layers[1], layers[-2], layers[-1]) == (1_728, 36_864, 2_359_296, 5_120)
    assert round(sum(layers) / 1e6, 1) == 20.0


# Sanity Checks, Table 2, "#Params." in millions; MobileNet's 3.217 is cut off there, not rounded. Its 11.68M
# for Tiny-ImageNet is what a 3x3 stem and 1000 outputs give.
@pytest.mark.parametrize(
    ("name", "classes", "input", "parameters", "table"),
    [
        ("resnet-20", 10, None, 272_474, 0.27),
        ("resnet-32-wide", 10, None, 1_860_522, 1.86),
        ("mobilenet-v1", 10, None, 3_217_226, 3.21),
        ("resnet-18", 100, None, 11_220_132, 11.22),
        ("vgg-16-bn", 10, None, 14_724_042, 14.72),
        ("resnet-18", 1000, (3, 64, 64), 11_681_832, 11.68),
        ("resnet-18", 1000, (3, 224, 224), 11_689_512, 11.69),
        ("resnet-50", 1000, (3, 224, 224), 25_557_032, 25.56),
    ],
)
def test_networks_of_sanity_checks(name, classes, input, parameters, table) -> None:
    assert weight_counts(outline(name, classes=classes, input=input))[0] == parameters
    assert table in (round(parameters / 1e6, 2), parameters // 10_000 / 100)


# Rare Gems, sec. 4, Tasks 1 and 4; its tables give no sizes, so these are those of its published models.
@pytest.mark.parametrize(
    ("name", "parameters", "prunable"),
    [
        ("resnet-20-padded", 269_722, 268_336),
        ("resnet-32-padded", 464_154, 461_872),
        ("mobilenet-v2", 2_296_922, 2_261_824),
        ("vgg-16-bn", 14_724_042, 14_715_584),
        ("wideresnet-28-2", 1_467_610, 1_463_984),
    ],
)
def test_networks_of_rare_gems(name: str, parameters: int, prunable: int) -> None:
    assert weight_counts(outline(name)) == (parameters, prunable)


def test_padded_and_projected_networks_differ_in_the_shortcuts_only() -> None:
    for depth in (20, 32):
        projected, padded = kinds(outline(f"resnet-{depth}")), kinds(outline(f"resnet-{depth}-padded"))
        assert projected == {**padded, "shortcut": 2_560}
        assert padded["shortcut"] == 0


@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_step_of_training(name: str) -> None:
    """Two grey images of 16 x 16, seven classes: outputs, and a gradient for every parameter."""
    state = torch.get_rng_state()
    model = network(name, classes=7, input=(1, 16, 16), seed=3)
    assert torch.equal(state, torch.get_rng_state())
    output = model(torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert output.shape == (2, 7)
    assert output.dtype == torch.float32
    output.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    for key, value in model.state_dict().items():
        last = key.rpartition(".")[2]
        if last in ("running_mean", "running_var", "num_batches_tracked"):
            continue
        if value.dim() == 1:  # biases, and batch-norm's scale and shift
            assert bool((value == float(last == "weight")).all()), key
        else:
            variance = 2 / value[0].numel()
            tolerance = 5 * (2 / value.numel()) ** 0.5  # of a sample variance
            assert float(value.double().square().mean()) == pytest.approx(variance, rel=tolerance), key


def test_seeds_dtypes_and_scaled_init() -> None:
    single, again, other = (network("conv-2", input=(1, 8, 8), seed=s) for s in (1, 1, 2))
    double = network("conv-2", input=(1, 8, 8), seed=1, dtype=torch.float64)
    sparse = network("conv-2", input=(1, 8, 8), seed=1, density=0.25)
    for i, (name, parameter) in enumerate(single.named_parameters()):
        assert torch.equal(parameter, again.get_parameter(name))
        assert torch.equal(parameter, double.get_parameter(name).float())
        if i % 2 == 0:
            assert not torch.equal(parameter, other.get_parameter(name))
            assert torch.equal(sparse.get_parameter(name), 2 * parameter)


@pytest.mark.parametrize("init", list(INITS))
def test_every_init_serves_a_chain(init: str) -> None:
    model = network("conv-4", input=(2, 8, 8), init=init, seed=1, dtype=torch.float64)
    layers = [layer for _, layer in prunable_layers(model)]
    weights, biases = INITS[init]([x.weight.shape for x in layers], torch.Generator().manual_seed(1))
    assert all(torch.equal(x.weight, w) for x, w in zip(layers, weights, strict=True))
    assert all(torch.equal(x.bias, b) for x, b in zip(layers, biases, strict=True))
    fans = 2 * 9 + 64 * 9 if init == "glorot_normal" else 2 * 9
    variance = float(layers[0].weight.detach().square().mean())
    assert variance == pytest.approx(2 / fans, rel=5 * (2 / 1152) ** 0.5)


def test_pixels_decide_the_stem() -> None:
    small, large = (outline("resnet-18", input=(3, side, side)) for side in (64, 65))
    assert (small.conv1.kernel_size, small.conv1.stride) == ((3, 3), (1, 1))
    assert (large.conv1.kernel_size, large.conv1.stride) == ((7, 7), (2, 2))
    model = network("resnet-18", input=(3, 66, 66))
    assert model(torch.zeros(1, 3, 66, 66)).shape == (1, 10)


def test_a_plain_vgg_is_a_chain_that_can_be_planted() -> None:
    from lotterykit.planting.chain import read_chain

    mother = network("vgg-16", input=(3, 16, 16), init="he_scaled")
    assert [layer.units for layer in read_chain(mother, "mother")][-2:] == [512, 10]
    assert len(read_chain(network("conv-2", input=(1, 8, 8)), "mother")) == 5


def test_dropout_drops_in_training_only() -> None:
    model, plain = (network("conv-2", input=(1, 8, 8), seed=1, dropout=p) for p in (0.5, 0.0))
    x = torch.randn(3, 1, 8, 8)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5]
    assert not torch.equal(model(x), plain(x))
    assert torch.equal(model.eval()(x), plain.eval()(x))


def test_converted_networks_keep_what_they_compute() -> None:
    x = torch.randn(2, 3, 16, 16)
    for name in ("resnet-20", "mobilenet-v2", "wideresnet-28-2"):
        model = network(name).eval()
        generator = torch.Generator().manual_seed(0)
        masks = {
            f"{p}weight": torch.rand(layer.weight.shape, generator=generator) < 0.3
            for p, layer in prunable_layers(model)
        }
        with torch.no_grad():
            for key, mask in masks.items():
                model.get_parameter(key).masked_fill_(~mask, 0.0)
            want = model(x)
            for format in ("masked", "sparse"):
                torch.testing.assert_close(convert_(model, masks=masks, format=format)(x), want)


def test_a_torchvision_network_is_converted_and_its_checkpoints_load() -> None:
    torch.manual_seed(0)
    theirs, x = torchvision_network.ResNet(num_classes=5).eval(), torch.randn(2, 3, 72, 72)
    ours = network("resnet-18", input=(3, 72, 72), classes=5).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))
    assert lk.recipe("p4/resnet-18").prune_fractions(theirs)["layer2.0.downsample.0.weight"] == 0.0
    masks = lk.prune_(theirs, "magnitude", density=0.1)
    assert len(masks) == 21
    want = theirs(x)
    assert not torch.allclose(want, ours(x))
    masks.apply_(ours)
    torch.testing.assert_close(ours(x), want)
    torch.testing.assert_close(convert_(theirs, format="sparse")(x), want)
    theirs.train()(x).square().mean().backward()
    assert all(p.grad is not None for p in theirs.parameters())


def test_the_public_name() -> None:
    assert type(lk.nn.network("lenet", classes=3)(torch.zeros(1, 1, 28, 28))) is torch.Tensor
    assert lk.nn.NETWORKS is NETWORKS


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"name": "resnet20"}, "did you mean 'resnet-20'"),
        ({"classes": 0}, "classes must be"),
        ({"classes": True}, "classes must be"),
        ({"input": (3, 32)}, "input must be"),
        ({"input": (3, 32, 0)}, "input must be"),
        ({"input": "abc"}, "input must be"),
        ({"init": "kaiming"}, "did you mean 'kaiming_normal'"),
        ({"init": "he_scaled"}, "resnet-20 has batch-norm"),
        ({"dtype": torch.int32}, "dtype"),
        ({"seed": -1}, "seed"),
        ({"density": 0}, "density"),
        ({"dropout": 0.5}, "resnet-20 has no dropout; these have: lenet, conv-2"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"name": "conv-6", "input": (1, 8, 7)}, r"at least 8 pixels .* got input \(1, 8, 7\)"),
        ({"name": "vgg-19", "input": (1, 15, 16)}, "at least 16 pixels"),
    ],
)
def test_bad_arguments(kwargs: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        network(**{"name": "resnet-20", **kwargs})
