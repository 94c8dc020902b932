"""`small_dense_widths`: the small dense network that a ticket of as many weights must beat."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

from lotterykit.errors import ArgumentError
from lotterykit.nn.init import linear_shapes
from lotterykit.nn.models import check_widths


def small_dense_widths(network: Sequence[int] | Sequence[Sequence[int]], kept: int) -> list[int]:
    """Widths [in, hidden ..., out] of equal depth, the hidden ones reduced by one factor to `kept` weights.

    `network`: the widths of a fully connected network, or the weight shapes `[out, in, *kernel]` of any
    network in its order; the result then counts channels, an output width a layer. The factor is the largest
    whose network has at most `kept` weights (biases and batch-norm do not count); hidden widths are rounded,
    and at least 1: below the size of width 1 throughout, that network is returned, and it has more.
    Raises `ArgumentError`. Source: Sanity Checks for Lottery Tickets, sec. 2.1 (small-dense training).

    >>> small_dense_widths([784, 300, 100, 10], kept=13_310)
    [784, 16, 5, 10]
    """
    shapes = _shapes(network)
    total = weights_at(shapes, Fraction(1))
    if isinstance(kept, bool) or not isinstance(kept, int) or not 0 <= kept <= total:
        raise ArgumentError(f"kept must be an int in [0, {total}], the weights of the network, got {kept!r}")
    # A width w is rounded up from the factor (j - 1/2) / w on to j; between such factors nothing changes.
    hidden = {shape[0] for shape in shapes[:-1]}
    factors = sorted({Fraction(0)} | {Fraction(2 * j - 1, 2 * w) for w in hidden for j in range(2, w + 1)})
    fitting = bisect.bisect_right(factors, kept, key=lambda factor: weights_at(shapes, factor))
    scale = _scaling(factors[max(0, fitting - 1)])
    return [shapes[0][1], *(scale(shape[0]) for shape in shapes[:-1]), shapes[-1][0]]


def weights_at(shapes: Sequence[Sequence[int]], factor: Fraction) -> int:
    """The weights of the network of these shapes with its hidden widths scaled by `factor`."""
    scale, count = _scaling(factor), 0
    for number, shape in enumerate(shapes):
        outputs = shape[0] if number == len(shapes) - 1 else scale(shape[0])
        count += outputs * _scaled_inputs(shapes, number, scale) * math.prod(shape[2:])
    return count


def _scaling(factor: Fraction) -> Callable[[int], int]:
    return lambda width: max(1, math.floor(width * factor + Fraction(1, 2)))


def _scaled_inputs(shapes: Sequence[Sequence[int]], number: int, scale: Callable[[int], int]) -> int:
    """The inputs of layer `number` once the hidden widths are scaled; raises `ArgumentError` where no layer
    before it can feed them."""
    inputs = shapes[number][1]
    if number == 0:
        return inputs
    before = shapes[number - 1]
    if inputs == before[0]:
        return scale(inputs)
    if len(shapes[number]) == 2 and len(before) > 2 and inputs % before[0] == 0:
        return scale(before[0]) * (inputs // before[0])  # flattened positions
    if len(shapes[number]) > 2 and inputs == 1:
        return 1  # depthwise
    if any(inputs == shape[0] for shape in shapes[:number]):
        return scale(inputs)  # a shortcut from further back
    if inputs == shapes[0][1]:
        return inputs  # a shortcut from the network's input
    raise ArgumentError(
        f"layer {number} has {inputs} inputs, but no layer before it as many outputs: cannot scale its width"
    )


def _shapes(network: object) -> list[tuple[int, ...]]:
    """The weight shapes that `network` says; raises `ArgumentError` where it says none."""
    ok = isinstance(network, Sequence) and not isinstance(network, str) and len(network) > 0
    if ok and not isinstance(network[0], Sequence):  # type: ignore[index]
        return list(linear_shapes(check_widths(network)))
    for shape in network if ok else ():  # type: ignore[attr-defined]
        ok = ok and isinstance(shape, Sequence) and len(shape) >= 2
        ok = ok and all(type(side) is int and side >= 1 for side in shape)
    if not ok:
        raise ArgumentError(
            f"network must be widths or weight shapes [out, in, *kernel] of positive ints, got {network!r}"
        )
    return [tuple(shape) for shape in network]  # type: ignore[attr-defined]
