"""C1 to C3: a linear layer of kept weights, forward and forward + backward, against what torch offers.

    python benchmarks/linear.py [--shapes 128x1024x1024] [--densities .1,.05,.01,.001] [--threads 1]

Shapes are batch x in x out, float32, through autograd, the gradient of x included. Peers: `dense-masked`
(`F.linear(x, w * m)`), `dense` (pre-masked) and `torch CSR`, whose backward is dense in the weight and is
therefore timed in the forward only. Every peer's result is checked before it is timed, and the peers take
turns, so that other work on the machine falls on all alike. Prints ratios of medians and writes
results/<machine>-linear.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lotterykit.ops import CSR, spmm

RESULTS = Path(__file__).parent / "results"
Peers = dict[str, Callable[[], Tensor]]


def peers_of(x: Tensor, weight: Tensor, csr: CSR) -> tuple[Peers, dict[str, list[Tensor]]]:
    """The forward of every peer, and the leaves that its backward fills."""
    mask = csr.mask().float()
    values = csr.gather(weight).requires_grad_()
    dense = (weight * mask).requires_grad_()
    weight = weight.clone().requires_grad_()
    sparse = torch.sparse_csr_tensor(csr.row_offsets, csr.columns, values.detach(), csr.shape)
    rows = x.detach()
    peers: Peers = {
        "lotterykit": lambda: spmm(x, values, csr),
        "dense-masked": lambda: F.linear(x, weight * mask),
        "dense": lambda: F.linear(x, dense),
        "torch CSR": lambda: (sparse @ rows.T).T,
    }
    return peers, {"lotterykit": [x, values], "dense-masked": [x, weight], "dense": [x, dense]}


def check(peers: Peers, leaves: dict[str, list[Tensor]], g: Tensor, csr: CSR) -> None:
    """Outputs and gradients of all peers agree with the dense layer's; the dense gradient at kept places."""
    expected = peers["dense"]()
    dx, dweight = torch.autograd.grad(expected, leaves["dense"], g)
    for name, peer in peers.items():
        torch.testing.assert_close(peer().contiguous(), expected, rtol=1e-3, atol=1e-3, msg=f"{name} differs")
        if name in leaves:
            got_x, got = torch.autograd.grad(peer(), leaves[name], g)
            got = got if got.dim() == 1 else csr.gather(got)
            for one, other in ((got_x, dx), (got, csr.gather(dweight))):
                torch.testing.assert_close(
                    one, other, rtol=1e-3, atol=1e-3, msg=f"{name}: a gradient differs"
                )


def measure(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, dict[str, float]]:
    """Median, 20th and 80th percentile of each in seconds; turns of 1 untimed and 5 timed calls."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(-(-repeats // 5)):
        for name, function in functions.items():
            function()
            for _ in range(5):
                start = time.perf_counter()
                function()
                times[name].append(time.perf_counter() - start)
    shares = (("median", 0.5), ("p20", 0.2), ("p80", 0.8))
    ordered = {name: sorted(taken) for name, taken in times.items()}
    return {n: {word: t[int(share * (len(t) - 1))] for word, share in shares} for n, t in ordered.items()}


def rows_of(shape: tuple[int, int, int], density: float, threads: int, repeats: int) -> list[dict]:
    """Times one setting and prints its lines."""
    batch, n_in, n_out = shape
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, n_in, generator=generator).requires_grad_()
    g = torch.randn(batch, n_out, generator=generator)
    csr = CSR.from_mask(torch.rand(n_out, n_in, generator=generator) < density)
    peers, leaves = peers_of(x, torch.randn(n_out, n_in, generator=generator), csr)
    check(peers, leaves, g, csr)
    with torch.no_grad():
        forward = measure(dict(peers), repeats)
    both = {name: lambda name=name: torch.autograd.grad(peers[name](), leaves[name], g) for name in leaves}
    setting = {"batch": batch, "in": n_in, "out": n_out, "density": density, "threads": threads}
    rows = []
    for work, seconds in (("forward", forward), ("forward+backward", measure(both, repeats))):
        ours = seconds["lotterykit"]["median"]
        ratios = {name: taken["median"] / ours for name, taken in seconds.items() if name != "lotterykit"}
        gflops = 2 * batch * csr.nnz * (1 if work == "forward" else 3) / ours / 1e9
        shown = " ".join(f"{ratios.get(name, float('nan')):>13.1f}" for name in list(peers)[1:])
        name = f"{'x'.join(map(str, shape)):>14} {density:>7g} {threads:>3}"
        print(f"{name} {work:>17} {ours * 1e6:>8.0f} {gflops:>8.1f} {shown}", flush=True)
        rows.append(setting | {"work": work, "seconds": seconds, "ratio": ratios, "gflops": gflops})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="128x1024x1024")
    parser.add_argument("--densities", default=".1,.05,.01,.001")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--repeats", type=int, default=41)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*[Ss]parse")  # CSR is in beta, its checks are off
    machine = f"{platform.machine()}-{torch.backends.cpu.get_cpu_capability().lower()}"
    print(f"torch {torch.__version__}, {machine}, ratios are times of a peer over ours")
    print(
        f"{'batch x in x out':>14.14} {'density':>7} {'thr':>3} {'work':>17} {'ours us':>8} {'GFLOP/s':>8} "
        f"{'dense-masked':>13} {'dense':>13} {'torch CSR':>13}"
    )
    rows = []
    for shape in options.shapes.split(","):
        batch, n_in, n_out = map(int, shape.split("x"))
        for density in options.densities.split(","):
            for threads in options.threads.split(","):
                rows += rows_of((batch, n_in, n_out), float(density), int(threads), options.repeats)
    head = {"torch": torch.__version__, "python": platform.python_version(), "machine": machine}
    head |= {"repeats": options.repeats, "statistic": "median", "dtype": "float32"}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{machine}-linear.json"
    path.write_text(json.dumps(head | {"rows": rows}, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
