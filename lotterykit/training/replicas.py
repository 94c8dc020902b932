"""`train_replicas`: train R small networks of one shape in one program, described by `RunSpec`s."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lotterykit.errors import ArgumentError, check_seed
from lotterykit.nn.models import mlp
from lotterykit.ops import dispatch
from lotterykit.training.recipe import EarlyStop, Recipe, Split, early_stop
from lotterykit.training.scored import ScoreTraining, check_training
from lotterykit.training.source import check_split, check_steps, check_validation


@dataclass(frozen=True)
class RunSpec:
    """One training of a fully connected ReLU network with widths `layers` (inputs first).

    Starts from `weights` (names as in `lk.nn.mlp`: "0.weight" `[out, in]`, "0.bias" `[out]`, "2.weight",
    ...), or from initialisation `init` with `seed`. `masks` (weights, and biases if named) hold for the whole
    training. `seed` also fixes the order of the batches. `optimizer` continues from a result's state.
    `scores`: not the weights are trained but the scores that choose among them; `masks` may then name no
    scored tensor. To go on with a result, its `scores` are their `start`, and where Gem-Miner freezes its
    `masks` are `active`, what had not been frozen by then. `validation`: x and y, shaped as the test split's,
    that are evaluated beside it.
    """

    layers: tuple[int, ...]
    data: Split
    recipe: Recipe
    init: str = "he_scaled"
    weights: Mapping[str, Tensor] | None = None
    masks: Mapping[str, Tensor] | None = None
    seed: int = 0
    optimizer: Mapping[str, Tensor] | None = None
    scores: ScoreTraining | None = None
    validation: tuple[Tensor, Tensor] | None = None
    active: Mapping[str, Tensor] | None = None

    @property
    def names(self) -> list[str]:
        """The parameters' names, in the network's order."""
        return [f"{2 * layer}.{kind}" for layer in range(len(self.layers) - 1) for kind in ("weight", "bias")]

    @property
    def tests(self) -> list[tuple[Tensor, Tensor]]:
        """x and y of what is evaluated: the test split, then the validation data if there are any."""
        tests = [(self.data.x_test, self.data.y_test)]
        return tests if self.validation is None else [*tests, self.validation]

    @property
    def dtype(self) -> torch.dtype:
        """That of `weights`, or float32."""
        return torch.float32 if self.weights is None else next(iter(self.weights.values())).dtype

    def start(self) -> Mapping[str, Tensor]:
        """The weights that the training starts from, by name."""
        if self.weights is not None:
            return self.weights
        return mlp(list(self.layers), init=self.init, seed=self.seed).state_dict()


@dataclass(frozen=True)
class RunResult:
    """`weights` by name; `metrics` of the test split after training; `curve`: those of each evaluation
    (`Recipe.evaluate_every`), after `steps` steps; `validation`: the validation data's beside them;
    `optimizer`: its state, for `RunSpec.optimizer` of the same layers; `masks` in force at the end. Score
    training leaves `weights` as they were; its metrics are those under `masks`, in the curve under the
    epoch's; `scores` are the trained ones. Where Gem-Miner freezes, `masks` are what it has not frozen: the
    curve sees all of it after the recipe's last step, before only p >= .5."""

    weights: dict[str, Tensor]
    metrics: dict[str, float]
    curve: list[dict[str, float]] = field(default_factory=list)
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    steps: list[int] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)

    def early_stop(self) -> EarlyStop:
        """The evaluation of least validation loss; raises `ArgumentError` without validation data."""
        return early_stop(self.steps, self.validation, self.curve)


def train_replicas(
    specs: Sequence[RunSpec],
    *,
    device: str | torch.device = "cpu",
    first: int = 0,
    steps: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[RunResult]:
    """Train every spec; results in their order, on the CPU.

    The native engine computes on kept weights alone, on `torch.get_num_threads()` threads over replicas; the
    reference runs specs of one shape and recipe in batches of 16 on one thread. A replica's result depends
    on its spec alone, bitwise, per engine and instruction set. `first`: the schedule and the order of the
    batches go on from this step, as after rewinding to it (with scores, from an epoch's first); `steps`:
    stops after that step; `progress` is called after each epoch with the number of replica-epochs it
    finished.
    Raises `ArgumentError` on weights, masks or data that do not fit the layers, and where there is no such
    device.
    """
    check_steps(first, steps)
    wanted, there = torch.device(device), torch.cuda.device_count()
    if wanted.type == "cuda" and (wanted.index or 0) >= there:
        raise ArgumentError(
            f"device {str(device)!r} was asked for, but torch sees {there or 'no'} CUDA device(s)"
        )
    groups: dict[tuple[Any, object], list[int]] = {}
    for i, spec in enumerate(specs):
        _check(spec, i)
        per_epoch = -(-len(spec.data.x_train) // spec.recipe.batch_size)
        if spec.scores is not None and first % per_epoch:
            raise ArgumentError(
                f"spec {i}: score training goes on at the start of an epoch of {per_epoch} steps, "
                f"first is {first}"
            )
        engine = _engine(spec, device)
        groups.setdefault((engine, engine.group_key(spec)), []).append(i)
    results: dict[int, RunResult] = {}
    for (engine, _), members in groups.items():
        for start in range(0, len(members), engine.most):
            chunk = members[start : start + engine.most]
            trained = engine([specs[i] for i in chunk], torch.device(device)).train(steps, progress, first)
            results.update(zip(chunk, trained, strict=True))
    return [results[i] for i in range(len(specs))]


def call_of(specs: Sequence[RunSpec], *, device: str | torch.device = "cpu") -> dispatch.Call:
    """What dispatch sees of a call: device, dtype and what is trained (of the first spec)."""
    dtype = specs[0].dtype if specs else torch.float32
    op = "train_scores" if specs and specs[0].scores is not None else "train_replicas"
    return dispatch.Call(op, torch.device(device).type, dtype)


def _engine(spec: RunSpec, device: str | torch.device) -> Any:
    """The class that trains such specs, `group_key(spec)` alike and at most `most` at once."""
    return dispatch.load(dispatch.select(call_of([spec], device=device)))


def _check(spec: RunSpec, number: int) -> None:
    if not isinstance(spec, RunSpec):
        raise ArgumentError(f"spec {number} must be a RunSpec, got {type(spec).__name__}")
    check_validation(spec.validation)
    _check_dense(spec, number)
    check_split(spec.data)
    check_seed(spec.seed)
    layers = list(spec.layers)
    if len(layers) < 2 or any(type(n) is not int or n < 1 for n in layers):
        raise ArgumentError(f"spec {number}: layers needs at least 2 positive widths, got {layers}")
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (n_in, n_out) in enumerate(itertools.pairwise(layers)):
        shapes[f"{2 * i}.weight"], shapes[f"{2 * i}.bias"] = (n_out, n_in), (n_out,)
    for kind, tensors in (("weights", spec.weights), ("masks", spec.masks)):
        for name, tensor in (tensors or {}).items():
            if tuple(tensor.shape) != shapes.get(name):
                raise ArgumentError(
                    f"spec {number}: {kind} {name!r} has shape {tuple(tensor.shape)}, layers {layers} "
                    f"allow {shapes.get(name, 'no such name; valid: ' + ', '.join(shapes))}"
                )
    if spec.weights is not None and set(spec.weights) != set(shapes):
        raise ArgumentError(
            f"spec {number}: weights lack {', '.join(sorted(set(shapes) - set(spec.weights)))}"
        )
    for name, mask in (spec.masks or {}).items():
        if mask.dtype != torch.bool:
            raise ArgumentError(f"spec {number}: mask {name!r} must be bool, got {mask.dtype}")
    for name, weight in (spec.weights or {}).items():
        if weight.dtype != spec.dtype or not weight.is_floating_point():
            raise ArgumentError(
                f"spec {number}: weights must share a floating dtype, got {weight.dtype} of {name!r} "
                f"beside {spec.dtype}"
            )
    if spec.scores is not None:
        check_training(spec.scores, shapes, spec.recipe.epochs, spec.dtype, spec.masks)
        if spec.scores.penalty and spec.scores.penalty_norm != 2:
            raise ArgumentError(f"spec {number}: replicas know penalty_norm 2 only, a module's train both")
    _check_active(spec, shapes, number)
    _check_optimizer(spec, shapes, number)
    _check_data(spec, number)


def _check_dense(spec: RunSpec, number: int) -> None:
    """Raises unless all that should be a tensor is a dense one that holds data."""
    start = None if spec.scores is None else spec.scores.start
    named = {"data": spec.data._asdict(), "weights": spec.weights, "masks": spec.masks, "start scores": start}
    named["validation"] = dict(zip("xy", spec.validation or (), strict=False))
    for kind, tensors in (named | {"optimizer": spec.optimizer, "active": spec.active}).items():
        for name, tensor in (tensors or {}).items():
            if not isinstance(tensor, Tensor):
                got = type(tensor).__name__
            elif tensor.layout is not torch.strided or tensor.is_meta:
                got = f"{tensor.layout} on {tensor.device}"
            else:
                continue
            raise ArgumentError(f"spec {number}: {kind} {name!r} must be a dense tensor with data, got {got}")


def _check_active(spec: RunSpec, shapes: Mapping[str, tuple[int, ...]], number: int) -> None:
    """Raises unless `active` is a mask of each scored tensor, in a training that freezes."""
    if spec.active is None:
        return
    if spec.scores is None or not spec.scores.freezes:
        raise ArgumentError(f"spec {number}: active is for gem-miner with a density, which alone freezes")
    names = spec.scores.names(shapes)
    if set(spec.active) != set(names):
        raise ArgumentError(
            f"spec {number}: active must name {', '.join(names)}, got {', '.join(spec.active) or 'none'}"
        )
    for name, mask in spec.active.items():
        if mask.dtype != torch.bool or tuple(mask.shape) != shapes[name]:
            raise ArgumentError(
                f"spec {number}: active {name!r} must be bool {list(shapes[name])}, "
                f"got {mask.dtype} {list(mask.shape)}"
            )


def _check_optimizer(spec: RunSpec, shapes: Mapping[str, tuple[int, ...]], number: int) -> None:
    """Raises unless `optimizer` is what a training of these layers left."""
    from lotterykit.training.batched import flat_size  # which imports this module

    state, size = spec.optimizer or {}, flat_size(shapes.values())
    for name, tensor in state.items():
        if name == "step":
            continue
        if tuple(tensor.shape) != (size,) or not tensor.is_floating_point():
            raise ArgumentError(
                f"spec {number}: optimizer {name!r} must be floating [{size}] for layers "
                f"{list(spec.layers)}, got {tensor.dtype} {list(tensor.shape)}"
            )
    step = state.get("step", torch.zeros(()))
    if step.numel() != 1 or not 0 <= float(step) < 2**53:
        raise ArgumentError(f"spec {number}: optimizer 'step' must be a number of at least 0, got {step}")


def _check_data(spec: RunSpec, number: int) -> None:
    classes = spec.recipe.loss == "cross_entropy"
    outputs, dtype = spec.layers[-1], spec.dtype
    y_shape = [] if classes else [outputs]
    wanted = {"x": ([spec.layers[0]], dtype), "y": (y_shape, torch.int64 if classes else dtype)}
    named = spec.data._asdict()
    if spec.validation is not None:
        named |= dict(zip(("x of validation", "y of validation"), spec.validation, strict=True))
    for name, tensor in named.items():
        shape, kind = wanted[name[0]]
        if list(tensor.shape[1:]) != shape or tensor.dtype != kind:
            raise ArgumentError(
                f"spec {number}: {name} must be {['N', *shape]} of {kind}, "
                f"got {list(tensor.shape)} of {tensor.dtype}"
            )
        if kind == torch.int64 and len(tensor) and not 0 <= int(tensor.min()) <= int(tensor.max()) < outputs:
            raise ArgumentError(
                f"spec {number}: {name} must hold classes in [0, {outputs}), "
                f"got {int(tensor.min())} to {int(tensor.max())}"
            )
