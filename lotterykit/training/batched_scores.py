"""Score training of a batch of replicas in plain batched torch: the reference of the native engine."""

from __future__ import annotations

import torch
from torch import Tensor

from lotterykit.ops.topk_mask import topk_mask
from lotterykit.training.batched import TorchBatch, views
from lotterykit.training.optimizer import make_optimizer
from lotterykit.training.replicas import RunResult, RunSpec
from lotterykit.training.scored import KEPT_FROM, ScoreTraining, initial_scores, tie_seed


class TorchScoreBatch(TorchBatch):
    """R replicas whose scores are trained; they share the method and whether biases have scores.

    `values`, which the network computes with, are the frozen weights where `kept`, else 0. The buffers hold
    a slot for every parameter; those without scores are kept and their scores are never read.
    """

    @staticmethod
    def group_key(spec: RunSpec) -> object:
        """Specs train in one batch where this is equal."""
        training = _training(spec)
        return TorchBatch.group_key(spec), training.method, training.bias

    def __init__(self, specs: list[RunSpec], device: torch.device) -> None:
        super().__init__(specs, device)
        self.trainings = [_training(spec) for spec in specs]
        shapes = self.shapes
        self.scored = self.trainings[0].names(shapes)
        self.frozen = self.parameters.data
        effective = self.frozen.clone()
        self.effective, self.values = effective, views(effective, shapes)
        self.parameters = torch.nn.Parameter(torch.zeros_like(effective))
        self.parameters.grad = self.gradients
        self.scores = views(self.parameters.data, shapes)
        self.kept = torch.ones_like(effective, dtype=torch.bool)
        self.kept_views = views(self.kept, shapes)
        self.active = torch.ones_like(self.kept)
        self.active_views = views(self.active, shapes)
        without = torch.ones_like(self.kept)
        for name, view in views(without, shapes).items():
            if name in self.scored:
                view.fill_(False)
                for r, (spec, training) in enumerate(zip(specs, self.trainings, strict=True)):
                    start = initial_scores(training, shapes, spec.seed, spec.dtype)
                    self.scores[name][r] = start[name].to(device)
                    if spec.active is not None:
                        self.active_views[name][r] = spec.active[name].to(device)
        self.without = without
        self.gem = self.trainings[0].method == "gem-miner"
        self.freezes = any(training.freezes for training in self.trainings)
        penalties = [[2.0 * training.penalty] for training in self.trainings]
        self.slope_of_penalty = torch.tensor(penalties, dtype=effective.dtype, device=device)
        self.sizes = [shapes[name].numel() for name in self.scored]
        self.counts: list[list[int]] = []
        self.optimizer = make_optimizer([self.parameters], self.recipe)
        if specs[0].optimizer is not None:
            self._continue([spec.optimizer or {} for spec in specs])
        self._begin(0)

    def _begin(self, epoch: int) -> None:
        """Take up the counts of an epoch; Gem-Miner freezes down to them."""
        self._count(epoch)
        if self.gem and epoch > 0:
            self._select(self.active_views, self.parameters.data, within=True)
            frozen = ~self.active
            self.parameters.data.masked_fill_(frozen, 0.0)
            for value in self.optimizer.state[self.parameters].values():
                if isinstance(value, Tensor) and value.shape == frozen.shape:
                    value.masked_fill_(frozen, 0.0)

    def _count(self, epoch: int) -> None:
        epochs = self.recipe.epochs
        self.counts = [training.counts(self.sizes, epoch, epochs) for training in self.trainings]

    def _select(self, masks: dict[str, Tensor], values: Tensor, *, within: bool) -> None:
        """Write into `masks` the entries of highest `values` `[R, S]` of each replica and group, as many as
        its `counts`; if `within`, of those only that `masks` had."""
        ranked = views(torch.nan_to_num(values, nan=-1.0, posinf=torch.inf), self.shapes)
        for r, (spec, training) in enumerate(zip(self.specs, self.trainings, strict=True)):
            for number, group in enumerate(training.groups(len(self.scored))):
                names = [self.scored[i] for i in group]
                chosen = topk_mask(
                    [ranked[name][r] for name in names],
                    k=self.counts[r][number],
                    seed=tie_seed(spec.seed, number),
                    within=[masks[name][r] for name in names] if within else None,
                )
                for name, mask in zip(names, chosen, strict=True):
                    masks[name][r] = mask

    def _mask(self, *, final: bool) -> None:
        """The masks that the scores stand for, and the weights under them."""
        if not self.gem:
            self._select(self.kept_views, self.parameters.data.abs(), within=False)
        else:
            torch.logical_and(self.active, self.parameters.data >= KEPT_FROM, out=self.kept)
            self.kept.logical_or_(self.without)
            for r, training in enumerate(self.trainings):
                if final and training.density is not None:
                    self.kept[r] = self.active[r]
        self.effective.copy_(self.frozen).masked_fill_(~self.kept, 0.0)

    def _step(self, x: Tensor, y: Tensor) -> None:
        self._mask(final=False)
        self._backward(x, y)
        self.gradients.mul_(self.frozen)
        if not self.gem:  # the mask follows |score|: a useful weight's negative score must fall
            self.gradients.mul_(self.parameters.data.sign())
        self.gradients.add_(self.parameters.data * self.slope_of_penalty)
        self.gradients.masked_fill_(~self.active, 0.0)
        self.gradients.masked_fill_(self.without, 0.0)
        self.optimizer.step()
        if self.gem:
            self.parameters.data.clamp_(0.0, 1.0)

    def _result(self, r: int) -> RunResult:
        weights = {name: view[r].cpu().clone() for name, view in views(self.frozen, self.shapes).items()}
        scores = {name: self.scores[name][r].cpu().clone() for name in self.scored}
        masks = {name: mask.clone() for name, mask in (self.specs[r].masks or {}).items()}
        kept = self.active_views if self.trainings[r].freezes else self.kept_views
        masks |= {name: kept[name][r].cpu().clone() for name in self.scored}
        return RunResult(weights, {}, optimizer=self._state(r), scores=scores, masks=masks)


def _training(spec: RunSpec) -> ScoreTraining:
    if spec.scores is None:
        raise TypeError("TorchScoreBatch takes specs with scores")  # train_replicas sees to it
    return spec.scores
