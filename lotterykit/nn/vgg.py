"""Chains: LeNet-300-100, Conv-2/4/6 and the VGG networks in their CIFAR forms.

They are plain `nn.Sequential`s: those without batch-norm can be planted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from lotterykit.errors import ArgumentError

# channels of each group of 3x3 convolutions; each group ends in pooling
CONV = ((64, 64), (128, 128), (256, 256))
VGG_16 = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)
VGG_19 = ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4)


def lenet(input: Sequence[int], classes: int, dropout: float) -> nn.Sequential:
    """Fully connected, 300 and 100 hidden units. Source: The Lottery Ticket Hypothesis, Fig. 2."""
    return nn.Sequential(nn.Flatten(), *_head(math.prod(input), (300, 100), classes, dropout))


def conv(input: Sequence[int], classes: int, dropout: float, *, groups: int) -> nn.Sequential:
    """Conv-2, -4, -6: one to three pairs of 3x3 convolutions, each with 2x2 max pooling, then 256, 256.

    `dropout` follows each hidden fully connected layer (the paper does not say where its own is).
    Source: The Lottery Ticket Hypothesis, Fig. 2.
    """
    channels, *sides = input
    features = _groups(channels, CONV[:groups], batch_norm=False)
    features += [nn.MaxPool2d(2)]
    positions = math.prod(_pooled(side, groups, input) for side in sides)
    head = _head(CONV[groups - 1][-1] * positions, (256, 256), classes, dropout)
    return nn.Sequential(*features, nn.Flatten(), *head)


def vgg(
    input: Sequence[int], classes: int, *, groups: Sequence[Sequence[int]], batch_norm: bool
) -> nn.Sequential:
    """3x3 convolutions with max pooling between the groups, global average pooling, one linear layer.

    With batch-norm the convolutions have no biases. Source: The Lottery Ticket Hypothesis, Fig. 2 and I.2
    (the CIFAR form of Liu et al. 2019).
    """
    channels, *sides = input
    for side in sides:
        _pooled(side, len(groups) - 1, input)
    features = _groups(channels, groups, batch_norm)
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(groups[-1][-1], classes))


def _groups(channels: int, groups: Sequence[Sequence[int]], batch_norm: bool) -> list[nn.Module]:
    """The convolutions of all groups, each with ReLU; max pooling between groups."""
    layers: list[nn.Module] = []
    for number, group in enumerate(groups):
        if number:
            layers.append(nn.MaxPool2d(2))
        for width in group:
            layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=not batch_norm))
            layers += [nn.BatchNorm2d(width), nn.ReLU()] if batch_norm else [nn.ReLU()]
            channels = width
    return layers


def _head(inputs: int, hidden: Sequence[int], classes: int, dropout: float) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        inputs = width
    return [*layers, nn.Linear(inputs, classes)]


def _pooled(side: int, times: int, input: Sequence[int]) -> int:
    """What `times` poolings by 2 leave of an image side; raises `ArgumentError` where that is nothing."""
    left = side >> times
    if not left:
        raise ArgumentError(
            f"images must be at least {1 << times} pixels high and wide: the network halves them "
            f"{times} times, got input {tuple(input)}"
        )
    return left
