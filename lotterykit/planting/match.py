"""Which mother neuron stands for each target neuron, and by which factor (Plant 'n' Seek, Alg. 1 and 2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lotterykit.errors import ArgumentError, check_seed, unknown_name
from lotterykit.ops.match_neurons import match_neurons
from lotterykit.planting.chain import Layer, as_float64, check_fit, read_chain
from lotterykit.planting.targets import TargetNetwork

MATCHINGS = ("best", "random")
SCALINGS = ("paper", "norm")

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LayerMatch:
    """A matched layer, t target neurons reading k matched units.

    `rows` int64 `[t]` and `columns` int64 `[k]` are places in the mother, `weight` float64 `[t, k, K]` and
    `bias` float64 `[t]` what is written there at gain 0 (only non-zero entries are planted).
    """

    name: str
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    weight: Array
    bias: Array


@dataclass(frozen=True, eq=False)
class Match:
    """A target matched to a mother, before it is written.

    `assignment[l]` int64 `[units of target layer l]` gives the mother's unit of each target unit, -1 for
    one without parameters (its output is 0: nothing is planted). `scale` is s: at gain 0, the target is s
    times the ticket.
    """

    layers: tuple[LayerMatch, ...]
    assignment: tuple[NDArray[np.int64], ...]
    scale: float


def match(
    target: TargetNetwork | nn.Module,
    mother: nn.Module,
    *,
    matching: str = "best",
    scaling: str = "paper",
    seed: int = 0,
) -> Match:
    """Match each target neuron, layer by layer from the input, to one neuron of the mother.

    A target neuron's parameters theta (non-zero, on matched inputs, corrected by the factors of those) are
    compared with the parameters m of each free neuron at the same places. `"best"` takes the largest
    cosine, ties to the largest norm; `"random"` any free neuron. The neuron is written as theta / lambda
    with `lambda = theta.m / |m|^2` (`"paper"`, best matching) or `|theta| / |m|` (`"norm"`, and every random
    match); lambda > 0 always. The output layer is not permuted and has one factor. Raises `ArgumentError`.
    """
    if matching not in MATCHINGS:
        raise unknown_name("matching", matching, MATCHINGS)
    if scaling not in SCALINGS:
        raise unknown_name("scaling", scaling, SCALINGS)
    if not isinstance(target, TargetNetwork | nn.Module):
        raise ArgumentError(f"the target must be a TargetNetwork or a module, got {type(target).__name__}")
    if not isinstance(mother, nn.Module):
        raise ArgumentError(f"the mother must be a module, got {type(mother).__name__}")
    small, large = read_chain(target, "target"), read_chain(mother, "mother")
    check_fit(small, large)
    generator = np.random.default_rng(check_seed(seed))
    order = np.arange(small[0].inputs)
    factors = np.ones(small[0].inputs)
    layers: list[LayerMatch] = []
    assignment: list[NDArray[np.int64]] = []
    for i, (t, m) in enumerate(zip(small, large, strict=True)):
        theta, places, candidates = _parameters(t, m, order, factors)
        if i == len(small) - 1:
            chosen, lambdas = _output_layer(theta, places, candidates)
        else:
            free = generator.permutation(m.units) if matching == "random" else None
            chosen, lambdas = _hidden_layer(theta, places, candidates, free, scaling)
        layers.append(_written(m, theta, chosen, lambdas, order))
        assignment.append(chosen)
        order, factors = chosen, lambdas
    return Match(tuple(layers), tuple(assignment), float(lambdas[0]))


def _parameters(t: Layer, m: Layer, order: NDArray[np.int64], factors: Array) -> tuple[Array, Array, Array]:
    """theta `[t, 1 + k K]` (bias first), its non-zero places as 0 / 1, and the mother's parameters there
    `[units, 1 + k K]`. Inputs that are not planted (order -1) are always 0 and are left out."""
    kept = order >= 0
    weight = as_float64(t.weight).numpy()[:, kept] * factors[kept][:, None]
    bias = np.zeros(t.units) if t.bias is None else as_float64(t.bias).numpy()
    theta = np.concatenate([bias[:, None], weight.reshape(t.units, -1)], axis=1)
    columns = torch.from_numpy(order[kept]).to(m.weight.device)
    there = as_float64(m.weight[:, columns]).numpy().reshape(m.units, -1)
    mother_bias = np.zeros(m.units) if m.bias is None else as_float64(m.bias).numpy()
    candidates = np.concatenate([mother_bias[:, None], there], axis=1)
    return theta, (theta != 0).astype(np.float64), candidates


def _hidden_layer(
    theta: Array, places: Array, candidates: Array, free: NDArray[np.int64] | None, scaling: str
) -> tuple[NDArray[np.int64], Array]:
    """(mother neuron or -1, lambda) for each target neuron; `free` is a random order of the mother's
    neurons, or None for the best match."""
    length = np.linalg.norm(theta, axis=1)
    if free is None:
        found = match_neurons(torch.from_numpy(theta), torch.from_numpy(candidates))
        chosen, product, norm, aligned = (t.numpy() for t in found)
    else:
        chosen = np.where(length > 0, free[: len(theta)], -1)
        norm = np.linalg.norm(places * candidates[chosen], axis=1)
        product, aligned = np.zeros(len(theta)), np.zeros(len(theta), dtype=bool)
    lambdas = np.ones(len(theta))
    for i in np.flatnonzero(length):
        if aligned[i] and scaling == "paper":
            lambdas[i] = product[i] / norm[i] ** 2
        else:
            lambdas[i] = _norm_ratio(length[i], norm[i], candidates)
    return chosen, lambdas


def _norm_ratio(length: float, norm: float, candidates: Array) -> float:
    """|theta| / |m|; where m is zero (biases of an init without any), the mother's typical entry serves."""
    typical = norm if norm > 0 else float(np.sqrt(np.mean(candidates**2)))
    return float(length / typical) if typical > 0 else 1.0


def _output_layer(theta: Array, places: Array, candidates: Array) -> tuple[NDArray[np.int64], Array]:
    """Outputs stay in place and share lambda = |theta| / |m| over the planted places (1 without any)."""
    length = float(np.linalg.norm(theta))
    ratio = _norm_ratio(length, float(np.linalg.norm(places * candidates)), candidates) if length else 1.0
    return np.arange(len(theta)), np.full(len(theta), ratio)


def _written(
    m: Layer, theta: Array, chosen: NDArray[np.int64], lambdas: Array, order: NDArray[np.int64]
) -> LayerMatch:
    planted, columns = chosen >= 0, order[order >= 0]
    values = theta[planted] / lambdas[planted][:, None]
    weight = values[:, 1:].reshape(len(values), len(columns), m.weight.shape[2])
    return LayerMatch(m.name, chosen[planted], columns, weight, values[:, 0])
