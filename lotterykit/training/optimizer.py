"""Optimizers for masked training: `mask_optimizer_` keeps pruned weights at exactly zero."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lotterykit.errors import ArgumentError
from lotterykit.training.recipe import Recipe


def make_optimizer(parameters: list[nn.Parameter], recipe: Recipe) -> Optimizer:
    """The `torch.optim` optimizer that `recipe` names."""
    if recipe.optimizer == "adam":
        return torch.optim.Adam(
            parameters, recipe.lr, recipe.betas, recipe.eps, recipe.weight_decay, fused=True
        )
    return torch.optim.SGD(parameters, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)


def _carried(model: nn.Module) -> dict[str, Tensor]:
    """Parameter name -> mask buffer of the layers that have one."""
    kinds = ("weight_mask", "bias_mask")
    buffers = ((name, b) for name, b in model.named_buffers() if name.rpartition(".")[2] in kinds)
    return {name.removesuffix("_mask"): buffer for name, buffer in buffers}


def mask_optimizer_(
    optimizer: Optimizer, model: nn.Module, masks: Mapping[str, Tensor] | None = None
) -> Optimizer:
    """Make every step of `optimizer` leave the pruned weights of `model` at exactly zero.

    Pruned places are zeroed in the parameter, in the gradient before each step and in the optimizer's
    state after it, so neither momentum nor weight decay revives a weight (P4). `masks` defaults to
    the masks the model carries, read anew at each step, so pruning during training needs no second call.
    Sparse layers need none of it: they have no pruned weights. Returns `optimizer`. Raises `ArgumentError`
    where a mask names no parameter of the model.
    """
    parameters = dict(model.named_parameters())
    unknown = [name for name in masks or () if name not in parameters]
    if unknown:
        raise ArgumentError(f"masks name parameters the model does not have: {', '.join(unknown)}")

    def masked() -> list[tuple[nn.Parameter, Tensor]]:
        current = _carried(model) if masks is None else masks
        parameters = dict(model.named_parameters())  # layers may have changed their format meanwhile
        return [(parameters[name], ~mask) for name, mask in current.items() if name in parameters]

    def before(optimizer: Optimizer, args: object, kwargs: object) -> None:
        for parameter, pruned in masked():
            if parameter.grad is not None:
                parameter.grad.masked_fill_(pruned, 0.0)

    def after(optimizer: Optimizer, args: object, kwargs: object) -> None:
        with torch.no_grad():
            for parameter, pruned in masked():
                parameter.masked_fill_(pruned, 0.0)
                for value in optimizer.state.get(parameter, {}).values():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        value.masked_fill_(pruned, 0.0)

    with torch.no_grad():
        for parameter, pruned in masked():
            parameter.masked_fill_(pruned, 0.0)
    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
    return optimizer
