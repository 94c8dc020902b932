"""Networks by name, and the fully connected chains of the planted tasks."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from lotterykit.errors import ArgumentError, check_density, check_seed, unknown_name
from lotterykit.mask import prunable_layers
from lotterykit.nn import mobilenet, resnet, vgg
from lotterykit.nn.init import CHAIN_INITS, INITS, linear_shapes

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def network(
    name: str,
    *,
    classes: int = 10,
    input: Sequence[int] | None = None,
    init: str = "kaiming_normal",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    density: float = 1.0,
    dropout: float = 0.0,
) -> nn.Module:
    """The network `name` of NETWORKS: `[N, *input] -> [N, classes]`, no softmax, in training mode.

    `input` is (channels, height, width), None for the size of its paper. `init`, `seed`, `dtype` and
    `density` as in `mlp`; an init whose biases follow a chain (`he_scaled`) is for networks without
    batch-norm. Batch-norm starts at scale 1, shift 0. `dropout` is the share of hidden units that Conv-2, -4,
    -6 and LeNet drop in training. Raises `ArgumentError`.

    >>> network("lenet", classes=10, seed=0)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    model = outline(name, classes=classes, input=input, dropout=dropout)
    if init not in INITS:
        raise unknown_name("init", init, INITS)
    if init in CHAIN_INITS and any(isinstance(layer, NORMS) for layer in model.modules()):
        raise ArgumentError(f"init {init!r} scales biases along a chain of layers, but {name} has batch-norm")
    check_dtype(dtype)
    model = model.to(dtype).to_empty(device="cpu")
    layers = [layer for _, layer in prunable_layers(model)]
    generator = torch.Generator().manual_seed(check_seed(seed))
    weights, biases = INITS[init]([layer.weight.shape for layer in layers], generator)  # type: ignore[misc]
    scale = math.sqrt(check_density(density))
    with torch.no_grad():
        for layer, weight, bias in zip(layers, weights, biases, strict=True):
            layer.weight.copy_(weight / scale)  # type: ignore[operator, union-attr]
            if layer.bias is not None:
                layer.bias.copy_(bias)  # type: ignore[operator, union-attr]
        for norm in model.modules():
            if isinstance(norm, NORMS):
                norm.reset_parameters()
    return model


def outline(
    name: str, *, classes: int = 10, input: Sequence[int] | None = None, dropout: float = 0.0
) -> nn.Module:
    """The network on the meta device: its layers and shapes, no memory, no random numbers."""
    if name not in NETWORKS:
        raise unknown_name("network", name, NETWORKS)
    form = NETWORKS[name]
    size = form.input if input is None else input
    ok = isinstance(size, Sequence) and not isinstance(size, str) and len(size) == 3
    if not ok or any(type(n) is not int or n < 1 for n in size):
        raise ArgumentError(f"input must be (channels, height, width), three positive ints, got {input!r}")
    if type(classes) is not int or classes < 1:
        raise ArgumentError(f"classes must be an int of at least 1, got {classes!r}")
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ArgumentError(f"dropout must be a number in [0, 1), got {dropout!r}")
    options = {"dropout": float(dropout)} if form.drops else {}
    if dropout and not form.drops:
        drops = [other for other, row in NETWORKS.items() if row.drops]
        raise ArgumentError(f"{name} has no dropout; these have: {', '.join(drops)}")
    with torch.device("meta"):
        return form.build(tuple(size), classes, **options)


def weight_counts(model: nn.Module) -> tuple[int, int]:
    """The numbers of parameters (biases and batch-norm's included), and of prunable weights."""
    prunable = sum(cast(Tensor, layer.weight).numel() for _, layer in prunable_layers(model))
    return sum(p.numel() for p in model.parameters()), prunable


def mlp(
    widths: Sequence[int],
    *,
    init: str = "he_scaled",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    density: float = 1.0,
) -> nn.Sequential:
    """A fully connected network Linear, ReLU, ..., Linear: `[N, widths[0]] -> [N, widths[-1]]`, no softmax.

    `widths` counts the input layer, so its length is the depth (Plant 'n' Seek's count). `init` is a name
    of `INITS`. Parameters are drawn in float64 and then rounded, so that networks of one seed are the same
    network in every dtype; the global random state is not touched. `density` is the share of weights that a
    mask will keep: weights are divided by its square root (scaled init of edge-popup, Ramanujan et al. 2020).
    Raises `ArgumentError`.

    >>> [tuple(p.shape) for p in mlp([2, 100, 4]).parameters()]
    [(100, 2), (100,), (4, 100), (4,)]
    """
    widths = check_widths(widths)
    if init not in INITS:
        raise unknown_name("init", init, INITS)
    check_dtype(dtype)
    generator = torch.Generator().manual_seed(check_seed(seed))
    weights, biases = INITS[init](linear_shapes(widths), generator)
    if check_density(density) != 1.0:
        weights = [w / math.sqrt(density) for w in weights]
    return chain(weights, biases, dtype=dtype)


def chain(
    weights: Sequence[Tensor], biases: Sequence[Tensor], *, dtype: torch.dtype = torch.float32
) -> nn.Sequential:
    """The network Linear, ReLU, ..., Linear with copies of these weights `[out, in]` and biases `[out]`."""
    layers: list[nn.Module] = []
    for weight, bias in zip(weights, biases, strict=True):
        linear = nn.Linear.__new__(nn.Linear)  # its own __init__ would draw from the global generator
        nn.Module.__init__(linear)
        linear.in_features, linear.out_features = weight.shape[1], weight.shape[0]
        linear.weight = nn.Parameter(weight.detach().to(dtype, copy=True))
        linear.bias = nn.Parameter(bias.detach().to(dtype, copy=True))
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def check_widths(widths: object) -> list[int]:
    """`widths` as a list of at least two positive ints; raises `ArgumentError` otherwise."""
    ok = isinstance(widths, Sequence) and not isinstance(widths, str) and len(widths) >= 2
    if not ok or any(isinstance(w, bool) or not isinstance(w, int) or w < 1 for w in widths):  # type: ignore[attr-defined]
        raise ArgumentError(
            f"widths must be at least two positive ints [in, hidden ..., out], got {widths!r}"
        )
    return list(widths)  # type: ignore[call-overload, no-any-return]


def check_dtype(dtype: object) -> None:
    """Raises `ArgumentError` unless `dtype` is a floating-point torch dtype."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ArgumentError(f"dtype must be a floating-point torch dtype, got {dtype!r}")


class Form(NamedTuple):
    """How a network is built: (input, classes) -> module, the paper's input, whether it takes `dropout`."""

    build: Callable[..., nn.Module]
    input: tuple[int, int, int] = (3, 32, 32)
    drops: bool = False


_with = functools.partial

NETWORKS: dict[str, Form] = {
    "lenet": Form(vgg.lenet, (1, 28, 28), drops=True),
    "conv-2": Form(_with(vgg.conv, groups=1), drops=True),
    "conv-4": Form(_with(vgg.conv, groups=2), drops=True),
    "conv-6": Form(_with(vgg.conv, groups=3), drops=True),
    "vgg-16": Form(_with(vgg.vgg, groups=vgg.VGG_16, batch_norm=False)),
    "vgg-16-bn": Form(_with(vgg.vgg, groups=vgg.VGG_16, batch_norm=True)),
    "vgg-19": Form(_with(vgg.vgg, groups=vgg.VGG_19, batch_norm=False)),
    "vgg-19-bn": Form(_with(vgg.vgg, groups=vgg.VGG_19, batch_norm=True)),
    "resnet-20": Form(_with(resnet.resnet_cifar, depth=20)),
    "resnet-20-padded": Form(_with(resnet.resnet_cifar, depth=20, shortcut="padding")),
    "resnet-32": Form(_with(resnet.resnet_cifar, depth=32)),
    "resnet-32-padded": Form(_with(resnet.resnet_cifar, depth=32, shortcut="padding")),
    "resnet-32-wide": Form(_with(resnet.resnet_cifar, depth=32, widen=2)),
    "resnet-18": Form(_with(resnet.resnet_imagenet, block=resnet.BasicBlock, depths=(2, 2, 2, 2))),
    "resnet-50": Form(_with(resnet.resnet_imagenet, block=resnet.Bottleneck, depths=(3, 4, 6, 3))),
    "wideresnet-28-2": Form(_with(resnet.WideResNet, depth=28, widen=2)),
    "mobilenet-v1": Form(mobilenet.mobilenet_v1),
    "mobilenet-v2": Form(mobilenet.MobileNetV2),
}
