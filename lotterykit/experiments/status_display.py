"""`lotterykit sweep status`: a store's progress as a table, once or live."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lotterykit.experiments.display import QUIET_SECONDS, resume_command
from lotterykit.experiments.forecast import say_seconds
from lotterykit.experiments.store import Store
from lotterykit.experiments.watch import Line, Standing, Watch

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Table

LOOK_SECONDS = 0.5  # between two looks at the store
BAR = 20  # characters
FRAME = 8  # lines of a live table that are not cells: head, header, foot


def show_status(store: Path, by: Sequence[str]) -> int:
    """Print where the sweeps of `store` stand; always 0."""
    from rich.console import Console

    with Store(store) as opened:
        now = Watch(opened, by).look()
    print(head(store, now))
    if now.lines:
        Console().print(table(now, now.lines))
    _tell(store, now)
    return 0


def follow_status(store: Path, by: Sequence[str]) -> int:
    """Show where the sweeps of `store` stand until nothing is left to wait for: 0, or 1 where cells failed.

    A live table on a terminal; elsewhere a line now and then.
    """
    from rich.console import Console
    from rich.live import Live

    console = Console()
    with Store(store) as opened:
        watch = Watch(opened, by)
        now = watch.look()
        live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        said, quiet = "", 0.0
        try:  # not `with live`: Ctrl-C while it starts would leave the cursor hidden
            if console.is_terminal:
                live.start()
            while True:
                if console.is_terminal:
                    live.update(_screen(store, now, console), refresh=True)
                elif head(store, now) != said and (now.over or time.monotonic() >= quiet):
                    said, quiet = head(store, now), time.monotonic() + QUIET_SECONDS
                    print(said, flush=True)
                if now.over:
                    break
                time.sleep(LOOK_SECONDS)
                now = watch.look()
        finally:
            live.stop()
    _tell(store, now)
    return 1 if now.failed else 0


def head(store: Path, now: Standing) -> str:
    """The line that says how far `store` is, and who goes on with it."""
    counts = f"{now.done} of {now.wanted} cells done, {len(now.damaged)} damaged, {now.failed} failed"
    if now.writer is None:
        return f"{store}: {counts}"
    rate = "" if now.rate is None else f", {_say_rate(now.rate)}"
    left = "" if now.remaining is None else f", about {say_seconds(now.remaining)} left"
    return f"{store}: {counts}; process {now.writer} is at work{rate}{left}"


def table(now: Standing, lines: Sequence[Line]) -> Table:
    """`lines` as a table: a bar and counts for each."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in now.by:
        made.add_column(name.replace("_", " "), justify="left" if name in ("method", "task") else "right")
    made.add_column("", no_wrap=True)
    for name in ("done", "failed", "missing"):
        made.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        values = [f"{v:g}" if isinstance(v, float) else str(v) for v in line.values]
        failed = f"[red]{line.failed}[/]" if line.failed else "0"
        made.add_row(*values, _bar(line), f"{line.done}/{line.wanted}", failed, str(line.missing))
    return made


def _bar(line: Line) -> str:
    """Done cells as full blocks, failed ones as crosses: told apart without colour."""
    done = BAR * line.done // line.wanted
    failed = min(BAR - done, -(-BAR * line.failed // line.wanted))
    return f"[green]{'━' * done}[/][red]{'x' * failed}[/][dim]{'·' * (BAR - done - failed)}[/]"


def _screen(store: Path, now: Standing, console: Console) -> Group:
    """What fits on a terminal: lines that are not finished first."""
    from rich.console import Group
    from rich.text import Text

    room = max(1, console.height - FRAME)
    shown = now.lines
    if len(shown) > room:
        unfinished = [line for line in shown if line.missing or line.failed]
        shown = tuple((unfinished or list(shown))[:room])
    parts: list[Text | Table] = [Text(head(store, now)), table(now, shown)]
    hidden = len(now.lines) - len(shown)
    if hidden:
        finished = sum(line.done == line.wanted for line in now.lines)
        parts.append(Text(f"{hidden} lines more; {finished} of {len(now.lines)} are finished"))
    if now.writer is None and not now.over:
        parts.append(Text(f"nobody is at work; go on with: {resume_command(store)}"))
    return Group(*parts)


def _tell(store: Path, now: Standing) -> None:
    """What went wrong, and what goes on with it."""
    for key, fault in now.damaged.items():
        print(f"  damaged {key[:12]}: {fault}")
    for key, (error, attempts) in now.failures.items():
        print(f"  failed  {key[:12]} after {attempts} tries: {error}")
    if now.done < now.wanted and now.writer is None:
        print(f"go on with: {resume_command(store)}")


def _say_rate(rate: float) -> str:
    """
    >>> _say_rate(2.5), _say_rate(0.05)
    ('2.5 cells/s', '3 cells/min')
    """
    return f"{rate:.3g} cells/s" if rate >= 1 else f"{rate * 60:.3g} cells/min"
