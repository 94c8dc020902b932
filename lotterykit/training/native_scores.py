"""Score training of a batch of replicas in native code."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lotterykit.ops.topk_mask import topk_mask
from lotterykit.training.native import NativeBatch
from lotterykit.training.replicas import RunResult, RunSpec
from lotterykit.training.scored import initial_scores, tie_seed

EVERY_ACTIVE, FROM_HALF = -1, -2  # counts of Gem-Miner's (csrc/cpu/replica.h)


class NativeScoreBatch(NativeBatch):
    """R replicas whose scores are trained (`RunSpec.scores`); every layer is dense, nothing is compacted."""

    def __init__(self, specs: Sequence[RunSpec], device: torch.device, *, isa: str = "best") -> None:
        self.scores: list[Tensor] = []
        self.active: list[Tensor] = []
        self.kept: list[Tensor] = []
        self.trainings = [spec.scores for spec in specs if spec.scores is not None]
        self.freezes = any(training.freezes for training in self.trainings)
        super().__init__(specs, device, isa=isa)

    def _hand_over(self, spec: RunSpec, data: list[list[Tensor]]) -> None:
        training, values = self.trainings[len(self.scores)], self.values[-1]
        scores, active = torch.zeros_like(values), torch.zeros_like(values, dtype=torch.bool)
        kept = torch.ones_like(active)
        shapes = {name: tensor.shape for name, tensor in self.named[-1].items()}
        scored = training.names(shapes)
        start = initial_scores(training, shapes, spec.seed, spec.dtype)
        for name in scored:
            part_of(scores, self.named[-1][name]).copy_(start[name])
            part_of(active, self.named[-1][name]).copy_(
                torch.tensor(True) if spec.active is None else spec.active[name]
            )
        self.scores.append(scores)
        self.active.append(active)
        self.kept.append(kept)
        groups = [[spec.names.index(scored[i]) for i in group] for group in training.groups(len(scored))]
        seeds = [tie_seed(spec.seed, number) for number in range(len(groups))]
        self.replicas.add_scored(
            *self._network(spec),
            [scores.data_ptr(), active.data_ptr(), kept.data_ptr()],
            (training.method == "gem-miner", 2.0 * training.penalty, groups, seeds),
            *self._given(spec, data),
        )

    def _read_back(self) -> None:
        """Take up scores, moments and active entries that were changed."""
        self.replicas.read_scores()

    def _begin(self, epoch: int) -> None:
        """Gem-Miner freezes down to the counts of the epoch."""
        gems = [r for r, training in enumerate(self.trainings) if training.method == "gem-miner"]
        if epoch == 0 or not gems:
            return
        if self.ran:  # else the buffers are what the training goes on from
            self._write_back()
        for r in gems:
            self._freeze(r, epoch)
        self._read_back()

    def _freeze(self, r: int, epoch: int) -> None:
        spec, training, named = self.specs[r], self.trainings[r], self.named[r]
        names = training.names({name: tensor.shape for name, tensor in named.items()})
        sizes = [named[name].numel() for name in names]
        ranked = torch.nan_to_num(self.scores[r], nan=-1.0, posinf=torch.inf)
        counts = training.counts(sizes, epoch, spec.recipe.epochs)
        for number, group in enumerate(training.groups(len(names))):
            tensors = [named[names[i]] for i in group]
            chosen = topk_mask(
                [part_of(ranked, tensor) for tensor in tensors],
                k=counts[number],
                seed=tie_seed(spec.seed, number),
                within=[part_of(self.active[r], tensor) for tensor in tensors],
            )
            for tensor, mask in zip(tensors, chosen, strict=True):
                part_of(self.active[r], tensor).copy_(mask)
        for values in (self.scores[r], *self.moments[r]):
            values.masked_fill_(~self.active[r], 0.0)

    def _keeps(self, epoch: int, *, end: bool) -> list[list[int]]:
        keeps = []
        for spec, training, named in zip(self.specs, self.trainings, self.named, strict=True):
            sizes = [named[name].numel() for name in training.names({k: v.shape for k, v in named.items()})]
            counts = training.counts(sizes, epoch, spec.recipe.epochs)
            if training.method == "gem-miner":
                counts = [EVERY_ACTIVE if end and training.freezes else FROM_HALF for _ in counts]
            keeps.append(counts)
        return keeps

    def _result(self, r: int, step: int) -> RunResult:
        named, masks = self.named[r], dict(self.specs[r].masks or {})
        scored = self.trainings[r].names({name: tensor.shape for name, tensor in named.items()})
        kept = self.active[r] if self.trainings[r].freezes else self.kept[r]
        masks |= {name: part_of(kept, named[name]).clone() for name in scored}
        scores = {name: part_of(self.scores[r], named[name]).clone() for name in scored}
        weights = {name: tensor.clone() for name, tensor in named.items()}
        return RunResult(weights, {}, optimizer=self._state(r, step), scores=scores, masks=masks)


def part_of(buffer: Tensor, tensor: Tensor) -> Tensor:
    """The view of `buffer` `[S]` where `tensor`, itself a view of such a buffer, stands."""
    return buffer.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
