"""`ScoredTraining`: edge-popup and Gem-Miner on any torch module, inside any training loop."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lotterykit.errors import ArgumentError, check_seed
from lotterykit.mask import Masks
from lotterykit.nn.scored import ranked_together
from lotterykit.nn.supermask import bake_, layers_to_score, score_, scored_layers
from lotterykit.ops.topk_mask import topk_mask
from lotterykit.training.score_step import Stepped, step_scores_
from lotterykit.training.scored import ScoreTraining, check_training, initial_scores, tie_seed


class ScoredTraining:
    """Trains the scores of `model`'s layers as `training` says, over `epochs` epochs; the loop is yours.

    Its Linear, Conv1d and Conv2d layers become scored ones (`lk.nn.score_`, which says what becomes of masks
    that they carry), but for those named in `unscored`. Everything else stays as it is: weights, biases and
    the affine part of batch-norm are frozen; running statistics go on in training mode, as in Rare Gems'
    code. Fully connected networks train as `train_replicas` trains them, step for step.

    `parameters`: the scores, for the optimizer, which `attach_` then guides. `begin(epoch)` before each
    epoch, counted from 0; forward, backward and evaluation inside `ranked()`; `finish()` at the end. Restart
    from a state_dict of the model and the optimizer's, at the epoch it stood in. Raises `ArgumentError`,
    before anything is changed, on what `score_` refuses, scores that do not fit, masks that keep less than
    the density asked for, and scores of biases, which only replicas have.

    >>> model = nn.Sequential(nn.Linear(4, 2))
    >>> run = ScoredTraining(model, ScoreTraining(density=0.5), epochs=1)
    >>> optimizer = run.attach_(torch.optim.SGD(run.parameters, lr=0.1))
    >>> run.begin(0)
    >>> with run.ranked():
    ...     model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    >>> run.finish().density()
    0.5
    """

    def __init__(
        self,
        model: nn.Module,
        training: ScoreTraining,
        epochs: int,
        *,
        seed: int = 0,
        unscored: Collection[str] = (),
        masks: Mapping[str, Tensor] | None = None,
    ) -> None:
        """`masks`: those that the loop holds, which may name no scored tensor."""
        check_seed(seed)
        if type(epochs) is not int or epochs < 0:
            raise ArgumentError(f"epochs must be an int of at least 0, got {epochs!r}")
        if training.bias:
            raise ArgumentError("biases have scores in train_replicas only: bias must be False for a module")
        self.model, self.training, self.epochs, self.seed = model, training, epochs, seed
        shapes, dtype = _shapes(model, unscored)
        check_training(training, shapes, epochs, dtype, masks)
        if unknown := set(masks or ()) - {name for name, _ in model.named_parameters()}:
            raise ArgumentError(f"masks name parameters the model does not have: {', '.join(unknown)}")
        self.sizes = [shape.numel() for shape in shapes.values()]
        _check_carried(model, training, shapes, epochs)
        trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        gem = training.method == "gem-miner"
        score_(
            model,
            training.method,
            None if gem else training.density_in(0, epochs),
            seed=seed,
            unscored=unscored,
            scores=initial_scores(training, shapes, seed, dtype),
        )
        self._trained = trained
        for parameter, _ in trained:
            parameter.requires_grad_(False)
        self.layers = scored_layers(model)
        self.density = training.density_in(0, epochs)
        self._optimizers: list[Optimizer] = []
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._stepped: Stepped = []  # between the hooks of a step
        self._found: tuple[Masks, dict[str, Tensor]] | None = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained: the scores, in the network's order."""
        return [layer.weight_score for layer in self.layers.values()]

    @property
    def scores(self) -> dict[str, Tensor]:
        """A copy of the scores by the names of their weights; after `finish` those of the end."""
        if self._found is not None:
            return self._found[1]
        return {name: layer.weight_score.detach().clone() for name, layer in self.layers.items()}

    def attach_(self, optimizer: Optimizer) -> Optimizer:
        """Have every step of `optimizer` see the penalty's gradient, leave frozen scores at 0 and, for
        Gem-Miner, all in [0, 1]; freezing clears its state. Where dispatch has a kernel of `gem_miner_step`,
        Gem-Miner's SGD with momentum is one launch. Returns `optimizer`. Raises `ArgumentError` where it has
        not all scores."""
        there = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if lacks := [name for name, layer in self.layers.items() if id(layer.weight_score) not in there]:
            raise ArgumentError(f"the optimizer lacks the scores of {', '.join(lacks)}: give it .parameters")
        self._hooks.append(optimizer.register_step_pre_hook(self._before_step))
        self._hooks.append(optimizer.register_step_post_hook(self._after_step))
        self._optimizers.append(optimizer)
        return optimizer

    @torch.no_grad()
    def begin(self, epoch: int) -> None:
        """Take up the density of an epoch, counted from 0; Gem-Miner freezes down to it."""
        if type(epoch) is not int or not 0 <= epoch < max(1, self.epochs):
            raise ArgumentError(f"epoch must be an int in [0, {max(1, self.epochs)}), got {epoch!r}")
        self.density = self.training.density_in(epoch, self.epochs)
        if self.training.method == "gem-miner":
            if epoch > 0 and self.training.density is not None:
                self._freeze(self.training.counts(self.sizes, epoch, self.epochs))
            return
        for layer in self.layers.values():
            layer.density = self.density

    @contextlib.contextmanager
    def ranked(self) -> Iterator[None]:
        """Around forward and backward of each step, and around evaluation: scores of global scope are ranked
        on entry. Nothing after `finish`."""
        if self._found is None and self.training.method == "edge-popup" and self.training.scope == "global":
            with ranked_together(self.model, density=self.density, seed=tie_seed(self.seed, 0)):
                yield
        else:
            yield

    def masks(self) -> Masks:
        """The masks in force now."""
        with self.ranked():
            return Masks({name: layer.weight_mask for name, layer in self.layers.items()})

    def finish(self) -> Masks:
        """Turn the scored layers into masked ones that hold the weights and the masks found; returns these.

        Gem-Miner with a density keeps all that is not frozen, else what is in force. Parameters train again
        if they did before; attached optimizers are left alone. `bake_` says the rest. Once done it only
        returns the masks.
        """
        if self._found is not None:
            return self._found[0]
        if self.training.method == "gem-miner" and self.training.density is not None:
            masks = Masks({name: active.clone() for name, active in self._active().items()})
        else:
            masks = self.masks()
        self._found = masks, self.scores
        for hook in self._hooks:
            hook.remove()
        bake_(self.model, masks=masks)
        for parameter, trains in self._trained:
            parameter.requires_grad_(trains)
        return masks

    def _active(self) -> dict[str, Tensor]:
        """What may still be kept, by name."""
        found = {}
        for name, layer in self.layers.items():
            active = layer.weight_active
            found[name] = torch.ones_like(layer.weight, dtype=torch.bool) if active is None else active
        return found

    def _freeze(self, counts: list[int]) -> None:
        """Freeze the lowest of the active scores of each group until its count is left."""
        layers, active = list(self.layers.values()), list(self._active().values())
        for number, group in enumerate(self.training.groups(len(layers))):
            within = [active[i] for i in group]
            chosen = topk_mask(
                [layers[i].weight_score for i in group],
                k=min(counts[number], sum(int(mask.count_nonzero()) for mask in within)),
                seed=tie_seed(self.seed, number),
                within=within,
            )
            for i, mask in zip(group, chosen, strict=True):
                layers[i].restrict_(mask)
                self._clear(layers[i].weight_score, ~mask)

    def _clear(self, scores: nn.Parameter, frozen: Tensor) -> None:
        for optimizer in self._optimizers:
            for value in optimizer.state.get(scores, {}).values():
                if isinstance(value, Tensor) and value.shape == frozen.shape:
                    value.masked_fill_(frozen, 0.0)

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        if closure is None:  # else the gradients are yet to come
            self._stepped = step_scores_(optimizer, self.layers.values(), self.training)
        for layer in self.layers.values():
            scores = layer.weight_score
            if scores.grad is None:
                continue
            if self.training.penalty and self.training.penalty_norm == 2:
                scores.grad.add_(scores * (2.0 * self.training.penalty))
            elif self.training.penalty:
                scores.grad.add_(scores.sign(), alpha=self.training.penalty)
            if layer.weight_active is not None:
                scores.grad.masked_fill_(~layer.weight_active, 0.0)

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        for scores, gradient in self._stepped:
            scores.grad = gradient
        done = {id(scores) for scores, _ in self._stepped}
        self._stepped = []
        if self.training.method == "gem-miner":
            for parameter in self.parameters:
                if id(parameter) not in done:
                    parameter.clamp_(0.0, 1.0)


def _shapes(model: nn.Module, unscored: Collection[str]) -> tuple[dict[str, torch.Size], torch.dtype]:
    """Name -> shape of the weights to score, and the dtype that they share."""
    weights: dict[str, Tensor] = {
        f"{name}.weight" if name else "weight": layer._parameters["weight"]  # type: ignore[misc]
        for name, layer in layers_to_score(model, unscored).items()
    }
    kinds = {(str(weight.dtype), str(weight.device)) for weight in weights.values()}
    if len(kinds) > 1:
        raise ArgumentError(
            f"weights to score must share dtype and device, got {', '.join(map(' on '.join, sorted(kinds)))}"
        )
    return {name: weight.shape for name, weight in weights.items()}, next(iter(weights.values())).dtype


def _check_carried(
    model: nn.Module, training: ScoreTraining, shapes: Mapping[str, torch.Size], epochs: int
) -> None:
    """Raises where masks that the model carries keep fewer than the last epoch shall."""
    if training.density is None:
        return
    buffers = dict(model.named_buffers())
    names = list(shapes)
    sizes = [shape.numel() for shape in shapes.values()]
    kept = []
    for name, size in zip(names, sizes, strict=True):
        mask = buffers.get(f"{name}_mask")
        kept.append(size if mask is None else int(mask.count_nonzero()))
    counts = training.counts(sizes, max(0, epochs - 1), epochs)
    for count, group in zip(counts, training.groups(len(sizes)), strict=True):
        if (there := sum(kept[i] for i in group)) < count:
            which = names[group[0]] if len(group) == 1 else "all layers together"
            raise ArgumentError(
                f"density {training.density:g} asks for {count} weights of {which}, but the masks that the "
                f"model carries keep {there} of {sum(sizes[i] for i in group)}"
            )
