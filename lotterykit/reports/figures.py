"""The figures of a report: which ones a group has, how many a large sweep draws, how they enter the page."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lotterykit.errors import ArgumentError
from lotterykit.reports import captions, compare, heat, ladder, plots, tables, tickets
from lotterykit.reports.groups import Group
from lotterykit.reports.points import say

KINDS = ("metric", "recovery", "layers", "ticket")  # the first ones are drawn where not all can be
LARGE = 20_000  # results: beyond, figures would take longer than all the rest
FEW = 6  # figures of a large sweep


@dataclass(frozen=True)
class Figure:
    """A figure of the page: `name` is its file name without ending, `svg` and `csv` are file contents."""

    name: str
    heading: str
    caption: str
    svg: str
    csv: str


@dataclass(frozen=True)
class Plan:
    """A figure not yet drawn, of one of `KINDS`."""

    kind: str
    draw: Callable[[], Figure]


def draw(
    found: Sequence[Group], methods: Sequence[str], results: int, most: int | None
) -> tuple[dict[str, list[Figure]], int]:
    """The figures of each group by its slug, and how many are left out.

    At most `most` are drawn, all by default, `FEW` of more than `LARGE` results: kind after kind as long as
    one can be drawn for every group, the first kind in any case. Raises `ArgumentError` for `most` below 0.
    """
    if most is not None and most < 0:
        raise ArgumentError(f"figures must be at least 0, got {most}")
    limit = most if most is not None else FEW if results > LARGE else None
    plans = {group.slug: _plans(group, methods) for group in found}
    everything = [(slug, plan) for slug, own in plans.items() for plan in own]
    wanted: list[tuple[str, Plan]] = []
    for kind in KINDS:
        own = [(slug, plan) for slug, plan in everything if plan.kind == kind]
        if limit is not None and len(wanted) + len(own) > limit:
            wanted += own[:limit] if not wanted else []
            break
        wanted += own
    kept = {id(plan) for _, plan in wanted}
    drawn = {slug: [plan.draw() for plan in own if id(plan) in kept] for slug, own in plans.items()}
    return drawn, len(everything) - len(wanted)


def _plans(group: Group, methods: Sequence[str]) -> list[Plan]:
    slug = group.slug
    made = []
    if group.ladder:
        made.append(Plan("metric", lambda: Figure(
            f"{slug}-metric", "What a part of the ticket is worth", captions.ladder_caption(group),
            ladder.ladder_svg(group, methods), tables.metric_csv(group),
        )))  # fmt: skip
    elif group.series:
        if compare.compared(group):
            made.append(Plan("metric", lambda: Figure(
                f"{slug}-sweeps", "Sweeps side by side", captions.side_caption(group),
                compare.side_svg(group, methods), tables.metric_csv(group),
            )))  # fmt: skip
        else:
            made.append(Plan("metric", lambda: Figure(
                f"{slug}-metric", "Performance against density", captions.metric_caption(group),
                plots.metric_svg(group, methods), tables.metric_csv(group),
            )))  # fmt: skip
        made.append(Plan("recovery", lambda: Figure(
            f"{slug}-recovery", "Recovery of the planted ticket", captions.recovery_caption(group),
            plots.recovery_svg(group, methods), tables.recovery_csv(group),
        )))  # fmt: skip
    for part, value in zip(group.parts, group.values, strict=True):
        made += _part_plans(part, f", {group.overlay} {say(value)}" if group.overlay else "")
    return made


def _part_plans(part: Group, which: str) -> list[Plan]:
    """The figures of one value of a group's overlay, or of a group without one."""
    slug = part.slug
    made = []
    if tables.layer_names([*part.rows, *part.truth]):
        made.append(Plan("layers", lambda: Figure(
            f"{slug}-layers", f"Density of each layer{which}", captions.layer_caption(part),
            heat.layer_svg(part), tables.layer_csv(part),
        )))  # fmt: skip
    if part.ladder:
        return made

    def ticket() -> Figure:
        pair = tickets.pick(part)
        return Figure(
            f"{slug}-ticket", f"The ticket, planted and found{which}", captions.ticket_caption(pair),
            tickets.ticket_svg(pair, f"{slug}-ticket"), tickets.ticket_csv(pair),
        )  # fmt: skip

    return [*made, Plan("ticket", ticket)]


def inline(figure: Figure, group: Group) -> str:
    """The SVG for use inside HTML: no XML prolog, a role and a description for screen readers."""
    from markupsafe import escape

    body = figure.svg[figure.svg.index("<svg") :]
    label = escape(f"{figure.heading}: {group.task}, {group.title}")
    body = re.sub(r"^<svg\b", f'<svg role="img" aria-label="{label}"', body, count=1)
    return re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)


def data_uri(csv: str) -> str:
    """`csv` as a link that needs no file."""
    return "data:text/csv;base64," + base64.b64encode(csv.encode()).decode()
