"""Hide a target network in a larger random one, so that one mask of it computes the target exactly."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lotterykit.errors import ArgumentError
from lotterykit.mask import Masks
from lotterykit.planting.chain import mother_tensor
from lotterykit.planting.hiding import Hiding, hiding
from lotterykit.planting.match import LayerMatch, Match, match
from lotterykit.planting.targets import TargetNetwork


@dataclass(frozen=True, eq=False)
class Planted:
    """A mother with a ticket planted in it.

    `network`: a copy of the mother with the target written into it. `ticket`: masks of its weights and
    biases, True on the planted entries. `output_scale`: the target is this times the network under the
    ticket (1 at gain 1). `report`: parameter name -> how well its planted entries are hidden (tensors with
    any). `assignment`: per layer, the mother's unit of each target unit, int64, -1 for one that has no
    parameters and is not planted.
    """

    network: nn.Module
    ticket: Masks
    output_scale: float
    report: dict[str, Hiding]
    assignment: tuple[Tensor, ...]

    def oracle(self) -> nn.Module:
        """A copy of the network with every weight and bias outside the ticket at zero."""
        return self.ticket.apply_(copy.deepcopy(self.network))


def plant(
    target: TargetNetwork | nn.Module,
    mother: nn.Module,
    *,
    matching: str = "best",
    scaling: str = "paper",
    gain: float = 1.0,
    seed: int = 0,
) -> Planted:
    """Plant `target` into a copy of `mother`: `output_scale` x the network under the ticket is the target.

    `target`: a `TargetNetwork`, or a chain of Linear or convolution, ReLU and pooling (masks count); the
    mother: such a chain of the same depth, inputs and outputs, at least as wide, with dense parameters of
    any floating dtype. `matching`: `"best"` (Alg. 1) or `"random"` (Alg. 2, with `seed`). `scaling`:
    `"paper"` (least squares) or `"norm"` (better hidden); both are exact. `gain` in [0, 1] says how much
    of the output scale is put into the planted parameters: 0 hides them best and leaves the scale outside,
    1 makes the ticket compute the target as it stands. Raises `ArgumentError`; the mother is not changed.

    >>> from lotterykit.nn.models import mlp
    >>> from lotterykit.planting.targets import relu
    >>> planted = plant(relu(3), mlp([1, 20, 1]))
    >>> planted.ticket.weights().counts(), planted.output_scale
    ({'0.weight': (1, 20), '2.weight': (1, 20)}, 1.0)

    Source: Plant 'n' Seek, sec. 2.2 and A.3, with one positive factor for all outputs.
    """
    check_gain(gain)
    return write(match(target, mother, matching=matching, scaling=scaling, seed=seed), mother, gain=gain)


def write(matched: Match, mother: nn.Module, *, gain: float = 1.0) -> Planted:
    """Write a match into a copy of the mother it was made for: `plant` for several gains of one match.

    Weights of layer l of L are multiplied by `s^(gain / L)`, biases by `s^(gain l / L)`, with s the match's
    scale: exact, as ReLU is positively homogeneous. Raises `ArgumentError`.
    """
    check_gain(gain)
    network, step = copy.deepcopy(mother), matched.scale ** (gain / len(matched.layers))
    before, after = dict(mother.named_parameters()), dict(network.named_parameters())
    masks: dict[str, Tensor] = {}
    report: dict[str, Hiding] = {}
    for depth, layer in enumerate(matched.layers, start=1):
        weight, bias = layer.weight * step, layer.bias * step**depth
        for kind, values in (("weight", weight), ("bias", bias)):
            name = f"{layer.name}{kind}"
            if kind == "bias" and name not in after:
                continue  # check_fit saw that the target has none either
            parameter = mother_tensor(after, name)
            masks[name] = _write_values(parameter, layer, values)
            if values.any():
                report[name] = hiding(before[name], parameter, masks[name])
    assignment = tuple(torch.from_numpy(units.copy()) for units in matched.assignment)
    return Planted(network, Masks(masks), float(matched.scale ** (1.0 - gain)), report, assignment)


def _write_values(parameter: Tensor, layer: LayerMatch, values: NDArray[np.float64]) -> Tensor:
    """Write the non-zero `values` (`[t, k, K]` weights, or `[t]` biases, whose zeros are written too);
    returns the mask of what belongs to the ticket."""
    device = parameter.device
    mask = torch.zeros_like(parameter, dtype=torch.bool)
    rows, columns = torch.from_numpy(layer.rows).to(device), torch.from_numpy(layer.columns).to(device)
    written = torch.from_numpy(values).to(device, parameter.dtype)
    planted = torch.from_numpy(values != 0).to(device)
    with torch.no_grad():
        if values.ndim == 1:
            parameter[rows] = written
            mask[rows] = planted
        else:
            # [out, in units, weights a unit]: a view of both tensors, so that writing reaches them
            units = parameter.numel() // (parameter.shape[0] * values.shape[2])
            grid, grid_mask = (p.view(p.shape[0], units, -1) for p in (parameter, mask))
            place = (rows[:, None], columns[None, :])
            grid[place] = torch.where(planted, written, grid[place])
            grid_mask[place] = planted
    return mask


def check_gain(gain: object) -> None:
    """Raises `ArgumentError` unless `gain` is a number in [0, 1]."""
    if isinstance(gain, bool) or not isinstance(gain, int | float) or not 0.0 <= gain <= 1.0:
        raise ArgumentError(f"gain must be a number in [0, 1], got {gain!r}")
