"""Turn a network's layers into scored ones and back, in place: `score_`, `bake_`, and where scores start."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from lotterykit.errors import ArgumentError
from lotterykit.nn.convert import check_parametrized, set_fused_encoders
from lotterykit.nn.masked import MASKED, Masked, MaskedConv1d, MaskedConv2d, MaskedConv3d, MaskedLinear
from lotterykit.nn.scored import (
    Scored,
    ScoredConv1d,
    ScoredConv2d,
    ScoredLinear,
    check_scoring,
)
from lotterykit.nn.seeds import derived_seed
from lotterykit.nn.sparse import Sparse

Model = TypeVar("Model", bound=nn.Module)
# layer -> its scored twin, and a scored layer -> its masked twin
SCORED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: ScoredLinear,
    nn.Conv1d: ScoredConv1d,
    nn.Conv2d: ScoredConv2d,
    MaskedLinear: ScoredLinear,
    MaskedConv1d: ScoredConv1d,
    MaskedConv2d: ScoredConv2d,
}
BAKED = {scored: MASKED[plain] for plain, scored in SCORED.items() if plain in MASKED}
UNSCORED = (nn.Conv3d, MaskedConv3d)  # what could be pruned and has no scored form


def score_(
    model: Model,
    method: str,
    density: float | None = None,
    *,
    seed: int = 0,
    unscored: Collection[str] = (),
    scores: Mapping[str, Tensor] | None = None,
) -> Model:
    """Turn the Linear, Conv1d and Conv2d layers of `model` into scored ones, in place; returns `model`.

    `method` and `density` as in `ScoredLinear`, the density of each layer. The layers change class (the root
    itself too, where it is one); weights stay the objects they are and no longer train, biases do. `unscored`
    names layers that stay as they are; subclasses of the torch layers do anyway: their forward is theirs.
    Scores start as `scores` says, by parameter name, else as `draw_scores` draws them from `seed`, which also
    draws how ties fall.

    Masks that the layers carry hold for good: pruned weights and biases become 0, their scores start and stay
    at 0, and `density` counts kept weights among all, so a layer keeps at most what its mask does. A weight
    whose score is exactly 0 as well may lose its place to a pruned one.

    Raises `ArgumentError`, before anything is changed, where no layer is left to score, for names in
    `unscored` that are no layer, scores that do not fit, and a layer that has no scored form: sparse, scored
    already, a Conv3d, reparametrized, of a shared weight or of one on meta.

    >>> score_(nn.Sequential(nn.Linear(4, 2)), "edge-popup", 0.5)
    Sequential(
      (0): ScoredLinear(in_features=4, out_features=2, bias=True, method='edge-popup', density=0.5)
    )
    """
    check_scoring(method, density, seed)
    layers = layers_to_score(model, unscored)
    shapes = {_weight_name(name): tuple(cast(Tensor, layer.weight).shape) for name, layer in layers.items()}
    start = draw_scores(method, shapes, seed) if scores is None else dict(scores)
    _check_start(start, layers, method)
    with torch.no_grad():
        for number, (name, layer) in enumerate(layers.items()):
            _score_layer(layer, start[_weight_name(name)], method, density, tie_seed(seed, number))
    set_fused_encoders(model)
    return model


def bake_(model: Model, *, masks: Mapping[str, Tensor] | None = None) -> Model:
    """Turn scored layers into masked ones, in place: the weights as they were, trainable, and a mask.

    `masks`: parameter name -> bool tensor, in place of what a layer's scores keep now, counted in the layer
    or, inside `ranked_together`, over all. Pruned entries of `weight` keep their values, which the layers
    treat as absent; the scores are gone. Returns `model`. Raises `ArgumentError`, before anything is changed,
    on a mask that fits no scored layer, and where there is none.

    >>> bake_(score_(nn.Linear(4, 2), "edge-popup", 0.5))
    MaskedLinear(in_features=4, out_features=2, bias=True, density=0.5)
    """
    layers = scored_layers(model)
    given = dict(masks or {})
    if not layers:
        raise ArgumentError(f"{type(model).__name__} has no scored layer to bake")
    for name, mask in given.items():
        layer = layers.get(name)
        shape = None if layer is None else tuple(layer.weight.shape)
        if shape is None or mask.dtype != torch.bool or tuple(mask.shape) != shape:
            wanted = f"one of {', '.join(map(repr, layers))}" if shape is None else f"bool {list(shape)}"
            raise ArgumentError(f"mask {name!r} must be {wanted}, got {mask.dtype} {list(mask.shape)}")
    found = {name: given.get(name, layer.weight_mask) for name, layer in layers.items()}
    for name, layer in layers.items():
        _bake_layer(layer, found[name])
    set_fused_encoders(model)
    return model


def scored_layers(model: nn.Module) -> dict[str, Scored]:
    """Name of the weight -> scored layer, in the network's order."""
    return {_weight_name(name): layer for name, layer in model.named_modules() if isinstance(layer, Scored)}


def draw_scores(
    method: str, shapes: Mapping[str, Sequence[int]], seed: int, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """The scores that a network of these parameters starts from, by name: drawn in float64, then rounded.

    Edge-popup: kaiming_uniform(a = sqrt 5), U[-b, b] with b = 1 / sqrt(fan_in), a bias with the fan-in of
    its layer's weight (which `shapes` then holds too); Gem-Miner: U[0, 1].
    """
    generator = torch.Generator().manual_seed(derived_seed(f"scores {seed}"))
    found = {}
    for name, shape in shapes.items():
        drawn = torch.rand(tuple(shape), generator=generator, dtype=torch.float64)
        if method == "edge-popup":
            layer, _, kind = name.rpartition(".")
            weight = shape if kind != "bias" else shapes[f"{layer}.weight" if layer else "weight"]
            drawn = (drawn * 2.0 - 1.0) / math.sqrt(max(1, math.prod(weight[1:])))
        found[name] = drawn.to(dtype)
    return found


def tie_seed(seed: int, group: int) -> int:
    """The seed of `topk_mask` for the ties of group number `group` of a run with seed `seed`: the same in
    every step, so that a mask is a function of the scores alone."""
    return derived_seed(f"score ties {seed} {group}")


def layers_to_score(model: nn.Module, unscored: Collection[str] = ()) -> dict[str, nn.Module]:
    """Name -> layer that `score_` turns into a scored one; raises `ArgumentError` as it does."""
    if isinstance(unscored, str):
        raise ArgumentError(f"unscored must be a collection of layer names, got the string {unscored!r}")
    every = dict(model.named_modules())
    if unknown := [name for name in unscored if name not in every]:
        raise ArgumentError(f"unscored names no layer of {type(model).__name__}: {', '.join(unknown)}")
    found: dict[str, nn.Module] = {}
    weights: dict[object, str] = {}
    for name, layer in every.items():
        if name in unscored:
            continue
        refusal = _refusal(layer)
        if refusal is not None:
            raise ArgumentError(f"layer {name!r} cannot be scored: {refusal}")
        if type(layer) not in SCORED:
            continue
        check_parametrized(name, layer)
        if cast(Tensor, layer.weight).is_meta:
            raise ArgumentError(f"layer {name!r} cannot be scored: its weight is on meta")
        first = weights.setdefault(layer.weight, name)
        if first != name:
            raise ArgumentError(f"layers {first!r} and {name!r} share one weight: untie them to score it")
        found[name] = layer
    if not found:
        raise ArgumentError(f"{type(model).__name__} has no Linear, Conv1d or Conv2d layer to score")
    return found


def _refusal(layer: nn.Module) -> str | None:
    """Why a layer that could be pruned cannot be scored."""
    if isinstance(layer, Sparse):
        return f"it is a {type(layer).__name__}; convert_(model, format='masked') first"
    if isinstance(layer, Scored):
        return "it has scores already; bake_(model) first"
    if type(layer) in UNSCORED:
        return "there is no scored form of Conv3d; name it in unscored"
    return None


def _check_start(scores: Mapping[str, Tensor], layers: Mapping[str, nn.Module], method: str) -> None:
    wanted = {_weight_name(name): cast(Tensor, layer.weight) for name, layer in layers.items()}
    if set(scores) != set(wanted):
        raise ArgumentError(f"scores must be those of {', '.join(wanted)}, got {', '.join(scores)}")
    for name, weight in wanted.items():
        start = scores[name]
        if tuple(start.shape) != tuple(weight.shape) or not start.is_floating_point():
            raise ArgumentError(
                f"scores of {name!r} must be floating {list(weight.shape)}, "
                f"got {start.dtype} {list(start.shape)}"
            )
        if bool(start.isnan().any()):
            raise ArgumentError(f"scores of {name!r} hold NaN")
        if method == "gem-miner" and not bool(((start >= 0) & (start <= 1)).all()):
            raise ArgumentError(f"gem-miner's scores lie in [0, 1], those of {name!r} do not")


def _score_layer(layer: nn.Module, start: Tensor, method: str, density: float | None, seed: int) -> None:
    weight, mask = cast(nn.Parameter, layer.weight), None
    if isinstance(layer, Masked):
        mask = layer.weight_mask
        weight.masked_fill_(~mask, 0.0)
        if layer.bias_mask is not None:
            layer.bias.masked_fill_(~layer.bias_mask, 0.0)
        del layer.weight_mask
        vars(layer).pop("format_reason", None)
    layer.__class__ = SCORED[type(layer)]
    scored = cast(Scored, layer)
    # memory format and all: kernels read weight and scores together
    scored.add_scores_(method, density, seed, torch.empty_like(weight).copy_(start))
    if mask is not None and not bool(mask.all()):
        scored.restrict_(mask)


def _bake_layer(layer: Scored, mask: Tensor) -> None:
    module = cast(nn.Module, layer)
    bias_mask = module._buffers.get("bias_mask")
    del layer.weight_score, layer.weight_active
    for name in ("method", "density", "seed", "_guess", "_guess_together", "_shared"):
        vars(layer).pop(name, None)
    module.__class__ = BAKED[type(module)]
    masked = cast(Masked, module)
    masked.add_masks_()
    masked.weight_mask.copy_(mask)
    masked.bias_mask = bias_mask
    masked.weight.requires_grad_(True)


def _weight_name(layer: str) -> str:
    return f"{layer}.weight" if layer else "weight"
