"""All rounds of SynFlow in one go: natively on a chain, else by the products of kept weights in a copy."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lotterykit.errors import ArgumentError
from lotterykit.mask import prunable_layers
from lotterykit.ops import dispatch
from lotterykit.ops.flow_products import FlowLayer, FlowProducts, Window
from lotterykit.ops.synflow_masks import Counted, synflow_masks
from lotterykit.ops.synflow_scores import DTYPES
from lotterykit.pruning.chain import chain_of, offset
from lotterykit.pruning.flow import without_bias
from lotterykit.pruning.repeats import RandomProducts, Repeats, repeats

Plan = Sequence[Sequence[tuple[list[str], int, int]]]  # rounds of groups: (names, kept, seed of ties)
FEW = 4  # fewer positions than this are cheaper to copy for every entry of the kernel
PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d)


class Outcome(NamedTuple):
    """Masks by parameter name; after each round the kept weights by name, and, for a chain, whether a path is
    left (else None)."""

    masks: dict[str, Tensor]
    kept: list[dict[str, int]]
    live: list[bool] | None


def synflow_rounds(model: nn.Module, plan: Plan, example: Tensor, *, bias: bool) -> Outcome | None:
    """The rounds of `plan` on `model`, which is not changed; None where only autograd knows its flow.

    example: one input `[1, ...]`. Raises `ArgumentError` where the products overflow float64."""
    chain = chain_of(model, example, bias=bias)
    if chain is None:
        return _walked(model, plan, example, bias)
    found = synflow_masks(chain.weights, _counted(plan, chain.names), masks=chain.masks, biases=chain.biases)
    kept = [dict(zip(chain.names, row, strict=True)) for row in found.kept.tolist()]
    return Outcome(dict(zip(chain.names, found.masks, strict=True)), kept, found.live.tolist())


def _counted(plan: Plan, names: list[str]) -> list[list[Counted]]:
    index = {name: i for i, name in enumerate(names)}
    return [[Counted(tuple(index[n] for n in group), kept, seed) for group, kept, seed in p] for p in plan]


def _walked(model: nn.Module, plan: Plan, example: Tensor, bias: bool) -> Outcome | None:
    """A copy of the model runs on one example, with native products in place of its layers."""
    layers = dict(prunable_layers(model))
    weights = [weight for weight, _ in _pairs(layers)]
    forced = dispatch.forced_backend("synflow_masks")
    served = forced in (None, "cpu") and dispatch.missing("cpu") is None
    if not served or example.shape[0] != 1 or any("forward" in vars(m) for m in model.modules()):
        return None
    if not all(isinstance(layer, PRODUCTS) for layer in layers.values()):
        return None
    if len({w.dtype for w in weights}) > 1 or weights[0].dtype not in DTYPES:
        return None
    if any(t.device.type != "cpu" for t in (example, *model.parameters(), *model.buffers())):
        return None
    names = [f"{prefix}weight" for prefix in layers]
    products = FlowProducts(
        [FlowLayer(w, getattr(m, "weight_mask", None), getattr(m, "groups", 1)) for w, m in _pairs(layers)]
    )
    walk = _Walk(products, RandomProducts(weights, [getattr(m, "groups", 1) for m in layers.values()]), {})
    network = _twin(model, layers, walk, bias)
    ones = torch.ones_like(example, dtype=torch.float64)
    if not _explored(network, ones, walk):
        return None
    kept: list[dict[str, int]] = []
    for groups in _counted(plan, names):
        try:
            with torch.enable_grad():
                total = network(ones).sum()
        except (ArgumentError, RuntimeError):  # a layer used twice, or its weight read past its forward
            return None
        reach = float(total.detach())
        if products.used != set(range(len(names))) or not math.isfinite(reach):
            return None  # autograd says what is wrong
        torch.autograd.backward(total, total.new_tensor(1.0 / reach if reach else 0.0))
        products.select(groups)
        kept.append(dict(zip(names, products.kept(), strict=True)))
    return Outcome(dict(zip(names, products.masks(), strict=True)), kept, None)


@dataclass
class _Walk:
    """The products of a network's layers; `random` in their place while `repeats` is found, by layer."""

    products: FlowProducts
    random: RandomProducts | None
    repeats: dict[int, Repeats | None]


def _explored(network: nn.Module, ones: Tensor, walk: _Walk) -> bool:
    """Find the repeats of each layer; False where the network cannot be walked."""
    try:
        with torch.no_grad():
            network(ones)
    except (ArgumentError, RuntimeError):
        return False
    walk.random = None
    return True


def _pairs(layers: dict[str, nn.Module]) -> Iterator[tuple[Tensor, nn.Module]]:
    for layer in layers.values():
        yield layer.weight, layer  # type: ignore[misc]


def _twin(model: nn.Module, layers: dict[str, nn.Module], walk: _Walk, bias: bool) -> nn.Module:
    """A float64 copy in evaluation mode, everything by its absolute value, without the pruned weights."""
    none = nn.Parameter(torch.empty(0))
    left_out = [t for layer in layers.values() for t in (layer.weight, getattr(layer, "weight_mask", none))]
    twin = copy.deepcopy(model, {id(t): none for t in left_out}).eval().requires_grad_(False)
    twin = twin.double()
    for tensor in (*twin.parameters(), *twin.buffers()):
        if tensor.is_floating_point():
            tensor.abs_()
    if not bias:
        values = dict(twin.named_parameters()) | dict(twin.named_buffers())
        for name, value in without_bias(model).items():
            values[name].copy_(value)
    for number, (prefix, layer) in enumerate(layers.items()):
        other = twin.get_submodule(prefix[:-1])
        added = offset(layer) if bias else None
        added = None if added is None else added.double().abs()
        run = _linear if isinstance(layer, nn.Linear) else _convolution
        other.forward = functools.partial(run, walk, number, other, added)  # type: ignore[method-assign]
    return twin


def _linear(walk: _Walk, number: int, layer: Any, bias: Tensor | None, x: Tensor) -> Tensor:
    products = walk.random or walk.products
    y = products.product(number, x.reshape(-1, x.shape[-1]).T).T.reshape(*x.shape[:-1], -1)
    return y if bias is None else y + bias


def _convolution(walk: _Walk, number: int, layer: Any, bias: Tensor | None, x: Tensor) -> Tensor:
    """As a product with the input's patches `[in * kernel, positions]`."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    if any(layer._reversed_padding_repeated_twice):
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    sizes = [layer.kernel_size, layer.stride, layer.dilation]
    flat = len(layer.kernel_size) == 1
    kernel, stride, dilation = ((1, *s) if flat else s for s in sizes)
    positions = [(size - d * (k - 1) - 1) // s + 1 for size, k, s, d in zip(x.shape[2:], *sizes, strict=True)]
    image = x.unsqueeze(2) if flat else x
    if walk.random is not None:
        walk.repeats[number] = repeats(image, kernel, dilation) if stride == (1, 1) else None
        y = walk.random.product(number, F.unfold(image, kernel, dilation, 0, stride)[0])
    else:
        alike = walk.repeats[number]
        if alike is not None and not alike.hold(image.detach()):
            alike = walk.repeats[number] = None
        image = image if alike is None else alike.image(image)
        y = _patches_product(walk.products, number, layer.groups, image, kernel, stride, dilation)
        if alike is not None:
            y = alike.output(y.reshape(-1, alike.rows.spread.shape[0], alike.columns.spread.shape[0]))
    y = y.reshape(1, -1, *positions)
    return y if bias is None else y + bias.reshape(1, -1, *(1 for _ in positions))


def _patches_product(
    products: FlowProducts,
    number: int,
    groups: int,
    image: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """`[out, positions]` of a padded image `[1, C, H, W]`."""
    sizes = zip(image.shape[2:], kernel, stride, dilation, strict=True)
    high, wide = ((size - d * (k - 1) - 1) // s + 1 for size, k, s, d in sizes)
    if kernel == (1, 1) and stride == (1, 1):
        return products.product(number, image.reshape(image.shape[1], -1))
    if stride[0] != 1 or high * wide < FEW:
        return products.product(number, F.unfold(image, kernel, dilation, 0, stride)[0])
    window = _window(image, groups, kernel, dilation, high, wide)
    copies = F.unfold(image, (1, kernel[1]), (1, dilation[1]), 0, (1, stride[1])).reshape(-1)
    if spare := window.lanes - high * wide:
        copies = F.pad(copies, (0, spare))
    return products.product(number, copies, window)[:, : high * wide]


def _window(
    image: Tensor, groups: int, kernel: tuple[int, ...], dilation: tuple[int, ...], high: int, wide: int
) -> Window:
    """Reads `[C, kernel width, H, wide]`: a padded image, copied once for each column of the kernel.

    So every row of positions starts where a row of the copy does: vectors seldom cross cache lines."""
    channels, height = image.shape[1] // groups, image.shape[2]
    rows, columns = (torch.arange(k) for k in kernel)
    plane = height * wide
    planes = torch.arange(channels) * (kernel[1] * plane)
    offsets = planes[:, None, None] + rows[:, None] * (dilation[0] * wide) + columns * plane
    lanes = -(-high * wide // 4) * 4
    return Window(offsets.flatten().int(), channels * kernel[1] * plane, lanes)
