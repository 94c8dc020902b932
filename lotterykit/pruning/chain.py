"""Networks whose flow is a chain of matrix-vector products: SynFlow then needs no autograd."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lotterykit.mask import prunable_layers
from lotterykit.ops.synflow_scores import DTYPES

# On values that are not negative they change nothing in evaluation.
TRANSPARENT = (nn.ReLU, nn.Identity, nn.Dropout)


class Chain(NamedTuple):
    """Fully connected layers in order: parameter names and what `synflow_scores` takes."""

    names: list[str]
    weights: list[Tensor]
    masks: list[Tensor] | None
    biases: list[Tensor | None]


def chain_of(model: nn.Module, example: Tensor, *, bias: bool) -> Chain | None:
    """`model` as a chain of Linear layers that an input like `example` `[1, in]` passes through, or None.

    Plain and masked layers, with ReLU, Dropout and a leading Flatten between them; anything else (hooks,
    other modules, layers used twice) leaves the model to autograd.
    """
    prefixes = {layer: prefix for prefix, layer in prunable_layers(model)}
    found: list[nn.Module] = []
    inputs = example.shape[1] if example.dim() == 2 else None
    for module in _leaves(model):
        if type(module) is nn.Flatten and not found and (module.start_dim, module.end_dim) == (1, -1):
            inputs = example[:1].numel()
        elif module in prefixes and isinstance(module, nn.Linear) and module not in found:
            found.append(module)
        elif type(module) not in TRANSPARENT:
            return None
    if len(found) != len(prefixes) or inputs is None:
        return None
    weights = [layer.weight.detach() for layer in found]  # type: ignore[operator, union-attr]
    masks = [getattr(layer, "weight_mask", None) for layer in found]
    widths = [inputs, *(w.shape[0] for w in weights)]
    same = {(w.dtype, w.device) for w in weights}
    if len(same) > 1 or weights[0].dtype not in DTYPES:
        return None
    if any(w.shape[1] != width for w, width in zip(weights, widths, strict=False)):
        return None
    kept: list[Tensor] | None = None
    if any(mask is not None for mask in masks):
        pairs = zip(weights, masks, strict=True)
        kept = [torch.ones_like(w, dtype=torch.bool) if m is None else m for w, m in pairs]
    offsets = [offset(layer) if bias else None for layer in found]
    return Chain([f"{prefixes[layer]}weight" for layer in found], weights, kept, offsets)


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    """The modules of nested `nn.Sequential`s in the order they run; a module that hooks into its call, or
    runs others in its own way, is handed on as it is."""
    if type(module) is nn.Sequential and not _hooked(module):
        for child in module._modules.values():  # not children(), which leaves out a second use
            if child is not None:
                yield from _leaves(child)
    else:
        yield nn.Sequential() if _hooked(module) else module


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def offset(layer: nn.Module) -> Tensor | None:
    """The bias a layer adds, 0 where a mask prunes it."""
    bias, mask = layer.bias, getattr(layer, "bias_mask", None)
    if not isinstance(bias, Tensor):
        return None
    return bias.detach() if mask is None else torch.where(mask, bias.detach(), 0.0)
