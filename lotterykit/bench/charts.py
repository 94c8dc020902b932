"""Charts of results as SVG: speed-up against density with the crossover marked, and the roofline."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lotterykit.bench.peers import PEERS
from lotterykit.bench.problems import OPS
from lotterykit.errors import ArgumentError, LotterykitError
from lotterykit.mask import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
PANELS = 6  # the most that one chart shows
# Okabe and Ito's palette, which colour-blind readers can tell apart, with a marker each for print.
STYLES = {
    "spmm": ("#D55E00", "o"),
    "masked_linear": ("#E69F00", "v"),
    "auto": ("#F0E442", "p"),
    "sddmm": ("#D55E00", "o"),
    "sparse_conv2d": ("#D55E00", "o"),
    "sparse_conv2d-last": ("#E69F00", "v"),
    "sparse_conv2d-batch": ("#F0E442", "^"),
    **dict.fromkeys(
        ("topk_mask", "train_replicas", "train_scores", "synflow_masks", "synflow_scores"), ("#D55E00", "o")
    ),
    "dense": ("#B5B5B5", "x"),
    "dense-masked": ("#7F7F7F", "X"),
    "dense-last": ("#D9D9D9", "+"),
    "dense-masked-last": ("#9E9E9E", "*"),
    "torch-compile": ("#333333", "P"),
    "torch-csr": ("#0072B2", "s"),
    "sparseprop": ("#009E73", "^"),
    "sparseprop-over-on": ("#66C2A5", "<"),
    "sparselab": ("#CC79A7", "D"),
    "kthvalue": ("#7F7F7F", "X"),
    "eager": ("#7F7F7F", "X"),
    "published": ("#7F7F7F", "X"),
    "cat-topk": ("#0072B2", "s"),
    "sort": ("#009E73", "^"),
}
SPARE = ("#56B4E9", "h")
_RC: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": ["sans-serif"],
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
}


def check_ready() -> None:
    """Raises `LotterykitError`, naming the extra, where matplotlib cannot be imported."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise LotterykitError(f"charts need matplotlib ({error}): pip install 'lotterykit[plot]'") from error


def speedup(document: Mapping[str, Any], path: Path) -> None:
    """Write the chart of speed-up over the op's baseline against density, a panel for each shape and work."""
    panels = panels_of(document["rows"])
    with _ink(path.stem):
        figure = _figure(len(panels))
        for ax, (title, rows) in zip(figure.axes, panels.items(), strict=True):
            _draw_speedup(ax, title, rows)
        _legend(figure)
        _caption(figure, document)
        _save(figure, path)


def roofline(document: Mapping[str, Any], path: Path) -> None:
    """Write the chart of useful FLOP/s against intensity under the peaks measured in the same run.

    Raises `ArgumentError` where the rows compute nothing or the document holds no ceilings.
    """
    rows = [row for row in document["rows"] if row.get("flops")]
    if not rows:
        raise ArgumentError("a roofline needs products to count: these rows have none")
    if not document.get("ceilings"):
        raise ArgumentError("a roofline needs ceilings of the same run: measure again with --roofline")
    panels = panels_of(rows)
    with _ink(path.stem):
        figure = _figure(len(panels))
        for ax, (title, shown) in zip(figure.axes, panels.items(), strict=True):
            _draw_roofline(ax, title, shown, document["ceilings"])
        _legend(figure)
        _caption(figure, document)
        _save(figure, path)


def crossover(points: Sequence[tuple[float, float]]) -> float | None:
    """The density at which a speed-up falls through 1, log-linear between the measured ones, or None.

    points: (density, speed-up). Where it happens more than once, the lowest density counts.

    >>> crossover([(0.1, 4.0), (0.4, 0.25)])
    0.2
    """
    ordered = sorted(points)
    for (low, above), (high, below) in itertools.pairwise(ordered):
        if above >= 1 > below:
            share = math.log(above) / (math.log(above) - math.log(below))
            return round(math.exp(math.log(low) + share * (math.log(high) - math.log(low))), 12)
    return None


def panels_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Title -> rows of one panel. Raises `ArgumentError` for more panels than a chart shows."""
    found: dict[str, list[Row]] = {}
    varied = {f for f in ("dtype", "threads", "device") if len({row.get(f) for row in rows}) > 1}
    for row in rows:
        title = f"{row['op']} {'x'.join(map(str, row['shape']))}, {row['work']}"
        title += "".join(f", {row[f]} {f if f == 'threads' else ''}".rstrip() for f in sorted(varied))
        found.setdefault(title, []).append(row)
    if len(found) > PANELS:
        raise ArgumentError(
            f"a chart shows at most {PANELS} panels, got {len(found)}: "
            "choose among them with --shape, --work, --dtype and --threads"
        )
    return found


def _draw_speedup(ax: Axes, title: str, rows: Sequence[Row]) -> None:
    baseline = OPS[rows[0]["op"]].baseline
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if baseline not in row["us"]:
            continue
        for name, timing in row["us"].items():
            peer = PEERS.get(name.split(":")[0])
            if name != baseline and not (peer and peer.floor):
                point = (row["density"], row["us"][baseline]["median"] / timing["median"])
                lines.setdefault(name, []).append(point)
    if not lines:
        raise ArgumentError(f"{title}: no row holds the baseline {baseline} beside another peer")
    ax.axhline(1.0, color="#000000", linewidth=1.0)
    for name, points in lines.items():
        ax.plot(*zip(*sorted(points), strict=True), label=name, **_style(name))
    ours = str(rows[0].get("ours"))
    at = crossover(lines.get(ours, []))
    if at is not None:
        ax.axvline(at, color=_style(ours)["color"], linewidth=1.0, linestyle=(0, (2, 2)))
        where: Any = ax.get_xaxis_transform()  # at the top, where no line is near its crossover
        ax.text(at, 0.97, f"crossover {at:.2g} ", transform=where, ha="right", va="top", fontsize=9)
    ax.set_title(title)
    _log_axes(ax, "density (kept / total)", f"times faster than {baseline}")


def _draw_roofline(ax: Axes, title: str, rows: Sequence[Row], ceilings: Sequence[Mapping[str, Any]]) -> None:
    same = ("threads", "dtype")
    roof = next((c for c in ceilings if all(c[f] == rows[0][f] for f in same)), None)
    if roof is None:
        raise ArgumentError(f"{title}: no ceilings for {rows[0]['threads']} threads and {rows[0]['dtype']}")
    intensities = [row["flops"] / row["traffic"] for row in rows]
    ends = [min(intensities) / 3, max(*intensities, roof["gflops"] / roof["memory"]) * 3]
    for level, dashes in (("L2", "-"), ("L3", (0, (5, 1.5))), ("memory", (0, (1, 1)))):
        knee = min(max(roof["gflops"] / roof[level], ends[0]), ends[1])
        xs = [ends[0], knee, ends[1]]
        ys = [min(roof["gflops"], roof[level] * x) for x in xs]
        ax.plot(xs, ys, color="#000000", linewidth=1.0, linestyle=dashes)
        # On the slopes, so that no label meets another: the fastest above its line, the others below.
        x = ends[0] * (knee / ends[0]) ** {"L2": 0.6, "L3": 0.35, "memory": 0.2}[level]
        at, above = (x, min(roof["gflops"], roof[level] * x)), level == "L2"
        where: dict[str, Any] = {"xytext": (-5, 4) if above else (6, -9), "ha": "right" if above else "left"}
        ax.annotate(f"{level} {roof[level]:.0f} GB/s", at, textcoords="offset points", size=8, **where)
    ax.annotate(
        f"{roof['gflops']:.0f} GFLOP/s", (ends[1], roof["gflops"]), (0, 3), textcoords="offset points",
        size=8, ha="right",
    )  # fmt: skip
    lines: dict[str, list[tuple[float, float]]] = {}
    for row, intensity in zip(rows, intensities, strict=True):
        for name, timing in row["us"].items():
            lines.setdefault(name, []).append((intensity, row["flops"] / timing["median"] / 1e3))
    for name, points in lines.items():
        ax.plot(*zip(*sorted(points), strict=True), label=name, **_style(name) | {"linewidth": 0.8})
    ax.set_title(title)
    _log_axes(ax, "kept FLOPs per byte that must move", "useful GFLOP/s")


def _style(name: str) -> dict[str, Any]:
    base, _, backend = name.partition(":")
    color, marker = STYLES.get(base, SPARE)
    mine = base in PEERS and bool(PEERS[base].ours)
    dashes: Any = (0, (3, 1, 1, 1)) if backend else "-"
    return {
        "color": color,
        "marker": marker,
        "markersize": 5,
        "linewidth": 2.4 if mine else 1.3,
        "linestyle": dashes,
    }


def _log_axes(ax: Axes, x: str, y: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_xscale("log")
    ax.set_yscale("log")
    for axis, label in ((ax.xaxis, x), (ax.yaxis, y)):
        axis.set_label_text(label)
        axis.set_major_locator(LogLocator(numticks=9))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _figure(count: int) -> Figure:
    from matplotlib.figure import Figure

    columns = min(count, 2)
    lines = -(-count // columns)
    figure = Figure(figsize=(4.9 * columns, 3.5 * lines + 0.7), layout="constrained")
    for place in range(count):
        figure.add_subplot(lines, columns, place + 1)
    return figure


def _legend(figure: Figure) -> None:
    found: dict[str, Any] = {}
    for ax in figure.axes:
        handles, labels = ax.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    figure.legend(list(found.values()), list(found), loc="outside upper center", ncols=min(len(found), 6))


def _caption(figure: Figure, document: Mapping[str, Any]) -> None:
    rows = document["rows"]
    threads = sorted({row["threads"] for row in rows})
    dtypes = sorted({row["dtype"] for row in rows})
    words = [
        document.get("cpu") or "",
        f"{document.get('machine', '')}",
        f"threads {', '.join(map(str, threads))}",
    ]
    words += [", ".join(dtypes), f"torch {document.get('versions', {}).get('torch', '?')}"]
    words += [f"medians of {document.get('repeats', '?')}"]
    figure.supxlabel("; ".join(filter(None, words)), fontsize=8, color="#666666")


@contextlib.contextmanager
def _ink(slug: str) -> Iterator[None]:
    check_ready()
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        settings: Any = {**_RC, "svg.hashsalt": slug}
        matplotlib.rcParams.update(settings)
        yield


def _save(figure: Figure, path: Path) -> None:
    """The same bytes for the same rows: no date, no random ids."""
    out = io.StringIO()
    none: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(out, format="svg", metadata=none)
    write_atomically(path, re.sub(r"[ \t]+\n", "\n", out.getvalue()).encode())
