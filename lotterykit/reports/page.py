"""One self-contained HTML page from result rows, and its figures and data as files beside it."""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from lotterykit.errors import ArgumentError
from lotterykit.reports import captions, compare, explorer, tables, words
from lotterykit.reports.figures import Figure, data_uri, draw, inline
from lotterykit.reports.groups import Group
from lotterykit.reports.ink import MARK, check_ready
from lotterykit.reports.points import WHEN, Point, Row
from lotterykit.reports.sections import Section, make_sections
from lotterykit.reports.template import CSS, PAGE


def write_report(
    rows: Sequence[Row],
    out_dir: str | os.PathLike[str],
    *,
    title: str = "Plant 'n' Seek",
    figures: Sequence[Mapping[str, Any]] | None = None,
    sweeps: Mapping[str, Sequence[Row]] | None = None,
    most_figures: int | None = None,
) -> Path:
    """Write `out_dir`/index.html and `out_dir`/figures/*.svg, *.csv from result `rows`; the page's path.

    A section for each task, or for each of `figures`: mappings with "name" (a number or a word), "title",
    "keys" (of the figure's rows; a row may be in several, rows in none are left out) and "overlay" (a field
    of the spec drawn as line styles, or None). With several `sweeps`, rows by label, in place of `rows` they
    are compared. At most `most_figures` are drawn: see `draw`. The page appears last and whole: a failure
    leaves an earlier page as it was. Figures of an earlier report that this one does not have are then
    removed. The same rows give the same bytes. Raises `ArgumentError` for no rows, rows that are none, or a
    folder that cannot be written, `LotterykitError` where matplotlib or jinja2 is missing.
    """
    own: dict[str, dict[str, Any]] = {}
    if sweeps:
        rows, own = compare.join(sweeps)
    sections = make_sections(rows, figures, compare.SWEEP if sweeps else None)
    check_ready()
    if figures is not None:
        rows = list({id(r): r for s in sections for r in s.rows}.values())
    out = Path(out_dir)
    methods = sorted({str(r["spec"]["method"]) for r in rows} - {"oracle"})
    drawn, left_out = draw([g for s in sections for g in s.groups], methods, len(rows), most_figures)
    told = words.facts(rows) + words.sweep_facts(rows, own)
    page = _page(sections, drawn, title, told, words.drawn_note(left_out), words.version(rows))
    try:
        folder = out / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        written = [f for shown in drawn.values() for f in shown]
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


def _page(
    sections: Sequence[Section],
    figures: dict[str, list[Figure]],
    title: str,
    facts: list[tuple[str, str]],
    note: str,
    version: str,
) -> str:
    import jinja2
    from markupsafe import Markup

    shown = [{"heading": s.heading, "groups": [_told(g, s, figures[g.slug]) for g in s.groups]}
             for s in sections]  # fmt: skip
    script = resources.files("lotterykit.reports").joinpath("page.js").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(PAGE)
    text = template.render(
        title=title,
        css=Markup(CSS),  # constants of ours
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        results=Markup(explorer.explorer_json(sections)),
        lead=words.lead([g for s in sections for g in s.groups]),
        facts=facts,
        note=note,
        overview=_overview(sections),
        legend=captions.LEGEND,
        sections=shown,
        version=version,
        count=dict(facts)["results"],
    )
    return text + "\n"


def _told(group: Group, section: Section, figures: Sequence[Figure]) -> dict[str, Any]:
    """What the template shows of `group`."""
    from markupsafe import Markup

    shown = [
        {"name": f.name, "heading": f.heading, "caption": f.caption, "csv": data_uri(f.csv),
         "svg": Markup(inline(f, group))}
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


def _tables(group: Group) -> list[dict[str, Any]]:
    made = [_means(group)] if group.series or group.truth else []
    differences = compare.difference_table(group) if compare.compared(group) else None
    if differences:
        lines = [{"kind": "", "row": None, "cells": [_text(t, small=small) for t, small in line]}
                 for line in differences["lines"]]  # fmt: skip
        heading = "What differs after training"
        made.insert(0, {"heading": heading, "header": differences["header"], "lines": lines,
                        "caption": captions.DIFFERENCES})  # fmt: skip
    hiding = tables.hiding_table(group)
    if hiding:
        lines = [{"kind": "", "row": None, "cells": [_text(c) for c in line]} for line in hiding[1:]]
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
            lines.append({"kind": "", "row": None, "cells": cells})
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
            row = tables.row_name(group, series.label, point)
            cells = _mean_cells(series.label, point, metrics)
            lines.append({"kind": "first" if not i else "", "row": row, "cells": cells})
    for i, (label, point) in enumerate(tables.truths(group)):
        cells = _mean_cells(label, point, metrics)
        row = tables.row_name(group, label, point)
        lines.append({"kind": "truth" if i else "first truth", "row": row, "cells": cells})
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
