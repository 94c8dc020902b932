"""How every figure looks: colours and markers of methods, axes, and the way to a reproducible SVG."""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lotterykit.errors import LotterykitError
from lotterykit.reports.marks import Mark, label_marks
from lotterykit.reports.points import Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart, its light colours darkened to stand out
# from white paper, with a marker each for print.
STYLES = {
    "random": ("#7F7F7F", "X"),
    "magnitude": ("#0072B2", "o"),
    "snip": ("#D55E00", "s"),
    "grasp": ("#009E73", "^"),
    "synflow": ("#C76C9E", "D"),
    "prospr": ("#A6761D", "P"),
    "edge-popup": ("#C27C00", "v"),
    "edge-popup-annealed": ("#8C510A", "<"),
    "edge-popup-global": ("#2E8BC0", ">"),
    "oracle-densities": ("#9C8AC6", "h"),
    "oracle-neurons": ("#8673B8", "H"),
    "oracle-less-50": ("#7159A6", "p"),
    "oracle-less-30": ("#573D91", "8"),
    "oracle-less-10": ("#351C75", "d"),
}
_SPARE = (("#2F9478", "*"), ("#5E4FA2", "x"), ("#9A8B00", "+"), ("#333333", "1"))
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (3, 1, 1, 1)), (0, (1, 1)))
# A comment in every figure file of ours, so that a later report knows which ones it may remove.
MARK = "<!-- a figure of a lotterykit report -->"
TRUTH = "#000000"
REFERENCE = "#8A8A8A"
NEGATIVE, POSITIVE, ZERO = "#1F5FA8", "#E39A00", "#B5B5B5"

_RC: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name with a dollar sign is a name
    "font.family": ["sans-serif"],
    "font.size": 10.0,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "figure.constrained_layout.w_pad": 0.09,
    "figure.constrained_layout.h_pad": 0.06,
    "hatch.linewidth": 0.7,
    "hatch.color": "#7A1F1F",
}


def check_ready() -> None:
    """Raise `LotterykitError`, saying what to install, where matplotlib or jinja2 cannot be imported.

    For a check before hours of work; `write_report` makes it itself.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as e:
        raise LotterykitError(f"figures need matplotlib ({e}): pip install 'lotterykit[plot]'") from e
    try:
        import jinja2  # noqa: F401
    except ImportError as e:
        # jinja2 is no part of the extra: torch requires it
        told = f"the report page needs jinja2, which comes with torch ({e}): pip install jinja2"
        raise LotterykitError(told) from e


@contextlib.contextmanager
def ink(slug: str) -> Iterator[None]:
    """The settings of our figures, whatever the user's matplotlibrc says; `slug` salts the SVG's ids.

    Raises `LotterykitError` naming the extra where matplotlib is not installed.
    """
    check_ready()
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        settings: Any = {**_RC, "svg.hashsalt": slug}
        matplotlib.rcParams.update(settings)
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of `width` x `height` inches that belongs to no window and no global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def svg_text(figure: Figure, slug: str, marks: Sequence[Mark] = ()) -> str:
    """`figure` as SVG text: no date, and ids that start with `slug`, so one page can hold many.

    `marks` are those that were drawn by `mark`: each carries its facts and its text.
    """
    out = io.StringIO()
    none: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(out, format="svg", metadata=none)
    prefix = re.sub(r"[^A-Za-z0-9_-]", "_", slug) + "-"
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", out.getvalue())
    text = label_marks(text, prefix, marks)
    return re.sub(r"[ \t]+\n", "\n", text).replace("<svg", f"{MARK}\n<svg", 1)


def style(series: Series, among: Sequence[str], values: Sequence[Any] = (None,)) -> dict[str, Any]:
    """Line colour, marker and dashes of `series`; `among` are all methods of the report.

    A method has one colour in all figures; more rounds or an inverted score change the dashes, or, where
    the figure has an overlay, the series' place among its `values`.
    """
    strangers = sorted({m for m in among if m not in STYLES})
    if series.method in STYLES:
        color, marker = STYLES[series.method]
    else:
        color, marker = _SPARE[strangers.index(series.method) % len(_SPARE)]
    # synflow's usual 100 rounds are no variant, so only one-round synflow and multi-round others are.
    usual = 100 if series.method == "synflow" else 1
    variant = (series.rounds not in (1, usual)) + 2 * series.invert
    dashes = dash(series.overlay[1], values) if series.overlay else DASHES[variant]
    return {"color": color, "marker": marker, "linestyle": dashes}


def dash(value: Any, values: Sequence[Any]) -> Any:
    """The line style of an overlay's `value` among all its `values`."""
    return DASHES[values.index(value) % len(DASHES)]


def density_axis(ax: Axes, low: float) -> None:
    """Logarithmic density axis from below `low` to 1 with plain numbers at the decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_xscale("log")
    ax.set_xlim(min(low, 0.5) / 1.35, 1.25)
    ax.xaxis.set_major_locator(LogLocator(numticks=12))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("density (kept / total)")


def power_axis(ax: Axes, which: str = "y") -> None:
    """Logarithmic axis, "x" or "y", labelled with powers of ten in plain text (no math fonts in the SVG)."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis = {"x": ax.xaxis, "y": ax.yaxis}[which]
    scale = {"x": ax.set_xscale, "y": ax.set_yscale}[which]
    scale("log", nonpositive="clip")
    axis.set_major_locator(LogLocator(numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda y, _: power(y)))
    axis.set_minor_formatter(NullFormatter())


def power(y: float) -> str:
    """`y` as a power of ten where it is one: 10⁻³."""
    if y <= 0 or not math.isfinite(y):
        return ""
    exponent = round(math.log10(y))
    if not math.isclose(y, 10.0**exponent, rel_tol=1e-6):
        return f"{y:.2g}"
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
