"""Masks and checkpoints that other tools wrote: torch.nn.utils.prune, parametrize, open_lth, Synaptic-Flow.

A `.pt` or `.pth` file is read with `weights_only=True` alone: it can hold tensors, and run nothing. What it
may ask of memory is checked before (`torch_files.py`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lotterykit.errors import ArgumentError, brief, shown
from lotterykit.mask import Masks, opened_safetensors, prunable_layers
from lotterykit.nn.convert import convert_
from lotterykit.nn.torch_files import check_file, check_tensors

Model = TypeVar("Model", bound=nn.Module)
CONTAINERS = ("state_dict", "model_state_dict", "model")  # where training loops keep the state dict
TOLD = 3  # names a message spells out; the others are counted
# masks: <layer>.weight_mask, <layer>.parametrizations.weight.0.mask, and open_lth's mask_<layer>___weight
BUFFER = re.compile(r"(?P<layer>(?:.*\.)?)(?P<kind>weight|bias)_mask")
PARAMETRIZED = re.compile(r"(?P<layer>(?:.*\.)?)parametrizations\.(?P<kind>weight|bias)\.\d+\.mask")
OPEN_LTH = re.compile(r"mask_(?P<name>.*___.*)")
# values: <layer>.weight_orig, <layer>.parametrizations.weight.original
VALUE = re.compile(
    r"(?P<layer>(?:.*\.)?)(?:(?P<a>weight|bias)_orig|parametrizations\.(?P<b>weight|bias)\.original)"
)


def read_masks(path: str | os.PathLike[str], model: nn.Module | None = None) -> Masks:
    """The masks in a file of any of these tools, or of `Masks.save`.

    Either a state dict that holds masks, or a mapping of parameter name -> tensor of 0 and 1 (open_lth's
    mask.pth). Masks of biases and of batch-norm that prune nothing are left out. With `model`, in the
    order of its parameters, and `ArgumentError` names every mask that fits no prunable parameter; weights
    without a mask are kept whole. Raises `ArgumentError` on a file without masks, or one that cannot be read.
    """
    state = _read(Path(path))
    masks = _masks(state, path)
    if not masks:
        masks = {name: _zero_one(name, value, path) for name, value in state.items()}
    found = _pruning(masks)
    if not found:
        raise ArgumentError(f"{path} holds no masks")
    if model is None:
        return Masks(found)
    allowed = _prunable(model)
    _refuse(f"the masks in {path} do not fit the {type(model).__name__}", _misfits(found, allowed))
    return Masks({name: found[name] for name in allowed if name in found})


def load_checkpoint_(model: Model, path: str | os.PathLike[str]) -> Model:
    """Load the weights in a file of any of these tools into `model`, in place; returns `model`.

    Where the file holds masks, the layers become masked ones with them. A pruned batch-norm (Synaptic-Flow
    can have one) is loaded with zeros. Raises `ArgumentError`, before anything is changed, that names what
    is missing, unknown or of another shape.
    """
    state = _read(Path(path))
    allowed = _prunable(model)
    masks = _masks(state, path)
    values = {_plain_name(name): value for name, value in state.items() if not _is_mask(name)}
    own = {name: value for name, value in model.state_dict().items() if not _is_mask(name)}
    for name in list(masks):
        of_norm = name not in allowed and name in values and values[name].dim() == 1
        if of_norm and masks[name].shape == values[name].shape:
            values[name] = torch.where(masks.pop(name), values[name], 0.0)
    counters = {name for name in own if name.endswith("num_batches_tracked")}  # files of old torch lack them
    problems = _misfits(values, own, "parameter") + _misfits(masks, allowed)
    problems += [f"no {name!r} in the file" for name in own.keys() - values.keys() - counters]
    _refuse(f"the checkpoint {path} does not fit the {type(model).__name__}", problems)
    masks = _pruning(masks)
    if masks:
        convert_(model, masks=masks)
    model.load_state_dict({**own, **values, **{f"{name}_mask": mask for name, mask in masks.items()}})
    return model


def _read(path: Path) -> dict[str, Tensor]:
    """Name -> tensor of a safetensors file or of one that `torch.save` wrote."""
    try:
        if path.suffix == ".safetensors":
            with opened_safetensors(path, "no safetensors file") as file:
                content: Any = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        else:
            check_file(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file makes the unpickler raise whatever it meets
        reason = brief(str(error).strip().split("\n")[0]) or type(error).__name__
        raise ArgumentError(f"cannot read {path}, which may hold tensors only: {reason}") from error
    for key in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ArgumentError(f"{path} holds no state dict and no masks, but a {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ArgumentError(f"{path}: {shown(name)} is a {type(value).__name__}, not a tensor")
    try:
        check_tensors(content.values(), path.stat().st_size)
    except ArgumentError as error:
        raise ArgumentError(f"cannot read {path}: {error}") from error
    return _without_wrappers(dict(content))


def _without_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without the prefix of DataParallel, or that of open_lth's PrunedModel."""
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    if any(OPEN_LTH.fullmatch(name) for name in state):
        state = {name.removeprefix("model."): value for name, value in state.items()}
    return state


def _mask_of(name: str) -> str | None:
    """The parameter whose mask the entry `name` is, or None."""
    if match := OPEN_LTH.fullmatch(name):
        return match["name"].replace("___", ".")
    match = BUFFER.fullmatch(name) or PARAMETRIZED.fullmatch(name)
    return match["layer"] + match["kind"] if match else None


def _is_mask(name: str) -> bool:
    return _mask_of(name) is not None


def _plain_name(name: str) -> str:
    match = VALUE.fullmatch(name)
    return match["layer"] + (match["a"] or match["b"]) if match else name


def _masks(state: Mapping[str, Tensor], path: object) -> dict[str, Tensor]:
    """Parameter name -> bool mask; several masks of one parameter are all in force."""
    masks: dict[str, Tensor] = {}
    for entry, value in state.items():
        name = _mask_of(entry)
        if name is not None:
            mask = _zero_one(entry, value, path)
            if name in masks and masks[name].shape != mask.shape:
                raise ArgumentError(f"{path}: the masks of {name!r} differ in shape")
            masks[name] = masks[name] & mask if name in masks else mask
    return masks


def _zero_one(name: str, value: Tensor, path: object) -> Tensor:
    if value.dtype == torch.bool:  # of which torch takes any byte from a file
        value = value.contiguous().view(torch.uint8)
    mask = value != 0
    if value.is_complex() or not bool((value == mask).all()):
        raise ArgumentError(f"{path} holds no masks: {name!r} has other values than 0 and 1")
    return mask


def _pruning(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of weights, and those of biases and batch-norm that prune something: some tools write such masks
    for every layer."""
    return {
        name: mask
        for name, mask in masks.items()
        if (mask.dim() > 1 and name.rpartition(".")[2] != "bias") or not bool(mask.all())
    }


def _prunable(model: nn.Module) -> dict[str, Tensor]:
    """Weights and biases of Linear and Conv layers, by name."""
    found = {}
    for prefix, layer in prunable_layers(model):
        found[f"{prefix}weight"] = layer.weight
        if isinstance(layer.bias, Tensor):
            found[f"{prefix}bias"] = layer.bias
    return found  # type: ignore[return-value]


def _misfits(given: Mapping[str, Tensor], own: Mapping[str, Tensor], what: str = "weight") -> list[str]:
    """What is wrong with the tensors `given`, a line each."""
    problems = []
    for name, value in given.items():
        if name not in own:
            problems.append(f"no prunable {what} {name!r}" if what == "weight" else f"no {what} {name!r}")
        elif own[name].shape != value.shape:
            shapes = f"{tuple(value.shape)}, the network's {tuple(own[name].shape)}"
            problems.append(f"{name!r} has shape {shapes}")
    return problems


def _refuse(what: str, problems: Iterable[str]) -> None:
    listed = list(problems)
    if listed:
        more = f"; and {len(listed) - TOLD} more" if len(listed) > TOLD else ""
        raise ArgumentError(f"{what}: {'; '.join(listed[:TOLD])}{more}")
