"""Sanity checks of a ticket: it and its controls trained alike, and compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import nn

from lotterykit.errors import ArgumentError, check_seed, unknown_name
from lotterykit.experiments.controls import CONTROLS, control
from lotterykit.experiments.imp import FINAL, outcome
from lotterykit.experiments.named import seeded
from lotterykit.experiments.resolved import Resolved, resolve
from lotterykit.experiments.search_spec import SearchSpec
from lotterykit.experiments.searches import Search, run_together
from lotterykit.experiments.ticket import INIT, Ticket
from lotterykit.experiments.trainings import Training
from lotterykit.pruning.allocation import layer_densities
from lotterykit.training.recipe import Split
from lotterykit.training.source import Loaders, Pair

TICKET, INVERT, SMART_RATIO = "ticket", "invert", "smart-ratio"
DEFAULT_KINDS = ("shuffle", "reinit", "random")


@dataclass(frozen=True)
class Check:
    """Results by kind ("ticket" and the controls) and seed, each as `outcome` of `imp` has them."""

    results: Mapping[str, Mapping[int, Mapping[str, Any]]]
    metric: str

    def values(self, kind: str) -> list[float]:
        """The metric of a kind, a value a seed; NaN of a training that diverged."""
        found = [row[self.metric] for row in self.results[kind].values()]
        return [math.nan if value is None else float(value) for value in found]

    def lines(self) -> list[str]:
        """A line a kind: mean, least and greatest value, and how far the ticket's mean lies above it."""
        own = fmean(self.values(TICKET))
        found = []
        for kind in self.results:
            values = self.values(kind)
            gap = "" if kind == TICKET else f"   ticket {own - fmean(values):+.4f}"
            found.append(f"{kind:>20}  {fmean(values):.4f} [{min(values):.4f}, {max(values):.4f}]{gap}")
        return found


def check_ticket(
    ticket: Ticket,
    kinds: Sequence[str] = DEFAULT_KINDS,
    *,
    seeds: int | Sequence[int] = 3,
    rewind: str | None = None,
    build: Callable[[int], nn.Module] | None = None,
    data: Split | Loaders | None = None,
    validation: Pair | None = None,
    folder: Path | None = None,
    progress: Callable[[str, int, Training], None] | None = None,
    **options: Any,
) -> Check:
    """Train the ticket and its controls `kinds` once a seed, as the ticket's recipe says, and compare them.

    Kinds are those of CONTROLS, `options` theirs (`scale=`, `densities=`), "smart-ratio", a random mask of
    these layer densities (Su et al. 2020), and "invert": the same search with the scores' order reversed
    (Rare Gems, sec. 4), for tickets found by scores. A seed decides the order of
    the batches and what a control draws. `rewind`: the point to train from; by default the one that the
    search went back to. `build`, `data`, `validation`, `folder`, `progress` as in `find_ticket`.
    Raises `ArgumentError`.
    """
    one = resolved_of(ticket, build=build, data=data, validation=validation)
    point = rewind or str(ticket.results.get("point", INIT))
    numbers = list(range(seeds)) if isinstance(seeds, int) else [check_seed(seed) for seed in seeds]
    if not numbers:
        raise ArgumentError("seeds must be at least one")
    valid = (*CONTROLS, INVERT, SMART_RATIO)
    if INVERT in kinds and "score" in ticket.recipe:
        raise ArgumentError(
            f"the ticket was found by scores of your own, {ticket.recipe['score']}: search again with "
            "invert=True"
        )
    if unknown := [kind for kind in kinds if kind not in valid]:
        raise unknown_name("control", unknown[0], valid)
    takes = {CONTROLS[kind].option for kind in kinds if kind in CONTROLS}
    if foreign := [name for name in options if name not in takes]:
        raise ArgumentError(f"none of the controls {', '.join(kinds)} takes {foreign[0]}")
    searches = {
        f"{kind}-{seed}": _search(kind, ticket, one, point, seed, build, options)
        for seed in numbers
        for kind in (TICKET, *dict.fromkeys(kinds))
    }
    found = run_together(searches, one.setup, folder=folder, progress=progress)
    results = {
        kind: {seed: found[f"{kind}-{seed}"].results for seed in numbers}
        for kind in (TICKET, *dict.fromkeys(kinds))
    }
    stops = one.setup.validation is not None and one.recipe.loss == "cross_entropy"
    return Check(
        results, "stop_accuracy" if stops else "accuracy" if one.recipe.loss == "cross_entropy" else "mse"
    )


def _search(
    kind: str,
    ticket: Ticket,
    one: Resolved,
    point: str,
    seed: int,
    build: Callable[[int], nn.Module] | None,
    options: Mapping[str, Any],
) -> Search:
    """The search that trains the ticket, or its control `kind`."""
    if kind == INVERT:
        fields = {"invert": not one.spec.invert, "seed": seed}
        again = SearchSpec(**(one.spec.model_dump() | fields))
        held = one.setup.validation
        return resolve({"": again}, build=build, data=one.setup.data, validation=held)[""].search()
    first = first_of(point, one)
    if kind == TICKET:
        return trained(ticket, one, point, seed, first)
    if kind == SMART_RATIO:
        densities = layer_densities(one.setup.build(), SMART_RATIO, ticket.density())
        shown = control(ticket, "allocation", seed=seed, rewind=point, densities=densities)
    else:
        row = CONTROLS[kind]
        own = {name: value for name, value in options.items() if row.option == name}
        if build is not None and row.draws:
            own["draw"] = lambda seed: seeded(build)(seed).state_dict()
        shown = control(ticket, kind, seed=seed, rewind=point, **own)
    return trained(shown, one, INIT, seed, first)


def retrain(
    ticket: Ticket,
    start: str | None = None,
    *,
    seed: int = 0,
    folder: Path | None = None,
    progress: Callable[[str, int, Training], None] | None = None,
    **changes: Any,
) -> Ticket:
    """The ticket trained again from the rewind point `start` (None: the search's), as its recipe says but for
    `changes` of the spec's fields (steps, lr, data ...), which its recipe then names under `retrained`.

    Raises `ArgumentError`, also where `steps` end before the rewind point."""
    one = resolved_of(ticket, changes)
    point = start or str(ticket.results.get("point", INIT))
    record = {"start": point, "seed": check_seed(seed), **changes}
    told = replace(ticket, recipe={**ticket.recipe, "retrained": record})
    search = trained(told, one, point, seed, first_of(point, one))
    return run_together({"train": search}, one.setup, folder=folder, progress=progress)["train"]


def trained(ticket: Ticket, one: Resolved, point: str, seed: int, first: int = 0) -> Search:
    """The search that only trains: a ticket from one of its points, its schedule from step `first`."""
    start = ticket.rewind(point)
    done = yield Training(start, ticket.masks, one.recipe, seed, first, one.steps)
    results = {"density": ticket.density(), "point": point, **outcome(done)}
    return Ticket(ticket.masks, {**ticket.snapshots, FINAL: done.state}, ticket.recipe, results)


def first_of(point: str, one: Resolved) -> int:
    """The step that a rewind point stands at. Raises `ArgumentError` where the training ends before."""
    number, unit = point[:-2], point[-2:]
    if unit not in ("it", "ep") or not number.isdecimal():
        return 0
    first = int(number) * (one.per_epoch if unit == "ep" else 1)
    if first >= one.steps:
        raise ArgumentError(
            f"rewind point {point!r} stands at step {first}: steps must be more, got {one.steps}"
        )
    return first


def resolved_of(
    ticket: Ticket,
    changes: Mapping[str, Any] | None = None,
    *,
    build: Callable[[int], nn.Module] | None = None,
    data: Split | Loaders | None = None,
    validation: Pair | None = None,
) -> Resolved:
    """The search that found a ticket, with some fields changed. Raises `ArgumentError` where the ticket does
    not say, or its network is another than the spec's now."""
    fields = ticket.recipe.get("search")
    if not isinstance(fields, Mapping):
        raise ArgumentError("the ticket does not say how it was found (no 'search' in its recipe)")
    spec = SearchSpec(**(dict(fields) | dict(changes or {})))
    one = resolve({"": spec}, build=build, data=data, validation=validation)[""]
    ticket.apply_(one.setup.build())  # raises where it does not fit
    return one
