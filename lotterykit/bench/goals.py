"""`CPU_GOALS`: what to reach against whom, as data; judged from results files, the worst row deciding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lotterykit.bench import results
from lotterykit.bench.peers import is_theirs

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Goal:
    """A row of the goals table: the worst `value` of the rows of `topic` that match `where` reaches `wanted`.

    `topic` names the file, `<machine>-<topic>.json`. `where`: field -> the values it may have. `value` is
    None for a row that cannot tell. `most`: `wanted` is a limit from above.
    """

    name: str
    what: str
    topic: str
    where: Mapping[str, Sequence[Any]]
    value: Callable[[Row], float | None]
    wanted: float
    unit: str = "x"
    most: bool = False


@dataclass(frozen=True)
class Verdict:
    """What was found for a goal: None where nothing was measured; `where` names the worst row."""

    goal: Goal
    found: float | None
    where: str = ""

    @property
    def holds(self) -> bool:
        if self.found is None:
            return False
        return self.found <= self.goal.wanted if self.goal.most else self.found >= self.goal.wanted

    @property
    def word(self) -> str:
        return "not measured" if self.found is None else "holds" if self.holds else "missed"


def line(
    name: str, what: str, found: float | None, wanted: float, unit: str = "x", *, most: bool = False
) -> str:
    """One line of a verdict, as `make gpu-check` prints it.

    >>> line("G1", "top-k against sort", 3.5, 3.0)
    'G1: holds, 3.50x of 3x (top-k against sort)'
    """
    if found is None:
        return f"{name}: not measured ({what})"
    word = "holds" if (found <= wanted if most else found >= wanted) else "missed"
    return f"{name}: {word}, {found:.2f}{unit} of {wanted:g}{unit} ({what})"


def over(peer: str) -> Callable[[Row], float | None]:
    """How many times faster ours is than `peer`."""
    return lambda row: row.get("ratio", {}).get(peer)


def over_better(*peers: str) -> Callable[[Row], float | None]:
    """How many times faster ours is than the fastest of a peer's ways, of which not all need be there."""

    def value(row: Row) -> float | None:
        ratios = row.get("ratio", {})
        return min((ratios[peer] for peer in peers if peer in ratios), default=None)

    return value


def best_over(ours: str) -> Callable[[Row], float | None]:
    """How many times faster the entry `ours` is than the fastest of the others' peers."""

    def value(row: Row) -> float | None:
        us = row["us"]
        theirs = [taken["median"] for name, taken in us.items() if is_theirs(name)]
        return min(theirs) / us[ours]["median"] if theirs and ours in us else None

    return value


def ahead_by(ours: str, *peers: str) -> Callable[[Row], float | None]:
    """`over_better` of another way of ours than the row's first."""
    first = over_better(*peers)

    def value(row: Row) -> float | None:
        theirs, own = first(row), row.get("ratio", {}).get(ours)
        return theirs / own if theirs and own else None

    return value


def gflops(row: Row) -> float | None:
    return row.get("gflops")


def reads(row: Row) -> float | None:
    """Ours in units of one read of all scores."""
    floor = row.get("ratio", {}).get("one-read")
    return 1 / floor if floor else None


def judge(rows: Iterable[Row], goal: Goal) -> Verdict:
    """The worst row decides."""
    found: list[tuple[float, str]] = []
    for row in rows:
        if all(row.get(field) in allowed for field, allowed in goal.where.items()):
            value = goal.value(row)
            if value is not None:
                shape = "x".join(map(str, row["shape"]))
                found.append((value, f"{shape} density {row['density']:g} {row['work']}"))
    if not found:
        return Verdict(goal, None)
    worst = max(found) if goal.most else min(found)
    return Verdict(goal, *worst)


def judge_all(folder: Path, goals: Sequence[Goal] | None = None, machine: str | None = None) -> list[Verdict]:
    """Every goal against `<machine>-<topic>.json` in `folder`; no file means not measured."""
    machine = machine or results.machine()
    goals = CPU_GOALS if goals is None else goals
    files = {goal.topic: folder / f"{machine}-{goal.topic}.json" for goal in goals}
    rows = {topic: results.read(path)["rows"] if path.exists() else [] for topic, path in files.items()}
    return [judge(rows[goal.topic], goal) for goal in goals]


_ONE: dict[str, Sequence[Any]] = {"threads": [1], "dtype": ["float32"]}
_FORWARD = _ONE | {"op": ["linear"], "work": ["forward"]}
_BOTH = _ONE | {"op": ["linear"], "work": ["forward+backward"]}
_SIZES = ([128, 1024, 1024], [256, 4096, 4096], [128, 784, 300], [64, 512, 512])
_WIDE: dict[str, Sequence[Any]] = {"shape": _SIZES}  # batch >= 64, >= 300 wide
_STEP: dict[str, Sequence[Any]] = {"shape": _SIZES[:1]}
_SPARSE: dict[str, Sequence[Any]] = {"shape": _SIZES, "density": [0.1, 0.05, 0.01, 0.001]}
_CONV = _ONE | {
    "op": ["conv"],
    "work": ["forward+backward"],
    "shape": ([32, 64, 32, 64], [32, 128, 16, 128], [32, 512, 4, 512]),
}
_MASKED_CONV = ("dense-masked", "dense-masked-last")
_STEPS = _ONE | {"shape": [[16, 100, 3000]]}
_TOPK = _ONE | {"op": ["topk"]}

CPU_GOALS: tuple[Goal, ...] = (
    *(
        Goal(
            f"C1 at {density:g}",
            "linear forward against dense-masked",
            "linear",
            _FORWARD | _WIDE | {"density": [density]},
            over("dense-masked"),
            wanted,
        )
        for density, wanted in ((0.1, 7.0), (0.05, 14.0), (0.01, 60.0), (0.001, 250.0))
    ),
    Goal(
        "C1 rate",
        "linear forward at .1",
        "linear",
        _FORWARD | _WIDE | {"density": [0.1]},
        gflops,
        45.0,
        " GFLOP/s",
    ),
    *(
        Goal(
            f"C2 at {density:g}",
            "linear forward + backward (128, 1024, 1024) against dense-masked",
            "linear",
            _BOTH | _STEP | {"density": [density]},
            over("dense-masked"),
            wanted,
        )
        for density, wanted in ((0.1, 5.0), (0.01, 25.0), (0.001, 60.0))
    ),
    *(
        Goal(f"C3 {peer}", f"linear {work} against {peer}", "linear", where | _SPARSE, over(peer), 2.0)
        for peer, work, where in (
            ("sparseprop", "forward + backward", _BOTH),
            ("sparselab", "forward + backward", _BOTH),
            ("torch-csr", "forward", _FORWARD),
        )
    ),
    Goal(
        "C3 best",
        "linear layer of format='auto' against the best peer, everywhere on the grid",
        "linear",
        _ONE | {"op": ["linear"]},
        best_over("auto"),
        0.95,
    ),
    *(
        Goal(
            f"C4 at {density:g}",
            "3x3 convolution forward + backward, kept batch-last, against dense-masked, the better layout",
            "conv",
            _CONV | {"density": [density]},
            ahead_by("sparse_conv2d-batch", *_MASKED_CONV),
            wanted,
        )
        for density, wanted in ((0.1, 5.0), (0.05, 9.0), (0.01, 20.0))
    ),
    *(
        Goal(
            f"C4 contiguous at {density:g}",
            "the same of contiguous images, moved into the kernels' order and back at each call",
            "conv",
            _CONV | {"density": [density]},
            over_better(*_MASKED_CONV),
            wanted,
        )
        for density, wanted in ((0.1, 5.0), (0.05, 9.0), (0.01, 20.0), (0.4, 1.0))
    ),
    Goal(
        "C4 sparseprop",
        "3x3 convolution forward + backward against sparseprop, the better way",
        "conv",
        _CONV | {"density": [0.1, 0.05, 0.01]},
        over_better("sparseprop", "sparseprop-over-on"),
        2.0,
    ),
    *(
        Goal(
            f"C5 {words}",
            f"exact top-k of {words} scores against cat + kthvalue + where",
            "topk",
            _TOPK | {"shape": [[count, 20]]},
            over("kthvalue"),
            wanted,
        )
        for words, count, wanted in (
            ("270K", 270_000, 15.0),
            ("2.3M", 2_300_000, 18.0),
            ("15M", 15_000_000, 35.0),
            ("138M", 138_000_000, 40.0),
        )
    ),
    Goal(
        "C5 reads",
        "exact top-k of 15M scores or more, in reads of the scores",
        "topk",
        _TOPK | {"shape": [[15_000_000, 20], [138_000_000, 20]]},
        reads,
        3.0,
        " reads",
        most=True,
    ),
    *(
        Goal(
            f"C6 {words}",
            f"100 rounds of SynFlow on {words} against the published algorithm",
            "synflow",
            _ONE | {"op": [op], "shape": [shape], "density": [0.01]},
            over("published"),
            wanted,
        )
        for words, op, shape, wanted in (
            ("784-300-100-10", "synflow", [784, 300, 100, 10], 25.0),
            ("784-100x5-10", "synflow", [784, 100, 100, 100, 100, 100, 10], 25.0),
            ("VGG-16-BN", "synflow-vgg16-bn", [3, 32, 32], 12.0),  # an op of benchmarks/synflow.py
        )
    ),
    *(
        Goal(
            f"C7 {words}",
            f"a training step, {words}, against eager torch with fused Adam",
            "replicas",
            _STEPS | {"op": ["replicas"], "work": [work]} | where,
            over("eager"),
            wanted,
        )
        for words, work, where, wanted in (
            ("density 1", "random", {"density": [1.0]}, 12.0),
            ("density .1", "random", {"density": [0.1]}, 60.0),
            ("density .01", "random", {"density": [0.01]}, 250.0),
            ("a ticket's", "ticket", {}, 1500.0),
        )
    ),
    Goal(
        "C8",
        "an edge-popup step against eager torch with a sort per layer",
        "replicas",
        _STEPS | {"op": ["scores"]},
        over("eager"),
        20.0,
    ),
)
