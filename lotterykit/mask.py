"""`Masks`: which parameters of a network are kept. Exact counts, live paths, save and load."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from lotterykit.errors import ArgumentError, brief

FORMAT = "lotterykit-masks-1"


class Masks(Mapping[str, Tensor]):
    """Parameter name -> bool tensor of the parameter's shape, True where it is kept; order is the network's.

    >>> m = Masks({"0.weight": torch.tensor([[True, False]])})
    >>> m.density()
    0.5
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items():
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise ArgumentError(f"mask {name!r} must be a bool tensor, got {got}")
        self._masks = dict(masks)

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __repr__(self) -> str:
        return f"Masks({len(self)} tensors, density {self.density():.4g})"

    @classmethod
    def from_model(cls, model: nn.Module) -> Masks:
        """The masks a network carries (buffers `weight_mask`, `bias_mask`); all-True for unmasked weights
        of Linear and Conv layers. Raises `ArgumentError` where there is nothing to prune."""
        masks: dict[str, Tensor] = {}
        for prefix, layer in prunable_layers(model):
            for kind in ("weight", "bias"):
                parameter, mask = getattr(layer, kind, None), getattr(layer, f"{kind}_mask", None)
                if mask is not None:
                    masks[f"{prefix}{kind}"] = mask.clone()
                elif kind == "weight" and parameter is not None:
                    masks[f"{prefix}{kind}"] = torch.ones_like(parameter, dtype=torch.bool)
        return cls(masks)

    def apply_(self, model: nn.Module) -> nn.Module:
        """Masked layers take the mask; parameters of plain ones become zero where pruned. Returns `model`.

        Sparse layers are re-packed: weights kept anew are 0, and an optimizer's state of them fits no more.
        Raises `ArgumentError`, before anything is changed, on a name or shape the model does not have."""
        parameters: dict[str, Tensor] = dict(model.named_parameters())
        sparse = {f"{prefix}weight": layer for prefix, layer in sparse_layers(model)}
        parameters |= {
            name: cast(Tensor, layer.weight_mask) for name, layer in sparse.items() if name in self
        }
        for name, mask in self.items():
            if name not in parameters:
                raise ArgumentError(f"the model has no parameter {name!r}; it has {', '.join(parameters)}")
            if parameters[name].shape != mask.shape:
                shape, want = tuple(mask.shape), tuple(parameters[name].shape)
                raise ArgumentError(f"mask {name!r} has shape {shape}, the parameter {want}")
        with torch.no_grad():
            for name, mask in self.items():
                layer_name, _, kind = name.rpartition(".")
                buffer = dict(model.get_submodule(layer_name).named_buffers(recurse=False)).get(
                    f"{kind}_mask"
                )
                if name in sparse:
                    sparse[name].weight_mask = mask
                elif buffer is not None:
                    buffer.copy_(mask)
                else:
                    parameter = parameters[name]
                    parameter.masked_fill_(~mask.to(parameter.device), 0.0)
        return model

    def weights(self) -> Masks:
        """Only the weight masks: biases never count towards a density unless asked for."""
        return Masks({n: m for n, m in self.items() if n.rpartition(".")[2] != "bias"})

    def counts(self) -> dict[str, tuple[int, int]]:
        """Name -> (kept, total)."""
        return {n: (int(m.count_nonzero()), m.numel()) for n, m in self.items()}

    def density(self, *, biases: bool = False) -> float:
        """Kept / total over the weights, or over weights and biases; 1 for an empty mapping."""
        counts = (self if biases else self.weights()).counts().values()
        total = sum(t for _, t in counts)
        return sum(k for k, _ in counts) / total if total else 1.0

    def per_layer(self) -> dict[str, float]:
        """Name -> kept / total of each mask; 1 for an empty tensor."""
        return {n: (k / t if t else 1.0) for n, (k, t) in self.counts().items()}

    def live(self) -> Masks:
        """The weights that lie on a path of kept weights from an input to an output.

        For a chain of fully connected layers (`[out, in]`) and convolutions (`[out, in, *kernel]`), in
        order; a layer with k times the inputs of the one before reads k positions a channel (flatten).
        Raises `ArgumentError` where the shapes are no chain.
        """
        masks = list(self.weights().items())
        links = [m.flatten(2).any(2) if m.dim() > 2 else m for _, m in masks]
        repeats = _flatten_factors(masks)
        forward = [torch.ones(links[0].shape[1], dtype=torch.bool)] if links else []
        for i, link in enumerate(links):
            forward.append((link & forward[-1][None].to(link.device)).any(1).cpu())
            if i + 1 < len(links):
                forward[-1] = forward[-1].repeat_interleave(repeats[i + 1])
        backward = torch.ones(links[-1].shape[0], dtype=torch.bool) if links else torch.empty(0)
        live: dict[str, Tensor] = {}
        for i in reversed(range(len(links))):
            device = links[i].device
            both = links[i] & forward[i][None].to(device) & backward[:, None].to(device)
            name, mask = masks[i]
            live[name] = mask & both.reshape(both.shape + (1,) * (mask.dim() - 2))
            backward = both.any(0).cpu().reshape(-1, repeats[i]).any(1)
        return Masks({name: live[name] for name, _ in masks})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file (atomically: temporary file, fsync, rename). Raises `ArgumentError`
        where `path` cannot be written."""
        data = safetensors.torch.save(
            {n: m.contiguous() for n, m in self.items()},
            metadata={"format": FORMAT, "order": "\n".join(self)},
        )
        try:
            write_atomically(Path(path), data)
        except OSError as error:
            raise ArgumentError(f"cannot write masks to {path}: {error.strerror}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Masks:
        """Read what `save` wrote; raises `ArgumentError` on any other file."""
        with opened_safetensors(path, f"cannot read masks from {path}") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ArgumentError(f"{path} is no mask file of lotterykit (no format {FORMAT!r} in it)")
            names = metadata["order"].split("\n") if metadata.get("order") else []
            if sorted(names) != sorted(file.keys()):
                raise ArgumentError(f"{path} is damaged: it names {len(names)} masks, not those it holds")
            masks = {name: file.get_tensor(name) for name in names}
        for name, mask in masks.items():  # torch takes any byte for a bool, and then computes nonsense
            if mask.dtype == torch.bool and bool((mask.view(torch.uint8) > 1).any()):
                raise ArgumentError(f"{path} is damaged: mask {brief(name)!r} has other bytes than 0 and 1")
        return cls(masks)


def prunable_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(parameter-name prefix, layer) of each Linear and Conv layer, plain or masked, in order, each once.

    Subclasses of the torch layers are left out unless they carry a `weight_mask`: their forward is theirs.
    Raises `ArgumentError` where there is none, and for two layers that share one weight.
    """
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    weights: dict[object, str] = {}
    for name, layer in model.named_modules():
        if type(layer) in kinds or (isinstance(layer, kinds) and hasattr(layer, "weight_mask")):
            own = layer._parameters
            first = weights.setdefault(own.get("weight", own.get("values", layer)), name)
            if first != name:
                raise ArgumentError(f"layers {first!r} and {name!r} share one weight: untie them to prune")
            yield (f"{name}." if name else ""), layer
    if not weights:
        raise ArgumentError(f"{type(model).__name__} has no Linear or Conv layer to prune")


def sparse_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(parameter-name prefix, layer) of each layer that holds kept weights only, in order, each once."""
    for name, layer in model.named_modules():
        if getattr(layer, "format", None) == "sparse":
            yield (f"{name}." if name else ""), layer


def refuse_sparse(model: nn.Module, what: str) -> None:
    """Raises `ArgumentError` where a layer holds kept weights only: `what` needs dense ones."""
    for prefix, layer in sparse_layers(model):
        raise ArgumentError(
            f"{what} needs dense weights, but layer {prefix.rstrip('.')!r} is a {type(layer).__name__}: "
            "convert_(model, format='masked') first"
        )


@contextlib.contextmanager
def opened_safetensors(path: str | os.PathLike[str], what: str) -> Iterator[Any]:
    """The open safetensors file `path`, whose memory is that of the file; `what` begins the message of the
    `ArgumentError` that a file which cannot be read, or one of another kind, raises."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise ArgumentError(f"{what}: no regular file")
        with safetensors.safe_open(str(path), framework="pt") as file:  # type: ignore[no-untyped-call]
            yield file
    except (safetensors.SafetensorError, OSError) as error:
        raise ArgumentError(f"{what}: {brief(error)}") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old file or the whole new one, even after a crash."""
    # What a killed process left must not be in the way: in containers the next one has its number.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _flatten_factors(masks: list[tuple[str, Tensor]]) -> list[int]:
    """How many inputs of layer i belong to one output channel of layer i - 1 (1 for the first layer)."""
    factors = [1]
    for (before, a), (name, b) in itertools.pairwise(masks):
        if a.shape[0] == 0 or b.shape[1] % a.shape[0]:
            raise ArgumentError(
                f"live paths need a chain of layers: {before!r} has {a.shape[0]} outputs, "
                f"{name!r} {b.shape[1]} inputs"
            )
        factors.append(b.shape[1] // a.shape[0])
    return factors
