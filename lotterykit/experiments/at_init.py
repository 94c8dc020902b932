"""Pruning at initialisation: score, prune, train; or train a little before each of several shots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lotterykit.errors import ArgumentError
from lotterykit.experiments.imp import FINAL, outcome, plain
from lotterykit.experiments.search_spec import ONLY
from lotterykit.experiments.searches import Search
from lotterykit.experiments.setup import Setup
from lotterykit.experiments.ticket import INIT, Ticket
from lotterykit.experiments.trainings import Training
from lotterykit.mask import Masks
from lotterykit.nn.convert import convert_
from lotterykit.pruning.prune import DEFAULT_ROUNDS, Pruner
from lotterykit.pruning.schedules import density_after
from lotterykit.pruning.scores import LossFn, ScoreFn
from lotterykit.training.recipe import Recipe, Split, batch_order, loss_value
from lotterykit.training.source import LoaderSource

SCORELESS = ("random", "magnitude")  # O(1) in Table 1, where Smart-Ratio, which is "random", stands


@dataclass(frozen=True)
class AtInit:
    """Prune by the scores of `method` (a name or a callable) to `density`, then train by `recipe`.

    `shots` > 0 (Plant 'n' Seek, Fig. 4): so often train `shot_epochs` epochs at a constant rate and prune to
    density^(shot / shots), then go back to the init with a fresh optimizer (`reset` "init"), never, or after
    each shot but the last ("not-last"). `rounds`: scorings within a shot. `options` are those of
    `lk.prune_`: scope, invert, allocation ... The ticket's "epochs" are those that finding it took, counted
    as in Rare Gems, Table 1: one for the scoring of a shot, however many its rounds and examples, none for
    scores that compute nothing (`SCORELESS`), and the training of the shots. Raises `ArgumentError`.
    """

    method: str | ScoreFn
    density: float
    recipe: Recipe
    setup: Setup
    steps: int | None = None
    shots: int = 0
    shot_epochs: int = 5
    reset: str = "init"
    rounds: int | None = None
    samples: int = 10
    seed: int = 0
    options: Mapping[str, Any] | None = None

    def search(self, state: Mapping[str, Tensor], *, recipe: Mapping[str, Any] | None = None) -> Search:
        """The search from a network's `state` at init; `recipe` goes into the ticket."""
        start, taken = dict(state), 0.0
        masks = Masks.from_model(self.setup.build()).weights()
        rounds: list[dict[str, Any]] = []
        short = replace(self.recipe, epochs=self.shot_epochs, schedule="constant", milestones=(), warmup=0)
        for shot in range(1, max(1, self.shots) + 1):
            if self.shots:
                trained = yield Training(start, masks, short, self.seed)
                start, taken = trained.state, taken + self.shot_epochs
            density = density_after("exponential", end=self.density, round=shot, rounds=max(1, self.shots))
            masks, found = self.pruned(start, masks if shot > 1 else None, density)
            taken += 0 if self.method in SCORELESS else 1
            rounds += [row | {"shot": shot} for row in found]
            if self.reset == "init" or (self.reset == "not-last" and shot < self.shots):
                start = dict(state)
        strong = yield Training(start, masks, self.recipe, self.seed, last=0)
        trained = yield Training(start, masks, self.recipe, self.seed, last=self.steps)
        results = {
            "density": masks.density(),
            "rounds": rounds,
            "empty_layers": rounds[-1]["empty_layers"],
            "no_live_path": rounds[-1]["no_live_path"],
            "epochs": taken,
            "untrained": plain(strong.metrics),
            **outcome(trained),
        }
        snapshots = {INIT: dict(state), FINAL: trained.state}
        if self.shots and self.reset != "init":
            snapshots["start"] = dict(start)
        return Ticket(masks, snapshots, dict(recipe or {}), results)

    def pruned(
        self, state: Mapping[str, Tensor], masks: Masks | None = None, density: float | None = None
    ) -> tuple[Masks, list[dict[str, Any]]]:
        """The masks that one shot to `density` leaves of those there were, and what its last round left."""
        model = self.setup.build()
        model.load_state_dict(state)
        density = self.density if density is None else density
        rounds = self.rounds
        if rounds is None:
            rounds = DEFAULT_ROUNDS.get(self.method, 1) if isinstance(self.method, str) else 1
        if masks is not None:
            convert_(model, masks=masks)
        data = scoring_batches(self.setup, self.samples if self._reads_data() else 0, self.seed)
        pruner = Pruner(
            model, self.method, density=density, rounds=rounds, data=data, loss_fn=loss_of(self.recipe),
            seed=self.seed, **(self.options or {}),
        )  # fmt: skip
        found = pruner.run()
        rows = [
            {"density": r.density, "empty_layers": list(r.empty_layers), "no_live_path": r.no_live_path}
            for r in pruner.history[-1:]
        ]
        return found, rows

    def _reads_data(self) -> bool:
        return not isinstance(self.method, str) or self.method in ONLY["samples"]


def loss_of(recipe: Recipe) -> LossFn:
    """The recipe's loss as pruning takes it."""
    return lambda output, y: loss_value(output, y, recipe.loss)


def scoring_batches(setup: Setup, samples: int, seed: int) -> Iterable[tuple[Tensor, Tensor]]:
    """One batch of `samples` training examples of each class, in an order drawn by `seed`; of targets that
    are values, ten times as many examples; of loaders, the first batch that a training with `seed` reads.
    With `samples` 0, for methods that want to know the shape alone, one example.

    Raises `ArgumentError` where a class has fewer.
    """
    if not isinstance(setup.data, Split):
        with torch.random.fork_rng([]):  # which a loader that shuffles draws from
            return [next(LoaderSource(setup.data, seed, None).epoch(0, 0))]
    x, y = setup.data.x_train, setup.data.y_train
    order = batch_order(len(x), seed, 0)
    if not samples:
        return [(x[order[:1]], y[order[:1]])]
    if y.is_floating_point():
        taken = order[: 10 * samples]
    else:
        labels = y[order]
        places = [torch.nonzero(labels == c).flatten()[:samples] for c in range(int(y.max()) + 1)]
        if fewest := [c for c, found in enumerate(places) if len(found) < samples]:
            count = len(places[fewest[0]])
            raise ArgumentError(
                f"class {fewest[0]} has {count} training examples, samples asks for {samples}"
            )
        taken = order[torch.cat(places)]
    return [(x[taken], y[taken])]
