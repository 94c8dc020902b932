"""`lotterykit find | prune | train | check | verdict`: tickets of real networks, from the shell.

Light: torch is loaded when a command runs.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lotterykit.errors import ArgumentError
from lotterykit.experiments.folder import made_folder
from lotterykit.experiments.search_display import layer_lines, progress, result_line, summary
from lotterykit.experiments.search_flags import Flags, spec_of

if TYPE_CHECKING:
    pass


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

    spec = spec_of(method, flags, quick=quick)
    with _journal(out, folder, spec.method) as journal, progress() as tell:
        ticket = find_ticket(spec, folder=journal, progress=tell)
        ticket.save(out)
    print("\n".join(summary(spec, ticket)))
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

    spec = spec_of(method, flags)
    _writable(out)
    ticket = prune_ticket(spec)
    ticket.save(out)
    print("\n".join(layer_lines(ticket)))
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
    with progress() as tell:
        trained = retrain(Ticket.load(ticket), start, seed=seed, progress=tell, **changes)
    trained.save(out)
    print(result_line(trained.results))
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
    with _gone_on_from(folder), progress() as tell:
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
    omp: bool = True,
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
    omp
        Of imp, also one-shot magnitude pruning.
    folder
        Journal of the trainings, from which the same command goes on.
    """
    from lotterykit.experiments.judge import judge

    try:
        rates = [float(part) for part in lrs.split(",")]
    except ValueError:
        raise ArgumentError(f"lrs must be numbers separated by commas, got {lrs!r}") from None
    spec = spec_of(method, flags)
    with _gone_on_from(folder), progress() as tell:
        judged = judge(spec, rates, seeds=seeds, one_shot=omp, folder=folder, progress=tell)
    for arm, by_rate in judged.rows.items():
        means = "   ".join(
            f"{lr:g}: {sum(r['accuracy'] for r in of) / len(of):.4f}" for lr, of in by_rate.items()
        )
        print(f"{arm:>12}  {means}")
    print("\n".join(judged.lines()))
    return 0


@contextmanager
def _journal(out: Path, folder: Path | None, name: str) -> Iterator[Path]:
    """The journal's folder; of the default one, the search `name` goes in the end."""
    _writable(out)
    own = out.with_name(f"{out.name}.journal") if folder is None else folder
    with _gone_on_from(own):
        yield own
    if folder is None:
        shutil.rmtree(own / name, ignore_errors=True)
        with suppress(OSError):  # another search's journal stays
            own.rmdir()


@contextmanager
def _gone_on_from(folder: Path | None) -> Iterator[None]:
    """Raises `ArgumentError`, before hours of work, where `folder` cannot be written; says on Ctrl-C that the
    work is there."""
    if folder is None:
        yield
        return
    with made_folder(folder):
        try:
            yield
        except KeyboardInterrupt:
            print(f"stopped; the same command goes on from {folder}", file=sys.stderr)
            raise


def _writable(out: Path) -> None:
    """Raises `ArgumentError`, before hours of work, where `out` cannot be written."""
    if out.is_dir() or not out.parent.is_dir():
        raise ArgumentError(f"{out}: {'is a folder' if out.is_dir() else 'its folder does not exist'}")
    try:
        with tempfile.NamedTemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise ArgumentError(f"{out}: {error.strerror or error}") from None
