"""What is measured: `Setting`, `Problem` and `OPS`, each op with its shapes, inputs and float64 truth.

A problem holds the inputs that every peer gets and the one answer that all must give: a peer that is further
from float64 than its dtype explains is refused, never timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lotterykit.errors import ArgumentError
from lotterykit.ops.csr import CSR
from lotterykit.ops.dispatch import use_backend
from lotterykit.ops.operands import HALF
from lotterykit.ops.topk_mask import topk_mask

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
OFFSET_BYTES = 4  # of an int32 index
SIDE = 2**31 - 1  # the largest side of a structure


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


@dataclass(frozen=True)
class Layer:
    """Inputs of the products: x `[batch, in]`, g `[batch, out]`, weight `[out, in]`, 0 where pruned."""

    x: Tensor
    g: Tensor
    weight: Tensor
    mask: Tensor
    csr: CSR

    @property
    def values(self) -> Tensor:
        return self.csr.gather(self.weight)


@dataclass(frozen=True)
class Scores:
    """Inputs of a selection: the k highest of all tensors together."""

    tensors: list[Tensor]
    k: int


def parse_shape(op: str, text: str) -> tuple[int, ...]:
    """The numbers of "128x1024x1024", as `op` names them. Raises `ArgumentError`.

    >>> parse_shape("topk", "1000")
    (1000, 20)
    """
    row = OPS[op]
    words = text.lower().split("x")
    least = len(row.sides) - len(row.defaults)
    if not least <= len(words) <= len(row.sides) or not all(w.isascii() and w.isdigit() for w in words):
        raise ArgumentError(f"--shape of {op} is {' x '.join(row.sides)}, as {row.example}: got {text!r}")
    numbers = [int(word) if len(word) < 11 else SIDE + 1 for word in words]
    for side, number in zip(row.sides, numbers, strict=False):
        if not 1 <= number <= SIDE:
            raise ArgumentError(f"--shape {text[:60]}: {side} must lie in [1, {SIDE}]")
    return (*numbers, *row.defaults[len(numbers) - least :])


def layer_problem(setting: Setting) -> Problem:
    """x W^T of kept weights; with "forward+backward" its gradients dX and those of the kept weights too."""
    layer = _layer(setting)
    truth = [_forward(layer)]
    if setting.work == "forward+backward":
        truth += [_dx(layer), _dvalues(layer)]
    batch, n_in, n_out = setting.shape
    nnz, size = layer.csr.nnz, layer.x.element_size()
    one = nnz * (size + OFFSET_BYTES) + (n_out + 1) * OFFSET_BYTES + batch * (n_in + n_out) * size
    flops = 2.0 * batch * nnz * len(truth)  # dX and the kept dW cost what the forward costs
    return Problem(setting, layer, _within(setting, truth), flops, one * len(truth))


def sddmm_problem(setting: Setting) -> Problem:
    """g^T x at the kept places alone."""
    layer = _layer(setting)
    batch, n_in, n_out = setting.shape
    nnz, size = layer.csr.nnz, layer.x.element_size()
    traffic = nnz * (size + OFFSET_BYTES) + (n_out + 1) * OFFSET_BYTES + batch * (n_in + n_out) * size
    return Problem(setting, layer, _within(setting, [_dvalues(layer)]), 2.0 * batch * nnz, traffic)


def topk_problem(setting: Setting) -> Problem:
    """The k highest of the scores of many tensors: normal magnitudes, or SynFlow-like ("zeros", 70 % zeros).

    Peers that compare with a threshold keep all that tie there, so ties do not count against them; the
    exact count is asked of ours (`tests/ops`).
    """
    count, tensors = setting.shape
    generator = torch.Generator().manual_seed(count)
    flat = torch.randn(count, generator=generator).abs()
    if setting.work == "zeros":
        flat[torch.rand(count, generator=generator) < 0.7] = 0.0
    flat = flat.to(DTYPES[setting.dtype])
    k = max(1, round(setting.density * count))
    scores = [part.clone().to(setting.device) for part in flat.tensor_split(tensors)]
    with use_backend("reference", ops=["topk_mask"]):
        expected = torch.cat(topk_mask(list(flat.tensor_split(tensors)), k=k))
    clear = flat != flat[expected].min()

    def wrong(outputs: tuple[Tensor, ...]) -> str | None:
        got = torch.cat([o.reshape(-1).cpu() for o in outputs])
        if got.shape != expected.shape:
            return f"masks of {got.numel()} entries for {count} scores"
        differ = ((got != 0) != expected) & clear
        if bool(differ.any()):
            return f"entry {int(differ.int().argmax())} is kept or pruned against the reference"
        return None

    return Problem(setting, Scores(scores, k), wrong, 0.0, count * (flat.element_size() + 1.0))


def _layer(setting: Setting) -> Layer:
    batch, n_in, n_out = setting.shape
    generator = torch.Generator().manual_seed(0)
    dtype, device = DTYPES[setting.dtype], setting.device
    x, g = (torch.randn(batch, n, generator=generator).to(device, dtype) for n in (n_in, n_out))
    weight = torch.randn(n_out, n_in, generator=generator).to(device, dtype)
    mask = (torch.rand(n_out, n_in, generator=generator) < setting.density).to(device)
    # A value that rounds to 0 is no kept weight to peers that find the structure in the weight itself.
    weight = torch.where(mask, torch.where(weight == 0, 1.0, weight), 0.0).to(dtype)
    return Layer(x, g, weight, mask, CSR.from_mask(mask))


# A truth is (name, float64 values, sum of absolute products, products per entry), for goals.md R1's bound.
Truth = tuple[str, Tensor, Tensor, Tensor | int]


def _forward(layer: Layer) -> Truth:
    x, weight = layer.x.cpu().double(), layer.weight.cpu().double()
    return "y", x @ weight.T, x.abs() @ weight.abs().T, layer.mask.cpu().sum(1)


def _dx(layer: Layer) -> Truth:
    g, weight = layer.g.cpu().double(), layer.weight.cpu().double()
    return "dx", g @ weight, g.abs() @ weight.abs(), layer.mask.cpu().sum(0)


def _dvalues(layer: Layer) -> Truth:
    g, x, csr = layer.g.cpu().double(), layer.x.cpu().double(), layer.csr.to("cpu")
    return "dvalues", csr.gather(g.T @ x), csr.gather(g.abs().T @ x.abs()), g.shape[0]


def _within(setting: Setting, truths: list[Truth]) -> Callable[[tuple[Tensor, ...]], str | None]:
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


OPS: dict[str, Op] = {
    "linear": Op(
        what="a linear layer of kept weights, through autograd",
        sides=("batch", "in", "out"),
        example="128x1024x1024",
        works=("forward", "forward+backward"),
        baseline="dense-masked",
        problem=layer_problem,
    ),
    "spmm": Op(
        what="the product x W^T alone, without autograd",
        sides=("batch", "in", "out"),
        example="128x1024x1024",
        works=("product",),
        baseline="dense-masked",
        problem=layer_problem,
    ),
    "sddmm": Op(
        what="the weight gradient g^T x at the kept places alone",
        sides=("batch", "in", "out"),
        example="128x1024x1024",
        works=("product",),
        baseline="dense-masked",
        problem=sddmm_problem,
    ),
    "topk": Op(
        what="masks of the k highest scores of many tensors",
        sides=("scores", "tensors"),
        example="2300000x20",
        works=("normal", "zeros"),
        baseline="kthvalue",
        problem=topk_problem,
        defaults=(20,),
    ),
}
