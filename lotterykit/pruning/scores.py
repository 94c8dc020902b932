"""Scores: one number a weight, higher = keep. A method is one short function and a row of `SCORES`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lotterykit.errors import ArgumentError, check_seed, unknown_name
from lotterykit.mask import prunable_layers

Batches = Iterable[tuple[Tensor, Tensor]]
LossFn = Callable[[Tensor, Tensor], Tensor]
ScoreFn = Callable[[nn.Module, Batches, LossFn], Mapping[str, Tensor]]
BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)


@dataclass(frozen=True)
class Scoring:
    """What a score function may use: the model, in evaluation mode, and the names it must score."""

    model: nn.Module
    names: list[str]
    data: Batches | None = None
    loss_fn: LossFn | None = None
    example_input: Tensor | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The scored parameters, in the order of `names`."""
        parameters = dict(self.model.named_parameters())
        return [parameters[name] for name in self.names]

    def losses(self, temperature: float | None = None, *, again: bool = False) -> Iterator[Tensor]:
        """The loss of each batch, outputs divided by `temperature` (None: 200 for classes, 1 for values).

        `again` says that the data will be read more than once, which a one-shot iterator cannot serve."""
        if self.data is None or self.loss_fn is None:
            raise ArgumentError("this method scores on data: pass data (batches of (x, y)) and loss_fn")
        if again and iter(self.data) is self.data:
            raise ArgumentError(
                "data is a one-shot iterator, and this method reads it more than once: pass a list of "
                "batches or a DataLoader"
            )
        count = 0
        for x, y in self.data:
            count += 1
            divisor = temperature or (1.0 if y.is_floating_point() else 200.0)
            output = self.model(x)
            yield self.loss_fn(output if divisor == 1.0 else output / divisor, y)
        if count == 0:
            raise ArgumentError("data holds no batch")

    def input_like(self) -> Tensor:
        """An input of one sample: from `example_input`, else the data, else a first linear layer."""
        if self.example_input is not None:
            return self.example_input[:1]
        if self.data is not None and iter(self.data) is not self.data:
            return next(iter(self.data))[0][:1]
        first = next(prunable_layers(self.model))[1]
        if isinstance(first, nn.Linear):
            return torch.empty(1, first.in_features, device=first.weight.device)
        raise ArgumentError("the input's shape is unknown: pass example_input [1, ...] or re-iterable data")


def scores(
    model: nn.Module,
    method: str | ScoreFn,
    *,
    data: Batches | None = None,
    loss_fn: LossFn | None = None,
    example_input: Tensor | None = None,
    options: Mapping[str, Any] | None = None,
    invert: bool = False,
    prune_bias: bool = False,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Parameter name -> score of each weight (and bias with `prune_bias`), higher = keep.

    method: a name of `SCORES`, or a callable `(model, batches, loss_fn) -> {name: scores}`.
    data: batches `(x, y)`; loss_fn: `(output, y) -> scalar`; both for snip and grasp only.
    options: grasp's `temperature` (default 200 for classes, 1 for values), synflow's `bias` (default True).
    invert: negates every score, so that the lowest are kept (the published 1 / score does not reverse
    signed ones). The model runs in evaluation mode and is left as it was; scores of weights that its
    masks prune carry no meaning. Raises `ArgumentError` on unknown names and missing data.
    """
    layers = list(prunable_layers(model))
    kinds = ("weight", "bias") if prune_bias else ("weight",)
    names = [f"{prefix}{k}" for prefix, layer in layers for k in kinds if getattr(layer, k, None) is not None]
    check_seed(seed)
    scoring = Scoring(model, names, data, loss_fn, example_input, dict(options or {}), seed)
    training = model.training
    model.eval()
    try:
        found = _named(method)(scoring) if isinstance(method, str) else _own(method, scoring)
    finally:
        model.train(training)
    return {name: -score if invert else score for name, score in found.items()}


def _named(method: str) -> Callable[[Scoring], dict[str, Tensor]]:
    if method not in SCORES:
        raise unknown_name("method", method, SCORES)
    function, allowed = SCORES[method]

    def checked(scoring: Scoring) -> dict[str, Tensor]:
        for key in scoring.options:
            if key not in allowed:
                raise unknown_name(f"option of {method}", key, allowed or ("none",))
        return function(scoring)

    return checked


def _own(method: ScoreFn, scoring: Scoring) -> dict[str, Tensor]:
    if scoring.data is None or scoring.loss_fn is None:
        found = method(scoring.model, scoring.data or [], scoring.loss_fn or nn.functional.cross_entropy)
    else:
        found = method(scoring.model, scoring.data, scoring.loss_fn)
    missing = [name for name in scoring.names if name not in found]
    if missing:
        raise ArgumentError(f"the method returned no scores for {', '.join(missing)}")
    for name, parameter in zip(scoring.names, scoring.parameters, strict=True):
        if found[name].shape != parameter.shape:
            got = list(found[name].shape)
            raise ArgumentError(f"the method's scores of {name!r} are {got}, not {list(parameter.shape)}")
    return {name: found[name].detach() for name in scoring.names}


def random_score(s: Scoring) -> dict[str, Tensor]:
    """Uniform in [0, 1), from `seed`."""
    generator = torch.Generator().manual_seed(s.seed)
    return {
        name: torch.rand(p.shape, generator=generator).to(p.device)
        for name, p in zip(s.names, s.parameters, strict=True)
    }


def magnitude(s: Scoring) -> dict[str, Tensor]:
    """|w|."""
    return {name: p.detach().abs() for name, p in zip(s.names, s.parameters, strict=True)}


def snip(s: Scoring) -> dict[str, Tensor]:
    """|w dL/dw| of the gradient summed over the batches, divided by its sum (Lee et al. 2019)."""
    total = [torch.zeros_like(p) for p in s.parameters]
    for loss in s.losses(1.0):
        for t, g in zip(total, torch.autograd.grad(loss, s.parameters), strict=True):
            t += g
    found = [(p.detach() * t).abs() for p, t in zip(s.parameters, total, strict=True)]
    return _divided(s.names, found, sum(float(f.double().sum()) for f in found))


def grasp(s: Scoring) -> dict[str, Tensor]:
    """w d/dw (g_stop . g), signed, g the gradient summed over the batches, outputs divided by the
    temperature, all divided by 1e-10 + |sum| (Wang et al. 2020)."""
    temperature = s.options.get("temperature")
    stop = [torch.zeros_like(p) for p in s.parameters]
    for loss in s.losses(temperature, again=True):
        for t, g in zip(stop, torch.autograd.grad(loss, s.parameters), strict=True):
            t += g
    product = [torch.zeros_like(p) for p in s.parameters]
    for loss in s.losses(temperature, again=True):
        gradient = torch.autograd.grad(loss, s.parameters, create_graph=True)
        dot = sum(((a * g).sum() for a, g in zip(stop, gradient, strict=True)), start=loss * 0.0)
        for t, h in zip(product, torch.autograd.grad(dot, s.parameters), strict=True):
            t += h
    found = [p.detach() * t for p, t in zip(s.parameters, product, strict=True)]
    return _divided(s.names, found, 1e-10 + abs(sum(float(f.double().sum()) for f in found)))


def synflow(s: Scoring) -> dict[str, Tensor]:
    """|w dR/dw| / R in float64, R the sum of outputs for an all-ones input with every parameter and
    running statistic replaced by its absolute value (Tanaka et al. 2020; as published).

    `bias=False`: biases 0 and batch-norm the identity, the pure product 1^T prod |W m| 1, in which the
    scores of each layer of a chain sum to 1. The float64 copy of the parameters lives for this call only.
    """
    own_bias = bool(s.options.get("bias", True))
    values = {n: p.detach().double().abs() for n, p in s.model.named_parameters()}
    values |= {n: b.double().abs() for n, b in s.model.named_buffers() if b.is_floating_point()}
    if not own_bias:
        values |= _without_bias(s.model)
    return flow(s, values)


def flow(s: Scoring, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """v dR/dv / R for the scored names, R the model's output sum for ones, with parameters `values` >= 0.

    All zeros where R = 0 (no live path). Raises `ArgumentError` where R overflows float64."""
    leaves = [values[name].requires_grad_() for name in s.names]
    ones = torch.ones_like(s.input_like(), dtype=torch.float64)
    with torch.enable_grad():
        total = functional_call(s.model, values, (ones,)).sum()
        gradients = torch.autograd.grad(total, leaves, allow_unused=True)
    reach = float(total.detach())
    if not math.isfinite(reach):
        raise ArgumentError(f"synflow's products overflow float64 (R = {reach}): scale the weights down")
    if reach == 0.0:
        return {name: torch.zeros_like(leaf.detach()) for name, leaf in zip(s.names, leaves, strict=True)}
    return {
        name: torch.zeros_like(leaf.detach()) if g is None else leaf.detach() * (g / reach)
        for name, leaf, g in zip(s.names, leaves, gradients, strict=True)
    }


def live_weights(model: nn.Module, example_input: Tensor | None = None) -> dict[str, Tensor]:
    """Name -> bool tensor: the kept weights on a path from an input to an output, for any model.

    SynFlow's product with every kept weight 1 / sqrt(fan in), biases 0 and batch-norm the identity: a
    weight is live where its product is positive. Raises `ArgumentError` where the input's shape is unknown.
    """
    layers = list(prunable_layers(model))
    names = [f"{prefix}weight" for prefix, _ in layers]
    values = {n: p.detach().double().abs() for n, p in model.named_parameters()} | _without_bias(model)
    for (_, layer), name in zip(layers, names, strict=True):
        kept = values[name].new_ones(values[name].shape)
        if (mask := getattr(layer, "weight_mask", None)) is not None:
            kept = mask.double()
        values[name] = kept / math.sqrt(max(1, math.prod(kept.shape[1:])))
    training = model.training
    model.eval()
    try:
        found = flow(Scoring(model, names, example_input=example_input), values)
    finally:
        model.train(training)
    return {name: score > 0 for name, score in found.items()}


def _without_bias(model: nn.Module) -> dict[str, Tensor]:
    """Float64 values that make every bias 0 and every batch-norm the identity."""
    values = {
        n: torch.zeros_like(p, dtype=torch.float64)
        for n, p in model.named_parameters()
        if n.rpartition(".")[2] == "bias"
    }
    for prefix, layer in model.named_modules():
        if isinstance(layer, BATCH_NORMS):
            ones = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0 - layer.eps}
            for key, value in ones.items():
                tensor = getattr(layer, key, None)
                if tensor is not None:
                    name = f"{prefix}.{key}" if prefix else key
                    values[name] = torch.full_like(tensor.detach(), value, dtype=torch.float64)
    return values


def _divided(names: list[str], found: list[Tensor], by: float) -> dict[str, Tensor]:
    return {name: f / by if by else f for name, f in zip(names, found, strict=True)}


# name -> (function, the options it takes)
SCORES: dict[str, tuple[Callable[[Scoring], dict[str, Tensor]], tuple[str, ...]]] = {
    "random": (random_score, ()),
    "magnitude": (magnitude, ()),
    "snip": (snip, ()),
    "grasp": (grasp, ("temperature",)),
    "synflow": (synflow, ("bias",)),
}
