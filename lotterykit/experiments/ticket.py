"""`Ticket`: a mask with the weights that it may be rewound to, its recipe and a digest, in one file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor, nn

from lotterykit.errors import ArgumentError, brief
from lotterykit.experiments.together import digest
from lotterykit.mask import Masks, opened_safetensors, write_atomically
from lotterykit.nn.convert import convert_

if TYPE_CHECKING:
    from lotterykit.experiments.check import Check

FORMAT = "lotterykit-ticket-1"
INIT = "init"
MASK, SNAPSHOT = "mask", "snapshot"  # first parts of the names in a file
CELLS = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Ticket:
    """What a search found: `masks`, and `snapshots`, label -> state by name, of the dense network.

    "init" is the state that training starts from; other labels name rewind points ("500it", "2ep", "final").
    A state holds parameters and buffers. `recipe`: how it was found, plain JSON (method, network, data, seed,
    density, optimizer ...); `results`: what was measured (accuracies, cost in epochs).
    Raises `ArgumentError` where a state lacks a masked parameter, shapes differ, "init" is missing, or
    `recipe` and `results` are no JSON.

    >>> masks = Masks({"0.weight": torch.tensor([[True, False]])})
    >>> ticket = Ticket(masks, {"init": {"0.weight": torch.tensor([[3.0, 4.0]])}})
    >>> ticket.rewind()["0.weight"]
    tensor([[3., 0.]])
    """

    masks: Masks
    snapshots: Mapping[str, Mapping[str, Tensor]]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if INIT not in self.snapshots:
            raise ArgumentError(
                f"a ticket needs a snapshot {INIT!r}, got {', '.join(self.snapshots) or 'none'}"
            )
        for label, state in self.snapshots.items():
            if not label or "/" in label or "\n" in label:
                raise ArgumentError(f"snapshot labels must be words without '/', got {label!r}")
            for name, mask in self.masks.items():
                if name not in state or state[name].shape != mask.shape:
                    got = list(state[name].shape) if name in state else "none"
                    raise ArgumentError(
                        f"snapshot {label!r}: the mask of {name!r} is {list(mask.shape)}, its weight {got}"
                    )
        for kind, content in (("recipe", self.recipe), ("results", self.results)):
            _check_plain(kind, content)

    def density(self) -> float:
        """Kept / total over the weights."""
        return self.masks.density()

    def digest(self) -> str:
        """Hex digest of everything in the ticket."""
        return digest(_tensors(self) | {_text(self): torch.empty(0)}).hex()

    def rewind(self, to: str = INIT) -> dict[str, Tensor]:
        """The state at rewind point `to`, pruned weights 0. Raises `ArgumentError` for an unknown label."""
        if to not in self.snapshots:
            raise ArgumentError(f"the ticket has no rewind point {to!r}, only {', '.join(self.snapshots)}")
        state = {name: tensor.clone() for name, tensor in self.snapshots[to].items()}
        for name, mask in self.masks.items():
            state[name].masked_fill_(~mask, 0.0)
        return state

    def apply_(self, model: nn.Module, to: str = INIT) -> nn.Module:
        """Rewind `model` to a point: its layers become masked ones that hold the ticket. Returns `model`.

        Raises `ArgumentError`, before anything is changed, where the ticket is of another network.
        """
        state = self.rewind(to)
        own = {
            name: tensor
            for name, tensor in model.state_dict().items()
            if name.rpartition(".")[2] not in ("weight_mask", "bias_mask")
        }
        lacking, foreign = [n for n in own if n not in state], [n for n in state if n not in own]
        wrong = [n for n in state if n in own and own[n].shape != state[n].shape]
        if lacking or foreign or wrong:
            parts = [f"it lacks {_few(lacking)}"] if lacking else []
            parts += [f"the network has no {_few(foreign)}"] if foreign else []
            parts += [f"{n} is {list(state[n].shape)}, there {list(own[n].shape)}" for n in wrong[:3]]
            raise ArgumentError(f"the ticket is of another network: {'; '.join(parts)}")
        convert_(model, masks=self.masks)
        model.load_state_dict(
            state | {f"{name}_mask": mask for name, mask in self.masks.items()}, strict=False
        )
        return model

    def check(self, *kinds: str, seeds: int | Sequence[int] = 3, **options: Any) -> Check:
        """Train the ticket and its controls alike and compare them: `check_ticket` of
        `lotterykit.experiments.check`, which says what `kinds` and `options` there are."""
        from lotterykit.experiments.check import DEFAULT_KINDS, check_ticket

        return check_ticket(self, kinds or DEFAULT_KINDS, seeds=seeds, **options)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file with the rest as JSON in its header, atomically.

        Raises `ArgumentError` where `path` cannot be written."""
        metadata = {"format": FORMAT, "content": _text(self), "digest": self.digest()}
        data = safetensors.torch.save(
            {n: t.contiguous() for n, t in _tensors(self).items()}, metadata=metadata
        )
        try:
            write_atomically(Path(path), data)
        except OSError as error:
            raise ArgumentError(f"cannot write the ticket to {path}: {error.strerror}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Ticket:
        """Read what `save` wrote. Raises `ArgumentError` for any other file, and one that was altered."""
        with opened_safetensors(path, f"cannot read a ticket from {path}") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ArgumentError(f"{path} is no ticket of lotterykit (no format {FORMAT!r} in it)")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        try:
            ticket = _rebuilt(json.loads(metadata["content"]), tensors)
        except (ArgumentError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ArgumentError(f"{path} is a damaged ticket: {brief(error)}") from error
        if ticket.digest() != metadata.get("digest"):
            raise ArgumentError(
                f"{path} is a damaged ticket: its digest is {ticket.digest()}, "
                f"the file says {brief(metadata.get('digest'))}"
            )
        return ticket


def _tensors(ticket: Ticket) -> dict[str, Tensor]:
    """Every tensor by its name in a file."""
    tensors = {f"{MASK}/{name}": mask for name, mask in ticket.masks.items()}
    for label, state in ticket.snapshots.items():
        tensors |= {f"{SNAPSHOT}/{label}/{name}": tensor.detach().cpu() for name, tensor in state.items()}
    return tensors


def _text(ticket: Ticket) -> str:
    """All but the tensors, as JSON; names keep the network's order."""
    content = {
        "recipe": ticket.recipe,
        "results": ticket.results,
        "masks": list(ticket.masks),
        "snapshots": {label: list(state) for label, state in ticket.snapshots.items()},
    }
    return json.dumps(content, sort_keys=False, separators=(",", ":"))


def _rebuilt(content: dict[str, Any], tensors: dict[str, Tensor]) -> Ticket:
    masks = Masks({name: tensors[f"{MASK}/{name}"] for name in content["masks"]})
    snapshots = {
        label: {name: tensors[f"{SNAPSHOT}/{label}/{name}"] for name in names}
        for label, names in content["snapshots"].items()
    }
    ticket = Ticket(masks, snapshots, content["recipe"], content["results"])
    if len(_tensors(ticket)) != len(tensors):
        raise ArgumentError(f"it names {len(_tensors(ticket))} tensors and holds {len(tensors)}")
    return ticket


def _check_plain(where: str, value: object) -> None:
    """Raises `ArgumentError` unless `value` is JSON that reads back as itself."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ArgumentError(f"{where}: keys must be strings, got {key!r}")
            _check_plain(f"{where}.{key}", inner)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _check_plain(f"{where}[{number}]", inner)
    elif not isinstance(value, CELLS):
        raise ArgumentError(f"{where} must be plain JSON, got {type(value).__name__}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ArgumentError(f"{where} must be finite or None, got {value}")


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
