"""`synflow_scores` of a chain of fully connected layers: how much of its flow each weight carries.

Weights may be float32 or float64; the vectors that pass through the network are float64, rescaled by powers
of two so that no depth overflows. Natively (csrc/cpu/synflow.cpp) only kept weights are touched.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lotterykit.errors import ArgumentError
from lotterykit.ops.dispatch import Call, load, select
from lotterykit.ops.operands import ready
from lotterykit.ops.synflow_triton import chain_scores

DTYPES = (torch.float32, torch.float64)


def synflow_scores(
    weights: Sequence[Tensor],
    *,
    masks: Sequence[Tensor] | None = None,
    biases: Sequence[Tensor | None] | None = None,
) -> list[Tensor]:
    """|w| dR/d|w| / R of each weight of a chain, float64: R the sum of its outputs for ones (Tanaka et al.
    2020), every parameter by its absolute value.

    weights: `[out, in]` each, in order, one dtype (float32 or float64) and device, not empty; masks: bool of
    the same shapes (pruned entries score 0 and may hold anything); biases: `[out]` or None for each layer.
    All 0 where no path is left (R = 0). The scores of each layer sum to 1 without biases. No gradient flows.
    Raises `ArgumentError` on shapes that are no chain, and on kept values that are not finite.

    >>> synflow_scores([torch.tensor([[1.0, -3.0]])])
    [tensor([[0.2500, 0.7500]], dtype=torch.float64)]
    """
    weights, masks, biases = checked_chain(weights, masks, biases)
    plain = [w.detach() for w in weights]
    if torch.compiler.is_compiling():
        return _synflow_scores_op(plain, masks, biases)
    return _run(plain, masks, biases)


def synflow_scores_reference(
    weights: Sequence[Tensor], masks: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> list[Tensor]:
    """`synflow_scores` in plain torch, on any device; `masks` may be empty."""
    check_finite(weights, masks)
    magnitudes = [
        (torch.where(masks[i], w, 0.0) if masks else w).double().abs() for i, w in enumerate(weights)
    ]
    x, exponents = [magnitudes[0].new_ones(magnitudes[0].shape[1])], [0]
    for magnitude, bias in zip(magnitudes, biases, strict=True):
        y, exponent = magnitude @ x[-1], exponents[-1]
        if bias is not None and bias.numel():
            offset = bias.detach().double().abs()
            most = float(offset.max())
            common = max(exponent, math.frexp(most)[1] - 1) if most > 0 else exponent
            y, exponent = _times(y, exponent - common) + _times(offset, -common), common
        y, up = _normalised(y)
        x.append(y)
        exponents.append(exponent + up)
    reach = float(x[-1].sum())
    if not math.isfinite(reach):
        raise overflow(reach)
    g, exponent = torch.full_like(x[-1], 1.0 / reach if reach > 0 else 0.0), 0
    found: list[Tensor] = []
    for i in reversed(range(len(weights))):
        scale = 2.0 ** max(-1074, min(1000, exponents[i] + exponent - exponents[-1]))
        found.insert(0, magnitudes[i] * (x[i][None] * g[:, None] * scale))
        g, up = _normalised(magnitudes[i].T @ g)
        exponent += up
    return found


def synflow_scores_cpu(
    weights: Sequence[Tensor], masks: Sequence[Tensor], biases: Sequence[Tensor | None], *, isa: str = "best"
) -> list[Tensor]:
    """`synflow_scores` through lotterykit._cpu on one thread; `isa` is there for tests."""
    flow, offsets = native_flow(weights, masks, biases, isa)
    found = [torch.empty(w.shape, dtype=torch.float64) for w in weights]
    status = flow.chain_scores(addresses(offsets), addresses(found))
    if status != "ok":
        raise overflow(math.inf)
    return found


def call_of(weights: Sequence[Tensor], **_: object) -> Call:
    """What dispatch may know of `synflow_scores(...)`."""
    return Call("synflow_scores", weights[0].device.type, weights[0].dtype)


def sample_inputs(generator: torch.Generator) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments (weights, masks, biases) of the custom op for opcheck: deep, masked, empty, transposed."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    chain = [draw(5, 3), draw(4, 5), draw(2, 4)]
    masks = [torch.rand(w.shape, generator=generator) < 0.5 for w in chain]
    return [
        ((chain, [], [None] * 3), {}),
        ((chain, masks, [None] * 3), {}),
        ((chain, masks, [draw(5), None, draw(2)]), {}),
        (([w.double() for w in chain], [], [draw(5).double(), None, None]), {}),
        (([draw(3, 5).t()], [], [None]), {}),
        (([draw(4, 0), draw(2, 4)], [], [None, None]), {}),
        (([draw(0, 4), draw(2, 0)], [], [None, draw(2)]), {}),
        (([draw(1, 1)], [torch.zeros(1, 1, dtype=torch.bool)], [None]), {}),
    ]


@torch.library.custom_op("lotterykit::synflow_scores", mutates_args=())
def _synflow_scores_op(
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    biases: Sequence[Tensor | None],
) -> list[Tensor]:
    return _run(*checked_chain(weights, masks or None, biases))  # anybody may call an op


@_synflow_scores_op.register_fake
def _(weights: Sequence[Tensor], masks: Sequence[Tensor], biases: Sequence[Tensor | None]) -> list[Tensor]:
    return [torch.empty(w.shape, dtype=torch.float64, device=w.device) for w in weights]


def _run(weights: Sequence[Tensor], masks: Sequence[Tensor], biases: Sequence[Tensor | None]) -> list[Tensor]:
    route = select(call_of(weights))
    if route.backend != "triton":
        return load(route)(weights, masks, biases)  # type: ignore[return-value]

    def refuse(reach: float) -> Exception:
        check_finite(weights, masks)
        return overflow(reach)

    return chain_scores(load(route), weights, masks, biases, refuse)


def native_flow(
    weights: Sequence[Tensor], masks: Sequence[Tensor], biases: Sequence[Tensor | None], isa: str
) -> tuple[Any, list[Tensor | None]]:
    """The kept weights as native code holds them, and the biases' magnitudes in float64."""
    native = importlib.import_module("lotterykit._cpu")
    kind = native.Flow_float64 if weights[0].dtype == torch.float64 else native.Flow_float32
    plain = [ready(w) for w in weights]
    inside = [m.contiguous() for m in masks]
    rows = [
        (w.data_ptr(), inside[i].data_ptr() if inside else 0, w.shape[0], w.shape[1], 1)
        for i, w in enumerate(plain)
    ]
    flow = kind(rows, isa)  # copies what it keeps
    if not flow.finite:
        check_finite(weights, masks)
    return flow, [None if b is None else b.detach().double().abs().contiguous() for b in biases]


def addresses(tensors: Sequence[Tensor | None]) -> list[int]:
    """Where each tensor begins, 0 for None."""
    return [0 if t is None else t.data_ptr() for t in tensors]


def _normalised(v: Tensor) -> tuple[Tensor, int]:
    """v over the power of two that brings its largest entry into [1, 2), and the exponent."""
    most = float(v.max()) if v.numel() else 0.0
    if most == 0.0 or not math.isfinite(most):
        return v, 0
    exponent = math.frexp(most)[1] - 1
    return _times(v, -exponent), exponent


def _times(v: Tensor, exponent: int) -> Tensor:
    """v 2^exponent, in steps that a float64 can hold."""
    while abs(exponent) > 1000:
        step = 1000 if exponent > 0 else -1000
        v, exponent = v * 2.0**step, exponent - step
        if not bool(v.any()):
            return v
    return v * 2.0**exponent


def checked_chain(
    weights: Sequence[Tensor], masks: Sequence[Tensor] | None, biases: Sequence[Tensor | None] | None
) -> tuple[list[Tensor], list[Tensor], list[Tensor | None]]:
    """The arguments as lists, no masks as []; raises `ArgumentError` unless they are a chain."""
    if isinstance(weights, Tensor) or not isinstance(weights, Sequence) or not weights:
        raise ArgumentError("synflow: weights must be a sequence of at least one tensor [out, in]")
    for i, w in enumerate(weights):
        if (
            not isinstance(w, Tensor)
            or w.dim() != 2
            or w.layout is not torch.strided
            or w.dtype not in DTYPES
        ):
            got = f"{w.dtype} {tuple(w.shape)}" if isinstance(w, Tensor) else type(w).__name__
            raise ArgumentError(
                f"synflow: weights[{i}] must be dense float32 or float64 [out, in], got {got}"
            )
        if w.device.type == "meta" and type(w) in (Tensor, torch.nn.Parameter):  # not a fake one
            raise ArgumentError(f"synflow: weights[{i}] must hold data, got a tensor on meta")
        if w.dtype != weights[0].dtype or w.device != weights[0].device:
            raise ArgumentError(f"synflow: weights[{i}] must share dtype and device with weights[0]")
        if i and w.shape[1] != weights[i - 1].shape[0]:
            raise ArgumentError(
                f"synflow: weights[{i}] reads {w.shape[1]} inputs, weights[{i - 1}] has "
                f"{weights[i - 1].shape[0]} outputs: no chain"
            )
    given: Sequence[Tensor | None] = [None] * len(weights) if biases is None else biases
    for name, tensors in (("masks", masks), ("biases", given)):
        if tensors is not None and (
            isinstance(tensors, Tensor) or not isinstance(tensors, Sequence) or len(tensors) != len(weights)
        ):
            raise ArgumentError(f"synflow: {name} must be one for each of {len(weights)} weights")
    for i, (w, m) in enumerate(zip(weights, masks or (), strict=bool(masks))):
        if not _fits(m, w.shape, w) or m.dtype != torch.bool:
            raise ArgumentError(f"synflow: masks[{i}] must be bool {tuple(w.shape)} on {w.device}, dense")
    for i, (w, b) in enumerate(zip(weights, given, strict=True)):
        if b is not None and (not _fits(b, w.shape[:1], w) or not b.is_floating_point()):
            raise ArgumentError(
                f"synflow: biases[{i}] must be [{w.shape[0]}] on {w.device}, dense and floating, or None"
            )
        if b is not None and not torch.compiler.is_compiling() and not bool(b.isfinite().all()):
            raise ArgumentError(f"synflow: biases[{i}] holds infinities or NaN")
    return list(weights), list(masks or ()), list(given)


def _fits(tensor: object, shape: torch.Size, weight: Tensor) -> bool:
    """Whether it is a dense tensor of the shape on the device of `weight`."""
    return (
        isinstance(tensor, Tensor)
        and tensor.shape == shape
        and tensor.device == weight.device
        and tensor.layout is torch.strided
    )


def check_finite(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    """Raises `ArgumentError` where a kept weight is infinite or NaN; `masks` may be empty."""
    for i, w in enumerate(weights):
        inside = w.isfinite() | ~masks[i] if masks else w.isfinite()
        if not bool(inside.all()):
            raise ArgumentError(f"synflow: weights[{i}] holds infinities or NaN among the kept entries")


def overflow(reach: float) -> ArgumentError:
    """The error where no rescaling helps."""
    return ArgumentError(f"synflow's products overflow float64 (R = {reach}): scale the weights down")
