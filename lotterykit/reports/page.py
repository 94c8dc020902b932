"""One self-contained HTML page from result rows, and its figures and data as files beside it."""

from __future__ import annotations

import base64
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lotterykit.errors import ArgumentError, LotterykitError
from lotterykit.reports import captions, plots, tables, tickets, words
from lotterykit.reports.groups import WHEN, Group, Point, Row, groups
from lotterykit.reports.template import CSS, PAGE


@dataclass(frozen=True)
class Figure:
    """A figure of the page: `name` is its file name without ending, `svg` and `csv` are file contents."""

    name: str
    heading: str
    caption: str
    svg: str
    csv: str


def write_report(
    rows: Sequence[Row], out_dir: str | os.PathLike[str], *, title: str = "Plant 'n' Seek"
) -> Path:
    """Write `out_dir`/index.html and `out_dir`/figures/*.svg, *.csv from result `rows`; the page's path.

    The page appears last and whole: a failure leaves an earlier page as it was. The same rows give the
    same bytes. Raises `ArgumentError` for no rows, rows that are none, or a folder that cannot be
    written, `LotterykitError` where matplotlib or jinja2 is missing.
    """
    found = groups(rows)
    out = Path(out_dir)
    figures = {g.slug: _figures(g, _methods(rows)) for g in found}
    page = _page(rows, found, figures, title)
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        for figure in (f for own in figures.values() for f in own):
            _write(out / "figures" / f"{figure.name}.svg", figure.svg)
            _write(out / "figures" / f"{figure.name}.csv", figure.csv)
        return _write(out / "index.html", page)
    except OSError as e:
        raise ArgumentError(f"cannot write the report to {str(out)!r}: {e.strerror or e}") from e


def _write(path: Path, text: str) -> Path:
    """Replace `path` by `text` in one step, so that no reader sees half of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.chmod(temporary, 0o644)  # mkstemp's 600 would hide the page from a web server
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _methods(rows: Sequence[Row]) -> list[str]:
    return sorted({str(r["spec"]["method"]) for r in rows} - {"oracle"})


def _figures(group: Group, methods: Sequence[str]) -> list[Figure]:
    pair = tickets.pick(group)
    slug = group.slug
    made = []
    if group.series:
        made += [
            Figure(f"{slug}-metric", "Performance against density", captions.metric_caption(group),
                   plots.metric_svg(group, methods), tables.metric_csv(group)),
            Figure(f"{slug}-recovery", "Recovery of the planted ticket", captions.recovery_caption(group),
                   plots.recovery_svg(group, methods), tables.recovery_csv(group)),
        ]  # fmt: skip
    if tables.layer_names([*group.rows, *group.truth]):
        made.append(
            Figure(f"{slug}-layers", "Density of each layer", captions.layer_caption(group),
                   plots.layer_svg(group), tables.layer_csv(group))
        )  # fmt: skip
    made.append(
        Figure(f"{slug}-ticket", "The ticket, planted and found", captions.ticket_caption(pair),
               tickets.ticket_svg(pair, f"{slug}-ticket"), tickets.ticket_csv(pair))
    )  # fmt: skip
    return made


def _page(rows: Sequence[Row], found: list[Group], figures: dict[str, list[Figure]], title: str) -> str:
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as e:
        raise LotterykitError("the report page needs jinja2: pip install 'lotterykit[plot]'") from e
    sections: dict[str, dict[str, Any]] = {}
    for group in found:
        shown = [
            {"name": f.name, "heading": f.heading, "caption": f.caption, "csv": _data_uri(f.csv),
             "svg": Markup(_inline(f, group))}
            for f in figures[group.slug]
        ]  # fmt: skip
        section = sections.setdefault(group.task, {"task": group.task, "groups": []})
        section["groups"].append(
            {
                "anchor": group.slug,
                "title": group.title,
                "conditions": words.conditions(group),
                "notes": words.notes(group),
                "figures": shown,
                "tables": _tables(group),
            }
        )
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(PAGE)
    text = template.render(
        title=title,
        css=Markup(CSS),  # a constant of ours
        lead=words.lead(found),
        facts=words.facts(rows, found),
        overview=_overview(found) if len(found) > 1 else None,
        legend=captions.LEGEND,
        sections=list(sections.values()),
        version=words.version(rows),
        count=len(rows),
    )
    return text + "\n"


def _inline(figure: Figure, group: Group) -> str:
    """The SVG for use inside HTML: no XML prolog, a role and a description for screen readers."""
    from markupsafe import escape

    body = figure.svg[figure.svg.index("<svg") :]
    label = escape(f"{figure.heading}: {group.task}, {group.title}")
    body = re.sub(r"^<svg\b", f'<svg role="img" aria-label="{label}"', body, count=1)
    return re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)


def _data_uri(csv: str) -> str:
    return "data:text/csv;base64," + base64.b64encode(csv.encode()).decode()


def _tables(group: Group) -> list[dict[str, Any]]:
    made = [_means(group)] if group.series or group.truth else []
    hiding = tables.hiding_table(group)
    if hiding:
        lines = [{"kind": "", "cells": [_text(c) for c in line]} for line in hiding[1:]]
        made.append(
            {
                "heading": "How well the ticket hides",
                "header": hiding[0],
                "lines": lines,
                "caption": captions.HIDING,
            }
        )
    return made


def _overview(found: Sequence[Group]) -> dict[str, Any]:
    """One line per group, so that tasks, pipelines and gains stand beside each other."""
    lines = []
    for group in found:
        cells = [_text(text, small=small) for text, small in words.overview(group)]
        cells[0] |= {"href": f"#{group.slug}"}
        lines.append({"kind": "", "cells": cells})
    return {
        "heading": "At a glance",
        "header": words.OVERVIEW,
        "lines": lines,
        "caption": words.OVERVIEW_CAPTION,
    }


def _means(group: Group) -> dict[str, Any]:
    metrics = tables.metric_names(group)
    names = {"accuracy": "accuracy", "mse": "MSE", "mse_scaled": "MSE up to scale"}
    header = ["method", "density", *(f"{names[m]} {when}" for when in WHEN for m in metrics)]
    header += ["precision", "recall", "live IoU", "no live path", "empty layer"]
    lines = []
    for series in group.series:
        for i, point in enumerate(series.points):
            lines.append(
                {"kind": "first" if not i else "", "cells": _mean_cells(series.label, point, metrics)}
            )
    if group.truth:
        cells = _mean_cells("ground truth", Point("truth", group.truth), metrics)
        lines.append({"kind": "first truth", "cells": cells})
    return {"heading": "All numbers", "header": header, "lines": lines, "caption": captions.MEANS}


def _mean_cells(label: str, point: Point, metrics: Sequence[str]) -> list[dict[str, Any]]:
    density = tables.show(point.density) + (" (truth)" if point.asked == "truth" else "")
    cells = [_text(label), _text(density)]
    for when in WHEN:
        for metric in metrics:
            s = point.stat("metrics", when, metric)
            cells.append(_text(tables.show(s.mean), small=tables.show_range(s), warn=s.n < s.total))
    for path in (("precision",), ("recall",), ("live", "iou")):
        cells.append(_text(tables.show(point.stat("recovery", *path).mean)))
    for count in (point.collapsed, point.emptied):
        cells.append(_text(f"{count} of {len(point.rows)}", warn=count > 0))
    return cells


def _text(text: str, *, small: str = "", warn: bool = False) -> dict[str, Any]:
    return {"text": text, "small": small, "warn": warn, "href": None}
