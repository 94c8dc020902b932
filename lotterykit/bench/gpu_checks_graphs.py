"""CUDA graphs on a real GPU: a captured step does what the step itself does, and neither waits for the
device. Each function returns the failures it found."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from lotterykit.nn.convert import convert_
from lotterykit.ops.dispatch import missing, use_backend
from lotterykit.ops.masked_copies import masked_copies
from lotterykit.training.optimizer import mask_optimizer_
from lotterykit.training.scored import ScoreTraining
from lotterykit.training.scored_module import ScoredTraining

WARM, REPLAYS = 3, 5
BATCH, SIDE, WIDTH = 32, 8, 40
Step = Callable[[], None]


def check_graphs(*, device: str = "cuda") -> list[str]:
    """Masked and sparse training, mask-and-cast copies and Gem-Miner's training, each step by step and as a
    graph; on a CPU, where there are no graphs, the steps run a second time."""
    failures = []
    with use_backend("triton", ops=("masked_linear", "masked_conv2d", "masked_copies")):
        failures += _check("masked training", _masked_training, device)
        failures += _check("masked training, autocast", _masked_autocast, device)
        failures += _check("masked_copies", _copying, device)
    with use_backend("triton", ops=["masked_copies"]):  # and the vendor's products, free in their sums' order
        failures += _check("masked training by copies", _masked_autocast, device, near=1e-3)
    if device != "cuda" or missing("cuda") is None:
        with use_backend("cuda" if device == "cuda" else "auto", ops=("spmm", "sddmm")):
            failures += _check("sparse training", _sparse_training, device, near=1e-3)
    with use_backend("triton", ops=("threshold_linear", "threshold_conv2d", "gem_miner_step")):
        failures += _check("gem-miner training", _gem_miner, device)
    return failures


def _check(
    name: str,
    build: Callable[[str], tuple[Step, list[Tensor], list[Tensor]]],
    device: str,
    *,
    near: float = 0.0,
) -> list[str]:
    """`build(device)` gives a step, the inputs that it reads and the state that it changes, the same each
    time; `near` is how far numbers may lie apart, as a share of the largest."""
    torch.manual_seed(seed := torch.seed() % 2**31)
    found = []
    for capture in (False, True):
        torch.manual_seed(seed)
        step, inputs, state = build(device)
        try:
            if capture:
                step = _captured(step, device)
            else:
                _warmed(step)
            with nullcontext() if capture else _no_waiting(device):
                for _ in range(REPLAYS):
                    for x in inputs:
                        x.copy_(x.roll(1, 0))
                    step()
        except RuntimeError as error:
            return [f"{name}, {'captured' if capture else 'step by step'}: {error}"]
        found.append([t.detach().clone() for t in state])
    equal = all(
        float((a.float() - b.float()).abs().max()) <= near * float(b.abs().max())
        for a, b in zip(*found, strict=True)
    )
    return [] if equal else [f"{name}: the captured step gives other numbers (seed {seed})"]


def _warmed(step: Step) -> None:
    for _ in range(WARM):
        step()


def _captured(step: Step, device: str) -> Step:
    """The step as a graph, after the runs on a side stream that torch asks for; on a CPU the step."""
    if device != "cuda":
        _warmed(step)
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        _warmed(step)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


class _NoWaiting:
    """While it is open, torch raises where its own code would wait for the device."""

    def __enter__(self) -> None:
        self._before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *_: object) -> None:
        torch.cuda.set_sync_debug_mode(self._before)


def _no_waiting(device: str) -> AbstractContextManager[None]:
    return _NoWaiting() if device == "cuda" else nullcontext()


def _network(device: str) -> nn.Module:
    layers = (
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * SIDE * SIDE, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, 10),
    )
    return nn.Sequential(*layers).to(device)


def _batch(device: str) -> list[Tensor]:
    return [torch.randn(BATCH, 3, SIDE, SIDE, device=device), torch.randint(10, (BATCH,), device=device)]


def _masked_training(
    device: str, *, autocast: bool = False, sparse: bool = False
) -> tuple[Step, list[Tensor], list[Tensor]]:
    """One step of SGD; of a sparse network the linear layers alone are, as convolutions have no kernel."""
    model = _network(device)
    weights = {name: p for name, p in model.named_parameters() if name.endswith("weight")}
    convert_(model, masks={name: torch.rand_like(p) < 0.3 for name, p in weights.items()})
    if sparse:
        convert_(model, filter_fn=lambda _, layer: isinstance(layer, nn.Linear), format="sparse")
    optimizer = mask_optimizer_(torch.optim.SGD(model.parameters(), 0.05, 0.9), model)
    x, y = _batch(device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()

    return step, [x, y], list(model.parameters())


def _masked_autocast(device: str) -> tuple[Step, list[Tensor], list[Tensor]]:
    return _masked_training(device, autocast=True)


def _sparse_training(device: str) -> tuple[Step, list[Tensor], list[Tensor]]:
    return _masked_training(device, sparse=True)


def _copying(device: str) -> tuple[Step, list[Tensor], list[Tensor]]:
    weights = [torch.randn(n, 30, device=device) for n in (50, 1, 300)]
    masks = [torch.rand_like(w) < 0.3 for w in weights]
    results = [torch.zeros_like(w, dtype=torch.bfloat16) for w in weights]

    def step() -> None:
        for result, found in zip(results, masked_copies(weights, masks, dtype=torch.bfloat16), strict=True):
            result.copy_(found)

    return step, weights, results


def _gem_miner(device: str) -> tuple[Step, list[Tensor], list[Tensor]]:
    model = _network(device)
    run = ScoredTraining(model, ScoreTraining("gem-miner", penalty=1e-3), epochs=1)
    optimizer = run.attach_(torch.optim.SGD(run.parameters, 0.1, 0.9))
    run.begin(0)
    x, y = _batch(device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with run.ranked():
            nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step, [x, y], list(run.parameters)
