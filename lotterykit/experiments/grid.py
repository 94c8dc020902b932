"""`Grid`: many cells from lists of values; what a sweep's TOML file holds."""

from __future__ import annotations

import itertools
import math
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from lotterykit.errors import ArgumentError, brief, check_seed, shown, unknown_name
from lotterykit.experiments.spec import (
    EDGE_POPUP,
    EDGE_POPUP_ONLY,
    LADDER,
    PIPELINE_ONLY,
    SEARCH_ONLY,
    CellSpec,
    clear_error,
)

MAX_CELLS = 1_000_000
MAX_TOML_BYTES = 1 << 20
MAX_DEPTH = 16  # of tables and lists in a TOML file, and of the dots in a key
# tomllib takes the square of a dotted key's length
DOTTED = re.compile(
    r"""(?<![\w"'-])(?:(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){"""
    f"{MAX_DEPTH}}}"
)


class Grid(BaseModel):
    """A sweep: every field of `spec` and `grid` may be one value or a list; `grid` overrides `spec`.

    `seeds` is a count (0, 1, ..., seeds - 1) or a list. Unless `oracle` is false, each seed and setting also
    gets the row of the planted ticket itself, which draws the ground-truth line of the figures.
    Raises `ArgumentError`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    spec: dict[str, Any] = {}
    grid: dict[str, Any] = {}
    seeds: int | list[int] | None = None
    oracle: bool = True

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise clear_error(error, type(self)) from None

    def cells(self) -> list[CellSpec]:
        """Every cell once, in the order of the lists. Raises `ArgumentError`, also for an empty grid."""
        self.check_names()
        fields = {name: _listed(name, value) for name, value in {**self.spec, **self.grid}.items()}
        if self.seeds is not None:
            fields["seed"] = _seeds(self.seeds)
        total = math.prod(len(values) for values in fields.values())
        if total > MAX_CELLS:
            raise ArgumentError(f"the grid has {total} cells, at most {MAX_CELLS} are allowed")
        pipelines = set(map(str, fields.get("pipeline", ())))
        cells: dict[CellSpec, None] = {}
        settled: set[tuple] = set()  # seeds and settings that have their oracle
        for chosen in itertools.product(*fields.values()):
            values = dict(zip(fields, chosen, strict=True))
            if len(pipelines) > 1:
                own = values["pipeline"]
                values = {k: v for k, v in values.items() if PIPELINE_ONLY.get(k, own) == own}
            known = {k: v for k, v in values.items() if k not in SEARCH_ONLY} | {"density": "truth"}
            truth = {k: v for k, v in known.items() if k != "planted"} | {"method": "oracle"}
            if values.get("method") == "oracle":
                CellSpec(**{**values, "density": "truth"})  # what is dropped must be good all the same
                values = truth
            elif values.get("method") in LADDER:
                values = known
            cells[CellSpec(**values)] = None
            setting = tuple(truth.items())
            if self.oracle and setting not in settled:
                settled.add(setting)
                cells[CellSpec(**truth)] = None
        return list(cells)

    def check_names(self) -> None:
        """Raises `ArgumentError` for a key of `spec` or `grid` that is no field of a cell."""
        for name in (*self.spec, *self.grid):
            if name in Grid.model_fields:
                raise ArgumentError(f"{name} belongs at the top, beside spec and grid, not into them")
            if name not in CellSpec.model_fields:
                raise unknown_name("key", name, CellSpec.model_fields)

    def check_values(self) -> None:
        """Raises `ArgumentError` for a name or a value that no cell could have, whatever the others are."""
        self.check_names()
        for name, value in (*self.spec.items(), *self.grid.items()):
            for one in _listed(name, value):
                density = "truth" if one == "oracle" else 1.0
                fits_all = {"task": "relu", "method": "snip", "density": density, "pipeline": "multi-shot"}
                if one in EDGE_POPUP or name in EDGE_POPUP_ONLY:
                    fits_all |= {"method": "edge-popup", "pipeline": "edge-popup"}
                elif one in LADDER:
                    fits_all |= {"density": "truth"}
                CellSpec(**{**fits_all, name: one})
        if self.seeds is not None:
            _seeds(self.seeds)


def _listed(name: str, value: Any) -> list[Any]:
    values = list(value) if isinstance(value, list | tuple | range) else [value]
    if not values:
        raise ArgumentError(f"{name} has no value: its list is empty")
    return values


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    if isinstance(seeds, int):
        if not 1 <= seeds <= MAX_CELLS:
            raise ArgumentError(f"seeds is how many seeds to run, from 1 to {MAX_CELLS}, got {shown(seeds)}")
        return list(range(seeds))
    return [check_seed(seed) for seed in _listed("seeds", seeds)]


def load_toml(path: str | Path) -> Grid:
    """The `Grid` of a TOML file with tables `[spec]` and `[grid]` and the keys `seeds` and `oracle`.

    Checks each name and value for itself: what the file leaves out may still be added.
    Raises `ArgumentError` with the file's name for anything it cannot read or does not know.
    """
    path = Path(path)
    loaded = read_toml(path)
    try:
        grid = Grid(**loaded)
        grid.check_values()
    except ArgumentError as error:
        raise ArgumentError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    return grid


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file. Raises `ArgumentError` with its name where it cannot be read."""
    try:
        if path.exists() and not path.is_file():
            raise ArgumentError(f"{path}: no regular file")
        with path.open("rb") as file:
            data = file.read(MAX_TOML_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(f"{path}: {getattr(error, 'strerror', None) or brief(error)}") from None
    if len(data) > MAX_TOML_BYTES:
        raise ArgumentError(f"{path}: larger than {MAX_TOML_BYTES} bytes, no specification")
    try:
        text = data.decode("utf-8")
        if DOTTED.search(text):
            raise ArgumentError(f"{path}: a key of more than {MAX_DEPTH} parts, no specification")
        found = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: text that is no UTF-8, numbers too long
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(f"{path}: not valid TOML: {brief(error) or type(error).__name__}") from None
    _check_plain(found, path)
    return found


def _check_plain(value: Any, path: Path, depth: int = 0) -> None:
    """Raises `ArgumentError` for what is nested too deep, and for integers that TOML does not have."""
    if depth > MAX_DEPTH:
        raise ArgumentError(f"{path}: nested more than {MAX_DEPTH} deep, no specification")
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            _check_plain(inner, path, depth + 1)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ArgumentError(f"{path}: TOML has integers of 64 bits, got {shown(value)}")
