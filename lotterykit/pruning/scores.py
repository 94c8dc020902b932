"""Scores: one number a weight, higher = keep. A method is one short function and a row of `SCORES`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lotterykit.errors import ArgumentError, check_seed, unknown_name
from lotterykit.mask import prunable_layers, refuse_sparse
from lotterykit.nn.evaluation import evaluating
from lotterykit.ops.synflow_scores import synflow_scores
from lotterykit.pruning.chain import chain_of
from lotterykit.pruning.flow import flow, one_input, without_bias

Batches = Iterable[tuple[Tensor, Tensor]]
LossFn = Callable[[Tensor, Tensor], Tensor]
ScoreFn = Callable[[nn.Module, Batches, LossFn], Mapping[str, Tensor]]
LISTS = "pass a list of batches or a DataLoader"


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

    def kept(self, values: Sequence[Tensor]) -> list[Tensor]:
        """`values` of the scored parameters, 0 where the model's masks prune: pruned entries of a weight
        may hold anything, infinities too."""
        masks = dict(self.model.named_buffers())
        pairs = zip(values, (masks.get(f"{name}_mask") for name in self.names), strict=True)
        return [v if mask is None else torch.where(mask, v, 0.0) for v, mask in pairs]

    def gradients(self, scalar: Tensor, *, again: bool = False) -> tuple[Tensor, ...]:
        """d scalar / d the scored parameters, 0 for one it does not depend on; `again` keeps the graph."""
        found = torch.autograd.grad(scalar, self.parameters, create_graph=again, allow_unused=True)
        return tuple(
            torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, found, strict=True)
        )

    def losses(self, temperature: float | None = None, *, again: bool = False) -> Iterator[Tensor]:
        """The loss of each batch, outputs divided by `temperature` (None: 200 for classes, 1 for values).

        `again` says that the data will be read more than once, which a one-shot iterator cannot serve."""
        data, loss_fn = self.readable()
        if temperature is not None and not temperature > 0:
            raise ArgumentError(f"temperature divides the outputs and must be > 0, got {temperature!r}")
        if again and isinstance(data, Iterator):
            raise ArgumentError(
                f"data is a one-shot iterator, and this method reads it more than once: {LISTS}"
            )
        count = 0
        for x, y in data:
            count += 1
            default = 1.0 if y.is_floating_point() else 200.0
            divisor = default if temperature is None else temperature
            output = self.model(x)
            yield loss_fn(output if divisor == 1.0 else output / divisor, y)
        if count == 0:
            raise ArgumentError("data holds no batch")

    def batches(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The data's first `count` batches, from its start again where it holds fewer.

        Raises `ArgumentError` where it holds none, and where a one-shot iterator runs out."""
        data, _ = self.readable()
        read = 0
        while read < count:
            before = read
            for batch in data:
                yield batch
                read += 1
                if read == count:
                    return
            if isinstance(data, Iterator):
                raise ArgumentError(
                    f"data is a one-shot iterator of {read} batches, and this method reads {count}: {LISTS}"
                )
            if read == before:
                raise ArgumentError("data holds no batch")

    def readable(self) -> tuple[Batches, LossFn]:
        """Data and loss; raises `ArgumentError` where they are missing or a scored weight is frozen."""
        frozen = [name for name, p in zip(self.names, self.parameters, strict=True) if not p.requires_grad]
        if frozen:
            raise ArgumentError(
                f"this method scores by gradients, but {', '.join(frozen)} has requires_grad=False"
            )
        if self.data is None or self.loss_fn is None:
            raise ArgumentError("this method scores on data: pass data (batches of (x, y)) and loss_fn")
        return self.data, self.loss_fn

    def input_like(self) -> Tensor:
        """One input: of `example_input`, else the data's first, else one for a first linear layer."""
        if self.example_input is None and self.data is not None and not isinstance(self.data, Iterator):
            return next(iter(self.data))[0][:1]
        return one_input(self.model, self.example_input)


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
    data: batches `(x, y)`; loss_fn: `(output, y) -> scalar`; both for snip, grasp and prospr only.
    options: grasp's `temperature` (default 200 for classes, 1 for values), synflow's `bias` (default True),
    prospr's `steps` (default 3) and `lr` (default 0.1).
    invert: negates every score, so that the lowest are kept (the published 1 / score does not reverse
    signed ones). The model runs in evaluation mode and is left as it was; scores of weights that its
    masks prune carry no meaning. Raises `ArgumentError` on unknown names, missing data and sparse layers.
    """
    refuse_sparse(model, "scoring")
    layers = list(prunable_layers(model))
    kinds = ("weight", "bias") if prune_bias else ("weight",)
    names = [f"{prefix}{k}" for prefix, layer in layers for k in kinds if getattr(layer, k, None) is not None]
    check_seed(seed)
    scoring = Scoring(model, names, data, loss_fn, example_input, dict(options or {}), seed)
    with evaluating(model), torch.enable_grad():
        found = _named(method)(scoring) if isinstance(method, str) else _own(method, scoring)
    return {name: -score if invert else score for name, score in found.items()}


def _named(method: str) -> Callable[[Scoring], dict[str, Tensor]]:
    if method not in SCORES:
        raise unknown_name("method", method, SCORES)
    row = SCORES[method]

    def checked(scoring: Scoring) -> dict[str, Tensor]:
        for key in scoring.options:
            if key not in row.options:
                raise unknown_name(f"option of {method}", key, row.options or ("none",))
        return row.function(scoring)

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
        for t, g in zip(total, s.gradients(loss), strict=True):
            t += g
    found = s.kept([(p.detach() * t).abs() for p, t in zip(s.parameters, total, strict=True)])
    return _divided(s.names, found, sum(float(f.double().sum()) for f in found))


def grasp(s: Scoring) -> dict[str, Tensor]:
    """w d/dw (g_stop . g), signed, g the gradient summed over the batches, outputs divided by the
    temperature, all divided by 1e-10 + |sum| (Wang et al. 2020)."""
    temperature = s.options.get("temperature")
    stop = [torch.zeros_like(p) for p in s.parameters]
    for loss in s.losses(temperature, again=True):
        for t, g in zip(stop, s.gradients(loss), strict=True):
            t += g
    product = [torch.zeros_like(p) for p in s.parameters]
    for loss in s.losses(temperature, again=True):
        gradient = s.gradients(loss, again=True)
        dot = sum(((a * g).sum() for a, g in zip(stop, gradient, strict=True)), start=loss * 0.0)
        for t, h in zip(product, s.gradients(dot), strict=True):
            t += h
    found = s.kept([p.detach() * t for p, t in zip(s.parameters, product, strict=True)])
    return _divided(s.names, found, 1e-10 + abs(sum(float(f.double().sum()) for f in found)))


def prospr(s: Scoring) -> dict[str, Tensor]:
    """|dL/dm| of a mask m that multiplies the weights once, before `steps` steps of SGD: L is the loss after
    them, differentiated through every step (Alizadeh et al. 2022; steps 3, lr 0.1).

    Each step, and then L, reads one batch more; the steps train every parameter that requires a gradient.
    Raises `ArgumentError` where L is not finite.
    """
    steps, lr = s.options.get("steps", 3), s.options.get("lr", 0.1)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ArgumentError(f"prospr's steps must be an int >= 0, got {steps!r}")
    if isinstance(lr, bool) or not isinstance(lr, int | float) or not 0 < lr < math.inf:
        raise ArgumentError(f"prospr's lr must be a finite number > 0, got {lr!r}")
    _, loss_fn = s.readable()
    first = {n: p.detach().requires_grad_() for n, p in s.model.named_parameters() if p.requires_grad}
    weights = s.kept([p.detach() for p in s.parameters])
    first |= {name: w.requires_grad_() for name, w in zip(s.names, weights, strict=True)}
    values = dict(first)
    for step, (x, y) in enumerate(s.batches(steps + 1)):
        loss = loss_fn(functional_call(s.model, values, (x,)), y)
        if step == steps:
            break
        slopes = torch.autograd.grad(loss, list(values.values()), create_graph=True, allow_unused=True)
        pairs = zip(values.items(), slopes, strict=True)
        values = {name: v if slope is None else v - lr * slope for (name, v), slope in pairs}
    if not math.isfinite(end := float(loss.detach())):
        raise ArgumentError(f"prospr's {steps} steps at lr {lr:g} end at a loss of {end}: lower lr")
    slopes = torch.autograd.grad(loss, weights, allow_unused=True)
    found = [
        torch.zeros_like(w) if g is None else (w * g).abs() for w, g in zip(weights, slopes, strict=True)
    ]
    return {name: f.detach() for name, f in zip(s.names, s.kept(found), strict=True)}


def synflow(s: Scoring) -> dict[str, Tensor]:
    """|w dR/dw| / R in float64, R the sum of outputs for an all-ones input with every parameter and
    running statistic replaced by its absolute value (Tanaka et al. 2020; as published).

    `bias=False`: biases 0 and batch-norm the identity, the pure product 1^T prod |W m| 1, in which the
    scores of each layer of a chain sum to 1. Other networks than chains of Linear layers go through autograd,
    with a float64 copy of the parameters that lives for this call only.
    """
    example = s.input_like()
    chain = chain_of(s.model, example, bias=s.options.get("bias", True))
    if chain is not None and set(s.names) == set(chain.names):
        found = synflow_scores(chain.weights, masks=chain.masks, biases=chain.biases)
        scored = dict(zip(chain.names, found, strict=True))
        return {name: scored[name] for name in s.names}
    values = {n: p.detach().double().abs() for n, p in s.model.named_parameters()}
    values |= {n: b.double().abs() for n, b in s.model.named_buffers() if b.is_floating_point()}
    if not s.options.get("bias", True):
        values |= without_bias(s.model)
    return flow(s.model, s.names, values, example)


def _divided(names: list[str], found: list[Tensor], by: float) -> dict[str, Tensor]:
    return {name: f / by if by else f for name, f in zip(names, found, strict=True)}


class Score(NamedTuple):
    """A method: its function, the options it takes, whether it reads the data's samples, and how its scores
    are compared."""

    function: Callable[[Scoring], dict[str, Tensor]]
    options: tuple[str, ...] = ()
    reads_data: bool = False
    rounded: bool = False  # compared as `rounded`: sums of products, some of which tie in exact arithmetic


SCORES: dict[str, Score] = {
    "random": Score(random_score),
    "magnitude": Score(magnitude),
    "snip": Score(snip, reads_data=True),
    "grasp": Score(grasp, ("temperature",), reads_data=True),
    "prospr": Score(prospr, ("steps", "lr"), reads_data=True),
    "synflow": Score(synflow, ("bias",), rounded=True),
}
