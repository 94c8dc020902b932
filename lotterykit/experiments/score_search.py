"""Edge-popup (Ramanujan et al. 2020) and Gem-Miner (Rare Gems, Alg. 1): train scores, then the ticket."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lotterykit.experiments.imp import FINAL, outcome, plain
from lotterykit.experiments.searches import Search
from lotterykit.experiments.ticket import INIT, Ticket
from lotterykit.experiments.trainings import Training
from lotterykit.mask import Masks
from lotterykit.training.recipe import Recipe
from lotterykit.training.scored import ScoreTraining


@dataclass(frozen=True)
class ScoreSearch:
    """Train `scores` by `score_recipe`, then the weights they keep by `recipe`, for `steps` steps.

    The untrained subnetwork's metrics are the strong ticket's, those after fine-tuning the weak one's.
    """

    scores: ScoreTraining
    score_recipe: Recipe
    recipe: Recipe
    steps: int | None = None
    seed: int = 0

    def search(
        self, state: Mapping[str, Tensor], names: list[str], *, recipe: Mapping[str, Any] | None = None
    ) -> Search:
        """The search from a network's `state` at init, over the weights `names`; `recipe` goes into the
        ticket."""
        start = dict(state)
        every = Masks({name: torch.ones_like(start[name], dtype=torch.bool) for name in names})
        found = yield Training(start, every, self.score_recipe, self.seed, scores=self.scores)
        masks = Masks({name: found.masks[name] for name in names})
        trained = yield Training(start, masks, self.recipe, self.seed, last=self.steps)
        results = {
            "density": masks.density(),
            "empty_layers": [name for name, (kept, _) in masks.counts().items() if not kept],
            "epochs": float(self.score_recipe.epochs),
            "untrained": plain(found.metrics),
            "score_curve": [plain(row) for row in found.curve],
            **outcome(trained),
        }
        return Ticket(masks, {INIT: start, FINAL: trained.state}, dict(recipe or {}), results)
