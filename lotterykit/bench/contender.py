"""`Contender`: what one peer runs for one problem, and where its result goes for the check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lotterykit.bench.setting import Layer, Problem
from lotterykit.ops.conv_geometry import Order, in_order

Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Contender:
    """`run()` is timed; `outputs(result)` brings its result into the problem's order, untimed.

    `steps`: equal steps in one run, by which its times are divided; peers need not take equally many.
    """

    run: Callable[[], Any]
    outputs: Callable[[Any], Outputs] = lambda result: tuple(result)
    steps: int = 1


Builder = Callable[[Problem], Contender]


def through_autograd(
    problem: Problem,
    forward: Callable[[Tensor], Tensor],
    leaf: Tensor,
    gather: Callable[[Tensor], Tensor],
    order: Order = "channels_first",
) -> Contender:
    """A contender from a forward of x: its result alone, or with the gradients of x and of `leaf`, which
    `gather` turns into those of the kept weights in CSR order; x and the gradient come in `order`."""
    layer: Layer = problem.inputs
    if problem.setting.work != "forward+backward":
        rows = in_order(layer.x.detach(), order)

        def run() -> Outputs:
            with torch.no_grad():
                return (forward(rows),)

        return Contender(run)
    x = in_order(layer.x.detach().clone(), order).requires_grad_()
    g = in_order(layer.g, order)

    def both() -> Outputs:
        y = forward(x)
        return (y, *torch.autograd.grad(y, (x, leaf), g))

    return Contender(both, lambda result: (result[0], result[1], gather(result[2])))
