"""`Resolved`: a `SearchSpec` with its names looked up, and the search that it describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lotterykit import __version__
from lotterykit.data.images import DATASETS
from lotterykit.experiments.at_init import AtInit
from lotterykit.experiments.imp import IMP
from lotterykit.experiments.named import (
    init_of,
    network_of,
    paper_of,
    seeded,
    setup_of,
    state_of,
    training_of,
)
from lotterykit.experiments.paper_recipe import PaperRecipe
from lotterykit.experiments.score_search import ScoreSearch
from lotterykit.experiments.search_spec import SCORE_TRAINED, SearchSpec
from lotterykit.experiments.searches import Search
from lotterykit.experiments.setup import Setup
from lotterykit.experiments.ticket import Ticket
from lotterykit.mask import Masks
from lotterykit.pruning.scores import ScoreFn
from lotterykit.training.recipe import Recipe, Split
from lotterykit.training.scored import ScoreTraining
from lotterykit.training.source import Loaders, Pair

SCORE_EPOCHS = 150  # Rare Gems, sec. 4, of edge-popup and Gem-Miner
EDGE_POPUP_DECAY = 5e-4  # Ramanujan et al. 2020; Rare Gems, Table 3


@dataclass(frozen=True)
class Resolved:
    """A spec with its names looked up: what it trains, on what, how long; `named`: its network is of ours;
    `score`: scores in place of those of the spec's method."""

    spec: SearchSpec
    setup: Setup
    paper: PaperRecipe
    recipe: Recipe
    steps: int
    state: dict[str, Tensor]
    named: bool
    score: ScoreFn | None = None

    @property
    def per_epoch(self) -> int:
        """Steps an epoch takes."""
        return self.setup.steps_per_epoch(self.recipe)

    def search(self, *, on_level: Callable[[int, Ticket], None] | None = None) -> Search:
        """The search that the spec describes."""
        spec, told = self.spec, self.told()
        names = list(Masks.from_model(self.setup.build()).weights())
        if spec.method == "imp":
            imp = IMP(
                self.recipe,
                self.fractions(),
                spec.density,
                self.per_epoch,
                self.steps,
                spec.scope or self.paper.scope,
                spec.after,
                spec.rewind_step(self.per_epoch),
                spec.one_shot,
                spec.seed,
            )
            return imp.search(self.state, recipe=told, on_level=on_level)
        if spec.method in SCORE_TRAINED:
            gem = spec.method == "gem-miner"
            decay = (0.0 if gem else EDGE_POPUP_DECAY) if spec.score_decay is None else spec.score_decay
            epochs = SCORE_EPOCHS if spec.score_epochs is None else spec.score_epochs
            own: dict[str, Any] = {"anneal": spec.anneal, "gradual_every": spec.gradual_every}
            scores = ScoreTraining(
                spec.method,
                spec.density,
                spec.scope,
                penalty=spec.penalty,
                **({"freeze_every": spec.freeze_every} if gem else own),
            )
            how = Recipe(
                self.recipe.loss, epochs, spec.score_batch, "sgd", spec.score_lr, momentum=0.9,
                weight_decay=decay, schedule="cosine",
            )  # fmt: skip
            return ScoreSearch(scores, how, self.recipe, self.steps, spec.seed).search(
                self.state, names, recipe=told
            )
        return self.at_init().search(self.state, recipe=told)

    def at_init(self) -> AtInit:
        """How a spec that prunes by scores does so."""
        spec = self.spec
        options = {"scope": spec.scope, "invert": spec.invert, "allocation": spec.allocation}
        return AtInit(
            self.score or spec.method,
            spec.density,
            self.recipe,
            self.setup,
            self.steps,
            spec.shots,
            spec.shot_epochs,
            spec.reset,
            spec.rounds,
            spec.samples,
            spec.seed,
            options,
        )

    def fractions(self) -> dict[str, float]:
        """The share of each weight's remaining entries that a level of imp prunes; what the recipe never
        prunes stays, and layers that are ranked together lose one share."""
        share, together = self.spec.prune_fraction, (self.spec.scope or self.paper.scope) == "global"
        found = self.paper.prune_fractions(self.setup.build())
        if share is None and together:
            share = max(found.values())
        if share is None:
            return found
        last = list(found)[-1]  # the output layer, at half the share (P4)
        return {
            name: 0.0 if not own else share / 2 if name == last and not together else share
            for name, own in found.items()
        }

    def dense_state(self) -> dict[str, Tensor]:
        """The init of the dense network: `state`, but never scaled for a ticket's density."""
        if not self.spec.scaled_init:
            return self.state
        spec = self.spec.model_copy(update={"scaled_init": False})
        return state_of(network_of(spec, self.paper))

    def told(self) -> dict[str, Any]:
        """What a ticket says of how it was found, plain JSON: `search` is the spec."""
        spec, paper = self.spec, self.paper
        told: dict[str, Any] = {"search": spec.set(), "steps": self.steps, "version": __version__}
        told["training"] = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self.recipe).items()}
        if self.score is not None:
            told["score"] = getattr(self.score, "__qualname__", type(self.score).__name__)
        if self.named:
            known = DATASETS[spec.data]
            told |= {"network": spec.net, "input": list(known.shape), "classes": known.classes}
            told |= {"init": init_of(spec, paper), "dropout": paper.dropout}
            told |= {"init_density": spec.density} if spec.scaled_init else {}
        return told


def resolve(
    specs: Mapping[str, SearchSpec],
    *,
    build: Callable[[int], nn.Module] | None = None,
    data: Split | Loaders | None = None,
    validation: Pair | None = None,
) -> dict[str, Resolved]:
    """The specs with their names looked up; those of one network and data set share a `Setup`."""
    setups: dict[object, Setup] = {}
    found = {}
    build = None if build is None else seeded(build)
    for name, spec in specs.items():
        paper = paper_of(spec, build is not None)
        key = (spec.net, spec.data, spec.validation, paper.validation, paper.augment, paper.dropout)
        if key not in setups:
            setups[key] = setup_of(spec, paper, build, data, validation)
        setup = setups[key]
        recipe, steps = training_of(spec, paper, setup)
        model = network_of(spec, paper) if build is None else build(spec.seed)
        found[name] = Resolved(spec, setup, paper, recipe, steps, state_of(model), named=build is None)
    return found
