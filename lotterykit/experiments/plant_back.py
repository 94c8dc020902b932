"""Does edge-popup find a trained ticket that was planted back into its network? (Plant 'n' Seek, Fig. 5)

On benchmark images nobody knows a strong ticket, so the paper makes one:

1. multi-shot SynFlow finds a weak ticket of density .01 in VGG-16 without batch-norm;
2. the ticket is trained: its accuracy is the black line of the figure's right half;
3. it is planted into a randomly initialised VGG-16, which now holds a subnetwork of that accuracy;
4. edge-popup, its density annealed over ten levels, looks for it there.

`plant_back` does this for any chain of `lk.nn.NETWORKS` without batch-norm (LeNet, Conv-2, -4, -6, VGG-16,
-19) or for one of your own:

    result = plant_back(PlantBack(data="cifar10"), folder=Path("journal"), device="cuda")
    print("\n".join(result.lines()))

What the paper leaves open, and what is done here:

- *Where and how the ticket is planted.* The text names no places. The published code writes each neuron to
  its own place, scaled by the ratio of one weight, of either sign; where that is negative, a ReLU network
  computes something else. Here it is Alg. 1 (`lk.plant`): positive factors, so the planted ticket is as
  accurate as the trained one. Mother and target are equally wide, so the neurons are permuted, and all biases
  are the ticket's in the end: edge-popup, which leaves biases alone, has them for nothing. `gain` 1 gives the
  planted weights the scale of the trained ones, 0 (the paper's own) that of the mother; the ticket's logits
  are then tiny. Few neurons match well, so that with `scaling="paper"` single weights lie hundreds of
  standard deviations out; with "norm" and gain 0 most layers stay within four.
- *Which mother.* "Back into the network" may be the ticket's own init or another. Another is drawn;
  `mother_seed=seed` takes the ticket's own.
- *Which densities.* The figure shows several; the published script anneals to each of .01, .05, .1, .2 and
  .5 by itself: `densities`. By default to the ticket's alone, on the way to which the levels pass the others.
- *Edge-popup's settings.* None in the text. The published code's defaults are taken: ten levels of ten
  epochs, rate .01, momentum .9, weight decay 5e-4, batch 128, five epochs of warm-up in every level, level l
  of L at density^(l/L) in each layer. (Its script runs 5 levels of 50 epochs at rate .1.) Its rate falls by a
  cosine after the warm-up, ours stays, as in recipe "p0/vgg-16". Its momentum outlives a level; ours starts
  anew, at rate 0, where that matters little.
- *Training the ticket.* The text has no settings for VGG. Taken are those of its planted tasks (B.1, B.3):
  Adam at 1e-3, ten epochs; ten shots of five epochs, each pruned by one scoring; batch 128. SGD at .01, which
  trains the scores, leaves such a ticket of VGG-16 at chance: its logits start at 1e-5.

Edge-popup counts in each layer, while SynFlow's layers differ in density: a part of the ticket is out of its
reach. `reachable` is the recall of the best mask with the found one's counts; `scope="global"` lifts the
limit. Not in the paper: the same search in the same mother with nothing planted (`unplanted`), which says
what recall chance alone gives and what accuracy edge-popup comes to by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lotterykit import __version__
from lotterykit.errors import ArgumentError, check_density, check_seed, unknown_name
from lotterykit.experiments.imp import FINAL
from lotterykit.experiments.recipes import paper_recipe
from lotterykit.experiments.resolved import resolve
from lotterykit.experiments.search_spec import SearchSpec
from lotterykit.experiments.searches import Search, run_together
from lotterykit.experiments.setup import Setup
from lotterykit.experiments.tasks import check_device
from lotterykit.experiments.ticket import INIT, Ticket
from lotterykit.experiments.trainings import Trained, Training
from lotterykit.mask import Masks
from lotterykit.nn.seeds import derived_seed
from lotterykit.planting.chain import read_chain
from lotterykit.planting.match import MATCHINGS, SCALINGS
from lotterykit.planting.plant import Planted, check_gain, plant
from lotterykit.planting.recovery import recovery
from lotterykit.pruning.schedules import density_after
from lotterykit.training.recipe import Recipe, Split
from lotterykit.training.scored import ScoreTraining
from lotterykit.training.source import Loaders

LEVEL_RECIPE = "p0/vgg-16"  # how scores train in a level


@dataclass(frozen=True)
class PlantBack:
    """The experiment, its settings at the paper's as far as it gives them (see the top of this file).

    The ticket: SynFlow to `density` in `shots` of `shot_epochs` epochs and `rounds` scorings, `reset` as in
    `AtInit`; weights train by `recipe`, in the end for `steps` steps (None: the recipe's). It is planted with
    `matching`, `scaling` and `gain` of `lk.plant` into a mother drawn by `mother_seed` (None: a seed derived
    from `seed`). Edge-popup runs once for each of `densities`, in `levels` of `level_epochs` epochs, the
    first `warmup_epochs` of each at a rising rate; `unplanted`: also in the mother as it was.
    Raises `ArgumentError`, one line.
    """

    net: str = "vgg-16"
    data: str = "cifar10"
    seed: int = 0
    density: float = 0.01
    recipe: str = "p0/vgg-16-ticket"
    steps: int | None = None
    shots: int = 10
    shot_epochs: int = 5
    reset: str = "init"
    rounds: int = 1
    mother_seed: int | None = None
    matching: str = "best"
    scaling: str = "paper"
    gain: float = 1.0
    densities: tuple[float, ...] = (0.01,)
    levels: int = 10
    level_epochs: int = 10
    warmup_epochs: int = 5
    score_lr: float = 0.01
    score_batch: int = 128
    score_decay: float = 5e-4
    scope: str = "layer"
    unplanted: bool = True

    def __post_init__(self) -> None:
        self.ticket_spec()
        check_gain(self.gain)
        check_seed(self.mother())
        if self.matching not in MATCHINGS:
            raise unknown_name("matching", self.matching, MATCHINGS)
        if self.scaling not in SCALINGS:
            raise unknown_name("scaling", self.scaling, SCALINGS)
        given = self.densities
        if not isinstance(given, tuple | list) or not given or len(set(given)) < len(given):
            raise ArgumentError(f"densities must be different numbers, at least one, got {given!r}")
        for density in given:
            check_density(density, what="each of densities")
            ScoreTraining("edge-popup", density, self.scope)
        for name, least in (("levels", 1), ("level_epochs", 1), ("warmup_epochs", 0)):
            count = getattr(self, name)
            if type(count) is not int or count < least:
                raise ArgumentError(f"{name} must be an int of at least {least}, got {count!r}")
        if self.warmup_epochs > self.level_epochs:
            raise ArgumentError(
                f"the warm-up of {self.warmup_epochs} epochs must fit into a level of {self.level_epochs}"
            )
        self._level()

    def ticket_spec(self) -> SearchSpec:
        """The search for the ticket that is planted."""
        return SearchSpec(
            method="synflow", density=self.density, net=self.net, data=self.data, seed=self.seed,
            recipe=self.recipe, steps=self.steps, shots=self.shots, shot_epochs=self.shot_epochs,
            reset=self.reset, rounds=self.rounds,
        )  # fmt: skip

    def mother(self) -> int:
        """The seed of the mother."""
        return derived_seed(f"mother {self.seed}") if self.mother_seed is None else self.mother_seed

    def level_recipe(self, setup: Setup, loss: str) -> Recipe:
        """How the scores of a level train on the data of `setup`."""
        recipe = self._level()
        return replace(recipe, loss=loss, warmup=self.warmup_epochs * setup.steps_per_epoch(recipe))

    def _level(self) -> Recipe:
        """A level but for its warm-up, whose steps depend on the data."""
        paper = replace(paper_recipe(LEVEL_RECIPE), batch_size=self.score_batch, epochs=self.level_epochs)
        return replace(paper.training(), lr=self.score_lr, weight_decay=self.score_decay, warmup=0)

    def search(
        self,
        state: Mapping[str, Tensor],
        truth: Masks,
        density: float,
        recipe: Recipe,
        mother: str = "planted",
    ) -> Search:
        """Edge-popup over the weights of `state` that `truth` names, down to `density`, a level by `recipe`.

        A level goes on with the scores of the one before and ends with a row: its density, the metrics of the
        found subnetwork as it stands, how much of `truth` that holds. `mother` goes into the ticket.
        """
        start = dict(state)
        every = Masks({name: torch.ones_like(mask) for name, mask in truth.items()})
        scores, masks = None, every
        rows: list[dict[str, Any]] = []
        for level in range(1, self.levels + 1):
            kept = density_after("exponential", end=density, round=level, rounds=self.levels)
            training = ScoreTraining("edge-popup", kept, self.scope, start=scores)
            seed = derived_seed(f"plant back {self.seed} level {level}")
            found = yield Training(start, every, recipe, seed, scores=training)
            scores, masks = found.scores, Masks({name: found.masks[name] for name in truth})
            rows.append(
                {"level": level, "density": masks.density(), **_metrics(found), **compared(masks, truth)}
            )
        results = {"levels": rows, "epochs": float(self.levels * self.level_epochs), **rows[-1]}
        return Ticket(masks, {INIT: start}, self.told(mother), results)

    def told(self, mother: str) -> dict[str, Any]:
        """What a ticket says of how it was found, plain JSON."""
        settings = asdict(self) | {"densities": list(self.densities)}
        return {"plant_back": settings, "mother": mother, "version": __version__}


@dataclass(frozen=True)
class PlantedBack:
    """What came of it.

    `ticket`: SynFlow's, with its trained weights as "final". `truth`: the planted mother as "init" and the
    masks of what was planted; its results: metrics as it stands, `output_scale`, `hiding`. `found` and
    `unplanted`: by density, what edge-popup found in the planted mother and in the mother as it was; a row a
    level in `results["levels"]`.
    """

    ticket: Ticket
    truth: Ticket
    found: Mapping[float, Ticket]
    unplanted: Mapping[float, Ticket] = field(default_factory=dict)

    def rows(self) -> Iterator[dict[str, Any]]:
        """A flat row a level, for a table: mother, target, level, density, metrics, recall, precision, iou,
        reachable."""
        for mother, tickets in (("planted", self.found), ("unplanted", self.unplanted)):
            for target, ticket in tickets.items():
                for row in ticket.results["levels"]:
                    own = {
                        name: value for name, value in row.items() if not isinstance(value, Mapping | list)
                    }
                    yield {"mother": mother, "target": target, **own}

    def lines(self) -> list[str]:
        """A table for people: the ticket, the ticket in its mother, each level."""
        metric = "accuracy" if "accuracy" in self.truth.results else "mse"
        lines = [
            f"{'':>9} {'target':>7} {'level':>5} {'density':>8} {metric:>8} "
            f"{'recall':>7} {'reachable':>9} {'iou':>6}"
        ]
        for name, ticket in (("ticket", self.ticket), ("truth", self.truth)):
            value = ticket.results[metric]
            lines.append(f"{name:>9} {'':>7} {'':>5} {ticket.density():>8.4f} {_shown(value):>8}")
        for row in self.rows():
            lines.append(
                f"{row['mother']:>9} {row['target']:>7g} {row['level']:>5} {row['density']:>8.4f} "
                f"{_shown(row[metric]):>8} {row['recall']:>7.4f} {row['reachable']:>9.4f} {row['iou']:>6.4f}"
            )
        return lines


def plant_back(
    settings: PlantBack | None = None,
    *,
    build: Callable[[int], nn.Module] | None = None,
    data: Split | Loaders | None = None,
    folder: Path | None = None,
    device: str = "cpu",
    progress: Callable[[str, int, Training], None] | None = None,
) -> PlantedBack:
    """Run the experiment `settings` (None: the paper's).

    `build(seed)` gives another network, an `nn.Sequential` of Linear, convolution, ReLU and pooling at its
    init, and `data` other data. `folder`: a journal from which an interrupted run goes on, on the CPU
    bitwise; a level of edge-popup starts again. Networks train on `device`; pruning and planting are done on
    the CPU.
    `progress(name, number, training)` is called before each training. Raises `ArgumentError`, before anything
    is trained, for a network that cannot be planted.
    """
    settings = settings or PlantBack()
    check_device(device)
    spec = settings.ticket_spec()
    other = SearchSpec(**(spec.model_dump() | {"seed": settings.mother()}))
    resolved = resolve({"ticket": spec, "mother": other}, build=build, data=data)
    one, mother = resolved["ticket"], resolved["mother"]
    read_chain(one.setup.build(), "mother")
    setup = replace(one.setup, build=lambda: one.setup.build().to(device))
    ticket = run_together({"ticket": one.search()}, setup, folder=folder, progress=progress)["ticket"]

    large = one.setup.build()
    large.load_state_dict(mother.state)
    planted = plant(
        ticket.apply_(one.setup.build(), FINAL), large, matching=settings.matching, scaling=settings.scaling,
        gain=settings.gain, seed=settings.seed,
    )  # fmt: skip
    state = {name: tensor.detach().clone() for name, tensor in planted.network.state_dict().items()}
    truth = planted.ticket.weights()
    recipe = settings.level_recipe(setup, one.recipe.loss)
    searches = {"truth": _standing(planted, state, one.recipe, settings)}
    mothers = {"planted": state} | ({"unplanted": mother.state} if settings.unplanted else {})
    names = {(kind, density): f"{kind}-{density}" for kind in mothers for density in settings.densities}
    for (kind, density), name in names.items():
        searches[name] = settings.search(mothers[kind], truth, density, recipe, kind)
    tickets = run_together(searches, setup, folder=folder, progress=progress)
    found: dict[str, dict[float, Ticket]] = {"planted": {}, "unplanted": {}}
    for (kind, density), name in names.items():
        found[kind][density] = tickets[name]
    return PlantedBack(ticket, tickets["truth"], found["planted"], found["unplanted"])


def compared(found: Masks, truth: Masks) -> dict[str, Any]:
    """`lk.recovery` of a found mask, flat and with its parts by layer and of live paths, `reachable`, and the
    layers of which nothing is kept."""
    counts = [(found.counts()[name][0], kept) for name, (kept, _) in truth.counts().items()]
    planted = sum(kept for _, kept in counts)
    return {
        **recovery(found, truth).as_dict(),
        "reachable": sum(map(min, counts)) / planted if planted else 1.0,
        "empty_layers": [name for name, (kept, _) in found.counts().items() if not kept],
    }


def _standing(planted: Planted, state: Mapping[str, Tensor], recipe: Recipe, settings: PlantBack) -> Search:
    """The planted ticket in its mother, evaluated as it stands."""
    masks = planted.ticket.weights()
    stands = yield Training(state, masks, recipe, settings.seed, last=0)
    results = {
        "density": masks.density(),
        "output_scale": planted.output_scale,
        "hiding": {name: dict(row) for name, row in planted.report.items()},
        **_metrics(stands),
    }
    return Ticket(masks, {INIT: state}, settings.told("planted"), results)


def _metrics(trained: Trained) -> dict[str, float | None]:
    """The metrics at the end, None for what is not finite: a ticket's results are plain JSON."""
    return {name: value if math.isfinite(value) else None for name, value in trained.metrics.items()}


def _shown(value: float | None) -> str:
    return "diverged" if value is None else f"{value:.4f}"
