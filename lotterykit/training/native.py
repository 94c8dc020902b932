"""The replica engine in native code: whole trainings, many steps a call, threads over replicas."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lotterykit.ops.operands import native
from lotterykit.training.batched import flat_parameters
from lotterykit.training.recipe import LOSSES, OPTIMIZERS, Recipe, batch_order
from lotterykit.training.replicas import RunResult, RunSpec

MOMENTS = {"adam": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}  # as torch.optim names them


class NativeBatch:
    """R replicas of one batch size, number of training examples and of epochs; all else may differ.

    Each computes on its kept weights alone and on one thread: its result is bitwise the same in any company
    and on any number of threads (per instruction set; `isa` is there for tests).
    """

    most = 64  # replicas a call: enough for any number of threads; progress is told between calls

    @staticmethod
    def group_key(spec: RunSpec) -> object:
        """Specs train in one batch where this is equal."""
        return len(spec.data.x_train), spec.recipe.batch_size, spec.recipe.epochs, spec.dtype

    def __init__(self, specs: Sequence[RunSpec], device: torch.device, *, isa: str = "best") -> None:
        self.specs, self.isa = specs, isa
        dtype = specs[0].dtype
        module = native()
        self.replicas = module.Replicas_float64() if dtype == torch.float64 else module.Replicas_float32()
        # Native code keeps addresses only: these hold the memory.
        self.data = [[tensor.cpu().contiguous() for tensor in spec.data] for spec in specs]
        self.values: list[Tensor] = []
        self.moments: list[list[Tensor]] = []
        self.pruned: list[Tensor | None] = []
        self.views: list[dict[str, Tensor]] = []
        for spec, data in zip(specs, self.data, strict=True):
            self._add(spec, data)

    def _add(self, spec: RunSpec, data: list[Tensor]) -> None:
        values, views, pruned = flat_parameters(spec)
        moments = [torch.zeros_like(values), torch.zeros_like(values)]
        for moment, key in zip(moments, MOMENTS[spec.recipe.optimizer], strict=False):
            if spec.optimizer is not None and key in spec.optimizer:
                moment.copy_(spec.optimizer[key])
                if pruned is not None:
                    moment.masked_fill_(pruned, 0.0)
        starts = [int(view.storage_offset()) for view in views.values()]
        recipe = spec.recipe
        self.replicas.add(
            list(spec.layers),
            [values.data_ptr(), *(m.data_ptr() for m in moments), 0 if pruned is None else pruned.data_ptr()],
            [starts[0::2], starts[1::2]],
            (data[0].data_ptr(), data[1].data_ptr(), len(data[0])),
            (data[2].data_ptr(), data[3].data_ptr(), len(data[2])),
            (LOSSES.index(recipe.loss), OPTIMIZERS.index(recipe.optimizer), *recipe.betas, recipe.eps,
             recipe.momentum, recipe.weight_decay),
        )  # fmt: skip
        self.values.append(values)
        self.moments.append(moments)
        self.pruned.append(pruned)
        self.views.append(views)

    def train(self, steps: int | None, progress: Callable[[int], None] | None) -> list[RunResult]:
        """Train to the end, or for `steps` steps."""
        recipe, n = self.specs[0].recipe, len(self.specs[0].data.x_train)
        size, epochs = recipe.batch_size, recipe.epochs
        per_epoch = -(-n // size)
        limit = epochs * per_epoch if steps is None else min(steps, epochs * per_epoch)
        before = [_steps_before(spec) for spec in self.specs]
        curves: list[list[dict[str, float]]] = [[] for _ in self.specs]
        last = self._run(0, 0, 0, before) if limit == 0 else []
        for epoch in range(-(-limit // per_epoch)):
            first = epoch * per_epoch
            last = self._run(epoch, first, min(n, (limit - first) * size), before)
            for curve, values in zip(curves, last, strict=True):
                curve.append(values)
            if progress is not None:
                progress(len(self.specs))
        self.replicas.write_back()
        return [
            RunResult(
                {name: view.clone() for name, view in self.views[r].items()},
                last[r],
                curves[r],
                self._state(r, before[r] + limit),
            )
            for r in range(len(self.specs))
        ]

    def _run(self, epoch: int, first: int, examples: int, before: list[int]) -> list[dict[str, float]]:
        """Train on the first `examples` of an epoch that begins with step `first`; then evaluate."""
        n, size = len(self.data[0][0]), self.specs[0].recipe.batch_size
        count, per_epoch = -(-examples // size), -(-n // size)
        orders = [_order(n, spec.seed, epoch) for spec in self.specs]
        rates = [_rates(spec.recipe, first, count, per_epoch) for spec in self.specs]
        found = self.replicas.run(
            [o.data_ptr() for o in orders],
            examples,
            size,
            [r.data_ptr() for r in rates],
            [first + b for b in before],
            torch.get_num_threads(),
            self.isa,
        )
        return [_metrics(spec.recipe, *values) for spec, values in zip(self.specs, found, strict=True)]

    def _state(self, r: int, step: int) -> dict[str, Tensor]:
        """The optimizer's state as torch.optim would leave it, in the layout of `TorchBatch`."""
        recipe = self.specs[r].recipe
        if step == 0 or (recipe.optimizer == "sgd" and recipe.momentum == 0):
            return {}
        state = {key: self.moments[r][i] for i, key in enumerate(MOMENTS[recipe.optimizer])}
        if recipe.optimizer == "adam":
            state["step"] = torch.tensor(float(step))
        return state


@functools.lru_cache(maxsize=256)
def _order(n: int, seed: int, epoch: int) -> Tensor:
    """`batch_order`, which all methods and densities of a seed share."""
    return batch_order(n, seed, epoch)


@functools.lru_cache(maxsize=256)
def _rates(recipe: Recipe, first: int, count: int, per_epoch: int) -> Tensor:
    """The learning rates `[count]` of the steps from `first` on."""
    rates = [recipe.learning_rate(step, per_epoch) for step in range(first, first + count)]
    return torch.tensor(rates, dtype=torch.float64)


def _steps_before(spec: RunSpec) -> int:
    return 0 if spec.optimizer is None else int(spec.optimizer.get("step", torch.zeros(())))


def _metrics(recipe: Recipe, loss: float, accuracy: float) -> dict[str, float]:
    return (
        {"loss": loss, "accuracy": accuracy}
        if recipe.loss == "cross_entropy"
        else {"loss": loss, "mse": loss}
    )
