"""Train R small networks of one shape in one program, through plain batched torch.

The reference of a native engine. All parameters of a chunk lie in one buffer `[R, S]`, each tensor's
slice starting on a 64-byte boundary, so that a matrix product sees the same sizes and the same alignment
whatever its place in the batch, and the arithmetic runs on one thread, because threads would split the
buffer at places that depend on R: a replica's result is bitwise the same alone and in any company.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lotterykit.errors import ArgumentError, check_seed
from lotterykit.nn.models import mlp
from lotterykit.training.optimizer import make_optimizer
from lotterykit.training.recipe import Recipe, Split, batch_order, metrics
from lotterykit.training.single import EVALUATION_BATCH, check_split

CHUNK = 16  # replicas a batch: per-call overhead is amortised by then, the state still fits the cache
ALIGN = 16  # floats in 64 bytes
GATHER = 1 << 22  # input values gathered at once


@dataclass(frozen=True)
class RunSpec:
    """One training of a fully connected ReLU network with widths `layers` (inputs first).

    Starts from `weights` (names as in `lk.nn.mlp`: "0.weight" `[out, in]`, "0.bias" `[out]`, "2.weight",
    ...), or from initialisation `init` with `seed`. `masks` (weights, and biases if named) hold for the whole
    training. `seed` also fixes the order of the batches. `optimizer` continues from a result's state.
    """

    layers: tuple[int, ...]
    data: Split
    recipe: Recipe
    init: str = "he_scaled"
    weights: Mapping[str, Tensor] | None = None
    masks: Mapping[str, Tensor] | None = None
    seed: int = 0
    optimizer: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class RunResult:
    """`weights` by name; `metrics` of the test split after training; `curve`: those after each epoch;
    `optimizer`: its state, for `RunSpec.optimizer` of the same layers."""

    weights: dict[str, Tensor]
    metrics: dict[str, float]
    curve: list[dict[str, float]] = field(default_factory=list)
    optimizer: dict[str, Tensor] = field(default_factory=dict)


def train_replicas(
    specs: Sequence[RunSpec],
    *,
    device: str | torch.device = "cpu",
    steps: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[RunResult]:
    """Train every spec; results in their order, on the CPU.

    Specs that share layers, recipe and data sizes run in batches of up to 16, on one thread (a sweep's
    workers use the other cores). `steps` stops early;
    `progress` is called after each epoch with the number of replica-epochs it finished.
    Raises `ArgumentError` on weights, masks or data that do not fit the layers.
    """
    groups: dict[object, list[int]] = {}
    for i, spec in enumerate(specs):
        _check(spec, i)
        sizes = tuple((tuple(t.shape), t.dtype) for t in spec.data)
        steps_before = None if spec.optimizer is None else float(spec.optimizer.get("step", 0.0))
        key = (tuple(spec.layers), spec.recipe, sizes, _dtype(spec), steps_before)
        groups.setdefault(key, []).append(i)
    results: dict[int, RunResult] = {}
    for members in groups.values():
        for start in range(0, len(members), CHUNK):
            chunk = members[start : start + CHUNK]
            with one_thread():
                trained = _Batch([specs[i] for i in chunk], torch.device(device)).train(steps, progress)
            results.update(zip(chunk, trained, strict=True))
    return [results[i] for i in range(len(specs))]


class _Batch:
    """R replicas: parameters, gradients and optimizer state as `[R, S]` buffers with views per layer."""

    def __init__(self, specs: list[RunSpec], device: torch.device) -> None:
        self.specs, self.device, self.recipe = specs, device, specs[0].recipe
        self.names = [
            f"{2 * layer}.{kind}" for layer in range(_depth(specs[0])) for kind in ("weight", "bias")
        ]
        starts = [_start(spec) for spec in specs]
        shapes = {name: starts[0][name].shape for name in self.names}
        dtype = _dtype(specs[0])
        size = sum(_padded(math.prod(shape)) for shape in shapes.values())
        self.parameters = torch.nn.Parameter(torch.zeros(len(specs), size, dtype=dtype, device=device))
        self.gradients = torch.zeros_like(self.parameters)
        self.parameters.grad = self.gradients
        self.values = _views(self.parameters.data, shapes)
        self.slopes = _views(self.gradients, shapes)
        self.pruned: Tensor | None = None
        if any(spec.masks for spec in specs):
            self.pruned = torch.zeros_like(self.parameters, dtype=torch.bool)
            views = _views(self.pruned, shapes)
            for r, spec in enumerate(specs):
                for name, mask in (spec.masks or {}).items():
                    views[name][r] = ~mask.to(device)
        for r, start in enumerate(starts):
            for name in self.names:
                self.values[name][r] = start[name].to(device)
        if self.pruned is not None:
            self.parameters.data.masked_fill_(self.pruned, 0.0)
        self.optimizer = make_optimizer([self.parameters], self.recipe)
        if specs[0].optimizer is not None:
            self._continue([spec.optimizer or {} for spec in specs])

    def _continue(self, states: list[Mapping[str, Tensor]]) -> None:
        """Take up the optimizers' states; what has been pruned since has none."""
        for key in states[0]:
            value = torch.stack([state[key] for state in states]).to(self.device)
            if key == "step":
                value = value[0].clone()
            elif self.pruned is not None:
                value.masked_fill_(self.pruned, 0.0)
            self.optimizer.state[self.parameters][key] = value

    def _state(self, r: int) -> dict[str, Tensor]:
        state = self.optimizer.state[self.parameters]
        tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
        return {k: (v if k == "step" else v[r]).cpu().clone() for k, v in tensors.items()}

    @torch.no_grad()
    def train(self, steps: int | None, progress: Callable[[int], None] | None) -> list[RunResult]:
        n, recipe, step = len(self.specs[0].data.x_train), self.recipe, 0
        per_epoch = -(-n // recipe.batch_size)
        curves: list[list[dict[str, float]]] = [[] for _ in self.specs]
        limit = recipe.epochs * per_epoch if steps is None else steps
        for epoch in range(min(recipe.epochs, -(-limit // per_epoch))):
            for x, y in self._batches(epoch):
                if step >= limit:
                    break
                for group in self.optimizer.param_groups:
                    group["lr"] = recipe.learning_rate(step, per_epoch)
                self._backward(x, y)
                if self.pruned is not None:
                    self.gradients.masked_fill_(self.pruned, 0.0)
                self.optimizer.step()
                step += 1
            for curve, values in zip(curves, self._evaluate(), strict=True):
                curve.append(values)
            if progress is not None:
                progress(len(self.specs))
        last = [curve[-1] for curve in curves] if curves[0] else self._evaluate()
        return [
            RunResult(self._weights(r), last[r], curves[r], self._state(r)) for r in range(len(self.specs))
        ]

    def _weights(self, r: int) -> dict[str, Tensor]:
        return {name: self.values[name][r].cpu().clone() for name in self.names}

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches x `[R, B, in]`, y `[R, B(, out)]`, each replica in its own order; gathered in blocks."""
        data = [spec.data for spec in self.specs]
        n, size = len(data[0].x_train), self.recipe.batch_size
        orders = [batch_order(n, spec.seed, epoch) for spec in self.specs]
        per_batch = len(data) * size * max(1, data[0].x_train[0].numel())
        block = size * max(1, GATHER // per_batch)
        for start in range(0, n, block):
            parts = [order[start : start + block] for order in orders]
            x = torch.stack([d.x_train[i] for d, i in zip(data, parts, strict=True)]).to(self.device)
            y = torch.stack([d.y_train[i] for d, i in zip(data, parts, strict=True)]).to(self.device)
            for at in range(0, x.shape[1], size):
                yield x[:, at : at + size].contiguous(), y[:, at : at + size]

    def _forward(self, x: Tensor) -> list[Tensor]:
        """The input of each layer, then the output: `[R, B, width]` each."""
        hidden = [x]
        for layer in range(0, len(self.names), 2):
            weight, bias = (self.values[name] for name in self.names[layer : layer + 2])
            out = torch.baddbmm(bias[:, None, :], hidden[-1], weight.transpose(1, 2))
            hidden.append(out.relu_() if layer + 2 < len(self.names) else out)
        return hidden

    def _backward(self, x: Tensor, y: Tensor) -> None:
        """Gradients of the mean loss of each replica into `self.gradients`."""
        hidden = self._forward(x)
        output = hidden.pop()
        count = output.shape[1]
        if self.recipe.loss == "cross_entropy":
            delta = output.softmax(2)
            delta.scatter_add_(2, y[..., None], torch.full_like(delta[..., :1], -1.0))
            delta /= count
        else:
            delta = (output - y).mul_(2.0 / (count * output.shape[2]))
        ones = torch.ones(delta.shape[0], 1, count, dtype=delta.dtype, device=delta.device)
        for layer in reversed(range(0, len(self.names), 2)):
            weight, bias = self.names[layer : layer + 2]
            below = hidden.pop()
            torch.bmm(delta.transpose(1, 2), below, out=self.slopes[weight])
            torch.bmm(ones, delta, out=self.slopes[bias][:, None, :])
            if layer:
                delta = torch.bmm(delta, self.values[weight]).masked_fill_(below <= 0, 0.0)

    def _evaluate(self) -> list[dict[str, float]]:
        data = [spec.data for spec in self.specs]
        outputs = []
        for start in range(0, len(data[0].x_test), EVALUATION_BATCH):
            x = torch.stack([d.x_test[start : start + EVALUATION_BATCH] for d in data]).to(self.device)
            outputs.append(self._forward(x)[-1].cpu())
        output = torch.cat(outputs, 1)
        return [metrics(output[r], d.y_test, self.recipe.loss) for r, d in enumerate(data)]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread for a while: sums are then split the same way on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _depth(spec: RunSpec) -> int:
    return len(spec.layers) - 1


def _padded(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def _views(buffer: Tensor, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Name -> `[R, *shape]` view of the `[R, S]` buffer; every slice starts on a 64-byte boundary."""
    views, at = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        views[name] = buffer[:, at : at + size].unflatten(1, tuple(shape))
        at += _padded(size)
    return views


def _start(spec: RunSpec) -> Mapping[str, Tensor]:
    if spec.weights is not None:
        return spec.weights
    return mlp(list(spec.layers), init=spec.init, seed=spec.seed).state_dict()


def _dtype(spec: RunSpec) -> torch.dtype:
    return torch.float32 if spec.weights is None else next(iter(spec.weights.values())).dtype


def _check(spec: RunSpec, number: int) -> None:
    check_split(spec.data)
    check_seed(spec.seed)
    layers = list(spec.layers)
    if len(layers) < 2 or min(layers) < 1:
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
    _check_data(spec, number)


def _check_data(spec: RunSpec, number: int) -> None:
    classes = spec.recipe.loss == "cross_entropy"
    y_shape, dtype = [] if classes else [spec.layers[-1]], _dtype(spec)
    wanted = {"x": ([spec.layers[0]], dtype), "y": (y_shape, torch.int64 if classes else dtype)}
    for name, tensor in spec.data._asdict().items():
        shape, kind = wanted[name[0]]
        if list(tensor.shape[1:]) != shape or tensor.dtype != kind:
            raise ArgumentError(
                f"spec {number}: {name} must be {['N', *shape]} of {kind}, "
                f"got {list(tensor.shape)} of {tensor.dtype}"
            )
