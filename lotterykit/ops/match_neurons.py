"""`match_neurons`: which candidate neuron stands for each target neuron (Plant 'n' Seek, Alg. 1)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lotterykit.errors import ArgumentError
from lotterykit.ops.dispatch import Call, load, select

COSINE_TIE = 1e-12  # one-parameter neurons have cosine 1 up to rounding


class Matches(NamedTuple):
    """For each target `[t]`: the candidate (int64, -1 for a target without parameters), theta . m and |m| at
    the target's places (float64, 0 there), and whether the cosine is positive (bool)."""

    chosen: Tensor
    product: Tensor
    norm: Tensor
    aligned: Tensor


def match_neurons(theta: Tensor, candidates: Tensor) -> Matches:
    """Give each target, in order, the free candidate m of largest cosine with its non-zero parameters theta.

    theta: float64 `[targets, places]`; candidates: float64 `[n, places]`, n >= targets, all finite; only
    places where theta is not 0 are compared. Cosines within 1e-12 of the largest are equal and go to the
    largest norm, then to the first. Where no free candidate has a positive cosine, the largest norm decides
    alone and `aligned` is False. No gradient flows. Raises `ArgumentError`.

    >>> match_neurons(torch.eye(2).double(), torch.tensor([[1.0, 2], [3, 0], [0, 1]]).double()).chosen
    tensor([1, 0])
    """
    _check(theta, candidates)
    theta, candidates = theta.detach(), candidates.detach()
    if torch.compiler.is_compiling():
        return Matches(*_match_neurons_op(theta, candidates))
    return Matches(*_run(theta, candidates))


def match_neurons_reference(theta: Tensor, candidates: Tensor) -> Matches:
    """`match_neurons` in plain torch, on any device."""
    product, norm, length, cosine = _compared(theta, candidates)
    chosen = torch.full((len(theta),), -1, dtype=torch.int64, device=theta.device)
    aligned = torch.zeros(len(theta), dtype=torch.bool, device=theta.device)
    taken = torch.zeros(len(candidates), dtype=torch.bool, device=theta.device)
    for i in length.nonzero().squeeze(1).tolist():
        open_cosine = cosine[i].masked_fill(taken, -torch.inf)
        top = open_cosine.max()
        aligned[i] = top > 0
        equal = open_cosine >= top - COSINE_TIE if bool(aligned[i]) else ~taken
        chosen[i] = torch.where(equal & ~taken, norm[i], -1.0).argmax()
        taken[chosen[i]] = True
    rows = (chosen >= 0).nonzero().squeeze(1)
    found = [torch.zeros_like(length), torch.zeros_like(length)]
    for values, of in zip(found, (product, norm), strict=True):
        values[rows] = of[rows, chosen[rows]]
    return Matches(chosen, found[0], found[1], aligned)


def _compared(theta: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """theta . m and |m| at theta's places `[targets, n]`, |theta| `[targets]`, and the cosines."""
    product = theta @ candidates.T
    norm = ((theta != 0).double() @ candidates.square().T).sqrt()
    length = torch.linalg.vector_norm(theta, dim=1)
    return product, norm, length, torch.where(norm > 0, product / norm / length[:, None], -torch.inf)


def _by_kernel(match: Callable[..., Any], theta: Tensor, candidates: Tensor) -> Matches:
    """The comparisons by torch, the choice, in which each target depends on those before, by one launch."""
    product, norm, length, cosine = _compared(theta, candidates)
    chosen, aligned = match(cosine, norm, length, COSINE_TIE)
    if not candidates.shape[0]:
        return Matches(chosen, torch.zeros_like(length), torch.zeros_like(length), aligned)
    at = chosen.clamp(min=0)[:, None]
    products, norms = (torch.where(chosen >= 0, of.gather(1, at)[:, 0], 0.0) for of in (product, norm))
    return Matches(chosen, products, norms, aligned)


def match_neurons_cpu(theta: Tensor, candidates: Tensor) -> Matches:
    """`match_neurons` through lotterykit._cpu, on one thread."""
    native = importlib.import_module("lotterykit._cpu")
    theta, columns = theta.resolve_neg().contiguous(), candidates.resolve_neg().T.contiguous()
    number = len(theta)
    found = Matches(
        torch.empty(number, dtype=torch.int64),
        torch.empty(number, dtype=torch.float64),
        torch.empty(number, dtype=torch.float64),
        torch.empty(number, dtype=torch.bool),
    )
    addresses = [t.data_ptr() for t in found]
    sizes = number, theta.shape[1], columns.data_ptr(), len(candidates)
    native.match_neurons(theta.data_ptr(), *sizes, COSINE_TIE, *addresses)
    return found


def call_of(theta: Tensor, candidates: Tensor) -> Call:
    """What dispatch may know of `match_neurons(...)`."""
    return Call("match_neurons", theta.device.type, theta.dtype)


def sample_inputs(generator: torch.Generator) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments (theta, candidates) for opcheck: sparse, without parameters, transposed, empty."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    sparse = draw(5, 7) * (torch.rand(5, 7, generator=generator) < 0.3)
    return [
        ((sparse, draw(9, 7)), {}),
        ((draw(4, 3), draw(4, 3)), {}),
        ((draw(3, 4).t(), draw(3, 6).t()), {}),
        ((draw(2, 1), draw(8, 1)), {}),
        ((torch.zeros(2, 3, dtype=torch.float64), draw(5, 3)), {}),
        ((draw(2, 3), torch.zeros(2, 3, dtype=torch.float64)), {}),
        ((draw(0, 3), draw(2, 3)), {}),
        ((draw(2, 0), draw(2, 0)), {}),
    ]


def _run(theta: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    route = select(call_of(theta, candidates))
    if route.backend == "triton":
        return _by_kernel(load(route), theta, candidates)
    return load(route)(theta, candidates)  # type: ignore[return-value]


@torch.library.custom_op("lotterykit::match_neurons", mutates_args=())
def _match_neurons_op(theta: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    chosen, product, norm, aligned = _run(theta, candidates)
    return chosen, product, norm, aligned


@_match_neurons_op.register_fake
def _(theta: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    number = theta.shape[0]
    return (
        theta.new_empty(number, dtype=torch.int64),
        theta.new_empty(number),
        theta.new_empty(number),
        theta.new_empty(number, dtype=torch.bool),
    )


def _check(theta: Tensor, candidates: Tensor) -> None:
    for name, tensor in (("theta", theta), ("candidates", candidates)):
        if not isinstance(tensor, Tensor) or tensor.dim() != 2 or tensor.dtype != torch.float64:
            got = (
                f"{tensor.dtype} {tuple(tensor.shape)}"
                if isinstance(tensor, Tensor)
                else type(tensor).__name__
            )
            raise ArgumentError(f"match_neurons: {name} must be float64 [neurons, places], got {got}")
        if tensor.layout is not torch.strided or tensor.device != theta.device:
            raise ArgumentError(f"match_neurons: {name} must be dense and on {theta.device}")
        if not torch.compiler.is_compiling() and not bool(tensor.isfinite().all()):
            raise ArgumentError(f"match_neurons: {name} holds infinities or NaN")
    if theta.shape[1] != candidates.shape[1]:
        raise ArgumentError(
            f"match_neurons: theta has {theta.shape[1]} places, candidates {candidates.shape[1]}"
        )
    if len(theta) > len(candidates):
        raise ArgumentError(
            f"match_neurons: {len(theta)} targets need as many candidates, got {len(candidates)}"
        )
