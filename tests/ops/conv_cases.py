"""Generated sparse convolutions: sizes at the edges of tiles, vectors and phases, and the bound to keep."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lotterykit.ops.conv_geometry import geometry_of, in_order, out_size
from lotterykit.ops.csr import CSR
from lotterykit.ops.sparse_conv2d import backward_reference, sparse_conv2d_reference


@dataclass(frozen=True)
class Case:
    x: Tensor
    g: Tensor
    csr: CSR
    values: Tensor
    bias: Tensor | None
    relu: bool
    geometry: list[int]


def cases(count: int, seed: int, dtype: torch.dtype) -> Iterator[Case]:
    """Random cases: every stride, padding, dilation and groups, images smaller than the kernel, formats,
    empty rows, batches on both sides of a tile."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(rng.randrange(2**31))

    def normal(*shape: int) -> Tensor:
        x = torch.randn(shape, generator=generator, dtype=dtype)
        kind = rng.choice(["plain", "last", "batch", "strided"])
        if kind == "last":
            return x.to(memory_format=torch.channels_last)
        if kind == "batch":
            return in_order(x, "batch_last")
        return x if kind == "plain" else x.transpose(2, 3).contiguous().transpose(2, 3)

    while count:
        groups = rng.choice([1, 1, 1, 2, 3])
        n_in, n_out = groups * rng.choice([1, 2, 5, 9]), groups * rng.choice([1, 3, 8, 17])
        if rng.random() < 0.05:  # several units of result channels, several parts of input channels
            groups, n_in, n_out = 1, rng.randint(30, 80), rng.randint(60, 90)
        kernel = rng.choice([(1, 1), (3, 3), (2, 3), (4, 1), (5, 5)])
        stride, dilation = (rng.choice([(1, 1), (1, 1), (2, 2), (1, 2), (3, 1)]) for _ in range(2))
        padding = rng.choice([(0, 0), (1, 1), (2, 0), (5, 6)])
        around: object = rng.choice([padding, padding, "same" if stride == (1, 1) else "valid"])
        size = rng.choice([1, 2, 3, 4, 7, 8, 12, 17]), rng.choice([1, 2, 4, 5, 8, 9, 16, 33])
        x = torch.empty(rng.choice([0, 1, 2, 7, 8, 9, 16, 17, 33, 65]), n_in, *size)
        geometry = geometry_of("case", kernel, stride, around, dilation, groups)
        if min(out_size(x, geometry)) < 1 or x.numel() > 20000:
            continue
        count -= 1
        mask = torch.rand(n_out, n_in // groups * kernel[0] * kernel[1], generator=generator)
        csr = CSR.from_mask(mask < rng.choice([0.0, 0.02, 0.1, 0.4, 1.0]))
        values = torch.randn(csr.nnz, generator=generator, dtype=dtype)
        bias = torch.randn(n_out, generator=generator, dtype=dtype) if rng.random() < 0.5 else None
        g = normal(x.shape[0], n_out, *out_size(x, geometry))
        yield Case(normal(*x.shape), g, csr, values, bias, rng.random() < 0.3, geometry)


class Bounds:
    """What a case's results must be, in float64, within (number of products + 1) eps times the sum of the
    products' magnitudes. `gate`, a given output, stands for that of the ReLU where the case has one."""

    def __init__(self, case: Case) -> None:
        self.case = case
        wide = [None if t is None else t.double() for t in (case.x, case.values, case.bias, case.g)]
        sizes = [None if t is None else t.abs() for t in wide]
        x, values, bias, g = wide
        rest = case.csr.tensors
        y = sparse_conv2d_reference(x, values, rest, bias, case.relu, case.geometry)
        size = sparse_conv2d_reference(*sizes[:2], rest, sizes[2], False, case.geometry)
        self._forward = y, size, case.csr.row_offsets.diff().double().view(1, -1, 1, 1)
        self.gate = y.to(case.x.dtype) if case.relu else None
        rest = (rest, case.geometry, (True, True, True))
        exact = backward_reference(g, self.gate, x, values, *rest)
        size = backward_reference(sizes[3], self.gate, *sizes[:2], *rest)
        ones = [torch.ones_like(t) for t in (g, x, values)]
        counts = backward_reference(ones[0], None, *ones[1:], *rest)
        self._backward = tuple(zip(exact, size, counts, strict=True))

    def forward(self, y: Tensor) -> bool:
        return _within(y, *self._forward)

    def backward(self, got: tuple[Tensor, Tensor, Tensor]) -> bool:
        """dx, dvalues, dbias"""
        return all(_within(one, *bound) for one, bound in zip(got, self._backward, strict=True))


def _within(got: Tensor, exact: Tensor, size: Tensor, products: Tensor) -> bool:
    # The reference rounds as well, which counts where the results are float64 themselves.
    eps = torch.finfo(got.dtype).eps * (2 if got.dtype == torch.float64 else 1)
    bound = (products + 1) * eps * size
    return got.shape == exact.shape and bool(((got.double() - exact).abs() <= bound).all())
