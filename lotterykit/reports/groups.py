"""Result rows sorted into figures: one group per setting, one series per method, one point per density."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

from lotterykit.reports.points import (
    WHEN,
    Point,
    Row,
    Series,
    Stat,
    check_rows,
    is_oracle,
    is_rung,
    measured,
    method_rank,
    number,
    say,
    stat,
)

# The rows' own axes: everything else in a spec is a condition that separates groups.
_AXES = ("method", "density", "seed", "rounds", "invert")
_MULTI_SHOT_ONLY = ("shots", "shot_epochs", "reset")
_EDGE_POPUP_ONLY = ("score_epochs", "score_lr")
_OF_PIPELINES = (*_MULTI_SHOT_ONLY, *_EDGE_POPUP_ONLY)
# Conditions that say nothing about the planted ticket itself: an oracle run may differ in them.
_NOT_THE_ORACLES = ("scope", "rounds", "planted", *_OF_PIPELINES)
_SHOWN_FIRST = ("pipeline", "task", "depth", "width", "gain")
_UNPLANTED = (
    "Nothing is planted in these mothers: the ground truth is that of their planted twins, at gain 1, and "
    "recovery is of the places where the ticket would have been. "
)
TASK_ORDER = ("circle", "relu", "helix")  # as in the paper


@dataclass(frozen=True)
class Group:
    """Everything that shares one set of conditions: the rows of one figure.

    `overlay` names the setting in which series and truth differ all the same, drawn as line styles.
    """

    conditions: dict[str, Any]
    series: tuple[Series, ...]
    truth: tuple[Row, ...]
    truth_note: str
    slug: str
    extra: tuple[str, ...] = field(default=())  # conditions in which the groups of this report differ
    overlay: str | None = None

    @cached_property
    def rows(self) -> list[Row]:
        """The rows of all series, without the oracle's."""
        return [r for s in self.series for p in s.points for r in p.rows]

    @property
    def task(self) -> str:
        return str(self.conditions.get("task", "?"))

    @property
    def pipeline(self) -> str:
        return str(self.conditions.get("pipeline", "?"))

    @cached_property
    def truth_density(self) -> float:
        """Mean density of the planted ticket, kept / total (NaN where unknown)."""
        return stat(number(r, "truth_density") for r in [*self.truth, *self.rows]).mean

    @cached_property
    def classification(self) -> bool:
        """Whether the rows hold an accuracy (else a mean squared error)."""
        metrics = [r["metrics"].get(when) or {} for r in [*self.rows, *self.truth] for when in WHEN]
        return any("accuracy" in m for m in metrics)

    @cached_property
    def seeds(self) -> list[int]:
        return sorted({r["spec"].get("seed", 0) for r in [*self.rows, *self.truth]})

    @property
    def unplanted(self) -> bool:
        """Whether the mothers were left as they were."""
        return self.conditions.get("planted") is False

    @cached_property
    def searched(self) -> tuple[Series, ...]:
        """The series of methods that had to search: without those that were told a part of the ticket."""
        return tuple(s for s in self.series if not is_rung(s.method))

    @property
    def ladder(self) -> bool:
        """Whether this is the information ladder: methods that were told parts, at the truth's density."""
        return len(self.searched) < len(self.series) and {p.asked for s in self.series for p in s.points} == {
            "truth"
        }

    @property
    def sweep(self) -> str | None:
        """The label of the one sweep that all rows are of, None where no sweeps are compared."""
        return None if "sweep" not in self.conditions else str(self.conditions["sweep"])

    @property
    def title(self) -> str:
        """The heading: pipeline, the main conditions, and those in which groups differ."""
        main = ("depth", "width") if self.unplanted else ("depth", "width", "gain")
        names: list[str] = [n for n in main if n in self.conditions]
        names += [n for n in self.extra if n not in (*_SHOWN_FIRST, "planted")]
        told = [f"{n} {say(self.conditions.get(n))}" for n in names]
        return ", ".join([self.pipeline, *(["unplanted"] if self.unplanted else []), *told])

    def truth_stat(self, *path: str) -> Stat:
        """`Stat` over the oracle rows of the number at `path`, see `measured`."""
        return stat(measured(r, *path) for r in self.truth)

    @cached_property
    def truths(self) -> list[tuple[Any, tuple[Row, ...]]]:
        """(overlay's value, oracle rows) of each ground truth; (None, all) where no overlay changes it."""
        if self.overlay is None or self.overlay in _NOT_THE_ORACLES:
            return [(None, self.truth)] if self.truth else []
        own = [(v, tuple(r for r in self.truth if r["spec"].get(self.overlay) == v)) for v in self.values]
        return [(value, rows) for value, rows in own if rows]

    @cached_property
    def rescaled(self) -> bool:
        """Whether the planted ticket is the target only after its output scale (gain < 1)."""
        return any(number(r, "output_scale") not in (None, 1.0) for r in self.truth)

    @cached_property
    def values(self) -> list[Any]:
        """The overlay's values in rising order, [None] without an overlay."""
        if self.overlay is None:
            return [None]
        # compared sweeps stand as they were given, see `compare.join`
        places = {r["spec"].get(self.overlay): r.get("place", 0) for r in self.rows or self.truth}
        return sorted(places, key=lambda value: (places[value], _value_order(value)))

    @cached_property
    def parts(self) -> list[Group]:
        """A group without overlay for each of `values` (itself where it has none)."""
        if self.overlay is None:
            return [self]
        truths: dict[Any, tuple[Row, ...]] = dict(self.truths)
        made = []
        for value in self.values:
            own = tuple(replace(s, overlay=None) for s in self.series if s.overlay and s.overlay[1] == value)
            told: dict[str, Any] = {
                "conditions": {**self.conditions, self.overlay: value},
                "slug": f"{self.slug}-{_slug(f'{self.overlay}-{say(value)}')}",
                "extra": (*self.extra, self.overlay),
            }
            truth = truths.get(value) or truths.get(None) or ()
            made.append(replace(self, series=own, truth=truth, overlay=None, **told))
        return made


def groups(rows: Sequence[Row], overlay: str | None = None, prefix: str = "") -> list[Group]:
    """`rows` (result dicts) as `Group`s, ordered by task, pipeline and conditions.

    Rows of method "oracle" become the ground truth of the group with their conditions; a group without
    its own borrows the one that differs only in what the planted ticket doesn't depend on, and says so.
    Rows that differ in the spec's field `overlay` share a group; `prefix` starts every slug.
    Raises `ArgumentError` for no rows and for a row without the needed fields.
    """
    check_rows(rows)
    buckets: dict[tuple, list[Row]] = {}
    for row in rows:
        buckets.setdefault(_key(row, overlay), []).append(row)
    _join_edge_popup(buckets)
    order = sorted(buckets, key=_group_order)
    oracles = {k: [r for r in buckets[k] if is_oracle(r)] for k in order}
    # an oracle's spec holds defaults where they say nothing about it, which is no difference to show
    searched = [k for k in order if len(oracles[k]) < len(buckets[k])]
    varying = _varying([dict(k) for k in searched or order])
    made: list[Group] = []
    borrowed: set[tuple] = set()
    slugs: set[str] = set()
    for key in order:
        found = [r for r in buckets[key] if not is_oracle(r)]
        if not found:
            continue
        truth, note, lender = _truth(key, oracles)
        if lender is not None:
            borrowed.add(lender)
        group = _group(key, found, truth, varying, overlay)
        made.append(replace(group, truth_note=note, slug=_free(prefix + group.slug, slugs)))
    for key, own in oracles.items():  # oracle runs that nobody compared with anything
        if own and key not in borrowed:
            group = _group(key, [], own, varying, overlay)
            made.append(replace(group, slug=_free(prefix + group.slug, slugs)))
    made.sort(key=lambda g: _group_order(tuple(g.conditions.items())))
    return made


def _key(row: Row, overlay: str | None) -> tuple:
    spec = row["spec"]
    names = _condition_names(tuple(spec), str(spec.get("pipeline")), overlay)
    # a list or table in a spec becomes text: the key has to be hashable
    return tuple((n, v if isinstance(v := spec[n], str | int | float | None) else repr(v)) for n in names)


@lru_cache(maxsize=64)
def _condition_names(fields: tuple[str, ...], pipeline: str, overlay: str | None) -> list[str]:
    """The fields of a spec that separate groups, the main ones first."""
    own = {"multi-shot": _MULTI_SHOT_ONLY, "edge-popup": _EDGE_POPUP_ONLY}.get(pipeline, ())
    skip = (*_AXES, *(n for n in _OF_PIPELINES if n not in own), overlay)
    names = [n for n in _SHOWN_FIRST if n in fields]
    return names + [n for n in sorted(fields) if n not in skip and n not in _SHOWN_FIRST]


def _join_edge_popup(buckets: dict[tuple, list[Row]]) -> None:
    """Put edge-popup's rows beside the multi-shot ones (else single-shot) of the same conditions, as the
    paper draws them, where there is exactly one such group on either side."""

    def common(key: tuple) -> tuple:
        return tuple(pair for pair in key if pair[0] not in ("pipeline", *_OF_PIPELINES))

    for pipeline in ("multi-shot", "single-shot"):
        for guest in [key for key in buckets if dict(key).get("pipeline") == "edge-popup"]:
            alike = [key for key in buckets if common(key) == common(guest)]
            guests = [key for key in alike if dict(key).get("pipeline") == "edge-popup"]
            hosts = [
                key for key in alike
                if dict(key).get("pipeline") == pipeline and not all(is_oracle(r) for r in buckets[key])
            ]  # fmt: skip
            if len(guests) == len(hosts) == 1:
                buckets[hosts[0]] += buckets.pop(guest)


def _truth(key: tuple, oracles: dict[tuple, list[Row]]) -> tuple[list[Row], str, tuple | None]:
    """The oracle rows for the group `key`: its own, else the nearest that plants the same ticket."""
    if oracles.get(key):
        return oracles[key], "", key
    other_pipeline = "The ground truth was trained by the other pipeline. "
    twins = _UNPLANTED if dict(key).get("planted") is False else ""
    for extra, note in (((), twins), (("pipeline",), twins + other_pipeline)):
        skip = {*_NOT_THE_ORACLES, *extra}
        wanted = [(n, v) for n, v in key if n not in skip]
        for other, own in oracles.items():
            if own and [(n, v) for n, v in other if n not in skip] == wanted:
                return own, note, other
    return [], "", None


def _group(key: tuple, found: list[Row], truth: list[Row], varying: list[str], overlay: str | None) -> Group:
    conditions = dict(key)
    shown = [n for n in varying if n in conditions]
    parts = [conditions.get("task", "task"), conditions.get("pipeline", "")]
    parts += ["unplanted"] if conditions.get("planted") is False else []
    parts += [f"{n[0]}{say(conditions[n])}" for n in ("depth", "width", "gain") if n in conditions]
    parts += [f"{n}-{say(conditions[n])}" for n in shown if n not in (*_SHOWN_FIRST, "planted")]
    differs = [r for r in [*found, *truth] if overlay is not None and overlay in r["spec"]]
    own = overlay if differs else None
    # The same oracle may have run for several scoring rounds, which say nothing about it.
    once: dict[tuple, Row] = {}
    for row in sorted(truth, key=lambda r: (r["spec"].get("rounds") or 1, str(r.get("key")))):
        value = None if own in _NOT_THE_ORACLES else row["spec"].get(own)
        once.setdefault((row["spec"].get("seed", 0), *_value_order(value)), row)
    by_seed = tuple(once[k] for k in sorted(once))
    return Group(conditions, _series(found, own), by_seed, "", _slug("-".join(map(str, parts))),
                 tuple(shown), own)  # fmt: skip


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "group"


def _free(slug: str, taken: set[str]) -> str:
    """`slug`, numbered where it is among `taken`, to which it is added."""
    name, again = slug, 2
    while name in taken:
        name, again = f"{slug}-{again}", again + 1
    taken.add(name)
    return name


def _series(rows: list[Row], overlay: str | None) -> tuple[Series, ...]:
    cells: dict[tuple, dict[float | str, list[Row]]] = {}
    for row in rows:
        spec = row["spec"]
        value = (overlay, spec.get(overlay)) if overlay else None
        name = (str(spec["method"]), int(spec.get("rounds") or 1), bool(spec.get("invert")), value)
        cells.setdefault(name, {}).setdefault(spec["density"], []).append(row)
    made = []
    for name in sorted(cells, key=lambda n: (method_rank(n[0]), n[:3], _value_order(n[3] and n[3][1]))):
        points = [
            Point(asked, tuple(sorted(own, key=lambda r: r["spec"].get("seed", 0))))
            for asked, own in cells[name].items()
        ]
        ordered = tuple(sorted(points, key=lambda p: (p.density, str(p.asked))))
        made.append(Series(*name[:3], ordered, name[3]))
    return tuple(made)


def _varying(keys: list[dict]) -> list[str]:
    names = dict.fromkeys(n for k in keys for n in k)
    return [
        n
        for n in names
        if (n not in _OF_PIPELINES and len({repr(k.get(n)) for k in keys}) > 1)
        or (n in _OF_PIPELINES and len({repr(k[n]) for k in keys if n in k}) > 1)
    ]


def task_order(task: str) -> tuple[str, str]:
    """A sort key that puts tasks in the paper's order."""
    return str(TASK_ORDER.index(task) if task in TASK_ORDER else len(TASK_ORDER)), task


def _group_order(key: tuple) -> tuple:
    """Tasks together, single-shot first, then by the conditions (numbers before words)."""
    told = dict(key)
    order = [task_order(str(told.get("task"))), (str(told.get("pipeline") != "single-shot"), "")]
    return (*order, *(_value_order(value) for _name, value in key))


def _value_order(value: object) -> tuple[str, str]:
    """A sort key for values of any type: numbers before words."""
    return (f"{float(value):020.9f}" if isinstance(value, int | float) else "~", str(value))
