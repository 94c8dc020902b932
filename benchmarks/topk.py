"""C5: exact global top-k over many tensors, against what a user would write in torch.

    python benchmarks/topk.py [--sizes 270000,2300000] [--densities .1,.5] [--threads 1,2] [--repeats 15]

Scores are normal magnitudes ("normal") or SynFlow-like ("zeros", 70 % zeros), over 20 tensors. Every mask
is checked before it is timed: where scores tie at the threshold only ours keeps exactly k, the others are
checked on the entries that do not tie. Prints ratios of medians and writes results/<machine>-topk.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lotterykit.ops import dispatch
from lotterykit.ops.topk_mask import topk_mask, topk_mask_reference

TENSORS = 20
RESULTS = Path(__file__).parent / "results"


def by_kthvalue(scores: list[Tensor], k: int) -> list[Tensor]:
    """cat + kthvalue + where: what SynFlow's published pruner does."""
    flat = torch.cat([s.flatten() for s in scores])
    threshold = flat.kthvalue(flat.numel() - k + 1).values
    return [torch.where(s >= threshold, 1.0, 0.0) for s in scores]


def by_topk(scores: list[Tensor], k: int) -> list[Tensor]:
    flat = torch.cat([s.flatten() for s in scores])
    mask = torch.zeros(flat.numel(), dtype=torch.bool, device=flat.device)
    mask[flat.topk(k, sorted=False).indices] = True
    return list(mask.split([s.numel() for s in scores]))


def by_sort(scores: list[Tensor], k: int) -> list[Tensor]:
    flat = torch.cat([s.flatten() for s in scores])
    threshold = flat.sort().values[flat.numel() - k]
    return [torch.where(s >= threshold, 1.0, 0.0) for s in scores]


def ours(scores: list[Tensor], k: int) -> list[Tensor]:
    with dispatch.use_backend("cuda" if scores[0].is_cuda else "cpu", ops=["topk_mask"]):
        return topk_mask(scores, k=k)


def one_read(scores: list[Tensor], k: int) -> list[Tensor]:
    """Not a peer: the time of reading every score once, the floor."""
    return [s.sum() for s in scores]


PEERS: dict[str, Callable[[list[Tensor], int], list[Tensor]]] = {
    "cat+kthvalue+where": by_kthvalue,
    "torch.topk": by_topk,
    "sort": by_sort,
    "one read": one_read,
    "lotterykit": ours,
}


def make_scores(n: int, kind: str, device: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, generator=generator).abs()
    if kind == "zeros":
        x[torch.rand(n, generator=generator) < 0.7] = 0.0
    return [part.clone().to(device) for part in x.tensor_split(TENSORS)]


def check(scores: list[Tensor], k: int) -> None:
    """Ours against the reference bit for bit; the peers away from ties."""
    expected = torch.cat(topk_mask_reference(scores, k=k))
    flat = torch.cat(scores)
    clear = flat != flat[expected].min()
    for name, peer in PEERS.items():
        if name == "one read":
            continue
        got = torch.cat(peer(scores, k)).bool()
        where = torch.ones_like(clear) if name == "lotterykit" else clear
        if not torch.equal(got[where], expected[where]):
            raise SystemExit(f"{name} keeps other entries than the reference")


def measure(scores: list[Tensor], k: int, repeats: int) -> dict[str, float]:
    """Median wall time of every entry of PEERS in seconds; at most about 3 s for each."""
    medians = {}
    for name, peer in PEERS.items():
        times: list[float] = []
        peer(scores, k)
        while len(times) < repeats and (len(times) < 3 or sum(times) < 3.0):
            wait(scores)
            start = time.perf_counter()
            peer(scores, k)
            wait(scores)
            times.append(time.perf_counter() - start)
        medians[name] = statistics.median(times)
    return medians


def wait(scores: list[Tensor]) -> None:
    if scores[0].is_cuda:
        torch.cuda.synchronize()


def machine(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name().replace(" ", "-").lower()
    features = torch.backends.cpu.get_cpu_capability().lower()
    return f"{platform.machine()}-{features}"


def row_of(scores: list[Tensor], kind: str, density: float, threads: int, repeats: int) -> dict:
    """Times one setting and prints its line."""
    n = sum(s.numel() for s in scores)
    torch.set_num_threads(threads)
    medians = measure(scores, round(density * n), repeats)
    ours = medians["lotterykit"]
    ratios = {name: medians[name] / ours for name in PEERS if name not in ("lotterykit", "one read")}
    reads = ours / medians["one read"]
    shown = " ".join(f"{ratio:>12.1f}" for ratio in ratios.values())
    print(
        f"{n:>10} {kind:>7} {density:>7g} {threads:>7} {ours * 1e3:>8.3f} {shown} {reads:>6.2f}", flush=True
    )
    setting = {"scores": n, "kind": kind, "density": density, "threads": threads}
    return setting | {"seconds": medians, "ratio": ratios, "reads": reads}


def numbers(text: str, kind: type) -> list:
    return [kind(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="270000,2300000,15000000")
    parser.add_argument("--densities", default=".1,.5")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {machine(options.device)}, {TENSORS} tensors, {dispatch.backends()}")
    names = " ".join(f"{'x ' + name:>12.12}" for name in ("kthvalue", "torch.topk", "sort"))
    print(f"{'scores':>10} {'kind':>7} {'density':>7} {'threads':>7} {'ours ms':>8} {names} {'reads':>6}")
    rows = []
    for n in numbers(options.sizes, int):
        for kind in ("normal", "zeros"):
            scores = make_scores(n, kind, options.device)
            for density in numbers(options.densities, float):
                check(scores, round(density * n))
                for threads in numbers(options.threads, int):
                    rows.append(row_of(scores, kind, density, threads, options.repeats))
    head = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": machine(options.device),
    }
    head |= {"repeats": options.repeats, "tensors": TENSORS, "statistic": "median"}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{machine(options.device)}-topk.json"
    path.write_text(json.dumps(head | {"rows": rows}, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
