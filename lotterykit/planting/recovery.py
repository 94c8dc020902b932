"""How much of a planted ticket a found mask holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lotterykit.errors import ArgumentError
from lotterykit.mask import Masks
from lotterykit.planting.plant import Planted

Links = list[NDArray[np.float64]]  # one [out, in, K] of 0 / 1 a layer


@dataclass(frozen=True)
class Overlap:
    """Two sets of weights compared; all in [0, 1], never NaN.

    `precision`: share of the found weights that are planted; `recall`: share of the planted that are
    found; `iou`: intersection over union. Nothing found where something is planted scores 0 three times (a
    collapsed mask must not look precise); something found where nothing is planted has precision 0, recall
    1, iou 0; nothing on both sides agrees: 1.
    """

    precision: float
    recall: float
    iou: float

    @classmethod
    def of(cls, found: int, planted: int, both: int) -> Overlap:
        """From the number of found, planted and common weights."""
        union = found + planted - both
        return cls(
            precision=both / found if found else float(planted == 0),
            recall=both / planted if planted else 1.0,
            iou=both / union if union else 1.0,
        )

    def as_dict(self) -> dict[str, float]:
        """The three numbers by name."""
        return {"precision": self.precision, "recall": self.recall, "iou": self.iou}


@dataclass(frozen=True)
class Recovery(Overlap):
    """An `Overlap` over all layers, with `per_layer` (parameter name -> Overlap) and `live` (of the weights
    that lie on a live path from an input to an output, on both sides)."""

    per_layer: dict[str, Overlap]
    live: Overlap

    def as_dict(self) -> dict[str, Any]:
        """Nested plain dicts that JSON can hold."""
        layers = {name: overlap.as_dict() for name, overlap in self.per_layer.items()}
        return {**super().as_dict(), "live": self.live.as_dict(), "per_layer": layers}


def recovery(
    found: Masks,
    planted: Planted | Masks,
    *,
    up_to_permutation: bool = False,
    live: tuple[Masks, Masks] | None = None,
) -> Recovery:
    """Compare a found mask with the planted ticket, over the weights that both have; biases do not count.

    With `up_to_permutation` the hidden units of `found` may first be renumbered, for tickets found in
    another network; the renumbering is a local optimum, so the result is a lower bound (it needs scipy).
    `live`: the `Masks.live` of both, where they are known already.
    Raises `ArgumentError` where they share no weight, or shapes differ.
    """
    truth = planted.ticket if isinstance(planted, Planted) else planted
    if not isinstance(found, Masks) or not isinstance(truth, Masks):
        raise ArgumentError(
            f"recovery compares Masks, got {type(found).__name__} and {type(planted).__name__}"
        )
    ours, theirs = _common(found, truth), _common(truth, found)
    if not ours:
        raise ArgumentError(f"no weight in common: found has {list(found)}, the ticket {list(truth)}")
    if up_to_permutation and live is not None:
        raise ArgumentError("live is of masks as they are: it does not go with up_to_permutation")
    for name, mask in ours.items():
        if mask.shape != theirs[name].shape:
            raise ArgumentError(f"{name}: found {tuple(mask.shape)}, planted {tuple(theirs[name].shape)}")
    if up_to_permutation:
        ours = permute_to(ours, theirs)
    per_layer = {name: Overlap.of(*_counts(mask, theirs[name])) for name, mask in ours.items()}
    overall = _total(ours, theirs)
    alive = _total(*(live if live is not None else (ours.live(), theirs.live())))
    return Recovery(overall.precision, overall.recall, overall.iou, per_layer, alive)


def _common(masks: Masks, others: Masks) -> Masks:
    return Masks({name: mask.cpu() for name, mask in masks.weights().items() if name in others})


def _counts(found: Tensor, planted: Tensor) -> tuple[int, int, int]:
    a, b = found.numpy(), planted.numpy()  # counted ten times faster than a bool tensor is summed
    return int(np.count_nonzero(a)), int(np.count_nonzero(b)), int(np.count_nonzero(a & b))


def _total(found: Mapping[str, Tensor], planted: Mapping[str, Tensor]) -> Overlap:
    counts = [_counts(mask, planted[name]) for name, mask in found.items()]
    return Overlap.of(*(sum(column) for column in zip(*counts, strict=True)))


def permute_to(found: Masks, truth: Masks) -> Masks:
    """`found` with its hidden units renumbered so that it shares as many weights with `truth` as we can
    reach: from several starts, the best assignment of one hidden layer at a time, until no layer gains.

    Both hold the weight masks of one chain, in order. Raises `ArgumentError` where the shapes are none.
    """
    f, t = _links(found), _links(truth)
    identity = [np.arange(link.shape[0]) for link in f]
    starts = [identity, _sweep(f, t), _by_paths(f, t)]
    best = max((_ascend(f, t, start) for start in starts), key=lambda order: _shared(f, t, order))
    permuted = {}
    for i, (name, mask) in enumerate(found.items()):
        link = _reordered(f, best, i)
        permuted[name] = torch.from_numpy(link.reshape(mask.shape) > 0)
    return Masks(permuted)


def _links(masks: Masks) -> Links:
    links: Links = []
    for name, mask in masks.items():
        units = links[-1].shape[0] if links else mask.shape[1]
        if mask.shape[1] % units:
            raise ArgumentError(
                f"{name} reads {mask.shape[1]} inputs, the layer before has {units} units: no chain"
            )
        links.append(mask.numpy().astype(np.float64).reshape(mask.shape[0], units, -1))
    return links


def _reordered(links: Links, order: list[NDArray[np.intp]], i: int) -> NDArray[np.float64]:
    """Layer i with its units and inputs renumbered: `order[l][new] = old`."""
    rows = links[i][order[i]]
    return rows[:, order[i - 1]] if i else rows


def _shared(f: Links, t: Links, order: list[NDArray[np.intp]]) -> float:
    return float(sum((_reordered(f, order, i) * t[i]).sum() for i in range(len(t))))


def _assign(gain: NDArray[np.float64]) -> NDArray[np.intp]:
    """`order[new] = old` that maximises the sum of `gain[new, old]`."""
    from scipy.optimize import linear_sum_assignment

    columns: NDArray[np.intp] = linear_sum_assignment(gain, maximize=True)[1]
    return columns


def _incoming(f: Links, t: Links, order: list[NDArray[np.intp]], i: int) -> NDArray[np.float64]:
    """Weights shared by truth unit and found unit of layer i, on the input side `[new, old]`."""
    inputs = f[i][:, order[i - 1]] if i else f[i]
    gain: NDArray[np.float64] = t[i].reshape(len(t[i]), -1) @ inputs.reshape(len(inputs), -1).T
    return gain


def _outgoing(f: Links, t: Links, order: list[NDArray[np.intp]], i: int) -> NDArray[np.float64]:
    """The same on the output side."""
    outputs = f[i + 1][order[i + 1]]
    gain: NDArray[np.float64] = np.einsum("oik,ojk->ij", t[i + 1], outputs, optimize=True)
    return gain


def _sweep(f: Links, t: Links) -> list[NDArray[np.intp]]:
    """A start: match from the input on, by incoming weights alone."""
    order = [np.arange(link.shape[0]) for link in f]
    for i in range(len(t) - 1):
        order[i] = _assign(_incoming(f, t, order, i))
    return order


def _by_paths(f: Links, t: Links) -> list[NDArray[np.intp]]:
    """A start: match units with alike numbers of paths from each input and to each output, which no
    renumbering changes."""
    order = [np.arange(link.shape[0]) for link in f]
    for i, (a, b) in enumerate(zip(_path_counts(t), _path_counts(f), strict=True)):
        distance = np.abs(a[:, None, :] - b[None, :, :]).sum(-1)
        order[i] = _assign(-distance)
    return order


def _path_counts(links: Links) -> Links:
    """Per hidden layer `[units, inputs + outputs]`: log(1 + paths from each input, to each output)."""
    flat = [link.sum(2) for link in links]
    forward, backward = [flat[0]], [flat[-1]]
    for link in flat[1:-1]:
        forward.append(link @ forward[-1])
        backward.append(backward[-1] @ flat[-1 - len(backward)])
    return [
        np.log1p(np.concatenate([from_inputs, to_outputs.T], axis=1))
        for from_inputs, to_outputs in zip(forward, reversed(backward), strict=True)
    ]


def _ascend(f: Links, t: Links, start: list[NDArray[np.intp]]) -> list[NDArray[np.intp]]:
    """Renumber one hidden layer at a time, the others fixed, until a round over all gains nothing."""
    order, shared, before = list(start), _shared(f, t, start), -1.0
    while shared > before:
        before = shared
        for i in range(len(t) - 1):
            gain = _incoming(f, t, order, i) + _outgoing(f, t, order, i)
            order[i] = _assign(gain)
        shared = _shared(f, t, order)
    return order
