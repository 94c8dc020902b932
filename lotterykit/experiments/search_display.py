"""What `lotterykit find | prune | train ...` print: progress, and of a ticket."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lotterykit.experiments.search_spec import SearchSpec
    from lotterykit.experiments.ticket import Ticket
    from lotterykit.experiments.trainings import Training


@contextmanager
def progress() -> Iterator[Callable[[str, int, Training], None]]:
    """A line on stderr for each training as it begins."""
    begun = time.monotonic()

    def tell(name: str, number: int, training: Training) -> None:
        what = "scores" if training.scores is not None else f"density {training.masks.density():.4g}"
        passed = f"{time.monotonic() - begun:7.1f} s"
        print(f"{passed}  {name}: training {number}, {what}", file=sys.stderr, flush=True)

    yield tell


def summary(spec: SearchSpec, ticket: Ticket) -> list[str]:
    """What a search found: a line a level, or the trained and the untrained ticket; its cost."""
    levels = ticket.results.get("levels")
    lines = []
    if levels:
        lines.append(f"{'level':>5} {'density':>8}  result")
        lines += [f"{row['level']:>5} {row['density']:>8.4f}  {result_line(row)}" for row in levels]
    else:
        lines += [result_line(ticket.results)]
        untrained = ticket.results.get("untrained")
        if untrained:
            lines.append("untrained: " + ", ".join(_metric(untrained, name) for name in untrained))
    empty = ticket.results.get("empty_layers")
    if empty:
        lines.append(f"layer collapse: nothing is kept of {', '.join(empty)}")
    elif ticket.results.get("no_live_path"):
        lines.append("layer collapse: no path of kept weights leads from the input to the output")
    lines.append(
        f"{spec.method}: density {ticket.density():.4g}, found in {ticket.results['epochs']:.4g} "
        f"epoch{'' if ticket.results['epochs'] == 1 else 's'}"
    )
    return lines


def result_line(row: Mapping[str, Any]) -> str:
    """The test metric at the end of a training, and at its early-stopping step."""
    names = [name for name in ("accuracy", "mse") if name in row] or ["loss"]
    text = "test " + ", ".join(_metric(row, name) for name in names)
    if "stop_step" in row:
        stopped = ", ".join(_metric(row, f"stop_{name}").removeprefix("stop_") for name in names)
        text += f"; at the early-stopping step {row['stop_step']}: {stopped}"
    return text


def _metric(row: Mapping[str, Any], name: str) -> str:
    return f"{name} none (diverged)" if row[name] is None else f"{name} {row[name]:.4f}"


def layer_lines(ticket: Ticket) -> list[str]:
    """Kept weights of each tensor, and the density of all."""
    counts = ticket.masks.counts()
    width = max(map(len, counts))
    lines = [
        f"{name:>{width}}  {kept:>9} of {total:>9}  {kept / max(1, total):.4f}"
        for name, (kept, total) in counts.items()
    ]
    return [*lines, f"{'all':>{width}}  density {ticket.density():.4g}"]
