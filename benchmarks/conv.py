"""C4: a 3x3 convolution of kept weights, forward and forward + backward, against what torch offers.

    python benchmarks/conv.py [--shapes 32x64x32x64,...] [--densities .4,.1,.05,.01] [--threads 1]

Shapes are batch x in x height and width x out, padding 1, float32, through autograd, the gradient of x
included. Peers: `dense-masked` (`F.conv2d(x, w * m)`) and `dense` (pre-masked), each in NCHW and in
channels-last, and `sparseprop` in both of its ways where it is installed. Ours runs in both formats too;
ratios are those of the better of a peer's ways over ours in NCHW. Every peer's result is checked before it
is timed, and the peers take turns, so that other work on the machine falls on all alike. Prints ratios of
medians and writes results/<machine>-conv.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
from collections.abc import Callable

import torch
from linear import RESULTS, measure
from torch import Tensor
from torch.nn import functional as F

from lotterykit.ops import CSR, sparse_conv2d
from lotterykit.ops.dispatch import use_backend

Peers = dict[str, tuple[Callable[[], Tensor], list[Tensor]]]
NAMES = ("dense-masked", "dense", "sparseprop")


def peers_of(x: Tensor, weight: Tensor, csr: CSR) -> Peers:
    """The forward of every peer, and the leaves that its backward fills: x and a weight."""
    mask = csr.mask().view(weight.shape).float()
    peers: Peers = {}
    for layout, ending in ((torch.contiguous_format, ""), (torch.channels_last, " channels_last")):
        images = x.clone(memory_format=layout).requires_grad_()
        values = csr.gather(weight.flatten(1)).requires_grad_()
        full = weight.clone(memory_format=layout).requires_grad_()
        kept = mask.clone(memory_format=layout)
        masked = (weight * mask).clone(memory_format=layout).requires_grad_()
        ours = [images, values]
        peers |= {
            f"lotterykit{ending}": (
                lambda x=images, v=values: sparse_conv2d(x, v, csr, kernel_size=3, padding=1),
                ours,
            ),
            f"dense-masked{ending}": (
                lambda x=images, w=full, m=kept: F.conv2d(x, w * m, padding=1),
                [images, full],
            ),
            f"dense{ending}": (lambda x=images, w=masked: F.conv2d(x, w, padding=1), [images, masked]),
        }
    if importlib.util.find_spec("sparseprop"):
        from sparseprop.modules import SparseConv2d

        for over in (False, True):
            images = x.clone().requires_grad_()
            module = SparseConv2d(weight * mask, padding=1, vectorizing_over_on=over)
            peers[f"sparseprop{' over_on' if over else ''}"] = (
                lambda x=images, m=module: m(x),
                [images, module.W_val],
            )
    return peers


def check(peers: Peers, g: Tensor, csr: CSR) -> None:
    """Outputs and gradients of all peers agree with the dense layer's; the dense gradient at kept places."""
    forward, leaves = peers["dense"]
    expected = forward()
    dx, dweight = torch.autograd.grad(expected, leaves, g)
    for name, (peer, own) in peers.items():
        y = peer()
        got_x, got = torch.autograd.grad(y, own, g)
        got = got if got.dim() == 1 else csr.gather(got.flatten(1))
        for one, other in ((y, expected), (got_x, dx), (got, csr.gather(dweight.flatten(1)))):
            size = float(other.detach().abs().max())
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * size, msg=f"{name} differs")


def backward_of(peer: Callable[[], Tensor], leaves: list[Tensor], g: Tensor) -> Callable[[], object]:
    """Forward and backward of a peer."""
    return lambda: torch.autograd.grad(peer(), leaves, g)


def best_of(seconds: dict[str, dict[str, float]], name: str) -> float:
    """The median of the better of a peer's ways; NaN where it has none."""
    ways = [taken["median"] for way, taken in seconds.items() if way.split(" ")[0] == name]
    return min(ways, default=float("nan"))


def rows_of(shape: tuple[int, int, int, int], density: float, threads: int, repeats: int) -> list[dict]:
    """Times one setting and prints its lines."""
    batch, n_in, size, n_out = shape
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, n_in, size, size, generator=generator)
    g = torch.randn(batch, n_out, size, size, generator=generator)
    weight = torch.randn(n_out, n_in, 3, 3, generator=generator)
    csr = CSR.from_mask(torch.rand(n_out, n_in * 9, generator=generator) < density)
    # Forced: the dispatcher, whose crossover this file is to find, would answer with the dense layer.
    with use_backend("cpu"):
        peers = peers_of(x, weight, csr)
        check(peers, g, csr)
        last = g.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            forward = measure({name: peer for name, (peer, _) in peers.items()}, repeats)
        both = measure(
            {name: backward_of(*peer, last if "last" in name else g) for name, peer in peers.items()}, repeats
        )
    setting = {"batch": batch, "in": n_in, "size": size, "out": n_out, "kernel": 3}
    setting |= {"density": density, "threads": threads}
    rows = []
    for work, seconds in (("forward", forward), ("forward+backward", both)):
        ours = seconds["lotterykit"]["median"]
        ratios = {name: best_of(seconds, name) / ours for name in NAMES if best_of(seconds, name) > 0}
        last_ratio = best_of(seconds, "dense-masked") / seconds["lotterykit channels_last"]["median"]
        gflops = 2 * batch * size * size * csr.nnz * (1 if work == "forward" else 3) / ours / 1e9
        shown = " ".join(f"{ratios.get(name, float('nan')):>13.1f}" for name in NAMES)
        name = f"{'x'.join(map(str, shape)):>14} {density:>7g} {threads:>3}"
        print(f"{name} {work:>17} {ours * 1e6:>8.0f} {gflops:>8.1f} {shown} {last_ratio:>15.1f}", flush=True)
        ratios["dense-masked over channels_last"] = last_ratio
        rows.append(setting | {"work": work, "seconds": seconds, "ratio": ratios, "gflops": gflops})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="32x64x32x64,32x128x16x128,32x512x4x512")
    parser.add_argument("--densities", default=".4,.2,.1,.05,.01")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--repeats", type=int, default=11)
    options = parser.parse_args()
    machine = f"{platform.machine()}-{torch.backends.cpu.get_cpu_capability().lower()}"
    print(f"torch {torch.__version__}, {machine}, ratios are times of a peer's better way over ours")
    print(
        f"{'n x in x hw x out':>14.14} {'density':>7} {'thr':>3} {'work':>17} {'ours us':>8} {'GFLOP/s':>8} "
        + " ".join(f"{name:>13}" for name in NAMES)
        + f" {'ours in c_last':>15}"
    )
    rows = []
    for text in options.shapes.split(","):
        batch, n_in, size, n_out = map(int, text.split("x"))
        for density in options.densities.split(","):
            for threads in options.threads.split(","):
                rows += rows_of((batch, n_in, size, n_out), float(density), int(threads), options.repeats)
    head = {"torch": torch.__version__, "python": platform.python_version(), "machine": machine}
    head |= {"repeats": options.repeats, "statistic": "median", "dtype": "float32"}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{machine}-conv.json"
    path.write_text(json.dumps(head | {"rows": rows}, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
