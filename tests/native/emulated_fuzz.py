"""Random valid calls of the CUDA kernels on the emulator, built with sanitizers (sanitize.py).

    python tests/native/emulated_fuzz.py LIBRARY [--cases N] [--seed N]

Sizes 0, 1 and odd, empty rows, every dtype and way, threads and blocks in random order, inputs that end at a
closed page. Whether results are right is for the other tests.
"""

from __future__ import annotations

import argparse
import random
import secrets
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch

ROOT = Path(__file__).resolve().parents[2]
for folder in ("", "tests/native", "tests/ops", "tests/training"):
    sys.path.insert(0, str(ROOT / folder))

import emulated  # noqa: E402
import replica_cases  # noqa: E402
import sparse_cases  # noqa: E402
from fenced import fenced  # noqa: E402

from lotterykit.errors import ArgumentError  # noqa: E402
from lotterykit.ops.csr import CSR  # noqa: E402
from lotterykit.ops.sddmm import sddmm_cuda  # noqa: E402
from lotterykit.ops.spmm import spmm_cuda  # noqa: E402
from lotterykit.ops.topk_mask import topk_mask_cuda  # noqa: E402
from lotterykit.training.cuda import CudaBatch, CudaScoreBatch  # noqa: E402
from lotterykit.training.recipe import Recipe  # noqa: E402

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def usual(rng: random.Random, dtype: torch.dtype) -> sparse_cases.Case:
    *_, case = sparse_cases.cases(rng.choice([1, 2, 2]), rng.randrange(2**31), dtype)  # the first is large
    return case


def tall(rng: random.Random, dtype: torch.dtype) -> sparse_cases.Case:
    """Several sets of rows a block, and little else in its shared memory."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    n_out, n_in, batch = rng.randint(600, 1100), rng.choice([1, 5, 70]), rng.choice([65, 300])
    mask = torch.rand(n_out, n_in, generator=generator) < 0.1
    csr = CSR.from_mask(mask)
    x, g, values = (
        torch.randn(shape, generator=generator).to(dtype)
        for shape in ((batch, n_in), (batch, n_out), (csr.nnz,))
    )
    return sparse_cases.Case(x, g, mask, csr, values, None, False)


def sparse_products(rng: random.Random, number: int) -> None:
    way, kind, dtype = (
        ("slabs", "gather")[number % 2],
        (tall, usual)[number // 2 % 2],
        DTYPES[number // 4 % 4],
    )
    case = kind(rng, dtype)
    structure = [fenced(t, rng) for t in case.csr.tensors]
    x, g, values = (fenced(t.contiguous(), rng) for t in (case.x, case.g, case.values))
    bias = None if case.bias is None else fenced(case.bias.contiguous(), rng)
    spmm_cuda(x, values, structure, bias, case.relu, way=way)
    spmm_cuda(g, values, structure, None, False, True, way=way)
    sddmm_cuda(g, x, structure, way=way)


def selection(rng: random.Random, number: int) -> None:
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    dtype = DTYPES[number % 2]
    sizes = [rng.choice([0, 1, 7, 255, 256, 257, 9000]) for _ in range(rng.randint(1, 4))]
    scores = [fenced(torch.randn(n, generator=generator, dtype=dtype).round(), rng) for n in sizes]
    within = [torch.rand(n, generator=generator) < 0.7 for n in sizes] if rng.random() < 0.5 else None
    topk_mask_cuda(scores, k=rng.randint(0, sum(sizes)), seed=rng.randrange(2**31), within=within)


def replicas(rng: random.Random, number: int) -> None:
    """Networks of any shape and density, their state within reach of a block or not."""
    rule = replica_cases.RULES[list(replica_cases.RULES)[number % len(replica_cases.RULES)]]
    recipe = Recipe(rng.choice(["cross_entropy", "mse"]), epochs=2, batch_size=rng.randint(1, 80), **rule)
    n, dtype = rng.randint(1, 70), rng.choice(DTYPES[:2])
    runs = []
    for _ in range(rng.randint(1, 3)):
        layers = tuple(rng.choice([1, 2, 5, 33, 70]) for _ in range(rng.randint(2, 5)))
        density, seed = rng.choice([0.0, 0.03, 0.2, 0.7, 1.0]), rng.randrange(2**31)
        runs.append(
            replica_cases.spec(
                layers, recipe, density, seed=seed, n=n, dtype=dtype, biases=rng.random() < 0.5
            )
        )
    engine = CudaBatch
    if rng.random() < 0.3:
        training = rng.choice([t for t in replica_cases.SCORINGS.values() if t.method == "edge-popup"])
        engine = CudaScoreBatch
        runs = [replace(run, masks=None, scores=training) for run in runs]
    native = sys.modules["lotterykit._cuda"]
    room = rng.choice([3, 30, 60, 227]) << 10
    with mock.patch.object(native, "shared_memory", return_value=[room, room + 1024, 3]):
        batch = engine(runs, torch.device("cpu"))
    batch.steps = rng.choice([1, 2, batch.steps])
    batch.train(rng.choice([None, 0, 3]), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("library", type=Path)
    parser.add_argument("--cases", type=int, default=100, help="of each op")
    parser.add_argument("--seed", type=int, default=secrets.randbits(31))
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    module = emulated.load(given.library)
    for name, run in (
        ("sparse products", sparse_products),
        ("topk_mask", selection),
        ("replicas", replicas),
    ):
        refused = 0
        for number in range(given.cases):
            rng = random.Random(f"{given.seed} {number}")
            with emulated.installed(module), emulated.order(rng.choice([None, rng.randint(1, 2**31)])):
                try:
                    run(rng, number)
                except ArgumentError:  # too few to keep
                    refused += 1
        print(f"{name}: {given.cases} cases, {refused} of them refused", flush=True)


if __name__ == "__main__":
    main()
