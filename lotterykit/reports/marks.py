"""Markers that know what they stand for: the page's script shows rows, a browser their text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape, quoteattr

from lotterykit.reports.groups import Group
from lotterykit.reports.points import Point, Series, say
from lotterykit.reports.tables import row_name, show, show_density, show_range

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Mark:
    """What a marker of a figure stands for: `about` are its facts for the page's script by name, `text`
    is what a browser shows when the mouse is on it."""

    about: dict[str, str]
    text: str


def mark(ax: Axes, marks: list[Mark], at: tuple[float, float], told: Mark, **look: Any) -> None:
    """Draw one marker `at` (x, y), which `svg_text` then labels with `told`."""
    ax.plot([at[0]], [at[1]], linestyle="none", gid=f"mark{len(marks)}", **look)
    marks.append(told)


def told_of(group: Group, whole: Group, series: Series, point: Point, path: tuple[str, ...]) -> Mark:
    """What the marker of `point` stands for: its row of the tables of `whole`, of which `group` is a part."""
    s = point.stat(*path)
    sweep = series.overlay[1] if series.overlay and series.overlay[0] == "sweep" else group.sweep
    label = series.label if group is whole else f"{series.label}, {whole.overlay} {say(sweep)}"
    known = show_range(s)
    seeds = "seed" if s.total == 1 else "seeds"
    lines = [
        f"{label}, density {show_density(point)}{' (truth)' if point.asked == 'truth' else ''}",
        f"{' '.join(path[1:])} {show(s.mean)}{f' ({known})' if known else ''}, {s.total} {seeds}",
    ]
    if point.collapsed:
        lines.append(f"no live path in {point.collapsed}")
    about = {"row": row_name(whole, label, point), "setting": whole.slug, "method": series.name,
             "asked": say(point.asked)}  # fmt: skip
    return Mark(about if sweep is None else {**about, "sweep": str(sweep)}, "\n".join(lines))


def label_marks(text: str, prefix: str, marks: Sequence[Mark]) -> str:
    """The SVG `text`, whose ids start with `prefix`, with the facts and the text of each of its marks."""

    def labelled(found: re.Match[str]) -> str:
        told = marks[int(found[2])]
        about = "".join(f" data-{name}={quoteattr(value)}" for name, value in told.about.items())
        return f'{found[1]}<use class="mark"{about} {found[3]}><title>{escape(told.text)}</title></use>'

    place = rf'(<g id="{re.escape(prefix)}mark(\d+)">(?:(?!<g id=).)*?)<use ([^>]*?)/>'
    return re.sub(place, labelled, text, flags=re.DOTALL)
