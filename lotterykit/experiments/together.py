"""Trainings and evaluations of a batch's cells: what is the same for several is computed once.

Dense networks are the same for every method, and so is the first shot of all multi-shot cells of a seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from lotterykit.ops.dispatch import use_backend
from lotterykit.training.recipe import Split
from lotterykit.training.replicas import RunResult, RunSpec, train_replicas

ROWS = 1024  # evaluated at once: two layers of 100 neurons then stay in a core's cache


def train_once(
    specs: Sequence[RunSpec], progress: Callable[[int], None], device: str = "cpu"
) -> list[RunResult]:
    """`train_on` with specs that say the same thing trained once: they share a result, which must not
    be written to. `progress` counts the epochs of all."""
    first: dict[object, int] = {}
    places = [first.setdefault(_identity(spec), i) for i, spec in enumerate(specs)]
    shares = {i: places.count(i) for i in first.values()}
    unique = list(shares)
    found = dict(zip(unique, train_on(device, [specs[i] for i in unique], progress=progress), strict=True))
    progress(sum((shares[i] - 1) * specs[i].recipe.epochs for i in unique))
    return [found[i] for i in places]


def train_on(
    device: str, specs: Sequence[RunSpec], *, progress: Callable[[int], None] | None = None
) -> list[RunResult]:
    """`train_replicas` on `device`, by the CUDA trainer where that is a CUDA device."""
    ops = ["train_replicas", "train_scores"]
    with use_backend("cuda", ops=ops) if device != "cpu" else nullcontext():
        return train_replicas(specs, device=device, progress=progress)


def _identity(spec: RunSpec) -> object:
    """Equal for specs that train alike. Data is told apart by its tensors' places in memory: the batch holds
    them all the while, and data of one seed is drawn once."""
    scores = None
    if spec.scores is not None:
        plain = {name: value for name, value in vars(spec.scores).items() if name != "start"}
        scores = (tuple(plain.items()), digest(spec.scores.start or {}))
    data = tuple((t.data_ptr(), tuple(t.shape)) for t in spec.data)
    return (
        tuple(spec.layers), data, spec.recipe, spec.init, spec.seed, spec.weights is None,
        digest(spec.weights or {}), digest(spec.masks or {}), digest(spec.optimizer or {}), scores,
        digest(spec.active or {}),
    )  # fmt: skip


def digest(tensors: Mapping[str, Tensor]) -> bytes:
    """A digest of names, dtypes, shapes and bytes."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors.items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.digest()


class Evaluator:
    """Outputs of masked networks on a split's halves, each network evaluated once."""

    def __init__(self) -> None:
        self._known: dict[object, Tensor] = {}

    def outputs(
        self, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], split: Split, half: str
    ) -> Tensor:
        """Outputs `[N, out]` for `half`, "x_train" or "x_test"; weights in the order of `lk.nn.mlp`."""
        x: Tensor = getattr(split, half)
        kept = {n: w.masked_fill(~masks[n], 0.0) if n in masks else w for n, w in weights.items()}
        key = (x.data_ptr(), tuple(x.shape), digest(kept))
        if key not in self._known:
            self._known[key] = forward(kept, x)
        return self._known[key]


@torch.no_grad()
def forward(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Outputs `[N, out]` of the ReLU network with these parameters, in the order of `lk.nn.mlp`."""
    pairs = _needed(list(zip(*[iter(weights.values())] * 2, strict=True)))
    parts = []
    for part in x.split(ROWS):
        for i, (weight, bias) in enumerate(pairs):
            part = torch.nn.functional.linear(part, weight, bias)
            part = part.relu_() if i + 1 < len(pairs) else part
        parts.append(part)
    return torch.cat(parts)


def _needed(pairs: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """The layers without the hidden neurons that nothing reads: in sparse networks they are many."""
    found = []
    wanted = torch.ones(len(pairs[-1][1]), dtype=torch.bool)
    for layer, (weight, bias) in reversed(list(enumerate(pairs))):
        weight, bias = weight[wanted], bias[wanted]
        if layer:
            wanted = weight.any(0)
            weight = weight[:, wanted]
        found.append((weight, bias))
    return found[::-1]
