"""Turn a network's layers into masked ones and back, in place: parameters stay the same objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from lotterykit.errors import ArgumentError
from lotterykit.nn.masked import MASKED, Masked

Model = TypeVar("Model", bound=nn.Module)
PLAIN = {masked: plain for plain, masked in MASKED.items()}


def convert_(
    model: Model,
    *,
    masks: Mapping[str, Tensor] | None = None,
    filter_fn: Callable[[str, nn.Module], bool] | None = None,
) -> Model:
    """Turn the Linear and Conv layers of `model` into masked ones, in place; returns `model`.

    The layers change class (the root itself too, where it is one), so parameters, hooks and a running
    optimizer stay as they are. `masks`: parameter name -> bool tensor, put on the layers; a bias entry
    gives its layer a `bias_mask`; layers that are masked already keep what is not named. `filter_fn(name,
    layer)` says which layers take part. Subclasses of the torch layers are left alone: their forward is
    theirs. Raises `ArgumentError`, before anything is changed, on a mask that fits no layer taking part and
    on a layer whose weight is reparametrized (`torch.nn.utils.prune`, weight norm).

    >>> convert_(nn.Linear(2, 1), masks={"weight": torch.tensor([[True, False]])})
    MaskedLinear(in_features=2, out_features=1, bias=True, density=0.5)
    """
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) in (*MASKED, *PLAIN) and (filter_fn is None or filter_fn(name, layer))
    }
    for name, layer in layers.items():
        if "weight" not in layer._parameters:
            raise ArgumentError(
                f"layer {name!r} has no parameter 'weight': remove its reparametrization first "
                "(torch.nn.utils.prune.remove, parametrize.remove_parametrizations)"
            )
    _check_masks(masks or {}, layers)
    for layer in layers.values():
        if type(layer) in MASKED:
            layer.__class__ = MASKED[type(layer)]
            cast(Masked, layer).add_masks_()
    with torch.no_grad():
        for key, mask in (masks or {}).items():
            name, _, kind = key.rpartition(".")
            layer = layers[name]
            if kind == "bias":
                cast(Masked, layer).add_bias_mask_()
            layer.get_buffer(f"{kind}_mask").copy_(mask)
    _set_fused_encoders(model)
    return model


def revert_(model: Model) -> Model:
    """Turn masked layers back into plain ones, in place, zeros baked in where pruned; returns `model`."""
    for layer in model.modules():
        if type(layer) in PLAIN:
            masked = cast(Masked, layer)
            with torch.no_grad():
                masked.weight.copy_(masked.kept_weight())
                if (bias := masked.kept_bias()) is not None:
                    cast(Tensor, masked.bias).copy_(bias)
            del masked.weight_mask, masked.bias_mask
            layer.__class__ = PLAIN[type(layer)]
    _set_fused_encoders(model)
    return model


def _check_masks(masks: Mapping[str, Tensor], layers: Mapping[str, nn.Module]) -> None:
    for key, mask in masks.items():
        name, _, kind = key.rpartition(".")
        parameter = layers[name]._parameters.get(kind) if name in layers else None
        if parameter is None or kind not in ("weight", "bias"):
            raise ArgumentError(
                f"mask {key!r} names no weight or bias of a layer to convert; "
                f"layers: {', '.join(map(repr, layers)) or 'none'}"
            )
        if mask.dtype != torch.bool or mask.shape != parameter.shape:
            raise ArgumentError(
                f"mask {key!r} must be bool {list(parameter.shape)}, got {mask.dtype} {list(mask.shape)}"
            )


def _set_fused_encoders(model: nn.Module) -> None:
    """Keep `nn.TransformerEncoderLayer` from its fused path, which reads `weight` and passes masks over, and
    `nn.TransformerEncoder` from nested tensors, which only that path takes."""
    for layer in model.modules():
        if isinstance(layer, nn.TransformerEncoder):
            if not any(isinstance(part, Masked) for part in layer.layers.modules()):
                layer.use_nested_tensor = vars(layer).pop("_plain_use_nested_tensor", layer.use_nested_tensor)
            else:
                vars(layer).setdefault("_plain_use_nested_tensor", layer.use_nested_tensor)
                layer.use_nested_tensor = False
        if isinstance(layer, nn.TransformerEncoderLayer):
            masked = any(isinstance(part, Masked) for part in (layer.linear1, layer.linear2))
            activation = layer.activation
            kind = 0
            if activation is nn.functional.relu or isinstance(activation, nn.ReLU):
                kind = 1
            elif activation is nn.functional.gelu or isinstance(activation, nn.GELU):
                kind = 2
            layer.activation_relu_or_gelu = 0 if masked else kind
