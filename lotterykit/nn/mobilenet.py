"""MobileNet-V1 and -V2 in their CIFAR forms: the first strides are 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# (output channels, stride) of each depthwise separable convolution
V1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
# (expansion, output channels, blocks, stride of the first)
V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, 1x1 projection, each with batch-norm; a shortcut where the stride is 1,
    by a 1x1 convolution where the width changes."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        width = expansion * inputs
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, groups=width, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride == 1 and inputs == outputs:
            self.downsample = nn.Identity()
        elif stride == 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        h = F.relu(self.bn2(self.conv2(h)))
        h = self.bn3(self.conv3(h))
        return h if self.downsample is None else h + self.downsample(x)


class MobileNetV2(nn.Module):
    """Sandler et al. 2018 for small images, as Rare Gems' code has it (with projection shortcuts)."""

    def __init__(self, input: Sequence[int], classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(input[0], 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        blocks, inputs = [], 32
        for expansion, outputs, count, stride in V2:
            for i in range(count):
                blocks.append(InvertedResidual(inputs, outputs, expansion, 1 if i else stride))
                inputs = outputs
        self.layers = nn.Sequential(*blocks)
        self.conv2 = nn.Conv2d(inputs, 1280, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1280)
        self.linear = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layers(F.relu(self.bn1(self.conv1(x))))
        h = F.relu(self.bn2(self.conv2(h)))
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(h, 1), 1))


def mobilenet_v1(input: Sequence[int], classes: int) -> nn.Sequential:
    """Howard et al. 2017 for small images: a chain of depthwise separable convolutions with batch-norm.

    Source: Sanity Checks, sec. 3.1, Table 2.
    """
    layers, inputs = _normalized(nn.Conv2d(input[0], 32, 3, padding=1, bias=False)), 32
    for outputs, stride in V1:
        layers += _normalized(nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False))
        layers += _normalized(nn.Conv2d(inputs, outputs, 1, bias=False))
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def _normalized(layer: nn.Conv2d) -> list[nn.Module]:
    return [layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU()]
