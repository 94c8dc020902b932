"""SynFlow on a fully connected chain: one scoring, and 100 rounds down to a density.

The peer is Tanaka et al.'s loop (2020, and their code) in eager torch: absolute values, a forward and a
backward pass of ones, |w dR/dw|, cat, kthvalue, masks. It is timed in the setting's dtype; float32 rounding
piles up over the rounds, so what it must agree with float64 in is stated by `AGREEMENT`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lotterykit.bench.contender import Contender
from lotterykit.bench.setting import DTYPES, Problem, Setting
from lotterykit.ops.dispatch import use_backend
from lotterykit.ops.synflow_masks import Counted, synflow_masks
from lotterykit.ops.synflow_scores import synflow_scores

ROUNDS = 100
AGREEMENT = 0.99  # the least share of the float64 masks' kept weights that a peer keeps too


@dataclass(frozen=True)
class Chain:
    """Weights `[out, in]` and biases `[out]` of a chain; masks of the weights, or none."""

    weights: list[Tensor]
    biases: list[Tensor]
    masks: list[Tensor]
    density: float

    @property
    def total(self) -> int:
        return sum(w.numel() for w in self.weights)


def kept_after(number: int, density: float, total: int) -> int:
    """Weights kept after round `number` of `ROUNDS`, counted from 1: the exponential schedule."""
    return round(density ** (number / ROUNDS) * total)


def rounds_problem(setting: Setting) -> Problem:
    """Masks after `ROUNDS` rounds; ties go by chance, so an answer need only agree with float64's widely."""
    chain = _chain(setting, masked=False)
    with use_backend("reference", ops=["synflow_masks"]):
        expected = torch.cat([m.flatten() for m in _rounds(chain)])

    def wrong(outputs: tuple[Tensor, ...]) -> str | None:
        got = torch.cat([o.flatten() for o in outputs]) != 0
        if got.shape != expected.shape:
            return f"masks of {got.numel()} entries for {expected.numel()} weights"
        kept, wanted = int(got.sum()), int(expected.sum())
        both = int((got & expected).sum())
        if min(both, wanted) < AGREEMENT * max(kept, wanted):
            return f"keeps {kept} weights, {both} of the {wanted} that float64 keeps"
        return None

    return Problem(setting, chain, wrong, 0.0, 0.0)


def scores_problem(setting: Setting) -> Problem:
    """|w dR/dw| / R of the kept weights; sums of positive products alone, so errors are relative."""
    chain = _chain(setting, masked=True)
    with use_backend("reference", ops=["synflow_scores"]):
        expected = synflow_scores(chain.weights, masks=chain.masks, biases=chain.biases)
    eps = torch.finfo(DTYPES[setting.dtype]).eps
    bound = 2 * (sum(setting.shape) + 4 * len(setting.shape)) * eps  # both passes, and their products

    def wrong(outputs: tuple[Tensor, ...]) -> str | None:
        for number, (got, right) in enumerate(zip(outputs, expected, strict=True)):
            if got.shape != right.shape:
                return f"scores {number} are {tuple(got.shape)}, not {tuple(right.shape)}"
            if not bool(((got.double() - right).abs() <= bound * right).all()):
                return f"scores {number} are further from float64 than {bound:.2g} of it"
        return None

    return Problem(setting, chain, wrong, 0.0, 0.0)


def native_rounds(problem: Problem) -> Contender:
    chain: Chain = problem.inputs
    return Contender(lambda: _rounds(chain))


def native_scores(problem: Problem) -> Contender:
    chain: Chain = problem.inputs
    return Contender(lambda: synflow_scores(chain.weights, masks=chain.masks, biases=chain.biases))


def published_rounds(problem: Problem) -> Contender:
    """Tanaka et al.'s loop on the chain."""
    chain: Chain = problem.inputs
    ones = chain.weights[0].new_ones(1, chain.weights[0].shape[1])

    def run() -> list[Tensor]:
        weights = [w.clone().requires_grad_() for w in chain.weights]
        biases = [b.clone() for b in chain.biases]
        return published(lambda: _forward(ones, weights, biases), weights, [*weights, *biases], chain.density)

    return Contender(run)


def eager_scores(problem: Problem) -> Contender:
    """One scoring of that loop: masked magnitudes, a pass forward and one back."""
    chain: Chain = problem.inputs
    ones = chain.weights[0].new_ones(1, chain.weights[0].shape[1])
    masks = [m.to(ones.dtype) for m in chain.masks]

    def run() -> tuple[Tensor, list[Tensor]]:
        weights = [(w.abs() * m).requires_grad_() for w, m in zip(chain.weights, masks, strict=True)]
        reach = _forward(ones, weights, [b.abs() for b in chain.biases]).sum()
        slopes = torch.autograd.grad(reach, weights)
        return reach.detach(), [w.detach() * g for w, g in zip(weights, slopes, strict=True)]

    def outputs(result: tuple[Tensor, list[Tensor]]) -> tuple[Tensor, ...]:
        reach, found = result
        return tuple(torch.where(reach > 0, f / reach, f) for f in found)

    return Contender(run, outputs)


def published(
    forward: Callable[[], Tensor], weights: Sequence[Tensor], state: Sequence[Tensor], density: float
) -> list[Tensor]:
    """`ROUNDS` rounds of Tanaka et al.'s loop; the masks of `weights`, which are changed.

    forward: the network's output for ones; state: every tensor that goes in by its absolute value.
    """
    total = sum(w.numel() for w in weights)
    masks = [torch.ones_like(w) for w in weights]
    for number in range(1, ROUNDS + 1):
        with torch.no_grad():
            signs = [t.sign() for t in state]
            for t in state:
                t.abs_()
        slopes = torch.autograd.grad(forward().sum(), weights)
        with torch.no_grad():
            found = [(m * g * w).abs_() for m, g, w in zip(masks, slopes, weights, strict=True)]
            for t, sign in zip(state, signs, strict=True):
                t.mul_(sign)
            flat = torch.cat([f.flatten() for f in found])
            pruned = total - kept_after(number, density, total)
            threshold = flat.kthvalue(pruned).values if pruned else -1.0
            for m, f, w in zip(masks, found, weights, strict=True):
                m.copy_(torch.where(f <= threshold, 0.0, 1.0))
                w.mul_(m)
    return masks


def _rounds(chain: Chain) -> list[Tensor]:
    layers = tuple(range(len(chain.weights)))
    counts = [kept_after(number, chain.density, chain.total) for number in range(1, ROUNDS + 1)]
    rounds = [[Counted(layers, kept)] for kept in counts]
    return synflow_masks(chain.weights, rounds, biases=chain.biases).masks


def _forward(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    for number, (weight, bias) in enumerate(zip(weights, biases, strict=True), start=1):
        x = F.linear(x, weight, bias)
        x = x if number == len(weights) else x.relu()
    return x


def _chain(setting: Setting, *, masked: bool) -> Chain:
    """Weights and biases as torch draws them; masks of the setting's density if `masked`."""
    generator = torch.Generator().manual_seed(0)
    weights, biases, masks = [], [], []
    for n_in, n_out in zip(setting.shape, setting.shape[1:], strict=False):
        drawn = (2 * torch.rand(n_out, n_in + 1, generator=generator) - 1) / n_in**0.5
        drawn = drawn.to(DTYPES[setting.dtype])
        weights.append(drawn[:, :-1].contiguous())
        biases.append(drawn[:, -1].contiguous())
        if masked:
            masks.append(torch.rand(n_out, n_in, generator=generator) < setting.density)
    return Chain(weights, biases, masks, setting.density)
