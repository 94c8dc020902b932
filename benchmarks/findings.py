"""The tables of docs/findings.md, from the rows of `lotterykit reproduce plant-n-seek`.

    python benchmarks/findings.py [STORE]

With a STORE (runs.sqlite) its rows are first written, as the columns that the tables need, to
results/plant-n-seek/results.csv.gz, beside those of this results version that the file has already; without
one the tables come from that file. Accuracies are means over
seeds, mean squared errors medians (they span decades); "strong" is before training, for regression after one
positive factor fitted on the training split; "weak" is after training; "recall" is the kept share of the
planted weights, "live" counts those on a path from input to output alone.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from lotterykit.experiments import paper
from lotterykit.experiments.export import flat
from lotterykit.experiments.spec import CellSpec
from lotterykit.experiments.store import Store

RESULTS = Path(__file__).parent / "results" / "plant-n-seek" / "results.csv.gz"
TASKS = {"circle": "Circle", "relu": "ReLU", "helix": "Helix"}
METHODS = ("random", "magnitude", "snip", "grasp", "synflow")
POPUPS = ("edge-popup", "edge-popup-annealed", "edge-popup-global")
KEPT = ("key", "results_version", "density", "truth_density", "output_scale", "samples_scored")
PREFIXES = ("spec.", "metrics.", "recovery.", "hiding.", "collapse.", "times.")
DIGITS = 6
Row = dict[str, str]


def write(store: str) -> None:
    """The rows of `store` and of the file in the order of the study, numbers to 6 digits."""
    with Store(store) as opened:
        fresh = {row["key"]: flat(row) for row in opened.rows()}
    found = (read() if RESULTS.exists() else {}) | fresh
    rows = [found[cell.key()] for cell in paper.cells(paper.STUDY) if cell.key() in found]
    columns = dict.fromkeys(name for row in rows for name in row if name in KEPT or name.startswith(PREFIXES))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _short(value) for name, value in row.items()} for row in rows)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with open(RESULTS, "wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as out:
        out.write(text.getvalue().encode())
    print(f"{len(rows)} rows in {RESULTS}, {len(fresh)} in the store\n")


def _short(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    return json.dumps(value) if isinstance(value, list) else value


def read() -> dict[str, Row]:
    with gzip.open(RESULTS, "rt", encoding="utf-8", newline="") as file:
        return {row["key"]: row for row in csv.DictReader(file)}


class Study:
    """The rows by figure, and the numbers of a group of them."""

    def __init__(self, rows: dict[str, Row]) -> None:
        self.rows = rows

    def groups(
        self, figure: int | str, by: Callable[[CellSpec], object], only: Callable[[CellSpec], bool]
    ) -> dict[object, list[Row]]:
        found: dict[object, list[Row]] = defaultdict(list)
        for cell in paper.STUDY[figure].cells():
            if only(cell) and cell.key() in self.rows:
                found[by(cell)].append(self.rows[cell.key()])
        return found


def number(row: Row, column: str) -> float | None:
    return float(row[column]) if row.get(column) not in (None, "") else None


def metric(rows: Iterable[Row], when: str) -> str:
    """The strong ("before") or weak ("after") metric of a group."""
    rows = list(rows)
    if not rows:
        return ""
    if rows[0]["spec.task"] == "circle":
        return f"{statistics.mean(number(r, f'metrics.{when}.accuracy') or 0.0 for r in rows):.3f}"
    key = f"metrics.{when}." + ("mse_scaled" if when == "before" else "mse")
    values = [v for r in rows if (v := number(r, key)) is not None]
    return f"{statistics.median(values):.2g}" if values else "diverged"


def recall(rows: Iterable[Row], column: str = "recovery.recall") -> str:
    return f"{statistics.mean(number(r, column) or 0.0 for r in rows):.2f}"


def table(head: list[str], lines: Iterable[list[str]], title: str) -> None:
    print(f"**{title}**\n")
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for line in lines:
        print("| " + " | ".join(line) + " |")
    print()


def by_density(study: Study, figure: int | str, methods: Iterable[str], title: str, **fixed: object) -> None:
    """A line a task and method: strong and weak at each density, and recall at the truth's."""

    def only(cell: CellSpec) -> bool:
        return all(getattr(cell, name) == value for name, value in fixed.items())

    groups = study.groups(figure, lambda c: (c.task, c.method, str(c.density)), only)
    densities = ["1.0", "0.5", "0.1", "0.01", "truth"]
    lines = []
    for task, name in TASKS.items():
        for method in (*methods, "oracle"):
            cells = [groups.get((task, method, d), []) for d in densities]
            if not any(cells):
                continue
            shown = [f"{metric(c, 'before')} → {metric(c, 'after')}" if c else "" for c in cells]
            lines.append([name, method, *shown, recall(cells[-1]), recall(cells[-1], "recovery.live.recall")])
    table(["task", "method", *densities, "recall at truth", "live"], lines, title)


def by_gain(study: Study) -> None:
    """At the truth's density: each method, and how hidden and functional the ticket is, against gain."""
    groups = study.groups(3, lambda c: (c.task, c.method, c.gain), lambda c: c.density == "truth")
    gains = [0.0, 0.25, 0.5, 0.75, 1.0]
    lines = []
    for task, name in TASKS.items():
        for method in (*METHODS, "oracle"):
            cells = [groups.get((task, method, gain), []) for gain in gains]
            lines.append([name, method, *(f"{metric(c, 'after')} ({recall(c)})" if c else "" for c in cells)])
    table(["task", "method", *map(str, gains)], lines, "Fig. 3 at the truth's density: weak (recall) by gain")
    lines = []
    for task, name in TASKS.items():
        for gain in gains:
            rows = groups.get((task, "oracle", gain), [])
            if not rows:
                continue
            sigma, auc = [], []
            for layer in (0, 2, 4, 6):
                sigmas = [number(r, f"hiding.{layer}.weight.max_sigma") or 0.0 for r in rows]
                aucs = [v for r in rows if (v := number(r, f"hiding.{layer}.weight.auc")) is not None]
                sigma.append(f"{statistics.median(sigmas):.2g}")
                auc.append(f"{statistics.mean(aucs):.2f}" if aucs else "-")
            scale = statistics.median(number(r, "output_scale") or 0.0 for r in rows)
            lines.append([name, str(gain), f"{scale:.3g}", " / ".join(sigma), " / ".join(auc)])
    head = [
        "task",
        "gain",
        "output scale left",
        "largest planted weight, sigma, by layer",
        "AUC of abs(w), by layer",
    ]
    table(head, lines, "How hidden: medians over 25 seeds (AUC: means)")


def compared(
    study: Study, figure: int | str, field: str, title: str, gain: float, densities: list[str]
) -> None:
    """Weak metrics by method and density with a column a value of `field`."""
    groups = study.groups(
        figure, lambda c: (c.task, c.method, str(c.density), getattr(c, field)), lambda c: c.gain == gain
    )
    values = sorted({key[3] for key in groups}, key=str)
    lines = []
    for task, name in TASKS.items():
        for method in METHODS:
            for density in densities:
                cells = [groups.get((task, method, density, value), []) for value in values]
                if any(cells):
                    lines.append([name, method, density, *(metric(c, "after") for c in cells)])
    table(["task", "method", "density", *(f"{field} {value}" for value in values)], lines, title)


def ladder(study: Study) -> None:
    rungs = [
        "random",
        "oracle-densities",
        "oracle-neurons",
        "oracle-less-50",
        "oracle-less-30",
        "oracle-less-10",
        "oracle",
    ]
    groups = study.groups("ladder", lambda c: (c.task, c.gain, c.method), lambda c: True)
    lines = []
    for task, name in TASKS.items():
        for gain in (0.0, 1.0):
            cells = [groups.get((task, gain, rung), []) for rung in rungs]
            shown = [f"{metric(c, 'before')} → {metric(c, 'after')}" if c else "" for c in cells]
            lines.append([name, f"{gain:g}", *shown])
    table(["task", "gain", *rungs], lines, "The information ladder: strong → weak at the truth's density")


def unplanted(study: Study) -> None:
    """Unplanted mothers beside the same seeds planted at gain 0: weak metrics and recall."""
    groups = study.groups("unplanted", lambda c: (c.task, c.method, str(c.density)), lambda c: True)
    same = study.groups(
        3, lambda c: (c.task, c.method, str(c.density)), lambda c: c.gain == 0 and c.seed < 10
    )
    lines = []
    for task, name in TASKS.items():
        for method in METHODS:
            line = [name, method]
            for density in ("0.1", "0.01", "truth"):
                for found in (groups, same):
                    rows = found.get((task, method, density), [])
                    line.append(f"{metric(rows, 'after')} ({recall(rows)})" if rows else "")
            lines.append(line)
    head = ["task", "method"]
    head += [f"{d}, {what}" for d in ("0.1", "0.01", "truth") for what in ("unplanted", "gain 0")]
    table(head, lines, "Unplanted mothers and the same ones planted at gain 0: weak (recall), 10 seeds")


def main() -> None:
    if len(sys.argv) > 1:
        write(sys.argv[1])
    study = Study(read())
    single = "single-shot"
    for gain in (0.0, 1.0):
        by_density(
            study, 3, METHODS, f"Fig. 3, single-shot, gain {gain:g}: strong → weak, 25 seeds", gain=gain
        )
    by_gain(study)
    for gain in (0.0, 1.0):
        title = f"Fig. 4, multi-shot, gain {gain:g}: strong → weak, 10 seeds"
        by_density(study, 4, METHODS, title, gain=gain, pipeline="multi-shot")
        title = f"Fig. 4, edge-popup, gain {gain:g}: strong → weak, 10 seeds"
        by_density(study, 4, POPUPS, title, gain=gain, pipeline="edge-popup")
    for gain in (0.0, 1.0):
        title = f"Fig. 7, what is reset between the rounds, gain {gain:g}: weak"
        compared(study, 7, "reset", title, gain, ["0.1", "0.01", "truth"])
    for figure, depth in ((9, 3), (11, 10)):
        for gain in (0.0, 1.0):
            title = f"Fig. {figure}, single-shot, depth {depth}, gain {gain:g}: strong → weak, 25 seeds"
            by_density(study, figure, METHODS, title, gain=gain, pipeline=single)
    by_density(study, 12, METHODS, "Fig. 12, width 1000, gain 1: strong → weak, 10 seeds", gain=1.0)
    for gain in (0.0, 1.0):
        title = f"Fig. 13, SynFlow with 1 and 100 rounds, gain {gain:g}: weak"
        compared(study, 13, "rounds", title, gain, ["0.5", "0.1", "0.01", "truth"])
    for gain in (0.0, 1.0):
        title = f"Fig. 14, multi-shot at depth 6, noise, gain {gain:g}: weak"
        compared(study, 14, "noise", title, gain, ["0.1", "0.01", "truth"])
    for gain in (0.0, 1.0):
        title = f"Fig. 15, multi-shot with local pruning, gain {gain:g}: strong → weak, 10 seeds"
        by_density(study, 15, METHODS, title, gain=gain)
    unplanted(study)
    ladder(study)


if __name__ == "__main__":
    main()
