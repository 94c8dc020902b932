"""`lotterykit find | prune | train | check | verdict`: tickets of real networks, from the shell.

Light: torch is loaded when a command runs.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from lotterykit.errors import ArgumentError

if TYPE_CHECKING:
    from lotterykit.experiments.search_spec import SearchSpec
    from lotterykit.experiments.ticket import Ticket
    from lotterykit.experiments.trainings import Training

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
    penalty: float | None = None
    """Factor of the scores' squared norm."""
    freeze_every: int | None = None
    """gem-miner: epochs between two freezes."""

    def given(self) -> dict[str, Any]:
        """The flags that were given."""
        return {name: value for name, value in asdict(self).items() if value is not None}


Flags = Annotated[SearchFlags | None, Parameter(name="*")]


def find(
    method: str,
    *,
    flags: Flags = None,
    out: Path = Path("ticket.safetensors"),
    folder: Path | None = None,
    quick: bool = False,
) -> int:
    """Search for a ticket, train it, save it.

    Parameters
    ----------
    method
        imp, random, magnitude, snip, grasp, synflow, prospr, edge-popup, gem-miner; or a TOML file.
    out
        File of the ticket.
    folder
        Journal of the trainings, from which the same command goes on; OUT.journal by default, removed in
        the end.
    quick
        A small version, a minute or two: 1500 steps, density .05, unless given.
    """
    from lotterykit.experiments.find import find_ticket

    spec = _spec(method, flags, quick)
    with _journal(out, folder) as journal, _progress() as tell:
        ticket = find_ticket(spec, folder=journal, progress=tell)
    ticket.save(out)
    print("\n".join(_summary(spec, ticket)))
    print(f"ticket: {out}")
    return 0


def prune(method: str, *, flags: Flags = None, out: Path = Path("ticket.safetensors")) -> int:
    """Prune a network at its initialisation and save the ticket, untrained.

    Parameters
    ----------
    method
        random, magnitude, snip, grasp, synflow, prospr; or a TOML file of the flags.
    out
        File of the ticket.
    """
    from lotterykit.experiments.find import prune_ticket

    spec = _spec(method, flags, False)
    _writable(out)
    ticket = prune_ticket(spec)
    ticket.save(out)
    print("\n".join(_layers(ticket)))
    print(f"ticket: {out}")
    return 0


def train(
    ticket: Path,
    *,
    start: str | None = None,
    steps: int | None = None,
    lr: float | None = None,
    seed: int = 0,
    data: str | None = None,
    out: Path = Path("trained.safetensors"),
) -> int:
    """Train a ticket from one of its rewind points and save it with its trained weights.

    Parameters
    ----------
    ticket
        File that find or prune wrote.
    start
        Rewind point; the one that the search went back to by default.
    steps
        Training steps; the search's by default.
    lr
        Learning rate; the search's by default.
    seed
        Of the order of the batches.
    data
        Another data set of the same image size and classes.
    out
        File of the trained ticket.
    """
    from lotterykit.experiments.check import retrain
    from lotterykit.experiments.ticket import Ticket

    _writable(out)
    changes: dict[str, Any] = {
        name: value for name, value in (("steps", steps), ("lr", lr), ("data", data)) if value is not None
    }
    with _progress() as tell:
        trained = retrain(Ticket.load(ticket), start, seed=seed, progress=tell, **changes)
    trained.save(out)
    print(_result(trained.results))
    print(f"ticket: {out}")
    return 0


def check(
    ticket: Path,
    *,
    control: str = "shuffle,reinit,random",
    seeds: int = 3,
    scale: float | None = None,
    folder: Path | None = None,
) -> int:
    """Sanity checks: train a ticket and its controls alike and compare them.

    Parameters
    ----------
    ticket
        File that find wrote.
    control
        Controls, separated by commas: shuffle, reinit, random, invert, smart-ratio, noise, sign, permute ...
    seeds
        Trainings of each.
    scale
        Of noise: standard deviations.
    folder
        Journal of the trainings, from which the same command goes on.
    """
    from lotterykit.experiments.check import check_ticket
    from lotterykit.experiments.ticket import Ticket

    options: dict[str, Any] = {} if scale is None else {"scale": scale}
    with _progress() as tell:
        found = check_ticket(
            Ticket.load(ticket), control.split(","), seeds=seeds, folder=folder, progress=tell, **options
        )
    print(f"{found.metric}, mean [least, greatest] of {seeds} trainings")
    print("\n".join(found.lines()))
    return 0


def verdict(
    method: str,
    *,
    lrs: str = "3e-4,1.2e-3,5e-3",
    seeds: int = 3,
    flags: Flags = None,
    folder: Path = Path("verdict"),
) -> int:
    """Jackpot, secondary prize or no ticket? The conditions of "Sanity Checks for Lottery Tickets".

    Parameters
    ----------
    method
        As in find.
    lrs
        Learning rates, separated by commas, at least two.
    seeds
        Searches at each learning rate, at least three.
    folder
        Journal of the trainings, from which the same command goes on.
    """
    from lotterykit.experiments.judge import judge

    try:
        rates = [float(part) for part in lrs.split(",")]
    except ValueError:
        raise ArgumentError(f"lrs must be numbers separated by commas, got {lrs!r}") from None
    spec = _spec(method, flags, False)
    with _progress() as tell:
        judged = judge(spec, rates, seeds=seeds, folder=folder, progress=tell)
    for arm, by_rate in judged.rows.items():
        means = "   ".join(
            f"{lr:g}: {sum(r['accuracy'] for r in of) / len(of):.4f}" for lr, of in by_rate.items()
        )
        print(f"{arm:>12}  {means}")
    print("\n".join(judged.verdict.lines()))
    return 0


def _spec(method: str, flags: SearchFlags | None, quick: bool) -> SearchSpec:
    from lotterykit.experiments.search_spec import SCORE_TRAINED, SearchSpec, load_search

    fields = (flags or SearchFlags()).given()
    if method.endswith(".toml"):
        return load_search(Path(method), **fields)
    if quick:
        fields = QUICK | ({"score_epochs": QUICK_SCORE_EPOCHS} if method in SCORE_TRAINED else {}) | fields
    return SearchSpec(method=method, **fields)


@contextmanager
def _journal(out: Path, folder: Path | None) -> Iterator[Path]:
    """The journal's folder; the default one goes once the search is done."""
    _writable(out)
    own = out.with_name(f"{out.name}.journal") if folder is None else folder
    try:
        yield own
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on from {own}", file=sys.stderr)
        raise
    if folder is None:
        shutil.rmtree(own, ignore_errors=True)


def _writable(out: Path) -> None:
    """Raises `ArgumentError`, before hours of work, where `out` cannot be written."""
    if out.is_dir() or not out.parent.is_dir():
        raise ArgumentError(f"{out}: {'is a folder' if out.is_dir() else 'its folder does not exist'}")


@contextmanager
def _progress() -> Iterator[Callable[[str, int, Training], None]]:
    """A line on stderr for each training as it begins."""
    begun = time.monotonic()

    def tell(name: str, number: int, training: Training) -> None:
        what = "scores" if training.scores is not None else f"density {training.masks.density():.4g}"
        print(
            f"{time.monotonic() - begun:7.1f} s  {name}: training {number}, {what}",
            file=sys.stderr,
            flush=True,
        )

    yield tell


def _summary(spec: SearchSpec, ticket: Ticket) -> list[str]:
    levels = ticket.results.get("levels")
    lines = []
    if levels:
        lines.append(f"{'level':>5} {'density':>8}  result")
        lines += [f"{row['level']:>5} {row['density']:>8.4f}  {_result(row)}" for row in levels]
    else:
        lines += [_result(ticket.results)]
        untrained = ticket.results.get("untrained")
        if untrained:
            lines.append("untrained: " + ", ".join(f"{k} {v:.4f}" for k, v in untrained.items()))
    empty = ticket.results.get("empty_layers")
    if empty:
        lines.append(f"layer collapse: nothing is kept of {', '.join(empty)}")
    lines.append(
        f"{spec.method}: density {ticket.density():.4g}, found in {ticket.results['epochs']:.4g} epochs"
    )
    return lines


def _result(row: Any) -> str:
    names = [name for name in ("accuracy", "mse") if name in row] or ["loss"]
    text = ", ".join(f"test {name} {row[name]:.4f}" for name in names)
    if "stop_step" in row:
        stopped = ", ".join(f"{name} {row[f'stop_{name}']:.4f}" for name in names)
        text += f"; at the early-stopping step {row['stop_step']}: {stopped}"
    return text


def _layers(ticket: Ticket) -> list[str]:
    counts = ticket.masks.counts()
    width = max(map(len, counts))
    lines = [
        f"{name:>{width}}  {kept:>9} of {total:>9}  {kept / max(1, total):.4f}"
        for name, (kept, total) in counts.items()
    ]
    return [*lines, f"{'all':>{width}}  density {ticket.density():.4g}"]
