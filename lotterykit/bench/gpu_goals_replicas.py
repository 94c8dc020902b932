"""G12: training steps of 1000 small networks side by side, against batched torch on the same GPU.

Ours trains whole epochs, evaluates after each and waits for the device after each launch. The peers take the
same steps of the same networks, without evaluating: autograd, fused Adam, batches gathered on the device.
"graph-bmm": one batched product a layer for all replicas, the step captured in a CUDA graph; "eager-vmap":
the gradient of one network, mapped over all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lotterykit.bench.ceilings import fp32_precision
from lotterykit.bench.goals import line
from lotterykit.bench.timing import measure
from lotterykit.nn.models import mlp
from lotterykit.ops import dispatch
from lotterykit.ops.dispatch import use_backend
from lotterykit.training.recipe import Recipe, Split
from lotterykit.training.replicas import RunSpec, call_of

# goal -> (what, file topic, row of the table, peer, ratio wanted)
GOALS = {
    f"G12 {peer} at {density:g}": (
        "a step of 1000 networks 2-100-100-100-4",
        "replicas",
        f"density {density:g}",
        peer,
        wanted,
    )
    for density in (0.2, 0.1, 0.01)
    for peer, wanted in (("graph-bmm", 4.0), ("eager-vmap", 25.0))
}
DENSITIES = (0.2, 0.1, 0.01)
LAYERS = (2, 100, 100, 100, 4)
BATCH = 32


def time_replicas(
    report: Callable[[dict[str, Any]], None],
    *,
    replicas: int = 1000,
    layers: tuple[int, ...] = LAYERS,
    samples: int = 10_000,
    epochs: int = 8,
    backend: str = "cuda",
    device: str = "cuda",
) -> None:
    """Microseconds of one Adam step of all replicas, cross-entropy, batch 32. `report` gets the whole table
    {row: {peer: timing}} after every new number."""
    table: dict[str, Any] = {}
    for density in DENSITIES:
        row = table.setdefault(f"density {density:g}", {})
        specs = replica_specs(replicas, layers, density, samples, epochs)
        row["ours"] = _time_ours(specs, backend, device)
        report(table)
    for density in DENSITIES:
        specs = replica_specs(replicas, layers, density, samples, epochs)
        for name, peer in PEERS.items():
            with fp32_precision("tf32"):  # the peers may take the faster products
                step = peer(specs, device)
                timing = measure(step, device=device, seconds=1.0)
            table[f"density {density:g}"][name] = {"us": timing.median, "device": timing.as_dict()}
            report(table)


def replica_specs(
    replicas: int, layers: tuple[int, ...], density: float, samples: int, epochs: int
) -> list[RunSpec]:
    """Replicas of fresh weights and masks, on one data set of classes."""
    x = torch.rand(samples + BATCH, layers[0]) * 2 - 1
    y = torch.bucketize(x.square().sum(1), torch.linspace(0.2, 0.9, layers[-1] - 1))
    split = Split(x[:samples], y[:samples], x[samples:], y[samples:])
    recipe = Recipe("cross_entropy", epochs=epochs, batch_size=BATCH)
    specs = []
    for seed in range(replicas):
        weights = mlp(list(layers), seed=seed).state_dict()
        masks = {k: torch.rand(w.shape) < density for k, w in weights.items() if w.dim() == 2}
        specs.append(RunSpec(layers, split, recipe, weights=weights, masks=masks, seed=seed % 25))
    return specs


def _time_ours(specs: list[RunSpec], backend: str, device: str) -> dict[str, Any]:
    """The training alone, from the first step to the results on the host; plans and uploads are the setup."""
    steps = specs[0].recipe.epochs * -(-len(specs[0].data.x_train) // BATCH)
    setups, trainings = [], []
    with use_backend(backend, ops=["train_replicas"]):
        engine: Any = dispatch.load(dispatch.select(call_of(specs, device=device)))
    for _ in range(4):  # the first one warms up
        started = time.perf_counter()
        batch = engine(specs, torch.device(device))
        planned = time.perf_counter()
        batch.train(None, None)
        setups.append(planned - started)
        trainings.append(time.perf_counter() - planned)
    return {"us": 1e6 * median(trainings[1:]) / steps, "setup_s": median(setups[1:]), "steps": steps}


class BatchedNetworks:
    """All replicas' parameters and masks as `[R, ...]` tensors, the optimizer, and batches on the device."""

    def __init__(self, specs: list[RunSpec], device: str) -> None:
        named = [spec.weights or {} for spec in specs]
        stacked = {name: torch.stack([w[name] for w in named]).to(device) for name in named[0]}
        self.parameters = {name: w.clone().requires_grad_() for name, w in stacked.items()}
        self.masks = {
            name: torch.stack([(spec.masks or {})[name] for spec in specs]).to(device, w.dtype)
            for name, w in stacked.items()
            if name in (specs[0].masks or {})
        }
        recipe, data = specs[0].recipe, specs[0].data
        on_cuda = device == "cuda"
        self.optimizer = torch.optim.Adam(
            self.parameters.values(), recipe.lr, recipe.betas, recipe.eps, fused=True, capturable=on_cuda
        )
        self.x, self.y = data.x_train.to(device), data.y_train.to(device)
        n = len(self.x)
        self.orders = torch.stack([torch.randperm(n) for _ in specs]).to(device)
        self.number = torch.zeros((), dtype=torch.int64, device=device)
        self.lanes = torch.arange(BATCH, device=device)

    def batch(self) -> tuple[Tensor, Tensor]:
        """x `[R, B, in]` and y `[R, B]` of the next batch, in each replica's order; on the device alone."""
        at = (self.number * BATCH + self.lanes) % self.orders.shape[1]
        self.number += 1
        chosen = self.orders[:, at]
        return self.x[chosen], self.y[chosen]

    def masked(self) -> dict[str, Tensor]:
        return {k: p * self.masks[k] if k in self.masks else p for k, p in self.parameters.items()}


def graph_bmm(specs: list[RunSpec], device: str) -> Callable[[], Any]:
    """A step by batched products under `weight * mask`, captured in a CUDA graph where there is a GPU."""
    networks = BatchedNetworks(specs, device)

    def step() -> None:
        x, y = networks.batch()
        values = list(networks.masked().values())
        for i in range(0, len(values), 2):
            x = torch.baddbmm(values[i + 1][:, None, :], x, values[i].transpose(1, 2))
            x = x.relu() if i + 2 < len(values) else x
        loss = F.cross_entropy(x.flatten(0, 1), y.flatten(), reduction="sum") / BATCH
        networks.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        networks.optimizer.step()

    if device != "cuda":
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def eager_vmap(specs: list[RunSpec], device: str) -> Callable[[], Any]:
    """A step by torch.func: the gradient of one network's loss, mapped over all replicas."""
    networks = BatchedNetworks(specs, device)

    def loss(parameters: dict[str, Tensor], masks: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        values = [p * masks[k] if k in masks else p for k, p in parameters.items()]
        for i in range(0, len(values), 2):
            x = F.linear(x, values[i], values[i + 1])
            x = x.relu() if i + 2 < len(values) else x
        return F.cross_entropy(x, y)

    slopes = torch.func.vmap(torch.func.grad(loss))

    def step() -> None:
        x, y = networks.batch()
        found = slopes({k: p.detach() for k, p in networks.parameters.items()}, networks.masks, x, y)
        for name, parameter in networks.parameters.items():
            parameter.grad = found[name]
        networks.optimizer.step()

    return step


PEERS: dict[str, Callable[[list[RunSpec], str], Callable[[], Any]]] = {
    "graph-bmm": graph_bmm,
    "eager-vmap": eager_vmap,
}


def verdicts(topic: str, table: dict[str, Any]) -> list[str]:
    """One line a goal of this topic: reached, missed with its number, or not measured."""
    lines = []
    for goal, (what, of, row, peer, wanted) in GOALS.items():
        times = table.get(row, {})
        if of == topic:
            measured = "ours" in times and peer in times
            found = times[peer]["us"] / times["ours"]["us"] if measured else None
            lines.append(line(goal, f"{what} against {peer}", found, wanted))
    return lines
