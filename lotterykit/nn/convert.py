"""Turn a network's layers into masked or sparse ones and back, in place: parameters stay the same objects."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lotterykit.errors import ArgumentError
from lotterykit.nn.crossover import choose
from lotterykit.nn.masked import MASKED, Masked, check_format
from lotterykit.nn.scored import Scored
from lotterykit.nn.sparse import SPARSE, Sparse, check_state, pack_, unpack_
from lotterykit.ops.formats import known_density

Model = TypeVar("Model", bound=nn.Module)
PLAIN = {masked: plain for plain, masked in MASKED.items()}
PLAIN |= {sparse: PLAIN[masked] for masked, sparse in SPARSE.items()}


def convert_(
    model: Model,
    *,
    masks: Mapping[str, Tensor] | None = None,
    filter_fn: Callable[[str, nn.Module], bool] | None = None,
    format: str = "masked",
    optimizer: Optimizer | None = None,
) -> Model:
    """Turn the Linear and Conv layers of `model` into masked or sparse ones, in place; returns `model`.

    The layers change class (the root itself too, where it is one), from any format to any other; parameters,
    hooks and a running optimizer stay the objects they are. `masks`: parameter name -> bool tensor, put on
    the layers; a bias entry gives its layer a `bias_mask`; layers that are masked already keep what is not
    named, plain ones keep every weight. `filter_fn(name, layer)` says which layers take part. Subclasses of
    the torch layers are left alone: their forward is theirs.

    format: "masked", a dense weight and its mask; "sparse", kept weights only (what was pruned is forgotten,
    and 0 after a way back); "auto", by the measured crossovers of `lotterykit.ops.crossovers`: `layer.format`
    and `layer.format_reason`, and so `print(model)`, tell what was chosen and why. A sparse layer's parameter
    is `values` `[nnz]`, so an optimizer that has made steps must be passed as `optimizer`: its state follows,
    that of kept weights alone into a sparse layer. Wrap in DDP after converting.

    Raises `ArgumentError`, before anything is changed, on a mask that fits no layer taking part; on a layer
    whose weight is reparametrized (`torch.nn.utils.prune`, weight norm); where "sparse" is asked for a
    Conv3d, a weight on meta or one that another module shares; and on optimizer state that is not one number
    a weight.

    >>> convert_(nn.Linear(2, 1), masks={"weight": torch.tensor([[True, False]])})
    MaskedLinear(in_features=2, out_features=1, bias=True, density=0.5)
    >>> convert_(nn.Linear(2, 1), masks={"weight": torch.tensor([[True, False]])}, format="sparse")
    SparseLinear(in_features=2, out_features=1, bias=True, density=0.5)
    """
    check_format(format)
    masks = dict(masks or {})
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) in (*MASKED, *PLAIN) and (filter_fn is None or filter_fn(name, layer))
    }
    for name, layer in layers.items():
        check_parametrized(name, layer)
    _check_masks(masks, layers)
    chosen = _formats(model, layers, masks, format)
    for name, layer in layers.items():
        if optimizer is not None and chosen[name][0] != getattr(layer, "format", "masked"):
            check_state(name, _parameter(layer), optimizer)
    with torch.no_grad():
        for name, layer in layers.items():
            prefix = f"{name}." if name else ""
            own = {
                kind: masks[f"{prefix}{kind}"] for kind in ("weight", "bias") if f"{prefix}{kind}" in masks
            }
            _convert_layer(layer, own, *chosen[name], optimizer)
    set_fused_encoders(model)
    return model


def revert_(model: Model, *, optimizer: Optimizer | None = None) -> Model:
    """Turn masked and sparse layers back into plain ones, in place, zeros baked in where pruned.

    `optimizer` as in `convert_`: its state of sparse layers becomes that of dense weights. Returns `model`.
    """
    layers = [layer for layer in model.modules() if type(layer) in PLAIN]
    for layer in layers:
        if optimizer is not None and isinstance(layer, Sparse):
            check_state("values", layer.values, optimizer)
    for layer in layers:
        if isinstance(layer, Sparse):
            unpack_(layer, optimizer)
        masked = cast(Masked, layer)
        with torch.no_grad():
            masked.weight.copy_(masked.kept_weight())
            if (bias := masked.kept_bias()) is not None:
                cast(Tensor, masked.bias).copy_(bias)
        del masked.weight_mask, masked.bias_mask
        vars(layer).pop("format_reason", None)
        layer.__class__ = PLAIN[type(layer)]
    set_fused_encoders(model)
    return model


def _convert_layer(
    layer: nn.Module, masks: Mapping[str, Tensor], form: str, reason: str | None, optimizer: Optimizer | None
) -> None:
    """Give one layer its masks ("weight" and "bias", each where it is there) and its format."""
    masked = cast(Masked, layer)
    if type(layer) in MASKED:
        layer.__class__ = MASKED[type(layer)]
        masked.add_masks_()
    if isinstance(layer, Sparse) and (form == "masked" or "weight" in masks):
        unpack_(layer, optimizer)
    if "weight" in masks:
        masked.weight_mask.copy_(masks["weight"])
    if "bias" in masks:
        masked.add_bias_mask_()
        cast(Tensor, masked.bias_mask).copy_(masks["bias"])
    if form == "sparse" and not isinstance(layer, Sparse):
        pack_(layer, optimizer)
    vars(layer).pop("format_reason", None)
    if reason is not None:
        masked.format_reason = reason


def _formats(
    model: nn.Module, layers: Mapping[str, nn.Module], masks: Mapping[str, Tensor], format: str
) -> dict[str, tuple[str, str | None]]:
    """Layer name -> (format, why "auto" chose it)."""
    if format == "masked":
        return dict.fromkeys(layers, ("masked", None))
    owners: dict[Tensor, list[str]] = {}
    for owner, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(parameter, []).append(owner)
    found: dict[str, tuple[str, str | None]] = {}
    for name, layer in layers.items():
        weight, plain = _parameter(layer), PLAIN.get(type(layer), type(layer))
        refusal = None
        if MASKED[plain] not in SPARSE:
            refusal = f"{plain.__name__} has no sparse form"
        elif len(owners[weight]) > 1:
            refusal = f"its weight is shared by {', '.join(map(repr, owners[weight]))}"
        elif weight.is_meta:
            refusal = "its weight is on meta, and its mask cannot be read"
        if refusal is not None and format == "sparse":
            raise ArgumentError(f"layer {name!r} cannot be sparse: {refusal}; format='auto' keeps it masked")
        if format == "sparse":
            found[name] = ("sparse", None)
        elif refusal is not None:
            found[name] = ("masked", refusal)
        else:
            total, density = _counts(layer, masks.get(f"{name}.weight" if name else "weight"))
            found[name] = choose(plain, total, density, weight.device.type, weight.dtype)
    return found


def _counts(layer: nn.Module, mask: Tensor | None) -> tuple[int, float | None]:
    """A layer's number of weights, and kept / total of the mask it is to have."""
    if mask is not None:
        return mask.numel(), known_density(mask)
    if isinstance(layer, Sparse):
        return math.prod(layer.weight_shape), layer.density()
    density = layer.density() if isinstance(layer, Masked) else 1.0
    return _parameter(layer).numel(), density


def _parameter(layer: nn.Module) -> nn.Parameter:
    """What a layer trains: its dense weight, or its values."""
    return cast(nn.Parameter, layer._parameters["values" if isinstance(layer, Sparse) else "weight"])


def check_parametrized(name: str, layer: nn.Module) -> None:
    """Raises `ArgumentError` unless what the layer computes with is a parameter of its own."""
    trained = "values" if isinstance(layer, Sparse) else "weight"
    if trained not in layer._parameters:
        raise ArgumentError(
            f"layer {name!r} has no parameter {trained!r}: remove its reparametrization first "
            "(torch.nn.utils.prune.remove, parametrize.remove_parametrizations)"
        )


def _check_masks(masks: Mapping[str, Tensor], layers: Mapping[str, nn.Module]) -> None:
    for key, mask in masks.items():
        name, _, kind = key.rpartition(".")
        layer = layers.get(name)
        if kind == "weight" and isinstance(layer, Sparse):
            shape = layer.weight_shape
        else:
            parameter = layer._parameters.get(kind) if layer is not None else None
            if parameter is None or kind not in ("weight", "bias"):
                raise ArgumentError(
                    f"mask {key!r} names no weight or bias of a layer to convert; "
                    f"layers: {', '.join(map(repr, layers)) or 'none'}"
                )
            shape = tuple(parameter.shape)
        if mask.dtype != torch.bool or tuple(mask.shape) != shape:
            raise ArgumentError(
                f"mask {key!r} must be bool {list(shape)}, got {mask.dtype} {list(mask.shape)}"
            )


def set_fused_encoders(model: nn.Module) -> None:
    """Keep `nn.TransformerEncoderLayer` from its fused path, which reads `weight` and passes masks over, and
    `nn.TransformerEncoder` from nested tensors, which only that path takes."""
    for layer in model.modules():
        if isinstance(layer, nn.TransformerEncoder):
            if not any(isinstance(part, Masked | Scored) for part in layer.layers.modules()):
                layer.use_nested_tensor = vars(layer).pop("_plain_use_nested_tensor", layer.use_nested_tensor)
            else:
                vars(layer).setdefault("_plain_use_nested_tensor", layer.use_nested_tensor)
                layer.use_nested_tensor = False
        if isinstance(layer, nn.TransformerEncoderLayer):
            masked = any(isinstance(part, Masked | Scored) for part in (layer.linear1, layer.linear2))
            activation = layer.activation
            kind = 0
            if activation is nn.functional.relu or isinstance(activation, nn.ReLU):
                kind = 1
            elif activation is nn.functional.gelu or isinstance(activation, nn.GELU):
                kind = 2
            layer.activation_relu_or_gelu = 0 if masked else kind
