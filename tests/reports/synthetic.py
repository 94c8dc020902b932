"""Plausible result rows for the tests of `lotterykit.reports`: collapse, nulls, several seeds."""

from __future__ import annotations

import itertools
import random
from typing import Any

Row = dict[str, Any]
METHODS = ("random", "magnitude", "snip", "grasp", "synflow")
_LAYERS = ("0.weight", "2.weight", "4.weight", "6.weight")
# live units per layer of a ticket with the shape of each task's target
_SHAPES = {"circle": (2, 4, 4, 8, 4), "relu": (1, 1, 1, 1, 1), "helix": (1, 30, 30, 3, 3)}
_ENDS = {"circle": (2, 4), "relu": (1, 1), "helix": (1, 3)}
_SKILL = {"random": 0.0, "magnitude": 0.34, "snip": 0.28, "grasp": 0.21, "synflow": 0.49}


def rows(
    tasks: tuple[str, ...] = ("circle", "helix"),
    methods: tuple[str, ...] = METHODS,
    densities: tuple[float | str, ...] = ("truth", 0.01, 0.1, 0.5, 1.0),
    seeds: int = 2,
    **spec: Any,
) -> list[Row]:
    """One row per cell of the grid and an oracle row per task and seed."""
    made = []
    for task in tasks:
        for seed in range(seeds):
            made.append(row(task, "oracle", "truth", seed, **spec))
            made += [row(task, m, d, seed, **spec) for m in methods for d in densities]
    return made


def row(task: str, method: str, density: float | str, seed: int, **spec: Any) -> Row:
    """One result row; the numbers follow the shape that the paper's figures have."""
    rng = random.Random(f"{task} {method} {density} {seed} {sorted(spec.items())}")
    ends = _ENDS.get(task, (2, 4))
    widths = [ends[0], 100, 100, 100, ends[1]]
    totals = [a * b for a, b in itertools.pairwise(widths)]
    planted = _ticket(task, widths, random.Random(f"{task} {seed}"))
    truth = len(planted["edges"]) / sum(totals)
    wanted = truth if density == "truth" else float(density)
    share = [min(1.0, wanted * rng.uniform(0.6, 1.5)) for _ in totals]
    dead = method != "oracle" and wanted <= 0.01 and method in ("random", "snip", "grasp")
    if dead and method != "random":
        share[1] = 0.0
    kept = [round(s * t) for s, t in zip(share, totals, strict=True)]
    widest = totals.index(max(totals)) + 1  # the layer that takes up the slack: the count is exact
    kept[widest] = min(totals[widest], max(0, kept[widest] + round(wanted * sum(totals)) - sum(kept)))
    oracle = method == "oracle"
    if oracle:
        kept = [sum(e[0] == layer for e in planted["edges"]) for layer in range(len(totals))]
    recall = 1.0 if oracle else min(1.0, wanted + _SKILL.get(method, 0.1) * (1 - wanted))
    precision = 1.0 if oracle else min(1.0, recall * truth / wanted)
    found = {"precision": precision, "recall": recall, "iou": recall * precision}
    return {
        "key": f"{task}-{method}-{density}-{seed}-{sorted(spec.items())}",
        "spec": _spec(task, method, density, seed) | spec,
        "results_version": 1,
        "versions": {"lotterykit": "0.1.0", "torch": "2.13", "python": "3.11", "numpy": "2.4", "cpu": "test"},
        "metrics": _metrics(task, wanted, oracle, dead, rng),
        "density": sum(kept) / sum(totals),
        "truth_density": truth,
        "kept": {n: [k, t] for n, k, t in zip(_LAYERS, kept, totals, strict=True)},
        "collapse": {
            "empty_layers": [n for n, k in zip(_LAYERS, kept, strict=True) if k == 0],
            "no_live_path": dead,
            "round": 1 if dead else None,
        },
        "recovery": found | {"live": {k: v * (not dead) for k, v in found.items()}, "per_layer": {}},
        "hiding": {n: {"max_sigma": 2.5, "median_sigma": 0.7, "auc": rng.uniform(0.5, 0.7)} for n in _LAYERS},
        "output_scale": 1.0,
        "samples_scored": 128,
        "rounds": [{"round": 1, "density": wanted, "no_live_path": dead}],
        "edges": planted if oracle else _found(planted, widths, recall, dead, rng) if wanted < 0.02 else None,
        "curve": [0.1] * 10,
        "times": {"plant": 0.01, "score": 0.02, "train": 1.0, "total": 1.03},
    }


def at_gain_0(rows: list[Row], scale: float = 30.0) -> list[Row]:
    """`rows` of a regression as at gain 0: the planted network is the target divided by `scale`."""
    made = []
    for r in rows:
        before = dict(r["metrics"]["before"])
        if r["spec"]["method"] == "oracle":
            before = {**before, "mse_planted_scale": before["mse"], "mse": 0.149 + r["spec"]["seed"] / 100}
        else:
            before["mse_planted_scale"] = None if before["mse"] is None else 7.0 * before["mse"]
        metrics = {"before": before, "after": r["metrics"]["after"]}
        made.append(r | {"spec": r["spec"] | {"gain": 0.0}, "metrics": metrics, "output_scale": scale})
    return made


def _spec(task: str, method: str, density: float | str, seed: int) -> dict[str, Any]:
    return {
        "pipeline": "single-shot", "task": task, "method": method, "density": density, "seed": seed,
        "depth": 5, "width": 100, "gain": 1.0, "matching": "best", "scaling": "paper", "init": "he_scaled",
        "scope": "global", "rounds": 100 if method == "synflow" else 1, "invert": False, "samples": 10_000,
        "noise": 0.01, "epochs": 10, "batch_size": 32, "lr": 1e-3, "shots": 10, "shot_epochs": 5,
        "reset": "init",
    }  # fmt: skip


def _metrics(task: str, density: float, oracle: bool, dead: bool, rng: random.Random) -> dict[str, Any]:
    if task in ("relu", "helix"):
        before = 1e-4 if oracle else 10 ** rng.uniform(0, 4)
        after = 3e-4 if oracle else 0.3 if dead else 10 ** (rng.uniform(-1.2, -0.6) - 1.2 * density**0.3)
        # a diverged strong ticket: null, as the store keeps non-finite numbers
        raw = None if not oracle and rng.random() < 0.15 else before
        return {
            "before": {"loss": raw, "mse": raw, "mse_scaled": min(before, 0.4), "scale": 1.0},
            "after": {"loss": after, "mse": after, "mse_scaled": after * 0.9, "scale": 1.1},
        }
    after = 0.985 if oracle else 0.35 if dead else 0.985 - 0.4 * rng.random() * (1 - density) ** 9
    before = 0.985 if oracle else rng.uniform(0.1, 0.4)
    return {"before": {"loss": 1.0, "accuracy": before}, "after": {"loss": 0.1, "accuracy": after}}


def _ticket(task: str, widths: list[int], rng: random.Random) -> dict[str, Any]:
    shape = _SHAPES.get(task, (2, 3, 3, 3, 4))
    units = [sorted(rng.sample(range(w), n)) for w, n in zip(widths, shape, strict=True)]
    edges = []
    for layer, (below, above) in enumerate(itertools.pairwise(units)):
        pairs = {(o, below[i * len(below) // len(above)]) for i, o in enumerate(above)}
        pairs |= {(above[i * len(above) // len(below)], unit) for i, unit in enumerate(below)}
        pairs |= {(rng.choice(above), rng.choice(below)) for _ in range(len(above) // 2)}
        edges += [[layer, o, i, w := rng.gauss(0, 1), w + rng.gauss(0, 0.1)] for o, i in sorted(pairs)]
    biases = [
        [layer, o, b := rng.choice((-0.5, 0.0, 0.5)), b + 0.1]
        for layer, us in enumerate(units[1:])
        for o in us
    ]
    return {"widths": widths, "edges": edges, "biases": biases}


def _found(planted: dict, widths: list[int], recall: float, dead: bool, rng: random.Random) -> dict[str, Any]:
    if dead:
        return {"widths": widths, "edges": [], "biases": []}
    edges = {tuple(e[:3]): e for e in planted["edges"] if rng.random() < max(recall, 0.3)}
    units = [sorted({e[2] for e in edges.values() if e[0] == layer}) for layer in range(len(widths) - 1)]
    for layer in range(len(widths) - 1):
        for _ in range(8):
            above = units[layer + 1] if layer + 1 < len(units) else range(widths[-1])
            out, inp = rng.choice([*above, rng.randrange(widths[layer + 1])]), rng.randrange(widths[layer])
            w = rng.gauss(0, 1)
            edges.setdefault((layer, out, inp), [layer, out, inp, w, w + 0.1])
    drawn = _live(sorted(edges.values(), key=lambda e: e[:3]), len(widths) - 1)
    biases = [[layer, o, b := rng.gauss(0, 1), b] for layer, o in sorted({(e[0], e[1]) for e in drawn})]
    return {"widths": widths, "edges": drawn, "biases": biases}


def _live(edges: list[list], layers: int) -> list[list]:
    """The edges on a path from an input to an output."""
    reached = {e[2] for e in edges if e[0] == 0}
    forward = []
    for layer in range(layers):
        some = [e for e in edges if e[0] == layer and e[2] in reached]
        forward, reached = forward + some, {e[1] for e in some}
    wanted = {e[1] for e in forward if e[0] == layers - 1}
    live: list[list] = []
    for layer in reversed(range(layers)):
        some = [e for e in forward if e[0] == layer and e[1] in wanted]
        live, wanted = some + live, {e[2] for e in some}
    return live
