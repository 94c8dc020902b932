"""Residual networks: He et al.'s for CIFAR and for ImageNet, and WideResNet.

Parameters are named as torchvision names them, so that its checkpoints load.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CIFAR_SIDE = 64  # the longest side that gets a 3x3 stem; longer ones get ImageNet's


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch-norm beside a shortcut, ReLU after the sum."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, 1)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with batch-norm beside a shortcut; the 3x3 one has the stride."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, shortcut: str) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        h = F.relu(self.bn2(self.conv2(h)))
        return F.relu(self.bn3(self.conv3(h)) + self.downsample(x))


class PreactivatedBlock(nn.Module):
    """Batch-norm, ReLU and 3x3 convolution, twice; where the width changes, a 1x1 convolution of the
    activated input is the shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv3x3(inputs, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, 1)
        changes = inputs != width or stride != 1
        self.downsample = nn.Conv2d(inputs, width, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        h = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return h + (x if self.downsample is None else self.downsample(active))


class Padding(nn.Module):
    """The shortcut without weights: every `stride`th pixel, new channels zero on both sides.

    Source: He et al. 2016, option A.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x: Tensor) -> Tensor:
        missing = self.channels - x.shape[1]
        return F.pad(
            x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, missing // 2, missing - missing // 2)
        )


class ResNet(nn.Module):
    """Stem, stages `layer1` ... of blocks, global average pooling, one linear layer.

    A stage after the first halves the image. `input`: (channels, height, width); the stem is a 3x3
    convolution for images up to 64 pixels, else ImageNet's 7x7 of stride 2 with max pooling.
    """

    def __init__(
        self,
        input: Sequence[int],
        classes: int,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        widths: Sequence[int],
        shortcut: str,
    ) -> None:
        super().__init__()
        if max(input[1:]) <= CIFAR_SIDE:
            self.conv1 = _conv3x3(input[0], widths[0], 1)
            self.maxpool: nn.Module = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(input[0], widths[0], 7, 2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages = len(depths)
        inputs = widths[0]
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks = []
            for i in range(depth):
                blocks.append(block(inputs, width, 2 if stage and not i else 1, shortcut))
                inputs = block.expansion * width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for stage in range(self.stages):
            h = self.get_submodule(f"layer{stage + 1}")(h)
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(h, 1), 1))


class WideResNet(nn.Module):
    """Zagoruyko & Komodakis 2016: (depth - 4) / 6 pre-activated blocks a stage, `widen` times as wide.

    Source: Rare Gems, sec. 4, Task 1 (depth 28, widen 2)."""

    def __init__(self, input: Sequence[int], classes: int, depth: int, widen: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(input[0], 16, 1)
        inputs = 16
        for stage, width in enumerate((16 * widen, 32 * widen, 64 * widen)):
            blocks = []
            for i in range((depth - 4) // 6):
                blocks.append(PreactivatedBlock(inputs, width, 2 if stage and not i else 1))
                inputs = width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.bn1 = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(x)
        for stage in range(3):
            h = self.get_submodule(f"layer{stage + 1}")(h)
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(F.relu(self.bn1(h)), 1), 1))


def resnet_cifar(
    input: Sequence[int], classes: int, *, depth: int, widen: int = 1, shortcut: str = "projection"
) -> ResNet:
    """He et al.'s CIFAR network of 6 n + 2 layers, 16, 32 and 64 channels times `widen`.

    Source: The Lottery Ticket Hypothesis, Fig. 2 and I.3 (depth 20, there called Resnet-18), with
    "projection" shortcuts; Sanity Checks, sec. 3.1 (depth 32, widen 2); Rare Gems' code has "padding" ones.
    """
    widths = [16 * widen, 32 * widen, 64 * widen]
    return ResNet(input, classes, BasicBlock, [(depth - 2) // 6] * 3, widths, shortcut)


def resnet_imagenet(
    input: Sequence[int], classes: int, *, block: type[BasicBlock] | type[Bottleneck], depths: Sequence[int]
) -> ResNet:
    """He et al.'s ImageNet network of four stages, 64 to 512 channels. Source: Sanity Checks, Table 2."""
    return ResNet(input, classes, block, depths, (64, 128, 256, 512), "projection")


def _conv3x3(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int, kind: str) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    if kind == "padding":
        return Padding(outputs, stride)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
