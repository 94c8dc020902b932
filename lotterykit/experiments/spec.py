"""`CellSpec`: one cell of a sweep, fully specified; keys, seeds and batches.

Imports neither torch nor anything that does: specs are checked before heavy imports.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable
from types import NoneType
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from lotterykit.errors import ArgumentError, check_density, check_seed, shown, unknown_name

# Rises whenever a change of ours changes the numbers of a row: older rows are then not reused.
RESULTS_VERSION = 2
MAX_COUNT = 10**6  # epochs, rounds, ...: far beyond any use, so that a slip is refused and nothing overflows
BATCH = 64  # cells a batch: all of a seed, which share data, mothers and equal trainings

Task = Literal["circle", "relu", "helix"]
Scored = Literal["random", "magnitude", "snip", "grasp", "synflow", "prospr"]
EdgePopup = Literal["edge-popup", "edge-popup-annealed", "edge-popup-global"]
Ladder = Literal[
    "oracle-densities", "oracle-neurons", "oracle-less-50", "oracle-less-30", "oracle-less-10"
]  # fmt: skip
Method = Literal[Scored, EdgePopup, Ladder, "oracle"]
METHODS: tuple[str, ...] = get_args(Scored)  # what prunes by a score
EDGE_POPUP: tuple[str, ...] = get_args(EdgePopup)  # what trains scores
LADDER: tuple[str, ...] = get_args(Ladder)  # what knows a part of the planted ticket, the least first
TASK_NAMES: tuple[str, ...] = get_args(Task)

# Settings that one pipeline alone reads.
MULTI_SHOT_ONLY = ("shots", "shot_epochs", "reset")
EDGE_POPUP_ONLY = ("score_epochs", "score_lr")
PIPELINE_ONLY = {name: "multi-shot" for name in MULTI_SHOT_ONLY} | dict.fromkeys(
    EDGE_POPUP_ONLY, "edge-popup"
)
# Settings of a search by scores: what searches nothing has them at their defaults.
SEARCH_ONLY = ("invert", "rounds", "scope", *PIPELINE_ONLY)


def _density(value: object) -> object:
    if isinstance(value, str) and value != "truth":
        raise ArgumentError(f'density must be a number in (0, 1] or "truth", got {shown(value)}')
    return value if value == "truth" else check_density(value)


class CellSpec(BaseModel):
    """One cell: a task, a method that looks for its planted ticket, a density, a seed and the settings.

    `method="oracle"` is the planted ticket itself, its density is "truth" (the target's density in that
    mother); so is that of the methods that know a part of it ("oracle-...": see `ladder`). `rounds` are
    scoring rounds within one shot. `noise` is the share of moved labels (circle) or the standard deviation
    (regression). `shots`, `shot_epochs` and `reset` belong to multi-shot alone, `score_epochs` and
    `score_lr` to edge-popup. `planted=False` leaves the mother as it is: found tickets are then compared
    with where the ticket would have been planted. `scaled_init` divides the standard deviation of the
    mother's weights by sqrt(density). prospr's inner steps of SGD take `lr` too: its published .1 diverges in
    most planted networks.
    Raises `ArgumentError`, one line, for unknown names and values out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    task: Task
    method: Method
    density: Annotated[float | Literal["truth"], BeforeValidator(_density)]
    seed: Annotated[int, BeforeValidator(check_seed)] = 0
    pipeline: Literal["single-shot", "multi-shot", "edge-popup"] = "single-shot"
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
    score_epochs: int = Field(10, ge=0, le=MAX_COUNT)
    score_lr: float = Field(0.1, gt=0, le=1e30)
    planted: bool = True
    scaled_init: bool = False

    def __init__(self, /, **values: Any) -> None:
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
        if self.method in LADDER:
            self._check_rung()
        if (self.pipeline == "edge-popup") != (self.method in EDGE_POPUP) and self.method != "oracle":
            raise ArgumentError(
                f'pipeline "edge-popup" takes the methods {", ".join(EDGE_POPUP)} and no other does, '
                f'got {self.method} in pipeline "{self.pipeline}"'
            )
        if not self.planted and self.method == "oracle":
            raise ArgumentError("the oracle is the planted ticket: planted must be true, got false")
        if not self.planted and self._is_set("gain"):
            raise ArgumentError(f"gain is of a planted ticket, this cell plants none: got gain {self.gain}")
        if self.task == "circle" and self.noise > 1:
            raise ArgumentError(f"noise is the share of moved labels for circle: in [0, 1], got {self.noise}")
        for name, pipeline in PIPELINE_ONLY.items():
            if self.pipeline != pipeline and self._is_set(name):
                raise ArgumentError(f'{name} is for pipeline "{pipeline}" only, this cell is {self.pipeline}')
        if self.pipeline == "edge-popup":
            for name in ("invert", "rounds", "scope"):
                if self._is_set(name):
                    raise ArgumentError(f"{name} is for scores that prune, edge-popup trains its scores")
        return self

    def _check_rung(self) -> None:
        if self.density != "truth":
            raise ArgumentError(
                f'{self.method} has as many weights as the planted ticket: density must be "truth", '
                f"got {self.density}"
            )
        for name in SEARCH_ONLY:
            if self._is_set(name):
                raise ArgumentError(f"{name} is a setting of a search, {self.method} searches nothing")

    def _is_set(self, name: str) -> bool:
        return bool(getattr(self, name) != type(self).model_fields[name].default)

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
            self.score_epochs, self.score_lr,
        )  # fmt: skip


def clear_error(error: ValidationError, model: type[BaseModel]) -> ArgumentError:
    """pydantic's first complaint as one line: what was got, what is allowed, and the nearest name."""
    details = error.errors()  # a misspelt name explains what is missing
    detail = next((d for d in details if d["type"] == "extra_forbidden"), details[0])
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, ArgumentError):
        return cause
    fields = list(model.model_fields)
    name = ".".join(str(part) for part in detail["loc"][:1]) or "value"
    kind, got = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return unknown_name("key", name, fields)
    if kind == "missing":
        required = [field for field, info in model.model_fields.items() if info.is_required()]
        return ArgumentError(f"{name} is missing: at least {', '.join(required)} must be given")
    if kind == "literal_error":
        return unknown_name(name, got, _choices(model.model_fields[name].annotation))
    return ArgumentError(f"{name} {_complaint(detail)}, got {shown(got)}")


def _choices(annotation: object) -> list[str]:
    """The values of a Literal, or of one that may be None."""
    return [
        value
        for part in get_args(annotation)
        for value in (get_args(part) or (part,))
        if value is not NoneType
    ]


def _complaint(detail: ErrorDetails) -> str:
    text = detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"must be {text}"


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
        members.sort(key=_place)
        limit = size if most is None else max(1, min(size, *map(most, members)))
        parts = -(-len(members) // limit)
        cuts = [len(members) * part // parts for part in range(parts + 1)]
        batches += [members[a:b] for a, b in itertools.pairwise(cuts)]
    return batches


def _place(cell: CellSpec) -> tuple:
    """Where a cell stands among those of its shape: beside what shares its mother, of these beside what
    trains alike (dense networks are the same for all methods)."""
    density = 0.0 if cell.density == "truth" else float(cell.density)
    return (
        cell.seed, cell.noise, cell.matching, cell.scaling, cell.init, cell.scaled_init, cell.planted,
        cell.gain, -density,
    )  # fmt: skip
