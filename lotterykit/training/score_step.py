"""A step of torch's SGD on Gem-Miner's scores in one launch, where dispatch has a kernel for it.

The kernel does what the hooks of `ScoredTraining` and the optimizer do one after another: penalty, frozen
scores, momentum, update, projection. Momentum stays in the optimizer's state, where it always is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lotterykit.nn.scored import Scored
from lotterykit.ops import dispatch
from lotterykit.ops.gem_miner_step import gem_miner_step_, is_laid_as
from lotterykit.training.scored import ScoreTraining

Stepped = list[tuple[nn.Parameter, Tensor]]


def step_scores_(optimizer: Optimizer, layers: Iterable[Scored], training: ScoreTraining) -> Stepped:
    """Step the scores that a kernel serves, and hide their gradients, so that `optimizer`, which is about to
    make its step, passes them over; returns (scores, gradient) to be shown again after it."""
    if training.method != "gem-miner" or type(optimizer) is not torch.optim.SGD:
        return []
    if training.penalty and training.penalty_norm != 2:
        return []
    ready = {id(layer.weight_score): layer for layer in layers if _is_served(layer)}
    stepped: Stepped = []
    for group in optimizer.param_groups:
        chosen = [ready[id(p)] for p in group["params"] if id(p) in ready] if _is_plain(group) else []
        for frozen in (False, True):
            part = [layer for layer in chosen if (layer.weight_active is not None) == frozen]
            stepped += _step(optimizer, group, part, training.penalty) if part else []
    for scores, _ in stepped:
        scores.grad = None
    return stepped


def _step(optimizer: Optimizer, group: dict[str, Any], layers: list[Scored], penalty: float) -> Stepped:
    scores = [layer.weight_score for layer in layers]
    gradients = [p.grad for p in scores if p.grad is not None]
    active = [layer.weight_active for layer in layers if layer.weight_active is not None]
    gem_miner_step_(
        scores,
        gradients,
        [_momentum(optimizer, p) for p in scores],
        lr=group["lr"],
        momentum=group["momentum"],
        penalty=penalty + group["weight_decay"] / 2,
        active=active or None,
    )
    return list(zip(scores, gradients, strict=True))


def _momentum(optimizer: Optimizer, scores: nn.Parameter) -> Tensor:
    """The momentum in the optimizer's state, laid as the scores: a loaded one may lie otherwise."""
    state: dict[str, Any] = optimizer.state[scores]
    if state.get("momentum_buffer") is None:
        state["momentum_buffer"] = torch.zeros_like(scores)
    elif not is_laid_as(state["momentum_buffer"], scores):
        state["momentum_buffer"] = torch.empty_like(scores).copy_(state["momentum_buffer"])
    return state["momentum_buffer"]  # type: ignore[no-any-return]


def _is_plain(group: dict[str, Any]) -> bool:
    """Whether SGD does to a group's parameters what the kernel does: a fused one unscales gradients too."""
    others = "nesterov", "dampening", "maximize", "differentiable", "fused"
    return bool(group["momentum"]) and not isinstance(group["lr"], Tensor) and not any(map(group.get, others))


def _is_served(layer: Scored) -> bool:
    """Whether there is a gradient, laid as the scores, and a kernel for it. The step has no native form on
    the CPU, so to force that backend is to leave the step to torch."""
    scores, gradient, active = layer.weight_score, layer.weight_score.grad, layer.weight_active
    if gradient is None or gradient.layout is not torch.strided:
        return False
    if not all(is_laid_as(t, scores) for t in (scores, gradient, active) if t is not None):
        return False
    call = dispatch.Call("gem_miner_step", scores.device.type, scores.dtype)
    return dispatch.forced_backend(call.op) != "cpu" and dispatch.select(call).backend != "reference"
