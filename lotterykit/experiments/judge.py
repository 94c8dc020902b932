"""`judge`: all the trainings that a verdict on a method needs, over learning rates and seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lotterykit.errors import ArgumentError, unknown_name
from lotterykit.experiments.check import trained
from lotterykit.experiments.controls import control
from lotterykit.experiments.imp import FINAL
from lotterykit.experiments.narrow import narrowed
from lotterykit.experiments.resolved import Resolved, resolve
from lotterykit.experiments.search_spec import SearchSpec
from lotterykit.experiments.searches import Search, run_together
from lotterykit.experiments.setup import Setup
from lotterykit.experiments.small_dense import small_dense_widths
from lotterykit.experiments.ticket import INIT, Ticket
from lotterykit.experiments.trainings import Training
from lotterykit.experiments.verdict import ARMS, ONE_SHOT, SIMILAR, Verdict, correlation_indicator, verdict
from lotterykit.mask import Masks
from lotterykit.nn.init import INITS

TOP = 0.1  # of R_p: the share of the kept weights that counts as large (sec. 3.1)
TRAINS_ON = ("learning-rate", "fine-tune")


@dataclass(frozen=True)
class Judged:
    """A verdict, and the results it rests on: arm -> learning rate -> a row a seed, as `outcome` of `imp`
    has them; `tickets` by learning rate and seed; `density` of the tickets. `correlation`: R_p of the
    weights before and after training, arm ("ticket", "reinit") -> learning rate -> a value a seed, None where
    a training diverged or the weights are too few."""

    verdict: Verdict
    rows: Mapping[str, Mapping[float, Sequence[Mapping[str, Any]]]]
    tickets: Mapping[tuple[float, int], Ticket]
    density: float
    correlation: Mapping[str, Mapping[float, Sequence[float | None]]]

    def lines(self) -> list[str]:
        """Those of the verdict, and R_p: a mean a learning rate, of the ticket and of the reinitialised."""
        return [*self.verdict.lines(), *(_correlated(arm, by) for arm, by in self.correlation.items())]


def judge(
    spec: SearchSpec,
    rates: Sequence[float],
    *,
    seeds: int = 3,
    one_shot: bool = True,
    folder: Path | None = None,
    progress: Callable[[str, int, Training], None] | None = None,
) -> Judged:
    """Whether the method of `spec` finds a jackpot, a secondary prize or no ticket (Sanity Checks for Lottery
    Tickets, sec. 2.2).

    At each learning rate and seed: the search of `spec`, which trains the ticket it finds; the ticket's mask
    with weights initialised anew; the dense network; a dense network of the ticket's number of weights; for
    imp, unless `one_shot` is False, the ticket of one-shot magnitude pruning. All train by the spec's recipe
    and for as many steps, a rewound ticket's first ones within the dense network: what a ticket's weights
    were trained before would count in its favour. The accuracies are those after training.
    The density is that of the ticket that keeps most, and so is the size of the small dense network.
    Raises `ArgumentError`, before anything is trained: for fewer than 3 seeds or 2 rates, which decide
    nothing, and for tickets that hold trained weights (`after` learning-rate or fine-tune, shots not reset).
    """
    if len(set(rates)) != len(rates) or len(rates) < 2 or seeds < 3:
        raise ArgumentError(
            f"a verdict needs at least 2 different learning rates and 3 seeds, got {list(rates)} and {seeds}"
        )
    if wrong := [lr for lr in rates if not 0 < lr < math.inf]:
        raise ArgumentError(f"learning rates must be finite numbers above 0, got {wrong[0]!r}")
    if spec.data not in SIMILAR:
        raise unknown_name("data set", spec.data, SIMILAR)
    _check_reset(spec)
    specs = {_key(lr, seed): SearchSpec(**(spec.model_dump() | {"lr": lr, "seed": seed}))
             for lr in rates for seed in range(seeds)}  # fmt: skip
    resolved = resolve(specs)
    setup = next(iter(resolved.values())).setup
    _narrowed(setup, None)
    searches = {key: one.search() for key, one in resolved.items()}
    if one_shot and spec.method == "imp" and not spec.one_shot:
        searches |= {f"{ONE_SHOT}-{key}": _one_shot(one).search() for key, one in resolved.items()}
    found = run_together(searches, setup, folder=folder, progress=progress)
    every: dict[str, Search] = {}
    for key, one in resolved.items():
        again = control(found[key], "reinit", seed=one.spec.seed, rewind=INIT)
        every[f"reinit-{key}"] = trained(again, one, INIT, one.spec.seed)
        if "levels" not in found[key].results:
            full = Masks({name: torch.ones_like(mask) for name, mask in found[key].masks.items()})
            every[f"dense-{key}"] = trained(Ticket(full, {INIT: one.dense_state()}), one, INIT, one.spec.seed)
    controls = run_together(every, setup, folder=folder, progress=progress)
    tickets = {key: found[key] for key in resolved}
    small = _small_dense(resolved, tickets, setup)
    thin = run_together(small[1], small[0], folder=folder, progress=progress)
    arms = (*ARMS, ONE_SHOT) if len(found) > len(tickets) else ARMS
    rows: dict[str, dict[float, list[Mapping[str, Any]]]] = {arm: {lr: [] for lr in rates} for arm in arms}
    correlation: dict[str, dict[float, list[float | None]]] = {
        arm: {lr: [] for lr in rates} for arm in ("ticket", "reinit")
    }
    for key, one in resolved.items():
        lr, levels = one.recipe.lr, found[key].results.get("levels")
        rows["ticket"][lr].append(found[key].results)
        rows["reinit"][lr].append(controls[f"reinit-{key}"].results)
        rows["dense"][lr].append(levels[0] if levels else controls[f"dense-{key}"].results)
        rows["small-dense"][lr].append(thin[f"small-dense-{key}"].results)
        if ONE_SHOT in rows:
            rows[ONE_SHOT][lr].append(found[f"{ONE_SHOT}-{key}"].results)
        correlation["ticket"][lr].append(_indicator(found[key]))
        correlation["reinit"][lr].append(_indicator(controls[f"reinit-{key}"]))
    first = next(iter(resolved.values()))
    accuracies = {
        arm: {lr: [row["accuracy"] for row in of] for lr, of in by.items()} for arm, by in rows.items()
    }
    density = max(ticket.density() for ticket in tickets.values())
    decided = verdict(accuracies, density=density, epochs=first.steps / first.per_epoch, data=spec.data)
    by_rate = {(one.recipe.lr, one.spec.seed): found[key] for key, one in resolved.items()}
    return Judged(decided, rows, by_rate, density, correlation)


def _check_reset(spec: SearchSpec) -> None:
    """Raises `ArgumentError` where the tickets' weights come of more training than the other arms have."""
    wrong = f"after {spec.after!r}" if spec.method == "imp" and spec.after in TRAINS_ON else ""
    if spec.shots and spec.reset != "init":
        wrong = f"reset {spec.reset!r}"
    if wrong:
        raise ArgumentError(
            f"a verdict trains all arms equally long, a ticket from its init (Sanity Checks, sec. 2.2): with "
            f"{wrong} its weights have been trained before; give after 'rewind' or 'continue', reset 'init'"
        )


def _one_shot(one: Resolved) -> Resolved:
    return replace(one, spec=one.spec.model_copy(update={"one_shot": True}))


def _indicator(ticket: Ticket) -> float | None:
    """R_p of a ticket's weights before and after its training."""
    kept = sum(count for count, _ in ticket.masks.weights().counts().values())
    before, after = ticket.snapshots[INIT], ticket.snapshots[FINAL]
    if not round(TOP * kept) or any(bool(after[name].isnan().any()) for name in ticket.masks):
        return None
    return correlation_indicator(before, after, ticket.masks, TOP)


def _correlated(arm: str, by_rate: Mapping[float, Sequence[float | None]]) -> str:
    """A line of R_p: its mean at each learning rate."""
    means = []
    for lr, values in by_rate.items():
        there = [value for value in values if value is not None]
        means.append(f"{sum(there) / len(there):.3f} at lr {lr:g}" if there else f"none at lr {lr:g}")
    return f"R_p of {arm}, before and after training (p = {TOP:g}; unrelated: {TOP:g}): {', '.join(means)}"


def _key(lr: float, seed: int) -> str:
    return f"{float(lr)!r}-{seed}".replace(".0-", "-")  # all digits: rates that are close are two


def _small_dense(
    resolved: Mapping[str, Resolved], found: Mapping[str, Ticket], setup: Setup
) -> tuple[Setup, dict[str, Search]]:
    """The small-dense network and its trainings, from inits of the recipe's distribution."""
    first = next(iter(resolved.values()))
    most = max(sum(count for count, _ in ticket.masks.counts().values()) for ticket in found.values())

    def build() -> torch.nn.Module:
        return _narrowed(setup, most)

    searches = {}
    for key, one in resolved.items():
        state = _initialised(build(), str(first.told()["init"]), one.spec.seed)
        every = Masks.from_model(build()).weights()
        searches[f"small-dense-{key}"] = trained(Ticket(every, {INIT: state}), one, INIT, one.spec.seed)
    return replace(setup, build=build), searches


def _narrowed(setup: Setup, kept: int | None) -> torch.nn.Module:
    """The network with the widths of `kept` weights, all of them for None; raises `ArgumentError` where it
    is no chain."""
    model = setup.build()
    shapes = [tuple(mask.shape) for mask in Masks.from_model(model).weights().values()]
    every = sum(math.prod(shape) for shape in shapes)
    with torch.random.fork_rng([]):  # what its layers start from is written over
        return narrowed(model, small_dense_widths(shapes, every if kept is None else kept))


def _initialised(model: torch.nn.Module, init: str, seed: int) -> dict[str, Tensor]:
    """The state of `model` with weights and biases drawn as `init` of INITS says."""
    names = list(Masks.from_model(model).weights())
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    weights, biases = INITS[init]([state[name].shape for name in names], generator)
    for name, weight, bias in zip(names, weights, biases, strict=True):
        state[name].copy_(weight)
        if (own := f"{name.removesuffix('weight')}bias") in state:
            state[own].copy_(bias)
    return state
