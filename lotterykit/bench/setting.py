"""`Setting`, `Problem`, `Op`: what a measurement is asked for, and the check that its results must pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from lotterykit.ops.csr import CSR
from lotterykit.ops.operands import HALF

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
OFFSET_BYTES = 4  # of an int32 index


@dataclass(frozen=True)
class Setting:
    """One point of a grid: `work` is one of the op's `works`; `density` is kept / total."""

    op: str
    shape: tuple[int, ...]
    density: float
    work: str
    dtype: str = "float32"
    threads: int = 1
    device: str = "cpu"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"shape": list(self.shape)}


@dataclass(frozen=True)
class Problem:
    """Inputs of a setting; `wrong(outputs)` is None, or the reason why outputs are not the answer.

    `flops`: multiplications and additions of kept weights; `traffic`: bytes that must move at least, every
    input read and every output written once.
    """

    setting: Setting
    inputs: Any
    wrong: Callable[[tuple[Tensor, ...]], str | None]
    flops: float
    traffic: float


@dataclass(frozen=True)
class Op:
    """A row of `OPS`: `sides` names the numbers of a shape, `baseline` the peer that speed-ups are over."""

    what: str
    sides: tuple[str, ...]
    example: str
    works: tuple[str, ...]
    baseline: str
    problem: Callable[[Setting], Problem]
    defaults: tuple[int, ...] = ()  # of the last sides, which may be left out
    chain: bool = False  # the last side may be followed by more of its kind
    dtypes: tuple[str, ...] = tuple(DTYPES)
    devices: tuple[str, ...] = ("cpu", "cuda")
    # work -> density of a shape, for works that have one of their own
    own: Mapping[str, Callable[[tuple[int, ...]], float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Layer:
    """Inputs of the products: x `[batch, in]`, g `[batch, out]`, weight `[out, in]`, 0 where pruned; of a
    convolution x `[batch, in, h, w]`, g `[batch, out, h, w]`, weight `[out, in, 3, 3]`, `csr` that of the
    flattened weight."""

    x: Tensor
    g: Tensor
    weight: Tensor
    mask: Tensor
    csr: CSR

    @property
    def values(self) -> Tensor:
        return self.csr.gather(self.weight.flatten(1))


# A truth is (name, float64 values, sum of absolute products, products per entry), for goals.md R1's bound.
Truth = tuple[str, Tensor, Tensor, Tensor | int]


def within(setting: Setting, truths: list[Truth]) -> Callable[[tuple[Tensor, ...]], str | None]:
    dtype = DTYPES[setting.dtype]

    def wrong(outputs: tuple[Tensor, ...]) -> str | None:
        if len(outputs) != len(truths):
            return f"{len(outputs)} results instead of {', '.join(name for name, *_ in truths)}"
        for got, (name, expected, magnitude, products) in zip(outputs, truths, strict=True):
            if got.shape != expected.shape:
                return f"{name} is {tuple(got.shape)}, not {tuple(expected.shape)}"
            if got.dtype != dtype:
                return f"{name} is {got.dtype}, not {dtype}"
            # Half precision is summed in float32 and rounded once, at the end.
            bound = (products + 1) * torch.finfo(torch.float32 if dtype in HALF else dtype).eps * magnitude
            if dtype in HALF:
                bound = bound + torch.finfo(dtype).eps * (expected.abs() + bound) + torch.finfo(dtype).tiny
            over = (got.detach().cpu().double() - expected).abs()
            bad = ~(over <= bound)  # a NaN is over every bound
            if bool(bad.any()):
                at = int(bad.int().argmax())
                place = [int(i) for i in torch.unravel_index(torch.tensor(at), expected.shape)]
                off, allowed = over.flatten()[at], bound.expand(over.shape).flatten()[at]
                return f"{name}{place} is {off:.3g} off float64, allowed {allowed:.3g}"
        return None

    return wrong
