"""`SearchSpec`: one search for a ticket in a real network, fully specified. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from lotterykit.errors import ArgumentError, check_density, check_seed, shown
from lotterykit.experiments.grid import read_toml
from lotterykit.experiments.spec import MAX_COUNT, clear_error

Scored = Literal["random", "magnitude", "snip", "grasp", "synflow", "prospr"]
ScoreTrained = Literal["edge-popup", "gem-miner"]
Method = Literal["imp", Scored, ScoreTrained]
METHODS: tuple[str, ...] = ("imp", *get_args(Scored), *get_args(ScoreTrained))
SCORED: tuple[str, ...] = get_args(Scored)
SCORE_TRAINED: tuple[str, ...] = get_args(ScoreTrained)

# Settings that some methods alone read; others have them at their defaults.
ONLY = {
    **dict.fromkeys(("rewind", "after", "prune_fraction", "one_shot"), ("imp",)),
    **dict.fromkeys(("rounds", "shots", "shot_epochs", "reset", "invert", "allocation"), get_args(Scored)),
    "samples": ("snip", "grasp", "prospr"),
    **dict.fromkeys(("score_epochs", "score_lr", "score_batch", "score_decay"), SCORE_TRAINED),
    **dict.fromkeys(("anneal", "gradual_every", "scaled_init"), ("edge-popup",)),
    "penalty": SCORE_TRAINED,
    "freeze_every": ("gem-miner",),
}


class SearchSpec(BaseModel):
    """A search: `method` looks for a ticket of `density` in the network `net` on `data`, then trains it.

    Names: `lotterykit list networks | data | recipes`. `recipe` says how weights train and, for imp, what a
    level prunes; by default the network's own of its paper. `steps`, `lr`, `batch_size`, `weight_decay` and
    `init` replace the recipe's; with fewer `steps` its milestones and warm-up shrink alike.

    imp: `rewind` "init", "<k>it" or "<k>ep"; `after` a level "rewind", "continue", "learning-rate" or
    "fine-tune"; `prune_fraction` of a level, the output layer's half of it, else the recipe's; `one_shot`.
    A score's method: `rounds` of scoring; `shots` of training for `shot_epochs` and pruning, `reset` to init
    after each, "never", or after each but the last ("not-last"); `invert` keeps the lowest scores; `samples`
    of each class score (snip, grasp, prospr); `allocation` of densities to layers. edge-popup and gem-miner:
    epochs, learning rate, batch size and weight decay of the scores, `penalty` on their norm; edge-popup's
    `anneal`, `gradual_every` and `scaled_init`, which divides the weights at init by sqrt(density) (Ramanujan
    et al. 2020; of named networks only, `build` scales its own); gem-miner's `freeze_every`, density 0 for
    GEM-MINER(0).
    `scope`: "global" or "local"; None for the method's own. `validation`: training examples held back for
    early stopping; None for the recipe's, at most a sixth of the data.
    Raises `ArgumentError`, one line, for unknown names, values out of range and settings of other methods.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    method: Method
    density: float
    net: str = "lenet"
    data: str = "fashion-mnist"
    seed: Annotated[int, BeforeValidator(check_seed)] = 0
    recipe: str | None = None
    steps: int | None = Field(None, ge=1, le=10**9)
    lr: float | None = Field(None, ge=0)
    batch_size: int | None = Field(None, ge=1, le=MAX_COUNT)
    weight_decay: float | None = Field(None, ge=0)
    init: str | None = None
    scope: Literal["global", "local"] | None = None
    rewind: str = "init"
    after: Literal["rewind", "continue", "learning-rate", "fine-tune"] = "rewind"
    prune_fraction: float | None = Field(None, gt=0, lt=1)
    one_shot: bool = False
    rounds: int | None = Field(None, ge=1, le=MAX_COUNT)
    shots: int = Field(0, ge=0, le=MAX_COUNT)
    shot_epochs: int = Field(5, ge=1, le=MAX_COUNT)
    reset: Literal["init", "never", "not-last"] = "init"
    invert: bool = False
    allocation: Literal["uniform", "erk", "smart-ratio", "smart-ratio-vgg"] | None = None
    samples: int = Field(10, ge=1, le=MAX_COUNT)
    score_epochs: int | None = Field(None, ge=1, le=MAX_COUNT)
    score_lr: float = Field(0.1, ge=0)
    score_batch: int = Field(128, ge=1, le=MAX_COUNT)
    score_decay: float | None = Field(None, ge=0)
    anneal: bool = False
    gradual_every: int | None = Field(None, ge=1, le=MAX_COUNT)
    scaled_init: bool = False
    penalty: float = Field(0.0, ge=0)
    freeze_every: int = Field(5, ge=1, le=MAX_COUNT)
    validation: int | None = Field(None, ge=0)

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise clear_error(error, type(self)) from None

    @model_validator(mode="after")
    def _check(self) -> SearchSpec:
        if not (self.method == "gem-miner" and self.density == 0):
            check_density(self.density)
        for name, methods in ONLY.items():
            value, default = getattr(self, name), type(self).model_fields[name].default
            if value != default and self.method not in methods:
                raise ArgumentError(f"{name} is for {', '.join(methods)} only, got method {self.method!r}")
        if self.shots == 0 and (self.shot_epochs != 5 or self.reset != "init"):
            raise ArgumentError("shot_epochs and reset need shots, got shots 0")
        if self.rewind != "init" and not (
            self.rewind[-2:] in ("it", "ep") and self.rewind[:-2].isdecimal() and len(self.rewind) < 12
        ):
            raise ArgumentError(f'rewind must be "init", "<k>it" or "<k>ep", got {shown(self.rewind)}')
        return self

    def rewind_step(self, per_epoch: int) -> int:
        """The step that tickets go back to."""
        if self.rewind == "init":
            return 0
        return int(self.rewind[:-2]) * (per_epoch if self.rewind.endswith("ep") else 1)

    def set(self) -> dict[str, Any]:
        """The fields that are not at their defaults, plain JSON."""
        return self.model_dump(exclude_defaults=True)


def load_search(path: Path, **flags: Any) -> SearchSpec:
    """The search of a TOML file whose keys are the fields; `flags` win. Raises `ArgumentError`."""
    fields = read_toml(path) | flags
    try:
        return SearchSpec(**fields)
    except ArgumentError as error:
        raise ArgumentError(f"{path}: {error}") from None
