"""Generated sparse products: sizes at the edges of tiles, blocks and vectors, and the bound to keep."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lotterykit.ops.csr import CSR
from lotterykit.ops.operands import flat

SIZES = [0, 1, 2, 3, 7, 8, 9, 31, 63, 64, 65, 97, 130]
BATCHES = [0, 1, 2, 7, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 97, 129]


@dataclass(frozen=True)
class Case:
    x: Tensor
    g: Tensor
    mask: Tensor
    csr: CSR
    values: Tensor
    bias: Tensor | None
    relu: bool


def cases(count: int, seed: int, dtype: torch.dtype) -> Iterator[Case]:
    """Random cases; some rows and columns are empty, some inputs transposed or strided."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(rng.randrange(2**31))

    def normal(*shape: int) -> Tensor:
        kind = rng.choice(["plain", "plain", "strided", "transposed"])
        if kind == "strided":
            return torch.randn(*shape[:-1], 2 * shape[-1], generator=generator, dtype=dtype)[..., ::2]
        if kind == "transposed" and len(shape) == 2:
            return torch.randn(shape[1], shape[0], generator=generator, dtype=dtype).T
        return torch.randn(shape, generator=generator, dtype=dtype)

    for number in range(count):
        n_out, n_in = rng.choice(SIZES), rng.choice(SIZES)
        if number % 25 == 0:  # wide enough for column blocks, long enough for several units of rows
            n_out, n_in = rng.randint(1, 300), rng.randint(192, 700)
        lead = rng.choice([(rng.choice(BATCHES),), (rng.choice(BATCHES),), (), (2, 3), (3, 0)])
        density = rng.choice([0.0, 0.01, 0.03, 0.1, 0.3, 0.9, 1.0])
        mask = torch.rand(n_out, n_in, generator=generator) < density
        if rng.random() < 0.3 and n_out and n_in:
            mask[rng.randrange(n_out)] = False
            mask[:, rng.randrange(n_in)] = False
        csr = CSR.from_mask(mask)
        bias = normal(n_out) if rng.random() < 0.5 else None
        yield Case(
            normal(*lead, n_in), normal(*lead, n_out), mask, csr, normal(csr.nnz), bias, rng.random() < 0.3
        )


def within_bound(got: Tensor, expected: Tensor, terms: Tensor | int, size: Tensor) -> bool:
    """By (terms + 1) eps times the sum of the products' magnitudes; half precision is summed in float32, and
    its results are rounded once more."""
    half = got.dtype in (torch.float16, torch.bfloat16)
    bound = (terms + 1) * torch.finfo(torch.float32 if half else got.dtype).eps * size
    if half:
        bound = bound + torch.finfo(got.dtype).eps * (expected.abs() + bound) + torch.finfo(got.dtype).tiny
    return got.shape == expected.shape and bool(((got.double() - expected).abs() <= bound).all())


def product_within_bound(case: Case, y: Tensor) -> bool:
    """spmm against float64."""
    wide = case.csr.scatter(case.values.double())
    expected, size = case.x.double() @ wide.T, case.x.double().abs() @ wide.abs().T
    if case.bias is not None:
        expected, size = expected + case.bias.double(), size + case.bias.double().abs()
    expected = expected.relu() if case.relu else expected
    return within_bound(y, expected, case.mask.sum(1), size)


def transposed_within_bound(case: Case, dx: Tensor) -> bool:
    wide = case.csr.scatter(case.values.double())
    expected, size = case.g.double() @ wide, case.g.double().abs() @ wide.abs()
    return within_bound(dx, expected, case.mask.sum(0), size)


def sampled_within_bound(case: Case, dvalues: Tensor) -> bool:
    g, x = flat(case.g.double()), flat(case.x.double())
    expected, size = case.csr.gather(g.T @ x), case.csr.gather(g.abs().T @ x.abs())
    return within_bound(dvalues, expected, g.shape[0], size)
