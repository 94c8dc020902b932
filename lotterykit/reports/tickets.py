"""The found ticket drawn as a graph beside the planted one (P0 Fig. 2 b, d)."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lotterykit.reports.groups import Group
from lotterykit.reports.ink import NEGATIVE, POSITIVE, ZERO, ink, new_figure, svg_text
from lotterykit.reports.points import Row, Series, number
from lotterykit.reports.tables import csv_text, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TICKET_COLUMNS = ("panel", "layer", "out", "in", "weight_before", "weight_after", "planted")
Edge = tuple[int, int, int]  # (layer of weights, out, in)
Neuron = tuple[int, int]  # (layer of neurons, index in the mother), inputs are layer 0
_NOT_PLANTED = (0, (3.2, 1.6))
_MOST_UNITS = 24  # inputs or outputs drawn even when dead; wider ones show their live units only


@dataclass(frozen=True)
class Ticket:
    """The live part of one row's ticket: `edges` (layer, out, in) -> (weight before, after training)."""

    widths: tuple[int, ...]
    edges: dict[Edge, tuple[float, float]]
    biases: dict[Neuron, tuple[float, float]]

    @property
    def neurons(self) -> set[Neuron]:
        """Every neuron at an end of a live edge."""
        return {n for layer, out, inp in self.edges for n in ((layer, inp), (layer + 1, out))}


@dataclass(frozen=True)
class Pair:
    """What one ticket figure shows: the planted ticket and the best one found on the same seed."""

    planted: Row | None
    found: Row | None
    series: Series | None
    seed: int | None


@dataclass(frozen=True)
class Sheet:
    """What the panels of one figure share: where a neuron stands, and each layer's greatest |w|."""

    places: dict[Neuron, tuple[float, float]]
    scales: dict[int, float]


def ticket(row: Row | None) -> Ticket | None:
    """The `Ticket` of `row`, None where the row holds no edges (too many to draw) or there is no row."""
    told = _edges(row) if row else None
    if not told:
        return None
    edges = {(int(e[0]), int(e[1]), int(e[2])): (_real(e[3]), _real(e[4])) for e in told.get("edges", [])}
    biases = {(int(b[0]) + 1, int(b[1])): (_real(b[2]), _real(b[3])) for b in told.get("biases", [])}
    return Ticket(tuple(int(w) for w in told["widths"]), edges, biases)


def _edges(row: Row) -> dict[str, Any] | None:
    """What `row` holds of its ticket, which may be JSON text: few tickets of a sweep are drawn."""
    told = row.get("edges")
    return json.loads(told) if isinstance(told, str) else told


def pick(group: Group) -> Pair:
    """The tickets to draw: the first seed with a truth, and on it the row with the best live recovery.

    Rows at the truth's density go first, then those of the nearest asked density. Tickets too large to
    draw are taken only where there is nothing else, and those without a live path last.
    """
    planted = next((r for r in group.truth if r.get("edges")), group.truth[0] if group.truth else None)
    rows = [(s, r) for s in group.searched for p in s.points for r in p.rows]
    if not rows:
        return Pair(planted, None, None, planted["spec"].get("seed", 0) if planted else None)
    seeds = {r["spec"].get("seed", 0) for _, r in rows}
    seed = planted["spec"].get("seed", 0) if planted else min(seeds)
    rows = [(s, r) for s, r in rows if r["spec"].get("seed", 0) == seed] or rows
    truth = group.truth_density

    def rank(item: tuple[Series, Row]) -> tuple:
        row, asked = item[1], item[1]["spec"]["density"]
        away = 0.0 if asked == "truth" else abs(float(asked) - truth) + 1e-12
        told = _edges(row)
        dead = bool(row["collapse"].get("no_live_path")) or (told is not None and not told.get("edges"))
        live, recall = number(row, "recovery", "live", "iou"), number(row, "recovery", "recall")
        return (dead, told is None, away, -(live or 0.0), -(recall or 0.0))

    series, found = min(rows, key=rank)
    return Pair(planted, found, series, found["spec"].get("seed", 0))


def ticket_csv(pair: Pair) -> str:
    """Every edge of the two tickets (layers from 1), with whether the planted ticket holds it."""
    planted = ticket(pair.planted)
    lines = []
    for name, row in (("planted", pair.planted), ("found", pair.found)):
        drawn = ticket(row)
        for edge, weights in sorted(drawn.edges.items()) if drawn else ():
            layer, out, inp = edge
            known = "" if planted is None else edge in planted.edges
            lines.append((name, layer + 1, out, inp, *weights, known))
    return csv_text(TICKET_COLUMNS, lines)


def ticket_svg(pair: Pair, slug: str) -> str:
    """The planted ticket, the found one, and the found one after training, side by side: SVG text.

    Layers run left to right. Edge width is proportional to |w| within a layer, on one scale for all
    panels, whose end (the layer's greatest |w|) stands below; blue is negative, amber positive; a dashed
    edge is not on the planted ticket. Nodes show the bias sign, grey zero; hollow ones are dead inputs and
    outputs. A neuron stands at the same place in all panels.
    """
    planted, found = ticket(pair.planted), ticket(pair.found)
    drawable = [t for t in (planted, found) if t]
    sheet = Sheet(_places(drawable), _scales(drawable))
    name = pair.series.label if pair.series else "a method"
    panels = [
        ("planted", pair.planted, planted, 0),
        (f"{name}, untrained", pair.found, found, 0),
        (f"{name}, trained", pair.found, found, 1),
    ]
    layers = [layer for layer, _ in sheet.places]
    most = max(map(layers.count, layers), default=4)
    with ink(slug):
        figure = new_figure(10.4, min(8.0, max(3.4, 1.0 + 0.2 * most)))
        for ax, (title, row, drawn, when) in zip(figure.subplots(1, 3), panels, strict=True):
            ax.set_title(f"{title} ({len(drawn.edges)} weights)" if drawn else title)
            ax.set_axis_off()
            reason = _nothing_to_draw(row, drawn)
            if reason or drawn is None:
                ax.text(0.5, 0.5, reason, ha="center", va="center", transform=ax.transAxes, color="#7A1F1F")
            else:
                _draw(ax, drawn, sheet, when, planted.edges if planted and row is pair.found else None)
        _key(figure)
        return svg_text(figure, slug)


def _nothing_to_draw(row: Row | None, drawn: Ticket | None) -> str:
    if row is None:
        return "not in these results"
    if row["collapse"].get("no_live_path") or (drawn is not None and not drawn.edges):
        return "no live path\nfrom input to output"
    return "" if drawn else "too many weights to draw"


def _places(tickets: Sequence[Ticket]) -> dict[Neuron, tuple[float, float]]:
    """A place for every neuron of any of `tickets`: x its layer, y by barycentres of its neighbours.

    The first ticket's (the planted one's) neurons are ordered first, so they stay together.
    """
    layers: dict[int, list[int]] = {}
    for t in tickets:
        for layer, unit in sorted(t.neurons):
            if unit not in layers.setdefault(layer, []):
                layers[layer].append(unit)
        for layer in (0, len(t.widths) - 1):
            if t.widths[layer] <= _MOST_UNITS:
                layers[layer] = list(range(t.widths[layer]))
    edges = [e for t in tickets for e in t.edges]
    depth = max(layers, default=0) + 1
    y = {(layer, u): _spread(i, len(us)) for layer, us in layers.items() for i, u in enumerate(us)}
    forward = _neighbours(edges, lambda e: ((e[0] + 1, e[1]), (e[0], e[2])))
    backward = _neighbours(edges, lambda e: ((e[0], e[2]), (e[0] + 1, e[1])))
    for _ in range(4):  # a few sweeps settle such small graphs
        for layer in range(1, depth - 1):
            _reorder(layers, layer, y, forward)
        for layer in range(depth - 2, 0, -1):
            _reorder(layers, layer, y, backward)
    return {n: (n[0], h) for n, h in y.items()}


def _neighbours(
    edges: Sequence[Edge],
    ends: Callable[[Edge], tuple[Neuron, Neuron]],
) -> dict[Neuron, list[Neuron]]:
    found: dict[Neuron, list[Neuron]] = {}
    for edge in edges:
        near, far = ends(edge)
        found.setdefault(near, []).append(far)
    return found


def _reorder(
    layers: dict[int, list[int]], layer: int, y: dict[Neuron, float], near: dict[Neuron, list[Neuron]]
) -> None:
    def centre(unit: int) -> float:
        ends = near.get((layer, unit))
        return sum(y[e] for e in ends) / len(ends) if ends else y[layer, unit]

    units = sorted(layers.get(layer, []), key=lambda u: (centre(u), u))
    layers[layer] = units
    for i, unit in enumerate(units):
        y[layer, unit] = _spread(i, len(units))


def _spread(i: int, n: int) -> float:
    """Height in (0, 1) of unit i of n: small layers stay near the middle."""
    gap = min(0.16, 1.0 / max(n, 1))
    return 0.5 + gap * (i - (n - 1) / 2)


def _scales(tickets: Sequence[Ticket]) -> dict[int, float]:
    """The greatest |w| of each layer over all of `tickets`: layers differ too much for one scale."""
    found: dict[int, float] = {}
    for t in tickets:
        for edge, weights in t.edges.items():
            found[edge[0]] = max(found.get(edge[0], 0.0), *map(abs, weights))
    return {layer: w or 1.0 for layer, w in found.items()}


def _draw(ax: Axes, drawn: Ticket, sheet: Sheet, when: int, planted: Collection[Edge] | None) -> None:
    from matplotlib.collections import LineCollection

    widths = {e: abs(w[when]) / sheet.scales[e[0]] for e, w in drawn.edges.items()}
    edges = sorted(drawn.edges, key=lambda e: (-widths[e], e))  # thin ones on top
    at = sheet.places
    ax.add_collection(
        LineCollection(
            [(at[layer, inp], at[layer + 1, out]) for layer, out, inp in edges],
            linewidths=[max(0.6, 4.0 * widths[e]) for e in edges],
            colors=[POSITIVE if drawn.edges[e][when] > 0 else NEGATIVE for e in edges],
            linestyles=["-" if planted is None or e in planted else _NOT_PLANTED for e in edges],
            alpha=0.85,
            zorder=2,
        )
    )
    last = len(drawn.widths) - 1
    _draw_neurons(ax, drawn, at, when)
    heights = [h for _, h in at.values()]
    low, high = min(heights) - 0.08, max(heights) + 0.08
    room = max(0.3, high - low)  # a ticket of single neurons is no reason for a flat picture
    ax.set_xlim(-0.45, last + 0.45)
    ax.set_ylim(0.5 + 0.62 * room, 0.5 - 0.52 * room)
    for layer, scale in sorted(sheet.scales.items()):
        text = f"\u2264 {show(scale)}"
        ax.text(layer + 0.5, 0.5 + 0.61 * room, text, ha="center", va="bottom", fontsize=8.5, color="#444444")


def _draw_neurons(ax: Axes, drawn: Ticket, at: dict[Neuron, tuple[float, float]], when: int) -> None:
    live, last = drawn.neurons, len(drawn.widths) - 1
    crowd = max(sum(n[0] == layer for n in at) for layer in range(last + 1))
    size = 62 if crowd <= 12 else 34 if crowd <= 24 else 16
    for (layer, unit), (x, y) in at.items():
        alive = (layer, unit) in live
        if not alive and layer not in (0, last):
            continue
        bias = drawn.biases.get((layer, unit), (0.0, 0.0))[when]
        color = _sign_color(bias) if alive else "white"
        ax.scatter([x], [y], s=size, color=color, edgecolors="#333333", linewidths=0.8, zorder=3)
        if layer in (0, last) and drawn.widths[layer] <= _MOST_UNITS:
            side, name = (-1, "x") if layer == 0 else (1, "y")
            align = "right" if side < 0 else "left"
            ax.text(x + 0.13 * side, y, f"{name}{unit + 1}", ha=align, va="center", fontsize=9)


def _sign_color(bias: float) -> str:
    return ZERO if bias == 0 else POSITIVE if bias > 0 else NEGATIVE


def _key(figure: Any) -> None:
    from matplotlib.lines import Line2D

    dot: dict[str, Any] = {"linestyle": "none", "marker": "o", "markeredgecolor": "#333333", "markersize": 7}
    entries = [
        Line2D([], [], color=POSITIVE, linewidth=3, label="weight > 0"),
        Line2D([], [], color=NEGATIVE, linewidth=3, label="weight < 0"),
        Line2D([], [], color="#555555", linewidth=2, linestyle=_NOT_PLANTED, label="not a planted weight"),
        Line2D([], [], color=POSITIVE, label="bias > 0", **dot),
        Line2D([], [], color=NEGATIVE, label="bias < 0", **dot),
        Line2D([], [], color=ZERO, label="bias = 0", **dot),
        Line2D([], [], color="white", label="dead", **dot),
        Line2D([], [], linestyle="none", label="\u2264: greatest |w| of the layer"),
    ]  # fmt: skip
    figure.legend(handles=entries, loc="outside upper center", ncols=8, columnspacing=1.1, handlelength=1.6)


def _real(value: float | None) -> float:
    """A weight as a float; a missing (non-finite) one counts as 0."""
    return 0.0 if value is None else float(value)
