"""The replica engine in native code: whole trainings, many steps a call, threads over replicas."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lotterykit.ops.operands import native, ready
from lotterykit.training.batched import flat_parameters, with_evaluations
from lotterykit.training.recipe import LOSSES, OPTIMIZERS, Recipe, Stretch, batch_order
from lotterykit.training.replicas import RunResult, RunSpec

MOMENTS = {"adam": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}  # as torch.optim names them


class NativeBatch:
    """R replicas of one batch size, number of training examples and of epochs, evaluated after the same
    steps; all else may differ.

    Each computes on its kept weights alone and on one thread: its result is bitwise the same in any company
    and on any number of threads (per instruction set; `isa` is there for tests).
    """

    most = 64  # replicas a call: enough for any number of threads; progress is told between calls
    freezes = False  # whether a stop before the end returns other masks than were evaluated on the way

    @staticmethod
    def group_key(spec: RunSpec) -> object:
        """Specs train in one batch where this is equal."""
        recipe = spec.recipe
        return len(spec.data.x_train), recipe.batch_size, recipe.epochs, recipe.evaluate_every, spec.dtype

    def __init__(self, specs: Sequence[RunSpec], device: torch.device, *, isa: str = "best") -> None:
        self.specs, self.isa, self.ran = specs, isa, False
        self.replicas = self._engine(device)
        # Native code keeps addresses only: these hold the memory. The training split, then the tests.
        self.data = [
            [self._ready(pair) for pair in ((spec.data.x_train, spec.data.y_train), *spec.tests)]
            for spec in specs
        ]
        self.values: list[Tensor] = []
        self.moments: list[list[Tensor]] = []
        self.pruned: list[Tensor | None] = []
        self.named: list[dict[str, Tensor]] = []
        for spec, data in zip(specs, self.data, strict=True):
            self._add(spec, data)

    def _engine(self, device: torch.device) -> Any:
        """The native object that takes the replicas."""
        module = native()
        wide = self.specs[0].dtype == torch.float64
        return module.Replicas_float64() if wide else module.Replicas_float32()

    def _ready(self, pair: tuple[Tensor, Tensor]) -> list[Tensor]:
        """x and y as native code reads them."""
        return [ready(tensor.cpu()) for tensor in pair]

    def _add(self, spec: RunSpec, data: list[list[Tensor]]) -> None:
        values, named, pruned = flat_parameters(spec)
        moments = [torch.zeros_like(values), torch.zeros_like(values)]
        for moment, key in zip(moments, MOMENTS[spec.recipe.optimizer], strict=False):
            if spec.optimizer is not None and key in spec.optimizer:
                moment.copy_(spec.optimizer[key])
                if pruned is not None:
                    moment.masked_fill_(pruned, 0.0)
        self.values.append(values)
        self.moments.append(moments)
        self.pruned.append(pruned)
        self.named.append(named)
        self._hand_over(spec, data)

    def _hand_over(self, spec: RunSpec, data: list[list[Tensor]]) -> None:
        self.replicas.add(*self._network(spec), *self._given(spec, data))

    def _given(self, spec: RunSpec, data: list[list[Tensor]]) -> tuple[Any, ...]:
        """What the native object is told of data and recipe."""
        train, *tests = ((x.data_ptr(), y.data_ptr(), len(x)) for x, y in data)
        return train, tests, settings(spec.recipe)

    def _network(self, spec: RunSpec) -> tuple[list[int], list[int], list[list[int]]]:
        """Widths, addresses and starts of the tensors of the last replica added."""
        values, moments, pruned = self.values[-1], self.moments[-1], self.pruned[-1]
        starts = [int(tensor.storage_offset()) for tensor in self.named[-1].values()]
        addresses = [values.data_ptr(), *(m.data_ptr() for m in moments)]
        addresses.append(0 if pruned is None else pruned.data_ptr())
        return list(spec.layers), addresses, [starts[0::2], starts[1::2]]

    def train(
        self, steps: int | None, progress: Callable[[int], None] | None, first: int = 0
    ) -> list[RunResult]:
        """Train from step `first` to the end, or until step `steps`."""
        recipe, n = self.specs[0].recipe, len(self.specs[0].data.x_train)
        per_epoch = -(-n // recipe.batch_size)
        total = recipe.epochs * per_epoch
        limit = max(first, total if steps is None else min(steps, total))
        before = [_steps_before(spec) - first for spec in self.specs]
        evaluations: list[list[list[dict[str, float]]]] = []
        taken: list[int] = []
        for stretch in recipe.stretches(per_epoch, limit, first):
            if stretch.first % per_epoch == 0:
                self._begin(stretch.epoch)
            found = self._run(stretch, per_epoch, before, final=stretch.last == total)
            if stretch.evaluates:
                evaluations.append(found)
                taken.append(stretch.last)
            if progress is not None and stretch.ends_epoch:
                progress(len(self.specs))
        if evaluations and (limit >= total or not self.freezes):
            last = evaluations[-1]
        else:
            epoch = recipe.epoch_at(limit, per_epoch)
            start = epoch * per_epoch
            nothing = Stretch(epoch, start, start, evaluates=True, ends_epoch=False)
            last = self._run(nothing, per_epoch, before, final=True)
        self._write_back()
        return [
            with_evaluations(
                self._result(r, before[r] + limit), taken, [found[r] for found in evaluations], last[r]
            )
            for r in range(len(self.specs))
        ]

    def _write_back(self) -> None:
        """Bring what was trained to `values` and `moments`."""
        self.replicas.write_back(self.isa)

    def _begin(self, epoch: int) -> None:
        """What score training does before an epoch; weights need nothing."""

    def _keeps(self, epoch: int, *, end: bool) -> list[list[int]]:
        """How many entries of each group the scores keep; none have any where weights are trained."""
        return [[] for _ in self.specs]

    def _result(self, r: int, step: int) -> RunResult:
        weights = {name: tensor.clone() for name, tensor in self.named[r].items()}
        masks = dict(self.specs[r].masks or {})
        return RunResult(weights, {}, optimizer=self._state(r, step), masks=masks)

    def _run(
        self, stretch: Stretch, per_epoch: int, before: list[int], *, final: bool
    ) -> list[list[dict[str, float]]]:
        """Train over a stretch; the metrics of each replica on each of its tests, where it evaluates."""
        n, size = len(self.specs[0].data.x_train), self.specs[0].recipe.batch_size
        epoch, first, count = stretch.epoch, stretch.first, stretch.last - stretch.first
        begin = first - epoch * per_epoch
        orders = [order_of(n, spec.seed, epoch) for spec in self.specs]
        rates = [rates_of(spec.recipe, first, count, per_epoch) for spec in self.specs]
        self.ran = True
        found = self.replicas.run(
            [o.data_ptr() for o in orders],
            begin * size,
            min(n, (begin + count) * size),
            size,
            [r.data_ptr() for r in rates],
            [first + b for b in before],
            self._keeps(epoch, end=False),
            self._keeps(epoch, end=final),
            stretch.evaluates,
            torch.get_num_threads(),
            self.isa,
        )
        return [
            [metrics_of(spec.recipe, *test) for test in tests]
            for spec, tests in zip(self.specs, found, strict=True)
        ]

    def _state(self, r: int, step: int) -> dict[str, Tensor]:
        """The optimizer's state as torch.optim would leave it, in the layout of `TorchBatch`."""
        recipe = self.specs[r].recipe
        if step == 0 or (recipe.optimizer == "sgd" and recipe.momentum == 0):
            return {}
        state = {key: self.moments[r][i] for i, key in enumerate(MOMENTS[recipe.optimizer])}
        if recipe.optimizer == "adam":
            state["step"] = torch.tensor(float(step))
        return state


def settings(recipe: Recipe) -> tuple[int, int, float, float, float, float, float]:
    """The loss and the optimizer as native code takes them."""
    return (
        LOSSES.index(recipe.loss), OPTIMIZERS.index(recipe.optimizer), *recipe.betas, recipe.eps,
        recipe.momentum, recipe.weight_decay,
    )  # fmt: skip


@functools.lru_cache(maxsize=256)
def order_of(n: int, seed: int, epoch: int) -> Tensor:
    """`batch_order`, which all methods and densities of a seed share."""
    return batch_order(n, seed, epoch)


@functools.lru_cache(maxsize=256)
def rates_of(recipe: Recipe, first: int, count: int, per_epoch: int) -> Tensor:
    """The learning rates `[count]` of the steps from `first` on."""
    rates = [recipe.learning_rate(step, per_epoch) for step in range(first, first + count)]
    return torch.tensor(rates, dtype=torch.float64)


def _steps_before(spec: RunSpec) -> int:
    return 0 if spec.optimizer is None else int(spec.optimizer.get("step", torch.zeros(())))


def metrics_of(recipe: Recipe, loss: float, accuracy: float) -> dict[str, float]:
    return (
        {"loss": loss, "accuracy": accuracy}
        if recipe.loss == "cross_entropy"
        else {"loss": loss, "mse": loss}
    )
