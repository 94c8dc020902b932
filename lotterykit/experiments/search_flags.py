"""The flags of `lotterykit find | prune | verdict`, and the search that they or a TOML file describe."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from lotterykit.errors import ArgumentError

if TYPE_CHECKING:
    from lotterykit.experiments.search_spec import SearchSpec

QUICK = {"steps": 1500, "density": 0.05}  # of find --quick
QUICK_SCORE_EPOCHS = 10


@dataclass(frozen=True)
class SearchFlags:
    """The search. What is not given is the method's or the paper's own."""

    net: str | None = None
    """Network: lotterykit list networks. lenet by default."""
    data: str | None = None
    """Data set: lotterykit list data. fashion-mnist by default."""
    density: float | None = None
    """Kept / total, in (0, 1]; gem-miner also 0: no freezing."""
    seed: int | None = None
    recipe: str | None = None
    """How weights train: lotterykit list recipes. The network's paper's by default."""
    steps: int | None = None
    """Training steps; milestones and warm-up shrink alike."""
    lr: float | None = None
    batch_size: int | None = None
    weight_decay: float | None = None
    init: str | None = None
    validation: int | None = None
    """Training examples held back for early stopping."""
    scope: str | None = None
    """global, local."""
    rewind: str | None = None
    """imp: init, 500it, 2ep."""
    after: str | None = None
    """imp, after a level: rewind, continue, learning-rate, fine-tune."""
    prune_fraction: float | None = None
    """imp: the share of what is left that a level prunes."""
    one_shot: bool | None = None
    """imp: a single level."""
    rounds: int | None = None
    """Scoring rounds (snip, grasp, synflow ...)."""
    shots: int | None = None
    """Rounds of train, prune, reset (snip, grasp, synflow ...)."""
    shot_epochs: int | None = None
    reset: str | None = None
    """After a shot: init, never, not-last."""
    invert: bool | None = None
    """Keep the lowest scores."""
    samples: int | None = None
    """Training examples of each class that score (snip, grasp, prospr)."""
    allocation: str | None = None
    """Layer densities: uniform, erk, smart-ratio."""
    score_epochs: int | None = None
    """edge-popup, gem-miner."""
    score_lr: float | None = None
    score_batch: int | None = None
    score_decay: float | None = None
    anneal: bool | None = None
    """edge-popup: density falls from 1."""
    gradual_every: int | None = None
    """edge-popup: epochs between two falls of the density."""
    scaled_init: bool | None = None
    """edge-popup: weights at init divided by sqrt(density)."""
    penalty: float | None = None
    """Factor of the scores' squared norm."""
    freeze_every: int | None = None
    """gem-miner: epochs between two freezes."""

    def given(self) -> dict[str, Any]:
        """The flags that were given."""
        return {name: value for name, value in asdict(self).items() if value is not None}


Flags = Annotated[SearchFlags | None, Parameter(name="*")]


def spec_of(method: str, flags: SearchFlags | None, *, quick: bool = False) -> SearchSpec:
    """The search of a method's name and flags, or of a TOML file, whose keys the flags overrule.

    `quick`: a small version, but for what is given. Raises `ArgumentError`."""
    from lotterykit.experiments.search_spec import SCORE_TRAINED, SearchSpec, load_search

    fields = (flags or SearchFlags()).given()
    if method.endswith(".toml"):
        if quick:
            raise ArgumentError("--quick goes with a method's name; a TOML file says itself how small it is")
        return load_search(Path(method), **fields)
    if quick:
        fields = QUICK | ({"score_epochs": QUICK_SCORE_EPOCHS} if method in SCORE_TRAINED else {}) | fields
    return SearchSpec(method=method, **fields)
