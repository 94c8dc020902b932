"""The sections of a report's page: a task each, or the figures of a paper and its controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lotterykit.reports.groups import Group, groups
from lotterykit.reports.points import Row, check_rows


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading of its own: a task, or a figure of a paper or a control, called
    `name` where tables refer to it ("Figure 3", "Ladder")."""

    heading: str
    groups: tuple[Group, ...]
    rows: tuple[Row, ...] = ()  # of a figure
    name: str | None = None


def make_sections(
    rows: Sequence[Row], figures: Sequence[Mapping[str, Any]] | None = None, overlay: str | None = None
) -> list[Section]:
    """`rows` as sections: a task each, or each of `figures` (see `write_report`) with its own rows only.

    Tasks' rows that differ in the spec's field `overlay` share their figures.

    Raises `ArgumentError` for no rows, rows that are none, and rows of which no figure has any.
    """
    if figures is None:
        by_task: dict[str, list[Group]] = {}
        for group in groups(rows, overlay):
            by_task.setdefault(group.task, []).append(group)
        return [Section(task, tuple(own)) for task, own in by_task.items()]
    check_rows(rows)
    made = []
    for figure in figures:
        name, keys = figure["name"], set(figure["keys"])
        called = f"Figure {name}" if isinstance(name, int) else str(name).capitalize()
        own = [r for r in rows if r.get("key") in keys]
        found = groups(own, figure.get("overlay"), called.lower().replace(" ", "-") + "-") if own else []
        made.append(Section(f"{called}: {figure['title']}", tuple(found), tuple(own), called))
    check_rows([r for s in made for r in s.rows])
    return made
