"""What is measured: `OPS`, each op with its shapes, inputs and float64 truth.

A problem holds the inputs that every peer gets and the one answer that all must give: a peer that is further
from float64 than its dtype explains is refused, never timed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lotterykit.bench import convolution, replicas, synflow
from lotterykit.bench.setting import DTYPES, OFFSET_BYTES, Layer, Op, Problem, Setting, Truth, within
from lotterykit.errors import ArgumentError
from lotterykit.ops.csr import CSR
from lotterykit.ops.dispatch import use_backend
from lotterykit.ops.topk_mask import topk_mask

SIDE = 2**31 - 1  # the largest side of a structure
LONGEST = 100  # numbers in the shape of a chain


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
    least, most = len(row.sides) - len(row.defaults), LONGEST if row.chain else len(row.sides)
    if not least <= len(words) <= most or not all(w.isascii() and w.isdigit() for w in words):
        sides = " x ".join(row.sides) + (" x ..." if row.chain else "")
        raise ArgumentError(f"--shape of {op} is {sides}, as {row.example}: got {text[:60]!r}")
    numbers = [int(word) if len(word) < 11 else SIDE + 1 for word in words]
    sides_of = row.sides + row.sides[-1:] * (len(numbers) - len(row.sides))
    for side, number in zip(sides_of, numbers, strict=False):
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
    return Problem(setting, layer, within(setting, truth), flops, one * len(truth))


def sddmm_problem(setting: Setting) -> Problem:
    """g^T x at the kept places alone."""
    layer = _layer(setting)
    batch, n_in, n_out = setting.shape
    nnz, size = layer.csr.nnz, layer.x.element_size()
    traffic = nnz * (size + OFFSET_BYTES) + (n_out + 1) * OFFSET_BYTES + batch * (n_in + n_out) * size
    return Problem(setting, layer, within(setting, [_dvalues(layer)]), 2.0 * batch * nnz, traffic)


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


def _forward(layer: Layer) -> Truth:
    x, weight = layer.x.cpu().double(), layer.weight.cpu().double()
    return "y", x @ weight.T, x.abs() @ weight.abs().T, layer.mask.cpu().sum(1)


def _dx(layer: Layer) -> Truth:
    g, weight = layer.g.cpu().double(), layer.weight.cpu().double()
    return "dx", g @ weight, g.abs() @ weight.abs(), layer.mask.cpu().sum(0)


def _dvalues(layer: Layer) -> Truth:
    g, x, csr = layer.g.cpu().double(), layer.x.cpu().double(), layer.csr.to("cpu")
    return "dvalues", csr.gather(g.T @ x), csr.gather(g.abs().T @ x.abs()), g.shape[0]


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
    "conv": Op(
        what="a 3x3 convolution of kept weights, padding 1, through autograd",
        sides=("batch", "in", "height and width", "out"),
        example="32x64x32x64",
        works=("forward", "forward+backward"),
        baseline="dense-masked",
        problem=convolution.conv_problem,
        dtypes=("float32", "float64"),
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
    "replicas": Op(
        what="a training step of one of many networks 2-w-w-w-4, Adam, batch 32",
        sides=("replicas", "width", "steps"),
        example="16x100x300",
        works=("random", "ticket"),
        baseline="eager",
        problem=replicas.replicas_problem,
        defaults=(100, 300),
        dtypes=("float32", "float64"),
        devices=("cpu",),
        own={"ticket": replicas.ticket_density},
    ),
    "scores": Op(
        what="an edge-popup step (scores trained, weights frozen) of the same networks",
        sides=("replicas", "width", "steps"),
        example="16x100x300",
        works=("edge-popup",),
        baseline="eager",
        problem=replicas.scores_problem,
        defaults=(100, 300),
        dtypes=("float32", "float64"),
        devices=("cpu",),
    ),
    "synflow": Op(
        what="100 rounds of SynFlow on a fully connected chain",
        sides=("in", "out"),
        example="784x300x100x10",
        works=("rounds",),
        baseline="published",
        problem=synflow.rounds_problem,
        chain=True,
        dtypes=("float32", "float64"),
        devices=("cpu",),
    ),
    "synflow-scores": Op(
        what="one scoring of a masked chain by SynFlow",
        sides=("in", "out"),
        example="784x300x100x10",
        works=("scores",),
        baseline="eager",
        problem=synflow.scores_problem,
        chain=True,
        dtypes=("float32", "float64"),
        devices=("cpu",),
    ),
}
