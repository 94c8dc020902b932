"""Random valid calls of every native CPU op, for a `lotterykit._cpu` built with sanitizers (sanitize.py).

    python tests/native/fuzz.py LIBRARY [--cases N] [--seed N] [--ops NAME ...]

Sizes 0, 1 and odd, empty rows, ties, NaN and infinities, inputs that end at a closed page, every instruction
set that the processor has, 1 to 3 threads. Whether results are right is for the other tests.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
for folder in ("", "tests/native", "tests/ops"):
    sys.path.insert(0, str(ROOT / folder))

import conv_cases  # noqa: E402
import sparse_cases  # noqa: E402
from fenced import fenced  # noqa: E402

from lotterykit.errors import ArgumentError  # noqa: E402
from lotterykit.ops.conv_geometry import ORDERS, in_order, order_of  # noqa: E402
from lotterykit.ops.csr import CSR  # noqa: E402
from lotterykit.ops.flow_products import FlowLayer, FlowProducts, Window  # noqa: E402
from lotterykit.ops.guess import Guess  # noqa: E402
from lotterykit.ops.sddmm import sddmm_cpu  # noqa: E402
from lotterykit.ops.sparse_conv2d_native import backward_cpu as conv_backward_cpu  # noqa: E402
from lotterykit.ops.sparse_conv2d_native import sparse_conv2d_cpu  # noqa: E402
from lotterykit.ops.spmm import backward_cpu, spmm_cpu  # noqa: E402
from lotterykit.ops.synflow_masks import Counted, synflow_masks_cpu  # noqa: E402
from lotterykit.ops.synflow_scores import synflow_scores_cpu  # noqa: E402
from lotterykit.ops.topk_mask import topk_cut_cpu  # noqa: E402
from lotterykit.training.native import NativeBatch  # noqa: E402
from lotterykit.training.native_scores import NativeScoreBatch  # noqa: E402
from lotterykit.training.recipe import Recipe, Split  # noqa: E402
from lotterykit.training.replicas import RunSpec  # noqa: E402
from lotterykit.training.scored import ScoreTraining  # noqa: E402

LARGE_EVERY = 50  # one case in so many is large enough for several threads
DTYPES = (torch.float32, torch.float64)


class Draw:
    """The random choices of one case: sizes, contents, instruction set and number of threads."""

    def __init__(self, seed: int, number: int, levels: list[str]) -> None:
        self.rng = random.Random(f"{seed} {number}")
        self.seed = self.rng.randrange(2**31)
        self.generator = torch.Generator().manual_seed(self.seed)
        self.large = number % LARGE_EVERY == LARGE_EVERY - 1
        self.isa = self.rng.choice([*levels, "best"])
        self.dtype = self.rng.choice(DTYPES)
        torch.set_num_threads(self.rng.choice([1, 2, 3]))

    def floats(self, *shape: int, dtype: torch.dtype | None = None, wild: bool = True) -> Tensor:
        """Normal numbers, some with ties, zeros, and, where `wild`, infinities or NaN."""
        x = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        kind = self.rng.choice(["normal", "normal", "ties", "zeros", "infinite", "nan", "tiny"])
        if kind == "ties":
            x = x.round()
        elif kind == "tiny":
            x = x * 1e-42
        elif kind == "zeros":
            x = torch.where(self.bools(*shape, share=0.7), -0.0, x)
        elif wild and kind in ("infinite", "nan"):
            value = float("nan") if kind == "nan" else self.rng.choice([float("inf"), float("-inf")])
            x = torch.where(self.bools(*shape, share=self.rng.choice([0.01, 0.5, 1.0])), value, x)
        return self.fenced(x.to(dtype or self.dtype))

    def bools(self, *shape: int, share: float) -> Tensor:
        return torch.rand(shape, generator=self.generator) < share

    def fenced(self, x: Tensor) -> Tensor:
        if self.rng.random() < 0.03 and x.numel():  # entries at odd addresses, as in the bytes of a message
            odd = torch.frombuffer(bytearray(x.nbytes + 1), dtype=x.dtype, offset=1).view(x.shape)
            return odd.copy_(x)
        return fenced(x, self.rng)


def topk_mask(draw: Draw) -> None:
    rng = draw.rng
    sizes = [0, 1, 2, 7, 8, 9, 63, 64, 65, 300, 8193, 32767, 32769]
    shapes = [rng.choice(sizes) for _ in range(rng.randint(1, 6))]
    if draw.large:
        shapes.append(rng.randint(1 << 20, 3 << 20))
    scores = [draw.floats(n, wild=rng.random() < 0.1) for n in shapes]
    within = None
    if rng.random() < 0.5:
        within = [draw.fenced(draw.bools(n, share=rng.choice([0.0, 0.3, 1.0]))) for n in shapes]
    competing = sum(shapes) if within is None else sum(int(w.sum()) for w in within)
    k = rng.choice([0, min(1, competing), competing, competing // 2, competing // 10, competing // 300])
    guess = Guess() if rng.random() < 0.5 else None
    for threshold in (-1.0, 0.0, 0.0, 1.0)[: 0 if guess is None else rng.randint(0, 4)]:
        guess.learn(threshold, rng.randrange(2**32))
    topk_cut_cpu(scores, k=k, seed=rng.randrange(2**63), within=within, isa=draw.isa, guess=guess)


def sparse_products(draw: Draw) -> None:
    (case,) = sparse_cases.cases(1, draw.seed, draw.dtype)
    csr, x, g, relu = case.csr, case.x, case.g, case.relu
    if draw.large:
        csr = CSR.from_mask(draw.bools(300, 700, share=draw.rng.choice([0.02, 0.2])))
        batch = draw.rng.choice([64, 129, 513])
        x, g = draw.floats(batch, 700), draw.floats(batch, 300)
    elif draw.rng.random() < 0.5:
        x, g = draw.floats(*x.shape), draw.floats(*g.shape)
    values, n_out = draw.floats(csr.nnz), csr.shape[0]
    bias = draw.floats(n_out) if draw.rng.random() < 0.5 else None
    y = spmm_cpu(x, values, csr.tensors, bias, relu, isa=draw.isa)
    spmm_cpu(g, values, csr.tensors, None, False, True, isa=draw.isa)
    sddmm_cpu(g, x, csr.tensors, isa=draw.isa)
    wants = tuple(draw.rng.random() < 0.7 for _ in range(3))
    backward_cpu(g, y if relu else None, x, values, csr.tensors, wants, isa=draw.isa)


def fenced_images(draw: Draw, x: Tensor) -> Tensor:
    """Images stored batch-last stay so, which `fenced` alone would not fence."""
    turned = order_of(x) == "batch_last"
    return draw.fenced(x.permute(1, 2, 3, 0)).permute(3, 0, 1, 2) if turned else draw.fenced(x)


def convolutions(draw: Draw) -> None:
    (case,) = conv_cases.cases(1, draw.seed, draw.dtype)
    x, g = (
        fenced_images(draw, t) if draw.rng.random() < 0.7 else draw.floats(*t.shape) for t in (case.x, case.g)
    )
    csr, geometry = case.csr, case.geometry
    if draw.large:
        geometry = [3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1]
        csr = CSR.from_mask(draw.bools(70, 40 * 9, share=0.2))
        batch, order = draw.rng.choice([32, 33]), draw.rng.choice(ORDERS)
        x, g = (in_order(draw.floats(batch, n, 9, 11), order) for n in (40, 70))
    values = draw.floats(csr.nnz)
    bias = draw.floats(csr.shape[0]) if draw.rng.random() < 0.5 else None
    y = sparse_conv2d_cpu(x, values, csr.tensors, bias, case.relu, geometry, isa=draw.isa)
    wants = tuple(draw.rng.random() < 0.7 for _ in range(3))
    conv_backward_cpu(g, y if case.relu else None, x, values, csr.tensors, geometry, wants, isa=draw.isa)


def synflow(draw: Draw) -> None:
    rng = draw.rng
    depth = rng.randint(1, 4)
    widths = [rng.choice([0, 1, 2, 3, 8, 9, 17, 40, 200 if draw.large else 5]) for _ in range(depth + 1)]
    shapes = [(widths[i + 1], widths[i]) for i in range(depth)]
    weights = [draw.floats(*shape, wild=rng.random() < 0.05) for shape in shapes]
    masks = [draw.fenced(draw.bools(*s, share=rng.choice([0.0, 0.1, 0.7, 1.0]))) for s in shapes]
    masks = masks if rng.random() < 0.6 else []
    biases = [draw.floats(n, wild=False) if rng.random() < 0.4 else None for n in widths[1:]]
    counts = [int(m.sum()) for m in masks] or [w.numel() for w in weights]
    synflow_scores_cpu(weights, masks, biases, isa=draw.isa)
    groups = [(i,) for i in range(depth)] if rng.random() < 0.4 else [tuple(range(depth))]
    rounds = [
        [Counted(g, int(sum(counts[i] for i in g) * share), rng.randrange(2**63)) for g in groups]
        for share in sorted((rng.random() ** 2 for _ in range(rng.choice([1, 2, 6]))), reverse=True)
    ]
    synflow_masks_cpu(weights, rounds, masks, biases, isa=draw.isa)


def flow_products(draw: Draw) -> None:
    rng = draw.rng
    groups, lanes = rng.choice([1, 1, 2, 3]), rng.choice([1, 2, 3, 4, 7, 8, 16, 33, 64, 127])
    rows, channels, kernel = groups * rng.choice([1, 2, 5]), rng.choice([1, 3, 6]), rng.choice([1, 2, 3])
    weight = draw.floats(rows, channels, kernel, kernel, wild=False)
    mask = draw.fenced(draw.bools(*weight.shape, share=rng.choice([0.0, 0.3, 1.0])))
    products = FlowProducts([FlowLayer(weight, mask if rng.random() < 0.7 else None, groups)], isa=draw.isa)
    columns, window = channels * kernel * kernel, None
    x = draw.floats(groups * columns, lanes, dtype=torch.float64, wild=False)
    if rng.random() < 0.5 and lanes > 1:  # an image, whose columns overlap and end where the memory ends
        plane = rng.randint(1, 9)
        places = draw.fenced(torch.randint(plane, (columns,), generator=draw.generator, dtype=torch.int32))
        size = (groups - 1) * plane + int(places.max()) + lanes
        x, window = draw.floats(size, dtype=torch.float64, wild=False), Window(places, plane, lanes)
    x.requires_grad_(rng.random() < 0.5)
    y = products.product(0, x, window)
    y.backward(draw.floats(*y.shape, dtype=torch.float64, wild=False))
    products.select([Counted((0,), rng.randint(0, products.kept()[0]), rng.randrange(2**63))])
    products.masks()


def _run_spec(draw: Draw, recipe: Recipe, data: list[int], scores: bool) -> RunSpec:
    rng = draw.rng
    layers = tuple(rng.choice([1, 2, 3, 7, 16, 17, 33]) for _ in range(rng.randint(2, 5)))
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(len(layers) - 1):
        shapes[f"{2 * i}.weight"], shapes[f"{2 * i}.bias"] = (layers[i + 1], layers[i]), (layers[i + 1],)
    halves = []
    for n in data:
        classes = torch.randint(layers[-1], (n,), generator=draw.generator)
        y = draw.fenced(classes) if recipe.loss == "cross_entropy" else draw.floats(n, layers[-1])
        halves += [draw.floats(n, layers[0]), y]
    weights = {name: draw.floats(*shape, wild=rng.random() < 0.1) for name, shape in shapes.items()}
    masks, training = None, None
    if scores:
        density = rng.choice([0.01, 0.3, 0.9, 1.0])
        scope = rng.choice(["layer", "global"])
        training = ScoreTraining("edge-popup", density, scope, rng.random() < 0.5, bias=rng.random() < 0.5)
        if rng.random() < 0.4:
            training = ScoreTraining("gem-miner", density, scope, freeze_every=1, penalty=0.1)
    elif rng.random() < 0.8:
        share = rng.choice([0.0, 0.05, 0.3, 0.9])
        masks = {n: draw.bools(*s, share=share) for n, s in shapes.items() if rng.random() < 0.8}
    return RunSpec(
        layers, Split(*halves), recipe, weights=weights, masks=masks, seed=rng.randrange(99), scores=training
    )


def replicas(draw: Draw, scores: bool = False) -> None:
    rng = draw.rng
    batch = rng.choice([1, 7, 8, 9, 16, 17, 32, 33, 70])
    data = [rng.choice([1, 2, 31, 33, 70]), rng.choice([1, 31, 32, 33, 65])]
    specs = []
    for _ in range(rng.choice([1, 2, 5])):
        recipe = Recipe(
            rng.choice(["cross_entropy", "mse"]),
            epochs=3,
            batch_size=batch,
            optimizer=rng.choice(["adam", "sgd"]),
            lr=rng.choice([1e-3, 0.1]),
            momentum=rng.choice([0.0, 0.9]),
            weight_decay=rng.choice([0.0, 1e-2]),
        )
        specs.append(_run_spec(draw, recipe, data, scores))
    kind: Any = NativeScoreBatch if scores else NativeBatch
    steps = rng.choice([None, None, 0, 1, 2])
    first = kind(specs, torch.device("cpu"), isa=draw.isa).train(steps, None)
    if not scores and specs[0].recipe.optimizer == "adam" and first[0].optimizer:
        again = [RunSpec(s.layers, s.data, s.recipe, masks=s.masks, optimizer=r.optimizer or None)
                 for s, r in zip(specs, first, strict=True) if s.dtype == torch.float32]  # fmt: skip
        if again:
            kind(again, torch.device("cpu"), isa=draw.isa).train(steps, None)


def scored_replicas(draw: Draw) -> None:
    replicas(draw, scores=True)


OPS: dict[str, Callable[[Draw], None]] = {
    "topk_mask": topk_mask,
    "sparse_products": sparse_products,
    "convolutions": convolutions,
    "synflow": synflow,
    "flow_products": flow_products,
    "replicas": replicas,
    "scored_replicas": scored_replicas,
}


def load(library: Path) -> list[str]:
    """Puts the build in the place of lotterykit._cpu; returns the instruction sets it can run."""
    import lotterykit

    spec = importlib.util.spec_from_file_location("lotterykit._cpu", library)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{library} is no Python module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["lotterykit._cpu"] = module
    lotterykit._cpu = module  # type: ignore[attr-defined]
    return list(module.isa_levels())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("library", type=Path)
    parser.add_argument("--cases", type=int, default=1000, help="of each op")
    parser.add_argument("--seed", type=int, default=secrets.randbits(31))
    parser.add_argument(
        "--from", type=int, default=0, dest="first", help="the first case, to replay a report"
    )
    parser.add_argument("--ops", nargs="+", choices=list(OPS), default=list(OPS))
    given = parser.parse_args()
    levels = load(given.library)
    print(f"seed {given.seed}, instruction sets {', '.join(levels)}", flush=True)
    for name in given.ops:
        refused = 0
        for number in range(given.first, given.first + given.cases):
            last = f"{name}: case {number} of seed {given.seed}"
            (given.library.parent / "last_case.txt").write_text(last + "\n")
            try:
                OPS[name](Draw(given.seed, number, levels))
            except ArgumentError:  # NaN among the scores, weights that are not finite, too few to keep
                refused += 1
        print(f"{name}: {given.cases} cases, {refused} of them refused", flush=True)


if __name__ == "__main__":
    main()
