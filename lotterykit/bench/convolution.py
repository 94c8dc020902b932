"""The convolution of `OPS`: 3x3, padding 1, kept weights; its truth in float64 and ours in every order."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lotterykit.bench.contender import Contender, through_autograd
from lotterykit.bench.setting import DTYPES, OFFSET_BYTES, Layer, Problem, Setting, Truth, within
from lotterykit.ops.conv_geometry import Order
from lotterykit.ops.csr import CSR
from lotterykit.ops.sparse_conv2d import sparse_conv2d

KERNEL, PADDING = 3, 1


def conv3x3(x: Tensor, weight: Tensor) -> Tensor:
    """torch's convolution in the geometry of this file."""
    return F.conv2d(x, weight, padding=PADDING)


def conv_problem(setting: Setting) -> Problem:
    """y of kept weights; with "forward+backward" dX and the gradients of the kept weights too."""
    layer = _layer(setting)
    truth = _truth(layer)[: 3 if setting.work == "forward+backward" else 1]
    batch, n_in, size, n_out = setting.shape
    nnz, width = layer.csr.nnz, layer.x.element_size()
    images = batch * (n_in + n_out) * size * size * width
    one = nnz * (width + OFFSET_BYTES) + (n_out + 1) * OFFSET_BYTES + images
    flops = 2.0 * batch * size * size * nnz * len(truth)  # the border's products with padding counted
    return Problem(setting, layer, within(setting, truth), flops, one * len(truth))


def sparse_conv(problem: Problem, order: Order = "channels_first") -> Contender:
    """Ours, x and the gradient given in `order`, as a layer before and one after leave them."""
    layer: Layer = problem.inputs
    values = layer.values.detach().clone().requires_grad_()

    def forward(x: Tensor) -> Tensor:
        return sparse_conv2d(x, values, layer.csr, kernel_size=KERNEL, padding=PADDING)

    return through_autograd(problem, forward, values, lambda d: d, order)


def _layer(setting: Setting) -> Layer:
    batch, n_in, size, n_out = setting.shape
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(setting.device, DTYPES[setting.dtype])

    x, g = normal(batch, n_in, size, size), normal(batch, n_out, size, size)
    weight = normal(n_out, n_in, KERNEL, KERNEL)
    # Never denser than was asked: at the end of a route's band that would measure the next route.
    kept = int(setting.density * weight.numel())
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    mask[torch.randperm(weight.numel(), generator=generator)[:kept]] = True
    mask = mask.view(weight.shape).to(setting.device)
    # A value that rounds to 0 is no kept weight to peers that find the structure in the weight itself.
    weight = torch.where(mask, torch.where(weight == 0, 1.0, weight), 0.0).to(weight.dtype)
    return Layer(x, g, weight, mask, CSR.from_mask(mask.flatten(1)))


def _truth(layer: Layer) -> list[Truth]:
    x, g, weight = (t.cpu().double() for t in (layer.x, layer.g, layer.weight))
    mask, csr = layer.mask.cpu(), layer.csr.to("cpu")
    found = _products(x, weight, g)
    sizes = _products(x.abs(), weight.abs(), g.abs())
    counts = mask.sum((1, 2, 3))[:, None, None], mask.sum((0, 2, 3))[:, None, None]
    return [
        ("y", found[0], sizes[0], counts[0]),
        ("dx", found[1], sizes[1], counts[1]),
        (
            "dvalues",
            csr.gather(found[2].flatten(1)),
            csr.gather(sizes[2].flatten(1)),
            g.shape[0] * g.shape[2] * g.shape[3],
        ),
    ]


def _products(x: Tensor, weight: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """y, dx and dweight of torch's convolution."""
    x, weight = x.requires_grad_(), weight.requires_grad_()
    y = conv3x3(x, weight)
    dx, dweight = torch.autograd.grad(y, (x, weight), g)
    return y.detach(), dx, dweight
