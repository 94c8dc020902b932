"""`Resolved`: a `SearchSpec` with its names looked up, and the search that it describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lotterykit import __version__
from lotterykit.data.augment import flip_and_crop
from lotterykit.data.images import DATASETS, load
from lotterykit.errors import ArgumentError, unknown_name
from lotterykit.experiments.at_init import AtInit
from lotterykit.experiments.imp import IMP
from lotterykit.experiments.recipes import PaperRecipe, paper_recipe
from lotterykit.experiments.score_search import ScoreSearch
from lotterykit.experiments.search_spec import SCORE_TRAINED, SearchSpec
from lotterykit.experiments.searches import Search
from lotterykit.experiments.setup import Setup
from lotterykit.experiments.ticket import Ticket
from lotterykit.mask import Masks
from lotterykit.nn.models import NETWORKS
from lotterykit.pruning.scores import ScoreFn
from lotterykit.training.recipe import Recipe, Split
from lotterykit.training.scored import ScoreTraining
from lotterykit.training.source import Loaders, Pair, check_split, check_validation

# The recipe of a network that names none: its paper's
OF_NETWORK = {
    "lenet": "p4/lenet", "conv-2": "p4/conv-2", "conv-4": "p4/conv-4", "conv-6": "p4/conv-6",
    "vgg-16": "p0/vgg-16-ticket", "vgg-16-bn": "p3/vgg-16", "vgg-19-bn": "p4/vgg-19",
    "vgg-19": "p4/vgg-19-low",
    "resnet-20": "p4/resnet-18", "resnet-20-padded": "p2/resnet-20-finetune", "resnet-32": "p3/resnet-32",
    "resnet-32-padded": "p2/resnet-32-finetune", "resnet-32-wide": "p3/resnet-32",
    "resnet-18": "p3/resnet-18", "resnet-50": "p2/resnet-50-finetune",
    "wideresnet-28-2": "p2/wideresnet-28-2-finetune", "mobilenet-v1": "p3/mobilenet-v1",
    "mobilenet-v2": "p2/mobilenet-v2-finetune",
}  # fmt: skip
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
            told |= {"init": _init_of(spec, paper), "dropout": paper.dropout}
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
        paper = _paper_of(spec, build is not None)
        key = (spec.net, spec.data, spec.validation, paper.validation, paper.augment, paper.dropout)
        if key not in setups:
            setups[key] = _setup(spec, paper, build, data, validation)
        setup = setups[key]
        recipe, steps = _training(spec, paper, setup)
        model = _network(spec, paper) if build is None else build(spec.seed)
        state = {n: t.detach().clone() for n, t in model.state_dict().items()}
        found[name] = Resolved(spec, setup, paper, recipe, steps, state, named=build is None)
    return found


def seeded(build: Callable[[int], nn.Module]) -> Callable[[int], nn.Module]:
    """`build` with torch's generator at the seed while it builds, and afterwards as it was: modules that
    initialise themselves as torch does depend on the seed, and on nothing else."""

    def built(seed: int) -> nn.Module:
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            return build(seed)

    return built


def _paper_of(spec: SearchSpec, own: bool) -> PaperRecipe:
    if not own and spec.net not in NETWORKS:
        raise unknown_name("network", spec.net, NETWORKS)
    name = spec.recipe or OF_NETWORK.get(spec.net)
    if name is None:
        raise ArgumentError(
            f"network {spec.net!r} has no recipe of its own: name one (lotterykit list recipes)"
        )
    paper = paper_recipe(name)
    if not own and paper.network.partition("-")[0] != spec.net.partition("-")[0]:
        raise ArgumentError(
            f"recipe {name!r} is for {paper.network} on {paper.task}, not for {spec.net}: one for it is "
            f"{OF_NETWORK[spec.net]!r} (lotterykit list recipes)"
        )
    return paper


def _setup(
    spec: SearchSpec,
    paper: PaperRecipe,
    build: Callable[[int], nn.Module] | None,
    data: Split | Loaders | None,
    validation: Pair | None,
) -> Setup:
    augment = None
    if data is not None:
        data = _own(data)
        check_validation(validation)
    elif validation is not None:
        raise ArgumentError("validation goes with data=: the named data sets hold back their own")
    else:
        if spec.data not in DATASETS:
            raise unknown_name("data set", spec.data, DATASETS)
        held = spec.validation
        if held is None:  # the paper's number, but of a small data set no more than a sixth
            held = min(paper.validation, len(load(spec.data).split[0]) // 6) if paper.validation else 0
        images = load(spec.data, validation=held)
        data, validation = Split(*images.split), images.validation
        if paper.augment:
            black = images.black

            def augment(x: Tensor, seed: int, step: int) -> Tensor:
                return flip_and_crop(x, seed, step, fill=black)

    if build is not None:
        own = build
        return Setup(lambda: own(0), data, validation, augment)
    return Setup(lambda: _network(spec, paper), data, validation, augment)


def _own(data: object) -> Split | Loaders:
    """The caller's data; raises `ArgumentError` unless they are loaders or tensors that fit each other."""
    if isinstance(data, Loaders):
        return data
    parts = tuple(data) if isinstance(data, tuple | list) else ()
    if len(parts) != 4 or not all(isinstance(part, Tensor) for part in parts):
        raise ArgumentError(
            "data must be Loaders or the four tensors x_train, y_train, x_test, y_test, "
            f"got {type(data).__name__}{f' of {len(parts)}' if parts else ''}"
        )
    return check_split(Split(*parts))


def _network(spec: SearchSpec, paper: PaperRecipe) -> nn.Module:
    known = DATASETS.get(spec.data)
    if known is None:
        raise unknown_name("data set", spec.data, DATASETS)
    paper = replace(paper, network=spec.net, init=_init_of(spec, paper))
    return paper.model(input=known.shape, classes=known.classes, seed=spec.seed)


def _init_of(spec: SearchSpec, paper: PaperRecipe) -> str:
    """Scores choose among signed constants (Ramanujan et al. 2020; Rare Gems, sec. 4)."""
    return spec.init or ("signed_constant" if spec.method in SCORE_TRAINED else paper.init)


def _training(spec: SearchSpec, paper: PaperRecipe, setup: Setup) -> tuple[Recipe, int]:
    """How weights train, and for how many steps."""
    if spec.batch_size is not None:
        paper = replace(paper, batch_size=spec.batch_size)
    if isinstance(setup.data, Loaders):
        images = len(setup.data.train) * paper.batch_size  # type: ignore[arg-type]
        evaluate_every = None
    else:
        images, evaluate_every = len(setup.data.x_train), paper.evaluate_every
    recipe, steps = paper.training(images), paper.steps(images)
    if spec.steps is not None:
        per_epoch = setup.steps_per_epoch(recipe)
        scale = spec.steps / steps
        unit = per_epoch if recipe.milestone_unit == "epochs" else 1
        recipe = replace(
            recipe,
            epochs=-(-spec.steps // per_epoch),
            warmup=round(recipe.warmup * scale),
            # in steps: of few epochs the milestones would round to the start
            milestones=tuple(round(m * unit * scale) for m in recipe.milestones),
            milestone_unit="steps",
        )
        steps = spec.steps
    given = {"lr": spec.lr, "weight_decay": spec.weight_decay}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    with torch.random.fork_rng([]):  # which a loader draws from
        y = setup.data.y_train if isinstance(setup.data, Split) else next(iter(setup.data.test))[1]
    loss = "mse" if y.is_floating_point() else "cross_entropy"
    return replace(recipe, loss=loss, evaluate_every=evaluate_every, **changes), steps
