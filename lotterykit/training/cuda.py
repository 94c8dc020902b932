"""The replica engine on a CUDA device: one block trains one network, many steps a launch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lotterykit.errors import ArgumentError
from lotterykit.ops.operands import cuda_queue, ready
from lotterykit.ops.topk_mask import topk_mask
from lotterykit.training.native import NativeBatch, metrics_of, order_of, rates_of, settings
from lotterykit.training.native_scores import EVERY_ACTIVE, FROM_HALF, NativeScoreBatch, part_of
from lotterykit.training.recipe import Recipe, Stretch
from lotterykit.training.replicas import RunResult, RunSpec
from lotterykit.training.scored import KEPT_FROM, tie_seed

# A launch can't be interrupted: it ends after about as many multiply-adds of a multiprocessor, of which a
# slow one does 10^10 a second. A step counts as so many at least, which is what its barriers cost.
LAUNCH, LEAST_STEP = 1e9, 2e5


class CudaBatch(NativeBatch):
    """R replicas of one batch size, number of training examples and of epochs; all else may differ.

    Each computes on its kept weights alone and in a block of its own: its result is bitwise the same in any
    company and however its steps are split over launches (per device and build).
    """

    most = 8192  # replicas a call: several times what any device computes at once

    def __init__(self, specs: Sequence[RunSpec], device: torch.device) -> None:
        if max(len(spec.data.x_train) for spec in specs) >= 2**31:
            raise ArgumentError("the CUDA replica trainer takes fewer than 2**31 training examples")
        self.device = device
        self._copies: dict[object, Tensor] = {}
        super().__init__(specs, device)
        self._upload()

    def _engine(self, device: torch.device) -> Any:
        recipe, n = self.specs[0].recipe, len(self.specs[0].data.x_train)
        with cuda_queue(device) as (module, number, _):
            *memory, self.multiprocessors = module.shared_memory(number)
        wide = self.specs[0].dtype == torch.float64
        kind = module.ReplicaPlans_float64 if wide else module.ReplicaPlans_float32
        return kind(*memory, max(1, min(n, recipe.batch_size)))

    def _ready(self, pair: tuple[Tensor, Tensor]) -> list[Tensor]:
        """The data on the device, once for all replicas that share it."""
        found = []
        for tensor in pair:
            key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if key not in self._copies:
                self._copies[key] = ready(tensor.to(self.device))
            found.append(self._copies[key])
        return found

    def _add(self, spec: RunSpec, data: list[list[Tensor]]) -> None:
        try:
            super()._add(spec, data)
        except ValueError as why:
            raise ArgumentError(str(why)) from None

    def _given(self, spec: RunSpec, data: list[list[Tensor]]) -> tuple[Any, ...]:
        return (settings(spec.recipe),)

    def _upload(self) -> None:
        """The replicas' structures and states as they begin, and room for what a step needs."""
        dtype, device, plans = self.specs[0].dtype, self.device, self.replicas
        words, numbers, gradients, work = plans.sizes()
        self.images = torch.empty(words, dtype=torch.int32, device=device)
        self.states = torch.empty(numbers, dtype=dtype, device=device)
        self._read_back()
        self.gradients = torch.empty(gradients, dtype=dtype, device=device)
        self.work = torch.empty(work, dtype=dtype, device=device)
        tests = [(x.data_ptr(), y.data_ptr(), len(x)) for data in self.data for x, y in data[1:]]
        self.tests = torch.tensor(tests, dtype=torch.int64).to(device)
        self.found = torch.empty(len(tests), 2, dtype=torch.float64, device=device)
        memory = (self.images, self.states, self.gradients, self.work, self.tests, self.found)
        trained = [[tensor.data_ptr() for tensor in data[0]] for data in self.data]
        table = plans.table([m.data_ptr() for m in memory], trained, [len(data) - 1 for data in self.data])
        self.table = torch.frombuffer(bytearray(table), dtype=torch.uint8).to(device)
        self.launches = [
            (torch.tensor(members, dtype=torch.int32).to(device), *how) for *how, members in plans.launches()
        ]
        costs = [max(cost, LEAST_STEP) for cost in plans.costs()]
        self.steps = max(1, int(LAUNCH / max(*costs, sum(costs) / self.multiprocessors, 1.0)))
        self.orders: tuple[int, Tensor] = (-1, torch.empty(0))

    def _run(
        self, stretch: Stretch, per_epoch: int, before: list[int], *, final: bool
    ) -> list[list[dict[str, float]]]:
        """Train over a stretch; the metrics of each replica on each of its tests, where it evaluates."""
        n, size = len(self.specs[0].data.x_train), self.specs[0].recipe.batch_size
        begin = (stretch.first - stretch.epoch * per_epoch) * size
        end = min(n, begin + (stretch.last - stretch.first) * size)
        self.last_keeps = self._keeps(stretch.epoch, end=final)
        keeps = [self._keeps(stretch.epoch, end=False), self.last_keeps]
        turns, held = self._turns(stretch, per_epoch, before, keeps)
        self.ran = True
        starts = list(range(begin, end, self.steps * size)) or [begin]
        for start in starts:
            last = start == starts[-1]
            self._queue(
                turns, begin, start, min(end, start + self.steps * size), evaluate=last and stretch.evaluates
            )
            if last and not final and stretch.ends_epoch:
                self._draw(stretch.epoch + 1)  # while the device computes
            self._wait()
        del held
        found = iter(self.found.tolist() if stretch.evaluates else [])
        return [
            [metrics_of(spec.recipe, *values) for _, values in zip(data[1:], found, strict=False)]
            for spec, data in zip(self.specs, self.data, strict=True)
        ]

    def _queue(self, turns: Tensor, begin: int, start: int, end: int, *, evaluate: bool) -> None:
        size = self.specs[0].recipe.batch_size
        with cuda_queue(self.device) as (_, number, stream):
            for members, scored, residence, threads, shared in self.launches:
                self.replicas.run(
                    self.table.data_ptr(), turns.data_ptr(), members.data_ptr(), len(members), scored,
                    residence, threads, shared, begin, start, end, size, evaluate, number, stream,
                )  # fmt: skip

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def _draw(self, epoch: int) -> Tensor:
        """The orders `[seeds, n]` of an epoch, on the host."""
        if self.orders[0] != epoch:
            n = len(self.specs[0].data.x_train)
            seeds = dict.fromkeys(spec.seed for spec in self.specs)
            self.orders = epoch, torch.stack([order_of(n, seed, epoch).int() for seed in seeds])
        return self.orders[1]

    def _turns(
        self, stretch: Stretch, per_epoch: int, before: list[int], keeps: list[list[list[int]]]
    ) -> tuple[Tensor, list[Tensor]]:
        """The addresses `[R, 4]` of each replica's order, paces and `keeps` on the way and at the end, and
        what holds their memory."""
        orders = self._draw(stretch.epoch).to(self.device)
        first, count = stretch.first, stretch.last - stretch.first
        seeds = {seed: i for i, seed in enumerate(dict.fromkeys(spec.seed for spec in self.specs))}
        recipes: dict[tuple[Recipe, int], int] = {}
        for spec, steps in zip(self.specs, before, strict=True):
            recipes.setdefault((spec.recipe, steps), len(recipes))
        paces = torch.stack([_paces(recipe, first, count, per_epoch, steps) for recipe, steps in recipes]).to(
            self.device
        )
        counts = torch.tensor([n for half in keeps for run in half for n in run], dtype=torch.int64)
        counts = counts.to(self.device)
        lengths = [len(run) for half in keeps for run in half]
        places = [counts.data_ptr() + 8 * at for at in itertools.accumulate(lengths, initial=0)]
        turns = [
            (
                orders.data_ptr() + seeds[spec.seed] * orders.stride(0) * orders.itemsize,
                paces.data_ptr() + recipes[spec.recipe, steps] * paces.stride(0) * paces.itemsize,
                places[r],
                places[len(self.specs) + r],
            )
            for r, (spec, steps) in enumerate(zip(self.specs, before, strict=True))
        ]
        return torch.tensor(turns, dtype=torch.int64).to(self.device), [orders, paces, counts]

    def _read_back(self) -> None:
        """The replicas' structures and states as the host has them."""
        images = torch.empty(self.images.shape, dtype=torch.int32)
        states = torch.empty(self.states.shape, dtype=self.states.dtype)
        self.replicas.write(images.data_ptr(), states.data_ptr())
        self.images.copy_(images)
        self.states.copy_(states)

    def _write_back(self) -> None:
        states = self.states.cpu()
        self.replicas.write_back(states.data_ptr())


class CudaScoreBatch(CudaBatch, NativeScoreBatch):
    """R replicas whose scores are trained (`RunSpec.scores`); every layer is dense, nothing is compacted."""

    def _result(self, r: int, step: int) -> RunResult:
        """The masks are chosen anew, by the rule that the device followed."""
        training, named = self.trainings[r], self.named[r]
        scored = training.names({name: tensor.shape for name, tensor in named.items()})
        for number, group in enumerate(training.groups(len(scored))):
            tensors = [named[scored[i]] for i in group]
            for tensor, mask in zip(tensors, self._masks(r, number, tensors), strict=True):
                part_of(self.kept[r], tensor).copy_(mask)
        return NativeScoreBatch._result(self, r, step)

    def _masks(self, r: int, number: int, tensors: list[Tensor]) -> list[Tensor]:
        keep = self.last_keeps[r][number]
        if keep == EVERY_ACTIVE:
            return [part_of(self.active[r], tensor) for tensor in tensors]
        scores = [part_of(self.scores[r], tensor) for tensor in tensors]
        if keep == FROM_HALF:
            return [score >= KEPT_FROM for score in scores]
        ranked = [torch.nan_to_num(score.abs(), nan=-1.0, posinf=torch.inf) for score in scores]
        return topk_mask(ranked, k=keep, seed=tie_seed(self.specs[r].seed, number))


def _paces(recipe: Recipe, first: int, count: int, per_epoch: int, before: int) -> Tensor:
    """Learning rate over Adam's first bias correction, and 1 / the root of the second, `[count, 2]`."""
    rates = rates_of(recipe, first, count, per_epoch)
    if recipe.optimizer != "adam":
        return torch.stack([rates, torch.ones_like(rates)], 1)
    steps = torch.arange(first + before + 1, first + before + 1 + count, dtype=torch.float64)
    one, two = (1 - beta**steps for beta in recipe.betas)
    return torch.stack([rates / one, two.rsqrt()], 1)
