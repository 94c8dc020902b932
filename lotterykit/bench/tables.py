"""What a terminal shows: rows by setting, the goals, and the list of ops and peers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lotterykit.bench.goals import Verdict, line
from lotterykit.bench.peers import PEERS
from lotterykit.bench.problems import OPS

Row = Mapping[str, Any]


def show_rows(rows: Sequence[Row], console: Console | None = None) -> None:
    """A table for each shape, dtype, threads and work: peers down, densities across; then the refusals.

    A cell is the median in microseconds, the multiple of the first of ours, and below them the 20th and 80th
    percentile.
    """
    console = console or Console()
    groups: dict[str, list[Row]] = {}
    for row in rows:
        shape = "x".join(map(str, row["shape"]))
        threads = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
        groups.setdefault(f"{row['op']} {shape} {row['work']}, {row['dtype']}, {threads}", []).append(row)
    for title, group in groups.items():
        table = Table(title=Text(title), title_justify="left")
        table.add_column("us", no_wrap=True)
        for row in group:
            table.add_column(f"density {row['density']:g}", justify="right")
        for name in dict.fromkeys(name for row in group for name in row["us"]):
            table.add_row(Text(name), *(_cell(row, name) for row in group))
        if any("gflops" in row for row in group):
            table.add_section()
            table.add_row("GFLOP/s of ours", *(f"{row.get('gflops', 0):.1f}" for row in group))
        console.print(table)
    for name, reason in _refusals(rows).items():
        console.print(f"{name}: {reason}", markup=False, highlight=False, soft_wrap=True)


def show_goals(verdicts: Sequence[Verdict], console: Console | None = None) -> None:
    """A line a goal: wanted, found, against whom, and where it was worst."""
    console = console or Console()
    for verdict in verdicts:
        goal = verdict.goal
        what = f"{goal.what}; worst: {verdict.where}" if verdict.where else goal.what
        told = line(goal.name, what, verdict.found, goal.wanted, goal.unit, most=goal.most)
        console.print(told, markup=False, highlight=False, soft_wrap=True)
    held = sum(verdict.holds for verdict in verdicts)
    console.print(f"{held} of {len(verdicts)} goals hold", highlight=False)


def show_list(console: Console | None = None) -> None:
    """Every op with its shape and works, every peer with what it serves or why it is absent."""
    console = console or Console()
    ops = Table("op", "shape", "works", "what", title="ops", title_justify="left")
    for name, op in OPS.items():
        ops.add_row(name, " x ".join(op.sides), ", ".join(op.works), op.what)
    console.print(ops)
    peers = Table("peer", "ops", "what", "here", title="peers", title_justify="left")
    for name, peer in PEERS.items():
        peers.add_row(name, ", ".join(peer.serves), peer.what, peer.absent() or "yes")
    console.print(peers)


def _cell(row: Row, name: str) -> Text:
    timing = row["us"].get(name)
    if timing is None:
        return Text("-")
    ratio = row.get("ratio", {}).get(name)
    multiple = "" if ratio is None else f"  {ratio:.2f}x"
    spread = f"{_number(timing['p20'])}..{_number(timing['p80'])}"
    return Text.assemble(f"{_number(timing['median'])}{multiple}\n", (spread, "dim"))


def _number(us: float) -> str:
    return f"{us:.1f}" if us < 100 else f"{us:.0f}"


def _refusals(rows: Sequence[Row]) -> dict[str, str]:
    """Peer -> its first reason, with the setting where it does not hold for all."""
    found: dict[str, str] = {}
    for row in rows:
        for name, reason in row.get("refused", {}).items():
            everywhere = all(r.get("refused", {}).get(name) == reason for r in rows)
            where = "" if everywhere else f" ({row['dtype']} {row['work']} at density {row['density']:g})"
            found.setdefault(name, f"{reason}{where}")
    return found
