"""Allocations: how a density is shared out among the layers, as densities and as exact counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import nn

from lotterykit.errors import ArgumentError, check_density, unknown_name
from lotterykit.mask import Masks, prunable_layers
from lotterykit.pruning.schedules import SCHEDULES

Allocation = str | Mapping[str, float]
ROUNDING = 1e-9  # what float64 adds to a density that is exactly 0 or 1


class Layer(NamedTuple):
    """A weight that takes part: its parameter name, its shape, and whether it is a Linear layer's."""

    name: str
    shape: tuple[int, ...]
    linear: bool

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Course(NamedTuple):
    """A layer's way through the rounds: the densities it starts from and ends at, the weights it keeps at the
    end, and all it has."""

    start: float
    end: float
    kept: int
    total: int

    def after(self, schedule: str, number: int, rounds: int, allowed: int) -> int:
        """The weights kept after round `number` of `rounds`, at most `allowed`: those that are left."""
        if number == rounds or self.start == 0.0:
            return min(self.kept, allowed)
        density = SCHEDULES[schedule](self.start, self.end, number / rounds)
        return min(max(self.kept, round(density * self.total)), allowed)


def layer_densities(
    model: nn.Module, allocation: Allocation, density: float, *, last: float = 0.3
) -> dict[str, float]:
    """Parameter name -> density in [0, 1] of each weight of `model`, together `density` of all weights.

    allocation: "uniform"; "erk"; "smart-ratio", or "smart-ratio-vgg", which give the last linear layer the
    density `last`; or a mapping name -> density, where the layers that it leaves out share the rest evenly.
    A tensor without entries has density 1. Raises `ArgumentError` for unknown names, and for a density that
    the allocation cannot reach: it names the layer, what was asked and what is allowed.

    >>> layer_densities(nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2)), {"1.weight": 1.0}, 0.3)
    {'0.weight': 0.125, '1.weight': 1.0}
    """
    density, last = check_density(density), check_density(last, what="last")
    masks, linear = Masks.from_model(model).weights(), _linear(model)
    layers = [Layer(name, tuple(mask.shape), name in linear) for name, mask in masks.items()]
    if isinstance(allocation, Mapping):
        found = _given(layers, allocation, density)
    elif allocation in ALLOCATIONS:
        found = ALLOCATIONS[allocation](layers, density, last)
    else:
        raise unknown_name("allocation", allocation, [*ALLOCATIONS, "a mapping of names to densities"])
    return {layer.name: found[layer.name] if layer.size else 1.0 for layer in layers}


def layer_courses(
    model: nn.Module, carried: Masks, allocation: Allocation, density: float
) -> dict[str, Course]:
    """Each layer's way from its mask in `carried` to its share of exactly `round(density * n)` weights.

    Raises `ArgumentError` as `layer_densities` does, and where a layer has fewer weights left than that."""
    rates, counts = layer_densities(model, allocation, density), carried.counts()
    sizes = {name: total for name, (_, total) in counts.items()}
    kept = apportioned(
        {name: rates[name] * size for name, size in sizes.items()},
        sizes,
        round(density * sum(sizes.values())),
    )
    for name, (left, total) in counts.items():
        if kept[name] > left:
            raise ArgumentError(
                f"masks are monotone: {name} was given density {rates[name]:.6g}, {kept[name]} of {total} "
                f"weights, but only {left} are left in it"
            )
    starts = carried.per_layer()
    return {name: Course(starts[name], rates[name], kept[name], sizes[name]) for name in sizes}


def apportioned(shares: Mapping[str, float], sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """Whole numbers that sum to `total`: each share rounded down, or up where its remainder is among the
    largest (the first of equal ones); never above its size. `total` lies between all down and all up."""
    counts = {name: min(sizes[name], math.floor(share)) for name, share in shares.items()}
    room = [name for name in shares if counts[name] < sizes[name]]
    room.sort(key=lambda name: counts[name] - shares[name])
    for name in room[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def uniform(layers: Sequence[Layer], density: float, last: float) -> dict[str, float]:
    """The same density everywhere."""
    return {layer.name: density for layer in layers}


def erk(layers: Sequence[Layer], density: float, last: float) -> dict[str, float]:
    """Proportional to (sum of the weight's dimensions) / (their product), the kernel's among them; a layer
    that would exceed 1 is dense, and the others are solved again (Evci et al. 2020)."""
    budget = density * sum(layer.size for layer in layers)
    partial = [layer for layer in layers if layer.size]
    dense: dict[str, float] = {}
    while partial:
        # A layer's size times its factor is the sum of its dimensions.
        scale = (budget - sum(layer.size for layer in layers if layer.name in dense)) / sum(
            sum(layer.shape) for layer in partial
        )
        over = {layer.name: 1.0 for layer in partial if scale * sum(layer.shape) > layer.size}
        if not over:
            return dense | {layer.name: scale * sum(layer.shape) / layer.size for layer in partial}
        dense |= over
        partial = [layer for layer in partial if layer.name not in dense]
    return dense


def smart_ratio(layers: Sequence[Layer], density: float, last: float) -> dict[str, float]:
    """Layer l of L proportional to (L-l+1)^2 + (L-l+1), the last linear layer `last` (Su et al. 2020, for
    ResNets); what a layer would have above 1 goes to the next ones."""
    count = len(layers)
    return _smart_ratio(layers, density, last, [(count - i) ** 2 + (count - i) for i in range(count)])


def smart_ratio_vgg(layers: Sequence[Layer], density: float, last: float) -> dict[str, float]:
    """`smart_ratio` with layer l's proportion divided by l^2 (Su et al. 2020, for VGGs)."""
    count = len(layers)
    factors = [((count - i) ** 2 + (count - i)) / (i + 1) ** 2 for i in range(count)]
    return _smart_ratio(layers, density, last, factors)


def _smart_ratio(
    layers: Sequence[Layer], density: float, last: float, factors: Sequence[float]
) -> dict[str, float]:
    fixed = next((layer for layer in reversed(layers) if layer.linear and layer.size), None)
    found = {} if fixed is None else {fixed.name: last}
    others = [
        (layer, f) for layer, f in zip(layers, factors, strict=True) if layer is not fixed and layer.size
    ]
    total, room = sum(layer.size for layer in layers), sum(layer.size for layer, _ in others)
    spare = density * total - (0.0 if fixed is None else last * fixed.size)
    if fixed is not None and not 0 < spare <= room * (1.0 + ROUNDING):
        least = last * fixed.size / total
        raise ArgumentError(
            f"smart-ratio gives {fixed.name} density {last:g}, {last * fixed.size:.6g} of {total} weights, "
            f"so the network's lies in ({least:.6g}, {least + room / total:.6g}], got {density:g}"
        )
    mass = sum(layer.size * factor for layer, factor in others)
    overflow = 0.0
    for layer, factor in others:
        share = spare * layer.size * factor / mass + overflow
        found[layer.name] = min(1.0, share / layer.size)
        overflow = max(0.0, share - layer.size)
    return found


def _given(layers: Sequence[Layer], rates: Mapping[str, float], density: float) -> dict[str, float]:
    """The densities of the mapping; the layers it leaves out share what remains evenly."""
    sizes = {layer.name: layer.size for layer in layers}
    for name, rate in rates.items():
        if name not in sizes:
            raise unknown_name("layer in allocation", name, sizes)
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0.0 <= rate <= 1.0:
            raise ArgumentError(f"allocation gives {name} a density that must lie in [0, 1], got {rate!r}")
    total = sum(sizes.values())
    shares = {name: rate * sizes[name] for name, rate in rates.items()}
    kept = math.fsum(shares.values())
    rest = {name: size for name, size in sizes.items() if name not in rates and size}
    if not rest:
        down = sum(math.floor(share) for share in shares.values())
        up = sum(min(math.ceil(share), sizes[name]) for name, share in shares.items())
        if not down <= round(density * total) <= up:
            raise ArgumentError(
                f"allocation gives every layer its density, {kept:.6g} of {total} weights, which is "
                f"{kept / total:.6g} of the network: density {density:g} was asked"
            )
        return {name: float(rates.get(name, 1.0)) for name in sizes}
    even = (density * total - kept) / sum(rest.values())
    if not -ROUNDING <= even <= 1.0 + ROUNDING:
        allowed = f"[{kept / total:.6g}, {(kept + sum(rest.values())) / total:.6g}]"
        raise ArgumentError(
            f"allocation leaves {', '.join(rest)} a density of {even:.6g}, outside [0, 1]: with its "
            f"rates the network's lies in {allowed}, got {density:g}"
        )
    even = min(max(even, 0.0), 1.0)
    return {name: float(rates[name]) if name in rates else even for name in sizes}


def _linear(model: nn.Module) -> set[str]:
    return {f"{prefix}weight" for prefix, layer in prunable_layers(model) if isinstance(layer, nn.Linear)}


# name -> (layers, density, last) -> densities
ALLOCATIONS: dict[str, Callable[[Sequence[Layer], float, float], dict[str, float]]] = {
    "uniform": uniform,
    "erk": erk,
    "smart-ratio": smart_ratio,
    "smart-ratio-vgg": smart_ratio_vgg,
}
