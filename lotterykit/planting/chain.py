"""A network read as a chain of bias, ReLU and pooling layers: what can be planted, and into what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lotterykit.errors import ArgumentError
from lotterykit.planting.targets import TargetNetwork

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
POOLING = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
# They change no value in evaluation; Flatten follows from the layers around it
TRANSPARENT = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Flatten)


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer with parameters.

    `weight` `[out, in, K]`: `in` counts the units of the layer before, K the weights to each of them (1 in
    a fully connected chain, the kernel entries of a convolution, the positions of a flattened channel).
    `bias` `[out]` or None. `kind` is the geometry, `after` what follows before the next layer.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    kind: str
    after: tuple[str, ...]

    @property
    def units(self) -> int:
        """Number of output neurons or channels."""
        return self.weight.shape[0]

    @property
    def inputs(self) -> int:
        """Number of input neurons or channels."""
        return self.weight.shape[1]


def read_chain(network: nn.Module | TargetNetwork, what: str) -> list[Layer]:
    """The layers of a chain of Linear or convolution, ReLU and pooling, in order, with effective (masked)
    weights as views where there is no mask.

    Raises `ArgumentError` where scaling a neuron could not be undone in the next layer (batch-norm), or
    where the order of computation is not that of an `nn.Sequential` (skips). `what` names the network.
    """
    if isinstance(network, TargetNetwork):
        last = len(network.weights) - 1
        pairs = enumerate(zip(network.weights, network.biases, strict=True))
        return [Layer(f"{i}.", w[:, :, None], b, "linear", ("relu",) * (i < last)) for i, (w, b) in pairs]
    found: list[tuple[str, nn.Module]] = []
    after: list[list[str]] = []
    for name, module in _leaves(network, "", what):
        if isinstance(module, (nn.Linear, *CONVOLUTIONS)):
            if any(module is other for _, other in found):
                raise ArgumentError(f"the {what} uses its layer {name!r} twice: planting would need it once")
            found.append((name, module))
            after.append([])
        elif isinstance(module, TRANSPARENT):
            continue
        elif isinstance(module, (nn.ReLU, *POOLING)):
            if not found:
                raise ArgumentError(f"the {what} starts with {type(module).__name__}, not with a layer")
            after[-1].append("relu" if isinstance(module, nn.ReLU) else repr(module))
        else:
            raise ArgumentError(
                f"the {what}'s module {name!r} is a {type(module).__name__}: planting is exact for chains of "
                "Linear, convolution, ReLU and pooling only (no batch-norm, no skips)"
            )
    if not found:
        raise ArgumentError(f"the {what} has no Linear or convolution layer")
    for (name, _), between in zip(found[:-1], after[:-1], strict=True):
        if "relu" not in between:
            raise ArgumentError(f"the {what} has no ReLU after its layer {name!r}")
    return _layers(found, after, what)


def _leaves(module: nn.Module, name: str, what: str) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(module, nn.Sequential):
        # not named_children, which leaves out the second use of a shared ReLU
        for child_name, child in module._modules.items():
            if child is None:
                continue
            yield from _leaves(child, f"{name}.{child_name}" if name else child_name, what)
        return
    layer = isinstance(module, (nn.Linear, *CONVOLUTIONS))
    if not layer and not name:
        raise ArgumentError(
            f"the {what} must be an nn.Sequential chain or a layer, got {type(module).__name__}"
        )
    yield name, module


def _layers(found: list[tuple[str, nn.Module]], after: list[list[str]], what: str) -> list[Layer]:
    layers: list[Layer] = []
    for (name, module), between in zip(found, after, strict=True):
        weight, bias = _effective(module, "weight", name, what), _effective(module, "bias", name, what)
        if weight is None:
            raise ArgumentError(f"the {what}'s layer {name!r} has no weights")
        units = layers[-1].units if layers else weight.shape[1]
        if isinstance(module, CONVOLUTIONS) and module.groups != 1:
            raise ArgumentError(
                f"the {what}'s layer {name!r} has {module.groups} groups: only 1 can be planted"
            )
        if weight.shape[1] % units or (weight.dim() > 2 and weight.shape[1] != units):
            raise ArgumentError(
                f"the {what}'s layer {name!r} reads {weight.shape[1]} inputs, "
                f"the layer before has {units} units"
            )
        prefix = f"{name}." if name else ""
        view = weight.reshape(weight.shape[0], units, -1)
        layers.append(Layer(prefix, view, bias, _geometry(module), tuple(between)))
    return layers


def _effective(module: nn.Module, kind: str, name: str, what: str) -> Tensor | None:
    """A parameter times its mask, or None."""
    parameter, mask = getattr(module, kind), getattr(module, f"{kind}_mask", None)
    if parameter is None:
        return None
    value: Tensor = parameter.detach()
    # A sum is finite only where its terms are: one pass, isfinite takes several.
    if not value.is_floating_point() or not (bool(value.sum().isfinite()) or bool(value.isfinite().all())):
        raise ArgumentError(f"the {what}'s {name + '.' if name else ''}{kind} is not finite floating-point")
    if mask is not None and not bool(mask.all()):
        if what == "mother":
            raise ArgumentError(f"the mother's layer {name!r} is pruned: plant into a dense network")
        value = value * mask
    return value


def _geometry(module: nn.Module) -> str:
    if isinstance(module, nn.Linear):
        return "linear"
    fields = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    return f"conv {[getattr(module, field) for field in fields]}"


def check_fit(target: list[Layer], mother: list[Layer]) -> None:
    """Raises `ArgumentError` unless the mother has the target's depth, inputs, outputs and geometry, and
    at least its width in every layer."""
    if len(target) != len(mother):
        raise ArgumentError(
            f"the mother has depth {len(mother) + 1} ({len(mother)} weight matrices), "
            f"the target depth {len(target) + 1}: both count the input layer and must agree"
        )
    ends = {"inputs": (target[0].inputs, mother[0].inputs), "outputs": (target[-1].units, mother[-1].units)}
    for end, (want, got) in ends.items():
        if want != got:
            raise ArgumentError(f"the mother has {got} {end}, the target {want}: they must agree")
    for i, (t, m) in enumerate(zip(target, mother, strict=True), start=1):
        if t.units > m.units:
            raise ArgumentError(
                f"the target is wider than its mother in layer {i} ({m.name}weight): {t.units} > {m.units}"
            )
        if (t.kind, t.after, t.weight.shape[2]) != (m.kind, m.after, m.weight.shape[2]):
            raise ArgumentError(
                f"layer {i} of the target is {t.kind}, {t.weight.shape[2]} weights an input, then {t.after}; "
                f"of the mother {m.kind}, {m.weight.shape[2]}, then {m.after}: they must agree"
            )
        if m.bias is None and t.bias is not None and bool(t.bias.any()):
            raise ArgumentError(f"the target's layer {i} has biases, the mother's {m.name[:-1]!r} none")


def mother_tensor(parameters: Mapping[str, Tensor], name: str) -> Tensor:
    """The parameter `name` of the network that is planted into; raises `ArgumentError` for a layer whose
    weights are no dense parameter."""
    parameter = parameters.get(name)
    if parameter is None:
        raise ArgumentError(f"the mother's {name} is no dense parameter: revert the layer before planting")
    return parameter


def as_float64(values: Tensor) -> Tensor:
    """A detached float64 copy on the CPU."""
    return values.detach().to("cpu", torch.float64)
