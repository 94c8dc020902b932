"""Controls of a ticket: what referees train beside it, to see whether its mask or its weights matter.

A control keeps as many weights as the ticket, in every layer ("allocation": in total). It has one snapshot,
"init", made from the rewind point asked for; the ticket's other points belong to another training and are
left out, and so are its results. Its recipe is the ticket's with the record `control` (see `control`).
Score inversion is no control of a ticket but another search.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lotterykit.errors import ArgumentError, unknown_name
from lotterykit.experiments.spec import derive_seed
from lotterykit.experiments.ticket import INIT, Ticket
from lotterykit.mask import Masks
from lotterykit.nn.models import mlp, network
from lotterykit.pruning.allocation import apportioned

Draw = Callable[[int], Mapping[str, Tensor]]  # seed -> state of the dense network at a fresh start


@dataclass(frozen=True)
class Layer:
    """One masked tensor of a ticket as a control sees it: flat, on the CPU, weights in float64.

    `mask`, `weight` (at the rewind point), `init` (at initialisation) and `drawn` (initialised anew; empty
    where the control does not draw): `[n]`. `filter_size`: weights of one output. `count`: how many of the n
    the control keeps. `noise`: standard deviations of the noise, in units of the initialisation's.
    """

    mask: Tensor
    weight: Tensor
    init: Tensor
    drawn: Tensor
    filter_size: int
    count: int
    noise: float
    generator: torch.Generator

    @property
    def kept(self) -> Tensor:
        """The kept weights, in order."""
        return self.weight[self.mask]

    @property
    def std(self) -> float:
        """The standard deviation of the layer's initialisation, over all its weights."""
        # numpy's: the last bits of torch's depend on the number of threads
        return float(self.init.numpy().std()) if len(self.init) else 0.0


def scattered(layer: Layer) -> Tensor:
    """A mask that keeps the layer's count at random places."""
    mask = torch.zeros_like(layer.mask)
    mask[torch.randperm(mask.numel(), generator=layer.generator)[: layer.count]] = True
    return mask


def resampled(layer: Layer) -> Tensor:
    """Kept weights drawn, with repetition, from the kept weights of the layer."""
    kept = layer.kept
    return kept[torch.randint(max(1, len(kept)), (len(kept),), generator=layer.generator)]


def noisy(layer: Layer) -> Tensor:
    """Kept weights with Gaussian noise in proportion to the layer's initialisation."""
    noise = torch.randn(layer.count, generator=layer.generator, dtype=torch.float64)
    return layer.kept + layer.noise * layer.std * noise


def coin_signs(layer: Layer) -> Tensor:
    """Magnitudes stay, signs fall by a fair coin."""
    coin = torch.randint(2, (layer.count,), generator=layer.generator).double()
    return layer.kept.abs() * (coin * 2.0 - 1.0)


def drawn_magnitudes(layer: Layer) -> Tensor:
    """Signs stay, magnitudes are those of a new draw."""
    return layer.drawn[layer.mask].abs().copysign(layer.kept)


def constant_magnitude(layer: Layer) -> Tensor:
    """Signs stay, every magnitude is the standard deviation of the layer's initialisation."""
    return torch.full_like(layer.kept, layer.std).copysign(layer.kept)


def init_signs(layer: Layer) -> Tensor:
    """Magnitudes of the rewind point, signs of the initialisation."""
    return layer.kept.abs().copysign(layer.init[layer.mask])


def init_magnitudes(layer: Layer) -> Tensor:
    """Signs of the rewind point, magnitudes of the initialisation."""
    return layer.init[layer.mask].abs().copysign(layer.kept)


def permuted(layer: Layer, *, filters: bool = False, signs: bool = False) -> Tensor:
    """Kept weights permuted within the layer, or within each filter; with `signs`, among equal signs."""
    kept, places = layer.kept, layer.mask.nonzero().flatten()
    group = places // layer.filter_size if filters else torch.zeros_like(places)
    if signs:
        group = 2 * group + kept.signbit()
    order = torch.randperm(len(kept), generator=layer.generator)
    mixed = kept.clone()
    mixed[group.argsort(stable=True)] = kept[order[group[order].argsort(stable=True)]]
    return mixed


class Control(NamedTuple):
    """How a control is made: a new mask, new values of the kept weights, or, where it draws and names no
    values, all parameters and buffers initialised anew. `option`: the argument that it needs."""

    source: str
    mask: Callable[[Layer], Tensor] | None = None
    weights: Callable[[Layer], Tensor] | None = None
    draws: bool = False
    option: str | None = None
    from_later: bool = False  # is the ticket itself at "init"


def control(
    ticket: Ticket,
    kind: str,
    *,
    seed: int,
    rewind: str = INIT,
    draw: Draw | None = None,
    scale: float | None = None,
    densities: Mapping[str, float] | None = None,
) -> Ticket:
    """The control `kind` of CONTROLS of a ticket, from its rewind point `rewind`; `seed` decides it bitwise.

    `draw`: seed -> a fresh state of the network, for "reinit", "random" and "magnitude"; None for the
    network that the recipe names (see `fresh_state`). `scale`: of "noise", in standard deviations of each
    layer's initialisation (published: .5, 1, 2, 3). `densities`: of "allocation", weight name -> density.
    The recipe records under `control`: `kind`, `seed`, `rewind`, the option, `of` (the ticket's digest),
    `changed` (how many kept weights have another place or value than the ticket's) and `after` (the record
    of a ticket that is a control itself). Raises `ArgumentError`.
    """
    if kind not in CONTROLS:
        raise unknown_name("control", kind, CONTROLS)
    row = CONTROLS[kind]
    _check_options(kind, row, {"draw": draw, "scale": scale, "densities": densities})
    if rewind not in ticket.snapshots:
        raise ArgumentError(f"the ticket has no rewind point {rewind!r}, only {', '.join(ticket.snapshots)}")
    if row.from_later and rewind == INIT:
        raise ArgumentError(f"control {kind!r} needs a later rewind point: at {INIT!r} it is the ticket")
    before = ticket.snapshots[rewind]
    drawn = _drawn(ticket, draw, derive_seed(seed, f"control {kind} draw")) if row.draws else {}
    counts = {name: kept for name, (kept, _) in ticket.masks.counts().items()}
    if densities is not None:
        counts |= allocated_counts(ticket.masks.weights(), densities)
    start = drawn if row.draws and row.weights is None else before
    state = {name: tensor.detach().clone() for name, tensor in start.items()}
    masks, changed = {}, 0
    for name, mask in ticket.masks.items():
        generator = torch.Generator().manual_seed(derive_seed(seed, f"control {kind} {name}"))
        layer = Layer(
            mask.cpu().flatten(),
            _flat(before[name]),
            _flat(ticket.snapshots[INIT][name]),
            _flat(drawn[name]) if drawn else torch.empty(0),
            max(1, mask[:1].numel()),
            counts[name],
            0.0 if scale is None else float(scale),
            generator,
        )
        masks[name] = mask.clone() if row.mask is None else row.mask(layer).view(mask.shape).to(mask.device)
        if row.weights is not None:
            state[name][mask] = row.weights(layer).to(state[name])
        same = mask.cpu() & (state[name] == before[name]).cpu()
        changed += int((masks[name].cpu() & ~same).count_nonzero())
    record: dict[str, Any] = {"kind": kind, "seed": seed, "rewind": rewind, "of": ticket.digest()}
    record |= {"changed": changed}
    record |= {} if scale is None else {"scale": float(scale)}
    record |= {} if densities is None else {"densities": {n: float(d) for n, d in densities.items()}}
    record |= {"after": ticket.recipe["control"]} if "control" in ticket.recipe else {}
    return Ticket(Masks(masks), {INIT: state}, {**ticket.recipe, "control": record})


def fresh_state(recipe: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """A new start of the network of a recipe, from the same distribution, in float64.

    The recipe says `network` (a name of NETWORKS, with `input`, `classes` and `dropout` where they are not
    the network's own; or "mlp" with `widths`), `init` (a name of INITS) and, for a scaled initialisation,
    `init_density`. Raises `ArgumentError` where it does not.
    """
    if lacking := [key for key in ("network", "init") if not isinstance(recipe.get(key), str)]:
        raise ArgumentError(
            f"the ticket's recipe names no {' and no '.join(lacking)} to draw weights from; "
            "give draw=, a function seed -> state dict"
        )
    named = {"init": recipe["init"], "density": recipe.get("init_density", 1.0)}
    if recipe["network"] == "mlp":
        model = mlp(recipe.get("widths", ()), **named, seed=seed, dtype=torch.float64)
        return dict(model.state_dict())
    form = {key: recipe[key] for key in ("input", "classes", "dropout") if key in recipe}
    return dict(network(recipe["network"], **form, **named, seed=seed, dtype=torch.float64).state_dict())


def allocated_counts(masks: Masks, densities: Mapping[str, float]) -> dict[str, int]:
    """Kept counts at these layer densities, as many in total as `masks` keeps: `apportioned`.

    Raises `ArgumentError` where the densities are for another total or network.
    """
    if set(densities) != set(masks):
        raise ArgumentError(f"densities must name the weights {', '.join(masks)}, got {', '.join(densities)}")
    for name, density in densities.items():
        if isinstance(density, bool) or not isinstance(density, int | float) or not 0.0 <= density <= 1.0:
            raise ArgumentError(f"density of {name!r} must be a number in [0, 1], got {density!r}")
    sizes = {name: mask.numel() for name, mask in masks.items()}
    shares = {name: float(densities[name]) * size for name, size in sizes.items()}
    kept = sum(k for k, _ in masks.counts().values())
    counts = apportioned(shares, sizes, kept)
    if sum(counts.values()) != kept:
        raise ArgumentError(
            f"the densities keep {round(sum(shares.values()))} weights, the ticket {kept}: allocate for its "
            "density"
        )
    return counts


def _check_options(kind: str, row: Control, options: Mapping[str, object]) -> None:
    """Raises `ArgumentError` for an option that `kind` lacks or does not know, and for a bad scale."""
    for name, value in options.items():
        known = row.draws if name == "draw" else row.option == name
        if value is not None and not known:
            kinds = [k for k, r in CONTROLS.items() if (r.draws if name == "draw" else r.option == name)]
            raise ArgumentError(f"control {kind!r} takes no {name}; it is of {', '.join(kinds)}")
    if row.option is not None and options[row.option] is None:
        raise ArgumentError(f"control {kind!r} needs {row.option}=")
    scale, densities, draw = options["scale"], options["densities"], options["draw"]
    if scale is not None:
        number = isinstance(scale, int | float) and not isinstance(scale, bool)
        if not number or not 0.0 < scale < math.inf:  # type: ignore[operator]
            raise ArgumentError(f"scale must be a finite number above 0, got {scale!r}")
    if densities is not None and not isinstance(densities, Mapping):
        raise ArgumentError(f"densities must map weight names to numbers, got {type(densities).__name__}")
    if draw is not None and not callable(draw):
        raise ArgumentError(f"draw must be a function seed -> state dict, got {type(draw).__name__}")


def _drawn(ticket: Ticket, draw: Draw | None, seed: int) -> dict[str, Tensor]:
    """A fresh state in the dtypes of the ticket's own; raises `ArgumentError` unless it fits, and differs."""
    own = ticket.snapshots[INIT]
    found = fresh_state(ticket.recipe, seed) if draw is None else draw(seed)
    if not isinstance(found, Mapping) or not all(isinstance(t, Tensor) for t in found.values()):
        raise ArgumentError(f"draw must return a state dict of tensors, got {type(found).__name__}")
    found = {n: t for n, t in found.items() if n.rpartition(".")[2] not in ("weight_mask", "bias_mask")}
    wrong = [f"it lacks {name}" for name in own if name not in found]
    wrong += [f"the ticket has no {name}" for name in found if name not in own]
    wrong += [
        f"{name} is {list(found[name].shape)}, the ticket's {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if wrong:
        raise ArgumentError(f"the weights drawn anew are of another network: {'; '.join(wrong[:3])}")
    state = {name: found[name].detach().to(tensor) for name, tensor in own.items()}
    if all(torch.equal(state[name], own[name]) for name in ticket.masks):
        raise ArgumentError("the weights drawn anew are the ticket's own: the draw must depend on its seed")
    return state


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().flatten().double()


_P1, _P2 = "survey, early phase (Frankle et al. 2020b)", "Rare Gems, sec. 4"
_ZHOU = "survey, mask-1 actions (Zhou et al. 2019)"

CONTROLS: dict[str, Control] = {
    "shuffle": Control(_P2, mask=scattered),
    "reinit": Control(f"The Lottery Ticket Hypothesis, sec. 2; {_P2}", draws=True),
    "random": Control("The Lottery Ticket Hypothesis, E; Su et al. 2020", mask=scattered, draws=True),
    "allocation": Control("Su et al. 2020", mask=scattered, option="densities"),
    "ticket-distribution": Control("The Lottery Ticket Hypothesis, F.3", weights=resampled),
    "noise": Control("The Lottery Ticket Hypothesis, F.7", weights=noisy, option="scale"),
    "sign": Control(_P1, weights=coin_signs),
    "magnitude": Control(_ZHOU, weights=drawn_magnitudes, draws=True),
    "constant": Control(_ZHOU, weights=constant_magnitude),
    "init-sign": Control(_P1, weights=init_signs, from_later=True),
    "init-magnitude": Control(_P1, weights=init_magnitudes, from_later=True),
    "permute": Control(_P1, weights=permuted),
    "permute-filter": Control(_P1, weights=functools.partial(permuted, filters=True)),
    "permute-sign": Control(_P1, weights=functools.partial(permuted, signs=True)),
    "permute-filter-sign": Control(_P1, weights=functools.partial(permuted, filters=True, signs=True)),
}
