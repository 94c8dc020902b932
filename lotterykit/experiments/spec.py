"""`CellSpec`: one cell of a sweep, fully specified; `Grid`: many of them; keys, seeds and batches.

Imports neither torch nor anything that does: specs are checked before heavy imports.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import tomllib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from lotterykit.errors import ArgumentError, check_density, check_seed, unknown_name

# Rises whenever a change of ours changes the numbers of a row: older rows are then not reused.
RESULTS_VERSION = 1
MAX_CELLS = 1_000_000
MAX_TOML_BYTES = 1 << 20
MAX_COUNT = 10**6  # epochs, rounds, ...: far beyond any use, so that a slip is refused and nothing overflows
BATCH = 16  # cells a batch: as many as one batch of `train_replicas`

Task = Literal["circle", "relu", "helix"]
Method = Literal["random", "magnitude", "snip", "grasp", "synflow", "oracle"]
METHODS: tuple[str, ...] = tuple(m for m in get_args(Method) if m != "oracle")
TASK_NAMES: tuple[str, ...] = get_args(Task)

# Settings that only the multi-shot pipeline reads.
MULTI_SHOT_ONLY = ("shots", "shot_epochs", "reset")
# Settings of the search: the planted ticket's own row, which searches nothing, has them at their defaults.
SEARCH_ONLY = ("invert", "rounds", "scope", *MULTI_SHOT_ONLY)


def _density(value: object) -> object:
    if isinstance(value, str) and value != "truth":
        raise ArgumentError(f'density must be a number in (0, 1] or "truth", got {value!r}')
    return value if value == "truth" else check_density(value)


class CellSpec(BaseModel):
    """One cell: a task, a method that looks for its planted ticket, a density, a seed and the settings.

    `method="oracle"` is the planted ticket itself, its density is "truth" (the target's density in that
    mother). `rounds` are scoring rounds within one shot. `noise` is the share of moved labels (circle) or
    the standard deviation (regression). `shots`, `shot_epochs` and `reset` belong to multi-shot alone.
    Raises `ArgumentError`, one line, for unknown names and values out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    task: Task
    method: Method
    density: Annotated[float | Literal["truth"], BeforeValidator(_density)]
    seed: Annotated[int, BeforeValidator(check_seed)] = 0
    pipeline: Literal["single-shot", "multi-shot"] = "single-shot"
    depth: int = Field(5, ge=3, le=1000)
    width: int = Field(100, ge=1, le=100_000)
    gain: float = Field(1.0, ge=0, le=1)
    matching: Literal["best", "random"] = "best"
    scaling: Literal["paper", "norm"] = "paper"
    init: Literal["he_scaled", "he_uniform_scaled", "glorot_normal", "kaiming_normal", "signed_constant"] = (
        "he_scaled"
    )
    scope: Literal["global", "local"] = "global"
    rounds: int = Field(1, ge=1, le=MAX_COUNT)
    invert: bool = False
    samples: int = Field(10_000, ge=100, le=10**8)
    noise: float = Field(0.01, ge=0, le=1e6)
    epochs: int = Field(10, ge=0, le=MAX_COUNT)
    batch_size: int = Field(32, ge=1, le=MAX_COUNT)
    lr: float = Field(1e-3, gt=0, le=1e30)
    shots: int = Field(10, ge=1, le=MAX_COUNT)
    shot_epochs: int = Field(5, ge=0, le=MAX_COUNT)
    reset: Literal["init", "never", "not-last"] = "init"

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise clear_error(error, type(self)) from None

    @model_validator(mode="after")
    def _consistent(self) -> CellSpec:
        if self.method == "oracle" and self.density != "truth":
            raise ArgumentError(
                f'the oracle is the planted ticket: density must be "truth", got {self.density}'
            )
        if self.task == "circle" and self.noise > 1:
            raise ArgumentError(f"noise is the share of moved labels for circle: in [0, 1], got {self.noise}")
        if self.pipeline == "single-shot":
            for name in MULTI_SHOT_ONLY:
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ArgumentError(f'{name} is for pipeline "multi-shot" only, this cell is single-shot')
        return self

    def key(self) -> str:
        """The cell's identity: sha256 (hex) of its non-default fields and the results version.

        A new field with a default leaves every old key as it is.
        """
        text = json.dumps(
            {"results_version": RESULTS_VERSION, "spec": self.model_dump(mode="json", exclude_defaults=True)},
            sort_keys=True,
            separators=(",", ":"),
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def recipe_key(self) -> tuple:
        """What the cells of a batch must share besides pipeline, task, depth and width."""
        return (
            self.epochs, self.batch_size, self.lr, self.shots, self.shot_epochs, self.reset, self.samples,
        )  # fmt: skip


def clear_error(error: ValidationError, model: type[BaseModel]) -> ArgumentError:
    """pydantic's first complaint as one line: what was got, what is allowed, and the nearest name."""
    detail = error.errors()[0]
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, ArgumentError):
        return cause
    fields = list(model.model_fields)
    name = ".".join(str(part) for part in detail["loc"][:1]) or "value"
    kind, got = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return unknown_name("key", name, fields)
    if kind == "missing":
        return ArgumentError(f"{name} is missing: a cell needs at least task, method and density")
    if kind == "literal_error":
        return unknown_name(name, got, get_args(model.model_fields[name].annotation))
    return ArgumentError(f"{name} {_complaint(detail)}, got {got!r}")


def _complaint(detail: ErrorDetails) -> str:
    text = detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"must be {text}"


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

    def __init__(self, **values: Any) -> None:
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
        mixed = len(set(map(str, fields.get("pipeline", ())))) > 1
        cells: dict[CellSpec, None] = {}
        settled: set[tuple] = set()  # seeds and settings that have their oracle
        for chosen in itertools.product(*fields.values()):
            values = dict(zip(fields, chosen, strict=True))
            if mixed and values["pipeline"] == "single-shot":
                values = {k: v for k, v in values.items() if k not in MULTI_SHOT_ONLY}
            truth = {k: v for k, v in values.items() if k not in SEARCH_ONLY}
            truth |= {"method": "oracle", "density": "truth"}
            if values.get("method") == "oracle":
                CellSpec(**{**values, "density": "truth"})  # what is dropped must be good all the same
                values = truth
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
            raise ArgumentError(f"seeds is how many seeds to run, from 1 to {MAX_CELLS}, got {seeds}")
        return list(range(seeds))
    return [check_seed(seed) for seed in _listed("seeds", seeds)]


def load_toml(path: str | Path) -> Grid:
    """The `Grid` of a TOML file with tables `[spec]` and `[grid]` and the keys `seeds` and `oracle`.

    Checks each name and value for itself: what the file leaves out may still be added.
    Raises `ArgumentError` with the file's name for anything it cannot read or does not know.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_TOML_BYTES:
            raise ArgumentError(f"{path}: larger than {MAX_TOML_BYTES} bytes, no sweep specification")
        loaded = tomllib.loads(path.read_text(encoding="utf-8"))
        grid = Grid(**loaded)
        grid.check_values()
    except OSError as error:
        raise ArgumentError(f"{path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArgumentError(f"{path}: not valid TOML: {reason}") from None
    except ArgumentError as error:
        raise ArgumentError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    return grid


def derive_seed(seed: int, role: str) -> int:
    """The seed, in [0, 2**63), of the part `role` ("data", "init", ...) of a run with seed `seed`.

    It depends on the two alone, so all methods and densities of a seed share data, mother and planting.
    """
    digest = hashlib.sha256(f"{check_seed(seed)}:{role}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def group(
    cells: Iterable[CellSpec], size: int = BATCH, *, most: Callable[[CellSpec], int] | None = None
) -> list[list[CellSpec]]:
    """Batches of up to `size` cells that share shape and recipe: even ones, the cells of a seed together.

    `most` may allow fewer cells a batch for a dear cell. Deterministic: the same cells in the same order
    give the same batches.
    """
    if size < 1:
        raise ArgumentError(f"a batch holds at least 1 cell, got size {size}")
    shapes: dict[tuple, list[CellSpec]] = {}
    for cell in cells:
        shape = (cell.pipeline, cell.task, cell.depth, cell.width, cell.recipe_key())
        shapes.setdefault(shape, []).append(cell)
    batches = []
    for members in shapes.values():
        members.sort(key=lambda c: (c.seed, c.gain, c.noise, c.matching, c.scaling, c.init))
        limit = size if most is None else max(1, min(size, *map(most, members)))
        parts = -(-len(members) // limit)
        cuts = [len(members) * part // parts for part in range(parts + 1)]
        batches += [members[a:b] for a, b in itertools.pairwise(cuts)]
    return batches
