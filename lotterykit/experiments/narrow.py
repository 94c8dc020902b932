"""`narrowed`: a chain of layers with fewer units, the small-dense network of a ticket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from lotterykit.errors import ArgumentError

WEIGHTED = (nn.Linear, nn.Conv2d, nn.BatchNorm2d)
KEEP = (nn.ReLU, nn.Flatten, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Dropout, nn.Identity)


def narrowed(model: nn.Module, widths: Sequence[int]) -> nn.Sequential:
    """The layers of a chain (`nn.Sequential`s of Linear, Conv2d, BatchNorm2d and what has no weights) with
    `widths` [in, hidden ..., out] units, initialised as torch does, from its global generator.

    A layer behind a Flatten reads as many positions of each channel as before. Raises `ArgumentError` for
    any other network: residual ones have no single width to reduce.
    """
    leaves = list(_leaves(model))
    weighted = [layer for layer in leaves if isinstance(layer, nn.Linear | nn.Conv2d)]
    if len(widths) != len(weighted) + 1:
        raise ArgumentError(
            f"widths must be {len(weighted) + 1} numbers, one more than layers, got {len(widths)}"
        )
    number = 0
    made: list[nn.Module] = []
    for layer in leaves:
        if isinstance(layer, nn.Linear):
            before = _outputs(weighted[number - 1]) if number else widths[0]
            inputs = widths[number] * (layer.in_features // before)
            made.append(nn.Linear(inputs, widths[number + 1], layer.bias is not None))
            number += 1
        elif isinstance(layer, nn.Conv2d):
            if layer.groups != 1:
                raise ArgumentError("a convolution in groups has no single width to reduce")
            same: dict[str, Any] = {
                name: getattr(layer, name)
                for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
            }
            bias = layer.bias is not None
            made.append(nn.Conv2d(widths[number], widths[number + 1], bias=bias, **same))
            number += 1
        elif isinstance(layer, nn.BatchNorm2d):
            made.append(nn.BatchNorm2d(widths[number]))
        else:
            made.append(layer)
    return nn.Sequential(*made)


def _leaves(model: nn.Module) -> list[nn.Module]:
    if type(model) is nn.Sequential:
        return [leaf for child in model for leaf in _leaves(child)]
    if isinstance(model, WEIGHTED + KEEP):
        return [model]
    raise ArgumentError(
        f"a small-dense network is made of chains of layers, {type(model).__name__} is none: residual "
        "networks have no single width to reduce"
    )


def _outputs(layer: nn.Module) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels  # type: ignore[return-value]
