"""`threshold_linear` and `threshold_conv2d` in Triton: what is kept is found from the scores where weights
are loaded, and the straight-through gradient of the scores is multiplied by W where it is stored."""

from __future__ import annotations

import torch
from lotterykit.kernels import tiles
from lotterykit.kernels.kept_product import Scores
from lotterykit.kernels.kept_product import product as kept_product
from lotterykit.kernels.weight_gradient import gradient
from torch import Tensor

LINEAR = [1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1]
Threshold = tuple[Tensor, bool, tuple[int, int], int]  # cut, absolute, words of the seed, offset


def _image(t: Tensor | None, geometry: list[int]) -> Tensor:
    """A matrix of a linear layer as images, or weights, of one pixel."""
    assert t is not None
    return t if geometry else t[:, :, None, None]


def forward(
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    threshold: Threshold,
    bias: Tensor | None,
    y: Tensor,
    geometry: list[int],
) -> Tensor:
    """x `[B, in]` to y `[B, out]` where `geometry` is empty, else images; y is written and returned."""
    kept = Scores(_image(scores, geometry), *threshold)
    operands = (_image(t, geometry) for t in (x, weight))
    kept_product(*operands, kept, bias, _image(y, geometry), geometry or LINEAR)
    return y


def dx(
    g: Tensor, weight: Tensor, scores: Tensor, threshold: Threshold, result: Tensor, geometry: list[int]
) -> Tensor:
    """g to dx, which is written and returned."""
    kept = Scores(_image(scores, geometry), *threshold)
    operands = (_image(t, geometry) for t in (g, weight))
    kept_product(*operands, kept, None, _image(result, geometry), geometry or LINEAR, transposed=True)
    return result


def weight_and_score_gradients(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    threshold: Threshold,
    dw: Tensor | None,
    ds: Tensor | None,
    geometry: list[int],
) -> None:
    """Write dW and dS, in one pass, each where given; both are like `weight` or both contiguous."""
    if not geometry and g.dtype == torch.float32 and tiles.tf32_allowed():
        # tensor cores take TF32 operands only with the summed index contiguous; copying two activations
        # is cheap beside re-laying out every tile
        g, x = g.T.contiguous().T, x.T.contiguous().T
    kept = Scores(_image(scores, geometry), *threshold)
    gradient(
        _image(g, geometry),
        _image(x, geometry),
        _image(weight, geometry),
        kept,
        None if dw is None else _image(dw, geometry),
        None if ds is None else _image(ds, geometry),
        geometry or LINEAR,
    )


PRODUCTS = (forward, dx, weight_and_score_gradients)
