"""What a terminal shows: one line a setting, the goals, and the list of ops and peers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from lotterykit.bench.goals import Verdict
from lotterykit.bench.peers import PEERS
from lotterykit.bench.problems import OPS

Row = Mapping[str, Any]


def show_rows(rows: Sequence[Row], console: Console | None = None) -> None:
    """Each setting with the time of the first of ours, the others as multiples of it; then the refusals."""
    console = console or Console()
    names = list(dict.fromkeys(name for row in rows for name in row["us"]))
    ours = [name for name in names if any(row.get("ours") == name for row in rows)]
    table = Table(title="median [p20, p80] of ours; others: their time over ours", title_justify="left")
    products = any("gflops" in row for row in rows)
    for heading in ("shape", "density", "dtype", "threads", "work"):
        table.add_column(heading, overflow="fold")
    for name in [f"{' / '.join(ours)} us"] * bool(ours) + ["GFLOP/s"] * products:
        table.add_column(name, justify="right")
    others = [name for name in names if name not in ours]
    for name in others:
        table.add_column(name, justify="right")
    for row in rows:
        cells = ["x".join(map(str, row["shape"])), f"{row['density']:g}", row["dtype"]]
        cells += [str(row["threads"]), row["work"]]
        if ours:
            cells.append(_own_time(row))
        if products:
            cells.append(f"{row['gflops']:.1f}" if "gflops" in row else "")
        table.add_row(*cells, *(_multiple(row, name) for name in others))
    console.print(table)
    for name, reason in _refusals(rows).items():
        console.print(f"{name}: {reason}", markup=False, highlight=False, soft_wrap=True)


def show_goals(verdicts: Sequence[Verdict], console: Console | None = None) -> None:
    """A line a goal: wanted, found, and where it was worst."""
    console = console or Console()
    table = Table()
    for heading in ("goal", "what", "wanted", "found", "", "worst at"):
        table.add_column(heading, justify="right" if heading in ("wanted", "found") else "left")
    for verdict in verdicts:
        goal = verdict.goal
        wanted = f"{'<= ' if goal.most else ''}{goal.wanted:g}{goal.unit}"
        found = "" if verdict.found is None else f"{verdict.found:.3g}{goal.unit}"
        table.add_row(goal.name, goal.what, wanted, found, verdict.word, verdict.where)
    console.print(table)
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


def _own_time(row: Row) -> str:
    if "ours" not in row:
        return ""
    timing = row["us"][row["ours"]]
    return f"{timing['median']:.0f} [{timing['p20']:.0f}, {timing['p80']:.0f}]"


def _multiple(row: Row, name: str) -> str:
    if name in row.get("ratio", {}):
        return f"{row['ratio'][name]:.2f}x"
    return f"{row['us'][name]['median']:.0f} us" if name in row["us"] else "-"


def _refusals(rows: Sequence[Row]) -> dict[str, str]:
    """Peer -> its first reason, with the setting where it does not hold for all."""
    found: dict[str, str] = {}
    for row in rows:
        for name, reason in row.get("refused", {}).items():
            everywhere = all(r.get("refused", {}).get(name) == reason for r in rows)
            where = "" if everywhere else f" ({row['dtype']} {row['work']} at density {row['density']:g})"
            found.setdefault(name, f"{reason}{where}")
    return found
