"""`find_ticket`: the search that a `SearchSpec` describes, run; its ticket returned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import nn

from lotterykit.errors import ArgumentError
from lotterykit.experiments.resolved import Resolved, resolve
from lotterykit.experiments.search_spec import SCORED, SearchSpec
from lotterykit.experiments.searches import run_together
from lotterykit.experiments.ticket import INIT, Ticket
from lotterykit.experiments.trainings import Training
from lotterykit.pruning.scores import ScoreFn
from lotterykit.training.recipe import Split
from lotterykit.training.source import Loaders, Pair


def find_ticket(
    spec: SearchSpec,
    *,
    build: Callable[[int], nn.Module] | None = None,
    data: Split | Loaders | None = None,
    validation: Pair | None = None,
    score: ScoreFn | None = None,
    folder: Path | None = None,
    progress: Callable[[str, int, Training], None] | None = None,
) -> Ticket:
    """Search for a ticket and train it; the `Ticket` holds masks, the states to rewind to and the results.

    The network and the data are those that `spec` names. `build(seed)` gives any other module with Linear
    and Conv layers, at its init, and may draw from torch's generator, which stands at the seed; `data` other
    data, tensors or loaders, with `validation` for early stopping (loaders bring their own). `score(model,
    batches, loss_fn) -> {name: scores}` scores in place of `spec.method`, which must be a score's; all other
    settings of the spec hold. `folder`: a
    journal from which a search that was interrupted goes on, bitwise; of loaders and score trainings from the
    start of an epoch. `progress(name, number, training)` is called before each training.
    Raises `ArgumentError`.

    >>> find_ticket(SearchSpec(method="imp", density=0.1, data="digits", steps=200))  # doctest: +SKIP
    """
    one = resolve({"": spec}, build=build, data=data, validation=validation)[""]
    if score is not None:
        if spec.method not in SCORED:
            raise ArgumentError(
                f"score stands in for a method that scores, one of {', '.join(SCORED)}, got {spec.method!r}"
            )
        one = replace(one, score=score)
    return run_together({spec.method: one.search()}, one.setup, folder=folder, progress=progress)[spec.method]


def find_tickets(
    specs: Mapping[str, SearchSpec],
    *,
    build: Callable[[int], nn.Module] | None = None,
    data: Split | Loaders | None = None,
    validation: Pair | None = None,
    folder: Path | None = None,
    progress: Callable[[str, int, Training], None] | None = None,
) -> dict[str, Ticket]:
    """`find_ticket` of several specs by name; those of one network on one data set run together."""
    found: dict[str, Ticket] = {}
    resolved = resolve(specs, build=build, data=data, validation=validation)
    groups: dict[int, dict[str, Resolved]] = {}
    for name, one in resolved.items():
        groups.setdefault(id(one.setup), {})[name] = one
    for members in groups.values():
        searches = {name: one.search() for name, one in members.items()}
        found |= run_together(searches, next(iter(members.values())).setup, folder=folder, progress=progress)
    return {name: found[name] for name in specs}


def prune_ticket(
    spec: SearchSpec,
    *,
    build: Callable[[int], nn.Module] | None = None,
    data: Split | Loaders | None = None,
) -> Ticket:
    """Prune a network at its init by the scores of `spec` and train nothing; arguments as in `find_ticket`.

    Raises `ArgumentError`, also for a method that trains in order to prune.
    """
    if spec.method not in SCORED or spec.shots:
        raise ArgumentError(
            f"prune scores once, by one of {', '.join(SCORED)}: "
            f"{f'shots {spec.shots}' if spec.shots else spec.method} trains, use find"
        )
    one = resolve({"": spec}, build=build, data=data)[""]
    masks, rounds = one.at_init().pruned(one.state)
    return Ticket(masks, {INIT: one.state}, one.told(), {"density": masks.density(), "rounds": rounds})
