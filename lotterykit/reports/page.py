"""One self-contained HTML page from result rows, and its figures and data as files beside it."""

from __future__ import annotations

import base64
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lotterykit.errors import ArgumentError
from lotterykit.reports import captions, heat, ladder, plots, tables, tickets, words
from lotterykit.reports.groups import Group, groups
from lotterykit.reports.ink import MARK, check_ready
from lotterykit.reports.points import WHEN, Point, Row, say
from lotterykit.reports.sections import Section, make_sections
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
    rows: Sequence[Row],
    out_dir: str | os.PathLike[str],
    *,
    title: str = "Plant 'n' Seek",
    figures: Sequence[Mapping[str, Any]] | None = None,
) -> Path:
    """Write `out_dir`/index.html and `out_dir`/figures/*.svg, *.csv from result `rows`; the page's path.

    A section for each task, or for each of `figures`: mappings with "name" (a number or a word), "title",
    "keys" (of the figure's rows; a row may be in several, rows in none are left out) and "overlay" (a field
    of the spec drawn as line styles, or None). The page appears last and whole: a failure leaves an earlier
    page as it was. Figures of an earlier report that this one does not have are then removed. The same rows
    give the same bytes. Raises `ArgumentError` for no rows, rows that are none, or a folder that cannot be
    written, `LotterykitError` where matplotlib or jinja2 is missing.
    """
    sections = make_sections(rows, figures)
    check_ready()
    if figures is not None:
        rows = list({id(r): r for s in sections for r in s.rows}.values())
    out = Path(out_dir)
    methods = sorted({str(r["spec"]["method"]) for r in rows} - {"oracle"})
    drawn = {g.slug: _figures(g, methods) for s in sections for g in s.groups}
    page = _page(rows, sections, drawn, title)
    try:
        folder = out / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        written = [f for own in drawn.values() for f in own]
        for figure in written:
            _write(folder / f"{figure.name}.svg", figure.svg)
            _write(folder / f"{figure.name}.csv", figure.csv)
        path = _write(out / "index.html", page)
        _remove_earlier(folder, {f.name for f in written})
        return path
    except OSError as e:
        raise ArgumentError(f"cannot write the report to {str(out)!r}: {e.strerror or e}") from e


def _remove_earlier(folder: Path, kept: set[str]) -> None:
    """Remove the figures of earlier reports, known by their mark, with their data; nobody else's files."""
    for path in sorted(folder.glob("*.svg")):
        if path.stem in kept or path.is_symlink() or not path.is_file():
            continue
        with path.open("rb") as file:
            ours = MARK.encode() in file.read(1000)
        if ours:
            path.with_suffix(".csv").unlink(missing_ok=True)
            path.unlink()


def _write(path: Path, text: str) -> Path:
    """Replace `path` by `text` in one step, so that no reader sees half of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 600 would hide the page from a web server
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _figures(group: Group, methods: Sequence[str]) -> list[Figure]:
    slug = group.slug
    made = []
    if group.ladder:
        made.append(
            Figure(f"{slug}-metric", "What a part of the ticket is worth", captions.ladder_caption(group),
                   ladder.ladder_svg(group, methods), tables.metric_csv(group))
        )  # fmt: skip
    elif group.series:
        made += [
            Figure(f"{slug}-metric", "Performance against density", captions.metric_caption(group),
                   plots.metric_svg(group, methods), tables.metric_csv(group)),
            Figure(f"{slug}-recovery", "Recovery of the planted ticket", captions.recovery_caption(group),
                   plots.recovery_svg(group, methods), tables.recovery_csv(group)),
        ]  # fmt: skip
    for part, value in zip(group.parts, group.values, strict=True):
        pair, slug = tickets.pick(part), part.slug
        which = f", {group.overlay} {say(value)}" if group.overlay else ""
        if tables.layer_names([*part.rows, *part.truth]):
            made.append(
                Figure(f"{slug}-layers", f"Density of each layer{which}", captions.layer_caption(part),
                       heat.layer_svg(part), tables.layer_csv(part))
            )  # fmt: skip
        if group.ladder:
            continue
        made.append(
            Figure(f"{slug}-ticket", f"The ticket, planted and found{which}", captions.ticket_caption(pair),
                   tickets.ticket_svg(pair, f"{slug}-ticket"), tickets.ticket_csv(pair))
        )  # fmt: skip
    return made


def _page(
    rows: Sequence[Row], sections: Sequence[Section], figures: dict[str, list[Figure]], title: str
) -> str:
    import jinja2
    from markupsafe import Markup

    shown = [{"heading": s.heading, "groups": [_told(g, s, figures[g.slug]) for g in s.groups]}
             for s in sections]  # fmt: skip
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(PAGE)
    text = template.render(
        title=title,
        css=Markup(CSS),  # a constant of ours
        lead=words.lead(groups(rows)),
        facts=words.facts(rows),
        overview=_overview(sections),
        legend=captions.LEGEND,
        sections=shown,
        version=words.version(rows),
        count=len(rows),
    )
    return text + "\n"


def _told(group: Group, section: Section, figures: Sequence[Figure]) -> dict[str, Any]:
    """What the template shows of `group`."""
    from markupsafe import Markup

    shown = [
        {"name": f.name, "heading": f.heading, "caption": f.caption, "csv": _data_uri(f.csv),
         "svg": Markup(_inline(f, group))}
        for f in figures
    ]  # fmt: skip
    return {
        "anchor": group.slug,
        "title": f"{group.task}: {group.title}" if section.name else group.title,
        "conditions": words.conditions(group),
        "notes": words.notes(group),
        "figures": shown,
        "tables": _tables(group),
    }


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


def _overview(sections: Sequence[Section]) -> dict[str, Any] | None:
    """One line per group, so that tasks, pipelines and gains stand beside each other; None for one group."""
    lines = []
    for section in sections:
        for group in section.groups:
            cells = [_text(text, small=small) for text, small in words.overview(group)]
            where = f"{section.name}, " if section.name else ""
            cells[0] |= {"href": f"#{group.slug}", "text": where + cells[0]["text"]}
            lines.append({"kind": "", "cells": cells})
    if len(lines) < 2:
        return None
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
    for i, (label, point) in enumerate(tables.truths(group)):
        cells = _mean_cells(label, point, metrics)
        lines.append({"kind": "truth" if i else "first truth", "cells": cells})
    caption = captions.MEANS + (captions.RESCALED if group.rescaled and not group.classification else "")
    return {"heading": "All numbers", "header": header, "lines": lines, "caption": caption}


def _mean_cells(label: str, point: Point, metrics: Sequence[str]) -> list[dict[str, Any]]:
    density = tables.show_density(point) + (" (truth)" if point.asked == "truth" else "")
    got = tables.show(point.density)
    cells = [_text(label), _text(density, small=f"achieved {got}" if not density.startswith(got) else "")]
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
