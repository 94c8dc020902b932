"""`Training` and `Trained`: what a search asks for and is sent; `Turn` keeps one in a journal."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from lotterykit.errors import ArgumentError, brief
from lotterykit.experiments.setup import Setup
from lotterykit.experiments.together import digest
from lotterykit.mask import Masks, opened_safetensors, write_atomically
from lotterykit.training.recipe import EarlyStop, Recipe, early_stop
from lotterykit.training.scored import ScoreTraining
from lotterykit.training.source import Loaders

log = logging.getLogger(__name__)

PIECE = 2000  # steps after which a training is written to the journal, about
FORMAT = "lotterykit-training-1"
# Rises whenever a change of ours changes what a training gives: journals of another version are refused.
TRAINING_VERSION = 1
CONTENT = {"at": int, "finished": bool, "metrics": dict, "curve": list, "steps": list, "validation": list}


@dataclass(frozen=True)
class Training:
    """A training that a search asks for: of the dense network's `state` (names of the plain network) under
    `masks`, from step `first` until step `last` (None: to the recipe's end). `scores`: not the weights are
    trained but scores that choose among them."""

    state: Mapping[str, Tensor]
    masks: Masks
    recipe: Recipe
    seed: int = 0
    first: int = 0
    last: int | None = None
    scores: ScoreTraining | None = None

    def identity(self) -> str:
        """Hex digest of all that its result depends on, `TRAINING_VERSION` too, but for the data."""
        start = None if self.scores is None else digest(self.scores.start or {}).hex()
        scores = None if self.scores is None else repr(replace(self.scores, start=None))
        parts = [digest(self.state).hex(), digest(self.masks).hex(), repr(self.recipe), scores, start]
        version = [] if TRAINING_VERSION == 1 else [TRAINING_VERSION]  # the first journals name none
        text = json.dumps([*parts, self.seed, self.first, self.last, *version])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Trained:
    """What came of a training: the dense network's state, metrics of the test data at the end, the curves of
    `TrainResult`, the optimizer's state, the masks in force at the end (found ones, of scores), and the
    scores that were trained, for the `start` of a `ScoreTraining` that goes on with them."""

    state: dict[str, Tensor]
    metrics: dict[str, float]
    masks: Masks
    curve: list[dict[str, float]] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, Tensor] = field(default_factory=dict)

    def early_stop(self) -> EarlyStop | None:
        """The evaluation of least validation loss; None without validation data."""
        return early_stop(self.steps, self.validation, self.curve) if self.validation else None


class Turn:
    """A training under way: how far it is, what it has found so far, its file in the journal."""

    def __init__(self, training: Training, setup: Setup, path: Path | None) -> None:
        self.training, self.setup = training, setup
        self.path = None if path is None else path.with_suffix(".safetensors")
        per_epoch = setup.steps_per_epoch(training.recipe)
        total = training.recipe.epochs * per_epoch
        self.end = max(training.first, total if training.last is None else min(training.last, total))
        grid = training.recipe.evaluate_every or per_epoch
        if isinstance(setup.data, Loaders) or training.scores is not None:
            grid = math.lcm(grid, per_epoch)
        self.piece = grid * max(1, PIECE // grid)
        self.at, self.finished = training.first, False
        self.found = Trained(dict(training.state), {}, training.masks)
        if self.path is not None and self.path.exists():
            self._read(self.path)
            log.info("%s: goes on from step %d of %d", self.path, self.at, self.end)

    @property
    def cut(self) -> int:
        """The step after which the next piece ends: an evaluation's, so that the curve is that of a training
        in one piece. With scores, whose masks change between epochs, an epoch's end as well. A training
        without a journal is one piece."""
        if self.path is None:
            return self.end
        return min(self.end, (self.at // self.piece + 1) * self.piece)

    @property
    def scores(self) -> ScoreTraining | None:
        """The score training from where it is now."""
        own = self.training.scores
        return own if own is None or self.at == self.training.first else replace(own, start=self.found.scores)

    @property
    def active(self) -> Masks | None:
        """What a score training that freezes has left until now."""
        own = self.training.scores
        return self.found.masks if own is not None and own.freezes and self.at > self.training.first else None

    def take(self, part: Trained) -> None:
        """Join what a piece has found to what was there."""
        self.at, before = self.cut, self.found
        self.finished = self.at >= self.end
        self.found = replace(
            part,
            curve=before.curve + part.curve,
            steps=before.steps + part.steps,
            validation=before.validation + part.validation,
        )
        if self.path is not None:
            self._write(self.path)

    def _write(self, path: Path) -> None:
        found = self.found
        tensors = {f"state/{name}": tensor for name, tensor in found.state.items()}
        tensors |= {f"mask/{name}": mask for name, mask in found.masks.items()}
        tensors |= {f"score/{name}": tensor for name, tensor in found.scores.items()}
        if not self.finished:
            tensors |= {f"optimizer/{name}": tensor for name, tensor in found.optimizer.items()}
        content = {
            "at": self.at, "finished": self.finished, "metrics": found.metrics, "curve": found.curve,
            "steps": found.steps, "validation": found.validation,
        }  # fmt: skip
        metadata = {
            "format": FORMAT, "identity": self.training.identity(), "setup": self.setup.fingerprint,
            "content": json.dumps(content), "order": json.dumps(list(tensors)),
        }  # fmt: skip
        metadata["digest"] = _digest(metadata["content"], tensors)
        data = safetensors.torch.save({n: t.contiguous() for n, t in tensors.items()}, metadata=metadata)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data)
        except OSError as error:
            raise ArgumentError(f"cannot write to the folder {path.parent}: {error.strerror}") from error

    def _read(self, path: Path) -> None:
        what = f"{path} is no training that could be gone on with"
        with opened_safetensors(path, what) as file:
            metadata = file.metadata() or {}
            order = _parsed(metadata.get("order", "[]"), list, what)
            if sorted(map(str, order)) != sorted(file.keys()):
                raise ArgumentError(f"{what}: it names {len(order)} tensors, not those it holds")
            tensors = {name: file.get_tensor(name) for name in order}
        content = _parsed(metadata.get("content", "{}"), dict, what)
        mine = {"format": FORMAT, "identity": self.training.identity(), "setup": self.setup.fingerprint}
        found = {name: metadata.get(name) for name in mine}
        if "setup" not in metadata:
            found["setup"] = mine["setup"]  # the first journals did not say which data they are of
        if found != mine:
            raise ArgumentError(
                f"{path} is of another search, other data, other settings or another version: give another "
                "folder, or remove this one"
            )
        if metadata.get("digest") not in (None, _digest(metadata.get("content", "{}"), tensors)):
            raise ArgumentError(f"{path} is damaged: its digest is another than the file says; remove it")
        lacking = [name for name, kind in CONTENT.items() if type(content.get(name)) is not kind]
        if lacking:
            raise ArgumentError(f"{what}: it holds no {' and no '.join(lacking)}")
        self.at, self.finished = content["at"], content["finished"]
        self.found = Trained(
            _named(tensors, "state"),
            content["metrics"],
            Masks(_named(tensors, "mask")),
            content["curve"],
            content["steps"],
            content["validation"],
            _named(tensors, "optimizer"),
            _named(tensors, "score"),
        )


def _parsed(text: str, kind: type, what: str) -> Any:
    """JSON that holds a `kind`; `what` begins the message of the `ArgumentError` for any other."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"{what}: {brief(error)}") from error
    if not isinstance(found, kind):
        raise ArgumentError(f"{what}: found a {type(found).__name__}, expected a {kind.__name__}")
    return found


def _digest(content: str, tensors: Mapping[str, Tensor]) -> str:
    return digest({**tensors, content: torch.empty(0)}).hex()


def _named(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {n.partition("/")[2]: t for n, t in tensors.items() if n.startswith(f"{kind}/")}
