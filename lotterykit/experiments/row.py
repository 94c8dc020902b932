"""The result row of a cell: one JSON document, what the store keeps and the reports read."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy
import torch
from torch import Tensor

import lotterykit
from lotterykit.experiments.mothers import Hidden
from lotterykit.experiments.spec import RESULTS_VERSION, CellSpec
from lotterykit.mask import Masks
from lotterykit.planting.recovery import recovery
from lotterykit.pruning.prune import Round

MOST_EDGES = 400  # a ticket of more live weights is no picture


def result_row(
    cell: CellSpec,
    hidden: Hidden,
    masks: Masks,
    *,
    metrics: dict[str, dict[str, float | None]],
    rounds: Sequence[Round],
    samples: int,
    weights: tuple[dict[str, Tensor], dict[str, Tensor]],
    curve: Sequence[dict[str, float]],
    search_curve: Sequence[dict[str, float]] | None,
    diverged: bool,
    device: str,
    times: dict[str, float],
) -> dict[str, Any]:
    """The row of `cell`, which found `masks` where `hidden` tells what was planted.

    metrics: {"before", "after"} training; rounds: what each scoring round left; samples: how many were
    scored; weights: by name, before and after training; curve: test metrics after each epoch,
    search_curve those of score training, None without; diverged: whether its scores did; device: where it
    trained; times: seconds.
    """
    truth, kept = hidden.planted, masks.weights()
    live = kept.live()
    empty = [name for name, (count, total) in kept.counts().items() if total and not count]
    key = "accuracy" if "accuracy" in metrics["after"] else "mse"
    return {
        "key": cell.key(),
        "spec": cell.model_dump(mode="json"),
        "results_version": RESULTS_VERSION,
        "versions": versions(device),
        "metrics": metrics,
        "density": kept.density(),
        "truth_density": hidden.density,
        "kept": {name: list(count) for name, count in kept.counts().items()},
        "collapse": {
            "empty_layers": empty,
            "no_live_path": not any(bool(mask.any()) for mask in live.values()),
            "round": next((i for i, r in enumerate(rounds, 1) if r.no_live_path), None),
        },
        "recovery": asdict(recovery(kept, hidden.truth, live=(live, hidden.truth_live))),
        "hiding": truth.report,
        "output_scale": truth.output_scale,
        "samples_scored": samples,
        "rounds": [
            {"round": i, "density": r.density, "no_live_path": r.no_live_path}
            for i, r in enumerate(rounds, start=1)
        ],
        "edges": ticket_edges(live, *weights),
        "curve": [finite(values)[key] for values in curve],
        "search": None
        if search_curve is None
        else {"curve": [finite(values)[key] for values in search_curve], "diverged": diverged},
        "times": {**times, "total": sum(times.values())},
    }


def ticket_edges(live: Masks, before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, Any] | None:
    """The live part of a ticket as lists, None where it has more than `MOST_EDGES` weights or diverged.

    {"widths": [...], "edges": [[layer, out, in, weight before, after], ...],
    "biases": [[layer, out, bias before, after], ...]}
    """
    if sum(kept for kept, _ in live.counts().values()) > MOST_EDGES:
        return None
    edges, biases = [], []
    for layer, (name, mask) in enumerate(live.items()):
        for out, into in mask.nonzero().tolist():
            edges.append([layer, out, into, float(before[name][out, into]), float(after[name][out, into])])
        bias = name.removesuffix("weight") + "bias"
        for out in mask.any(1).nonzero().flatten().tolist():
            biases.append([layer, out, float(before[bias][out]), float(after[bias][out])])
    if not all(map(math.isfinite, [value for row in (*edges, *biases) for value in row])):
        return None
    shapes = [tuple(mask.shape) for mask in live.values()]
    return {"widths": [shapes[0][1], *(shape[0] for shape in shapes)], "edges": edges, "biases": biases}


def finite(values: dict[str, float]) -> dict[str, float | None]:
    """JSON has no infinities: a diverged metric is None."""
    return {key: value if math.isfinite(value) else None for key, value in values.items()}


def versions(device: str) -> dict[str, str]:
    """What the numbers of a row were computed with; the CUDA device only where networks trained on one."""
    trained = {} if device == "cpu" else {"cuda": torch.cuda.get_device_name(device)}
    return trained | {
        "lotterykit": lotterykit.__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
