"""How likely a target exists in a random network without planting (Plant 'n' Seek, Lemma 1 and Thm. 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lotterykit.errors import ArgumentError, unknown_name
from lotterykit.planting.targets import TargetNetwork

INITS = ("uniform", "normal")


def parameter_errors(target: TargetNetwork, epsilon: float) -> tuple[float, ...]:
    """Lemma 1: the error `eps_l` per parameter of each layer that keeps the output within `epsilon` (L2
    norm) of the target's on [-1, 1]^in.

    `eps_l = epsilon / [L sqrt(m_l) (1 + sup |x^(l-1)|_1) prod_{k>l} (|W^(k)|_2 + epsilon / L)]`, with m_l
    the non-zero parameters of layer l, the sup bounded by interval arithmetic and the spectral norm of W
    (the paper's largest entry is no valid norm here). Never above `epsilon / (L sqrt(m_l))`, which the
    proof needs. Raises `ArgumentError`.
    """
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0.0 < epsilon < math.inf:
        raise ArgumentError(f"epsilon must be a positive number, got {epsilon!r}")
    layers = len(target.weights)
    share = epsilon / layers
    norms = [float(torch.linalg.matrix_norm(w, ord=2)) + share for w in target.weights]
    errors = []
    for i, sup in enumerate(_input_norms(target)):
        m = int(target.weights[i].count_nonzero()) + int(target.biases[i].count_nonzero())
        growth = max(1.0, (1.0 + sup) * math.prod(norms[i + 1 :]))
        errors.append(share / (math.sqrt(max(m, 1)) * growth))
    return tuple(errors)


def _input_norms(target: TargetNetwork) -> list[float]:
    """An upper bound of the L1 norm of each layer's input, inputs in [-1, 1]."""
    high = torch.ones(target.widths[0], dtype=torch.float64)
    low, norms = -high, [float(high.sum())]
    for weight, bias in zip(target.weights[:-1], target.biases[:-1], strict=True):
        positive, negative = weight.clamp_min(0.0), weight.clamp_max(0.0)
        low, high = positive @ low + negative @ high + bias, positive @ high + negative @ low + bias
        low, high = low.clamp_min(0.0), high.clamp_min(0.0)
        norms.append(float(high.sum()))
    return norms


def existence_bound(
    errors: Sequence[float],
    in_degrees: Sequence[Sequence[int]],
    mother_widths: Sequence[int],
    *,
    init: str = "uniform",
) -> float:
    """Theorem 2: a lower bound in [0, 1] of the probability that the mother holds the target up to scale.

    `P >= prod_l max(0, 1 - sum_i (1 - eps_l^k_i)^n_l,0)`. Per layer l: `errors[l]` in (0, 1] is eps_l,
    `in_degrees[l]` holds k_i of each target neuron (its non-zero weights, plus 1 for a non-zero bias),
    `mother_widths[l]` the mother's neurons. `init="normal"` halves the errors. Each factor is clipped at 0.
    Raises `ArgumentError`.
    """
    if init not in INITS:
        raise unknown_name("init of the bound", init, INITS)
    if not len(errors) == len(in_degrees) == len(mother_widths) >= 1:
        got = f"{len(errors)} errors, {len(in_degrees)} lists of degrees, {len(mother_widths)} widths"
        raise ArgumentError(f"the bound needs one entry per layer of each, got {got}")
    probability = 1.0
    for error, degrees, width in zip(errors, in_degrees, mother_widths, strict=True):
        if not 0.0 < error <= 1.0 or width < 1 or any(k < 0 for k in degrees):
            raise ArgumentError(
                "errors must lie in (0, 1], widths be positive and degrees not negative; "
                f"got {error}, {width}, {degrees}"
            )
        step = error / 2.0 if init == "normal" else error
        missing = math.fsum(_no_match(step**k, width) for k in degrees)
        probability *= max(0.0, 1.0 - missing)
    return probability


def _no_match(chance: float, candidates: int) -> float:
    """(1 - chance)^candidates without cancellation."""
    return 0.0 if chance >= 1.0 else math.exp(candidates * math.log1p(-chance))


def homogeneous_bound(
    error: float = 0.005,
    degree: int = 2,
    layers: int = 3,
    width: int = 2,
    mother_width: int = 100_000,
    *,
    init: str = "uniform",
) -> float:
    """`existence_bound` of equal layers; the defaults are those of Plant 'n' Seek, Fig. 6.

    >>> round(homogeneous_bound(), 3)
    0.584
    """
    return existence_bound([error] * layers, [[degree] * width] * layers, [mother_width] * layers, init=init)


def target_bound(
    target: TargetNetwork,
    mother_width: int,
    *,
    epsilon: float | None = None,
    error: float | None = None,
    init: str = "uniform",
) -> float:
    """`existence_bound` of a target in a mother of `mother_width` (its outputs are as many as the target's).

    Give either `epsilon`, the error of the output, from which Lemma 1 takes the errors per layer, or
    `error`, one per-parameter error for all layers. Raises `ArgumentError`.
    """
    if (epsilon is None) == (error is None):
        raise ArgumentError("give either epsilon (of the output) or error (per parameter), not both")
    layers = len(target.weights)
    if epsilon is not None:
        errors = [min(e, 1.0) for e in parameter_errors(target, epsilon)]
    else:
        errors = [error or 0.0] * layers
    widths = [mother_width] * (layers - 1) + [target.widths[-1]]
    degrees = [
        ((w != 0).sum(1) + (b != 0)).tolist() for w, b in zip(target.weights, target.biases, strict=True)
    ]
    return existence_bound(errors, degrees, widths, init=init)
