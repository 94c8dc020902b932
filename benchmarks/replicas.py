"""C7: one training step of a planted network, the native replica trainer against eager torch.

    python benchmarks/replicas.py [--repeats 15]

Network 2-100-100-100-4 on Circle, Adam, batch 32, one thread, float32. Peers: `eager` (a torch module with
fused Adam, weights multiplied by their masks where there are any) and `batched torch`, the reference engine,
16 replicas at once. Ours runs 16 replicas a call, through `lk.train_replicas`, its share of Python, batch
orders and the evaluation after the epoch included. The first steps of all peers are checked to agree. Peers
take turns; medians of `--repeats` epochs. Writes results/<machine>-replicas.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lotterykit import data, plant, targets
from lotterykit.nn.models import mlp
from lotterykit.ops.dispatch import use_backend
from lotterykit.training.recipe import Recipe, Split, batch_order
from lotterykit.training.replicas import RunSpec, train_replicas

RESULTS = Path(__file__).parent / "results"
LAYERS = (2, 100, 100, 100, 4)
REPLICAS = 16
SHARES = (("median", 0.5), ("p20", 0.2), ("p80", 0.8))
GOALS = {"1.0": 12, "0.1": 60, "0.01": 250, "truth": 1500}


def spec_of(density: float | str, split: Split, seed: int, epochs: int = 1) -> RunSpec:
    """A planted mother with its ticket's mask ("truth") or a random one."""
    planted = plant(targets.circle(5), mlp(list(LAYERS), seed=seed), seed=seed)
    weights = {name: p.detach() for name, p in planted.network.named_parameters()}
    generator = torch.Generator().manual_seed(seed)
    masks = dict(planted.ticket)  # weights and the biases that it uses
    if density != "truth":
        masks = {
            k: torch.rand(m.shape, generator=generator) < density for k, m in masks.items() if m.dim() == 2
        }
    recipe = Recipe("cross_entropy", epochs=epochs)
    return RunSpec(LAYERS, split, recipe, weights=weights, masks=masks, seed=seed)


def eager(spec: RunSpec, steps: int) -> dict[str, Tensor]:
    """The plain loop of published code, with the fused optimizer that few of it uses."""
    network = mlp(list(LAYERS), dtype=spec.dtype)
    network.load_state_dict(spec.weights or {})
    parameters = dict(network.named_parameters())
    masks = {k: m.to(spec.dtype) for k, m in (spec.masks or {}).items() if not m.all()}
    optimizer = torch.optim.Adam(network.parameters(), spec.recipe.lr, fused=True)
    names = list(parameters)
    order = batch_order(len(spec.data.x_train), spec.seed, 0)
    size = spec.recipe.batch_size
    for step in range(steps):
        chosen = order[step * size : (step + 1) * size]
        h = spec.data.x_train[chosen]
        for weight, bias in zip(names[0::2], names[1::2], strict=True):
            w, b = (parameters[k] * masks[k] if k in masks else parameters[k] for k in (weight, bias))
            h = F.linear(h, w, b)
            h = h.relu() if weight != names[-2] else h
        optimizer.zero_grad()
        F.cross_entropy(h, spec.data.y_train[chosen]).backward()
        optimizer.step()
    return {k: p.detach() * masks[k] if k in masks else p.detach() for k, p in parameters.items()}


def check(spec: RunSpec) -> None:
    """After 20 steps in float64 all peers hold the same weights."""
    weights = {name: w.double() for name, w in (spec.weights or {}).items()}
    split = Split(*(t.double() if t.is_floating_point() else t for t in spec.data))
    spec = replace(spec, weights=weights, data=split)
    expected = eager(spec, 20)
    for backend in ("cpu", "reference"):
        with use_backend(backend, ops=["train_replicas"]):
            found = train_replicas([spec], steps=20)[0].weights
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-9, msg=f"{backend}: {name}")


def row_of(density: float | str, split: Split, repeats: int) -> dict:
    specs = [spec_of(density, split, seed) for seed in range(REPLICAS)]
    steps = -(-len(split.x_train) // specs[0].recipe.batch_size)
    check(specs[0])

    def replicas(backend: str) -> None:
        with use_backend(backend, ops=["train_replicas"]):
            train_replicas(specs)

    peers: dict[str, tuple[Callable[[], object], int]] = {
        "lotterykit": (lambda: replicas("cpu"), steps * REPLICAS),
        "eager": (lambda: eager(specs[0], 100), 100),
        "batched torch": (lambda: replicas("reference"), steps * REPLICAS),
    }
    times: dict[str, list[float]] = {name: [] for name in peers}
    for turn in range(repeats + 1):
        for name, (function, count) in peers.items():
            if name == "batched torch" and turn > 3:
                continue
            start = time.perf_counter()
            function()
            if turn:  # the first turn warms up
                times[name].append((time.perf_counter() - start) / count)
    seconds = {}
    for name, taken in times.items():
        taken.sort()
        seconds[name] = {word: taken[int(share * (len(taken) - 1))] for word, share in SHARES}
    ours = seconds["lotterykit"]["median"]
    ratios = {name: taken["median"] / ours for name, taken in seconds.items() if name != "lotterykit"}
    goal = GOALS.get(str(density))
    told = f"{density!s:>7} {ours * 1e6:>9.2f} {ratios['eager']:>9.0f} {ratios['batched torch']:>14.0f}"
    print(f"{told} {goal or '':>6}", flush=True)
    return {"density": density, "seconds": seconds, "ratio": ratios, "goal": goal}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = f"{platform.machine()}-{torch.backends.cpu.get_cpu_capability().lower()}"
    split = Split(*data.circle(10_000, seed=0))
    print(f"torch {torch.__version__}, {machine}, one thread; us a step of ours, times of a peer over ours")
    print(f"{'density':>7} {'us a step':>9} {'eager':>9} {'batched torch':>14} {'goal':>6}")
    rows = [row_of(d, split, options.repeats) for d in (1.0, 0.5, 0.1, 0.01, "truth")]
    head = {"torch": torch.__version__, "python": platform.python_version(), "machine": machine}
    head |= {"repeats": options.repeats, "statistic": "median", "dtype": "float32", "threads": 1}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{machine}-replicas.json"
    path.write_text(json.dumps(head | {"layers": LAYERS, "rows": rows}, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
