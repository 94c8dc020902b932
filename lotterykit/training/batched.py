"""The replica engine in plain batched torch: the reference of the native one, and what runs without it.

All parameters of a batch lie in one buffer `[R, S]`, each tensor's slice starting on a 64-byte boundary, so
that a matrix product sees the same sizes and the same alignment whatever its place in the batch, and the
arithmetic runs on one thread, because threads would split the buffer at places that depend on R: a
replica's result is bitwise the same alone and in any company.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lotterykit.training.optimizer import make_optimizer
from lotterykit.training.recipe import batch_order, metrics
from lotterykit.training.replicas import RunResult, RunSpec
from lotterykit.training.source import EVALUATION_BATCH

ALIGN = 16  # floats in 64 bytes
GATHER = 1 << 22  # input values gathered at once


class TorchBatch:
    """R replicas: parameters, gradients and optimizer state as `[R, S]` buffers with views per layer."""

    most = 16  # replicas a batch: per-call overhead is amortised by then, the state still fits the cache
    freezes = False  # whether a stop before the end returns other masks than were evaluated on the way

    @staticmethod
    def group_key(spec: RunSpec) -> object:
        """Specs train in one batch where this is equal."""
        sizes = tuple((tuple(t.shape), t.dtype) for t in spec.data)
        steps_before = None if spec.optimizer is None else float(spec.optimizer.get("step", 0.0))
        validated = None if spec.validation is None else tuple(len(t) for t in spec.validation)
        return tuple(spec.layers), spec.recipe, sizes, spec.dtype, steps_before, validated

    def __init__(self, specs: list[RunSpec], device: torch.device) -> None:
        self.specs, self.device, self.recipe = specs, device, specs[0].recipe
        self.names = specs[0].names
        starts = [spec.start() for spec in specs]
        self.shapes = shapes = {name: starts[0][name].shape for name in self.names}
        dtype = specs[0].dtype
        size = sum(_padded(math.prod(shape)) for shape in shapes.values())
        self.parameters = torch.nn.Parameter(torch.zeros(len(specs), size, dtype=dtype, device=device))
        self.gradients = torch.zeros_like(self.parameters)
        self.parameters.grad = self.gradients
        self.values = views(self.parameters.data, shapes)
        self.slopes = views(self.gradients, shapes)
        self.pruned: Tensor | None = None
        if any(spec.masks for spec in specs):
            self.pruned = torch.zeros_like(self.parameters, dtype=torch.bool)
            pruned = views(self.pruned, shapes)
            for r, spec in enumerate(specs):
                for name, mask in (spec.masks or {}).items():
                    pruned[name][r] = ~mask.to(device)
        for r, start in enumerate(starts):
            for name in self.names:
                self.values[name][r] = start[name].detach().to(device)
        if self.pruned is not None:
            self.parameters.data.masked_fill_(self.pruned, 0.0)
        self.optimizer = make_optimizer([self.parameters], self.recipe)
        if specs[0].optimizer is not None:
            self._continue([spec.optimizer or {} for spec in specs])

    def _continue(self, states: list[Mapping[str, Tensor]]) -> None:
        """Take up the optimizers' states; what has been pruned since has none."""
        for key in states[0]:
            value = torch.stack([state[key] for state in states]).to(self.device)
            if key == "step":
                value = value[0].clone()
            elif self.pruned is not None:
                value.masked_fill_(self.pruned, 0.0)
            self.optimizer.state[self.parameters][key] = value

    def _state(self, r: int) -> dict[str, Tensor]:
        state = self.optimizer.state[self.parameters]
        tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
        return {k: (v if k == "step" else v[r]).cpu().clone() for k, v in tensors.items()}

    @torch.no_grad()
    def train(
        self, steps: int | None, progress: Callable[[int], None] | None, first: int = 0
    ) -> list[RunResult]:
        """Train from step `first` to the end, or until step `steps`."""
        with one_thread():
            return self._train(steps, progress, first)

    def _train(
        self, steps: int | None, progress: Callable[[int], None] | None, first: int = 0
    ) -> list[RunResult]:
        recipe = self.recipe
        per_epoch = -(-len(self.specs[0].data.x_train) // recipe.batch_size)
        total = recipe.epochs * per_epoch
        limit = max(first, total if steps is None else min(steps, total))
        evaluations: list[list[list[dict[str, float]]]] = []
        taken: list[int] = []
        batches = self._batches(first // per_epoch, first % per_epoch)
        for stretch in recipe.stretches(per_epoch, limit, first):
            if stretch.first % per_epoch == 0:
                self._begin(stretch.epoch)
                batches = self._batches(stretch.epoch)
            for step in range(stretch.first, stretch.last):
                for group in self.optimizer.param_groups:
                    group["lr"] = recipe.learning_rate(step, per_epoch)
                self._step(*next(batches))
            if stretch.evaluates:
                self._mask(final=stretch.last == total)
                evaluations.append(self._evaluate())
                taken.append(stretch.last)
            if progress is not None and stretch.ends_epoch:
                progress(len(self.specs))
        if evaluations and (limit >= total or not self.freezes):
            last = evaluations[-1]
        else:
            self._count(recipe.epoch_at(limit, per_epoch))
            self._mask(final=True)
            last = self._evaluate()
        return [
            with_evaluations(self._result(r), taken, [found[r] for found in evaluations], last[r])
            for r in range(len(self.specs))
        ]

    def _begin(self, epoch: int) -> None:
        """What score training does before an epoch; weights need nothing."""

    def _count(self, epoch: int) -> None:
        """What score training keeps in an epoch, where none was begun."""

    def _mask(self, *, final: bool) -> None:
        """What score training does before the network is evaluated; the masks of weights are fixed."""

    def _step(self, x: Tensor, y: Tensor) -> None:
        self._backward(x, y)
        if self.pruned is not None:
            self.gradients.masked_fill_(self.pruned, 0.0)
        self.optimizer.step()

    def _result(self, r: int) -> RunResult:
        weights = {name: self.values[name][r].cpu().clone() for name in self.names}
        return RunResult(weights, {}, optimizer=self._state(r), masks=dict(self.specs[r].masks or {}))

    def _batches(self, epoch: int, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches x `[R, B, in]`, y `[R, B(, out)]` after the first `skip`, each replica in its own order;
        gathered in blocks."""
        data = [spec.data for spec in self.specs]
        n, size = len(data[0].x_train), self.recipe.batch_size
        orders = [batch_order(n, spec.seed, epoch) for spec in self.specs]
        per_batch = len(data) * size * max(1, data[0].x_train[0].numel())
        block = size * max(1, GATHER // per_batch)
        for start in range(skip * size, n, block):
            parts = [order[start : start + block] for order in orders]
            x = torch.stack([d.x_train[i] for d, i in zip(data, parts, strict=True)]).to(self.device)
            y = torch.stack([d.y_train[i] for d, i in zip(data, parts, strict=True)]).to(self.device)
            for at in range(0, x.shape[1], size):
                yield x[:, at : at + size].contiguous(), y[:, at : at + size]

    def _forward(self, x: Tensor) -> list[Tensor]:
        """The input of each layer, then the output: `[R, B, width]` each."""
        hidden = [x]
        for layer in range(0, len(self.names), 2):
            weight, bias = (self.values[name] for name in self.names[layer : layer + 2])
            out = torch.baddbmm(bias[:, None, :], hidden[-1], weight.transpose(1, 2))
            hidden.append(out.relu_() if layer + 2 < len(self.names) else out)
        return hidden

    def _backward(self, x: Tensor, y: Tensor) -> None:
        """Gradients of the mean loss of each replica into `self.gradients`."""
        count = x.shape[1]
        hidden = self._forward(_padded_rows(x))
        output = hidden.pop()[:, :count]
        if self.recipe.loss == "cross_entropy":
            delta = output.softmax(2)
            delta.scatter_add_(2, y[..., None], torch.full_like(delta[..., :1], -1.0))
            delta /= count
        else:
            delta = (output - y).mul_(2.0 / (count * output.shape[2]))
        delta = _padded_rows(delta)
        ones = torch.ones(delta.shape[0], 1, delta.shape[1], dtype=delta.dtype, device=delta.device)
        for layer in reversed(range(0, len(self.names), 2)):
            weight, bias = self.names[layer : layer + 2]
            below = hidden.pop()
            torch.bmm(delta.transpose(1, 2), below, out=self.slopes[weight])
            torch.bmm(ones, delta, out=self.slopes[bias][:, None, :])
            if layer:
                delta = torch.bmm(delta, self.values[weight]).masked_fill_(below <= 0, 0.0)

    def _evaluate(self) -> list[list[dict[str, float]]]:
        """The metrics of each replica on each of its tests."""
        found: list[list[dict[str, float]]] = [[] for _ in self.specs]
        for tests in zip(*(spec.tests for spec in self.specs), strict=True):
            outputs = []
            for start in range(0, len(tests[0][0]), EVALUATION_BATCH):
                x = torch.stack([x[start : start + EVALUATION_BATCH] for x, _ in tests]).to(self.device)
                outputs.append(self._forward(_padded_rows(x))[-1][:, : x.shape[1]].cpu())
            output = torch.cat(outputs, 1)
            for r, (_, y) in enumerate(tests):
                found[r].append(metrics(output[r].clone(), y, self.recipe.loss))
        return found


def with_evaluations(
    result: RunResult,
    steps: list[int],
    evaluations: Sequence[list[dict[str, float]]],
    last: list[dict[str, float]],
) -> RunResult:
    """The result with its evaluations after `steps` steps, each on the test split and, where there are such
    data, on the validation data; `last` is that after training."""
    curve = [found[0] for found in evaluations]
    validation = [found[1] for found in evaluations if len(found) > 1]
    return replace(result, metrics=last[0], curve=curve, steps=list(steps), validation=validation)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread for a while: sums are then split the same way on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def flat_parameters(spec: RunSpec) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
    """A replica's start as one buffer `[S]` with pruned entries 0, its views by name, and what is pruned
    (bool `[S]`, None without masks)."""
    start = spec.start()
    shapes = {name: start[name].shape for name in spec.names}
    size = flat_size(shapes.values())
    values = torch.zeros(size, dtype=spec.dtype)
    named = {name: view[0] for name, view in views(values[None], shapes).items()}
    for name, view in named.items():
        view.copy_(start[name].detach())
    if not spec.masks:
        return values, named, None
    pruned = torch.zeros(size, dtype=torch.bool)
    gone = views(pruned[None], shapes)
    for name, mask in spec.masks.items():
        gone[name][0] = ~mask
    return values.masked_fill_(pruned, 0.0), named, pruned


def flat_size(shapes: Iterable[Sequence[int]]) -> int:
    """Entries of a replica's buffer, whose tensors have these shapes."""
    return sum(_padded(math.prod(shape)) for shape in shapes)


def _padded(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def _padded_rows(x: Tensor) -> Tensor:
    """`x` `[R, B, width]` with rows of zeros up to a multiple of `ALIGN`: then each replica's slice of every
    layer starts on a 64-byte boundary as well, whatever its widths."""
    return torch.nn.functional.pad(x, (0, 0, 0, _padded(x.shape[1]) - x.shape[1]))


def views(buffer: Tensor, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Name -> `[R, *shape]` view of the `[R, S]` buffer; every slice starts on a 64-byte boundary."""
    views, at = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        views[name] = buffer[:, at : at + size].unflatten(1, tuple(shape))
        at += _padded(size)
    return views
