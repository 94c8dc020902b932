"""`FlowProducts`: what SynFlow computes of each layer of any network, kept weights only, in native code."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lotterykit.errors import ArgumentError
from lotterykit.ops.operands import ready
from lotterykit.ops.synflow_masks import Counted


class FlowLayer(NamedTuple):
    """A layer as a matrix: weight `[out, in / groups, ...]`, its mask (None: all kept), its groups."""

    weight: Tensor
    mask: Tensor | None
    groups: int = 1


class Window(NamedTuple):
    """An image of which the `lanes` entries from offsets[c] (int32 `[columns]`) on are column c of a layer;
    the next group reads `group_stride` entries further on. Columns overlap: a convolution needs no copies."""

    offsets: Tensor
    group_stride: int
    lanes: int


class FlowProducts:
    """The kept magnitudes of float32 or float64 layers on the CPU, compacted, to be pruned round by round.

    A round: `product` once for each layer, a backward pass through what they gave, then `select`. Raises
    `ArgumentError` on infinite or NaN kept weights. `isa` is there for tests.
    """

    def __init__(self, layers: Sequence[FlowLayer], *, isa: str = "best") -> None:
        native = importlib.import_module("lotterykit._cpu")
        kind = native.Flow_float64 if layers[0].weight.dtype == torch.float64 else native.Flow_float32
        weights = [ready(layer.weight.detach()) for layer in layers]
        masks = [None if layer.mask is None else layer.mask.contiguous() for layer in layers]
        rows = []
        for layer, w, m in zip(layers, weights, masks, strict=True):
            columns = w[0].numel() if len(w) else 0
            rows.append((w.data_ptr(), 0 if m is None else m.data_ptr(), w.shape[0], columns, layer.groups))
        self._flow = kind(rows, isa)  # copies what it keeps
        if not self._flow.finite:
            raise ArgumentError("synflow: a layer holds infinities or NaN among its kept weights")
        self._shapes = [w.shape for w in weights]
        self._columns, self._groups = [row[3] for row in rows], [row[4] for row in rows]
        # Native code borrows what went into a layer and what came back, from the products to the selection.
        self._inputs: dict[int, Tensor] = {}
        self._gradients: dict[int, Tensor] = {}
        self._lanes: dict[int, int] = {}

    def product(self, layer: int, x: Tensor, window: Window | None = None) -> Tensor:
        """|W| x, float64 `[out, lanes]`; differentiable once.

        x: float64 `[groups * columns, lanes]`, or an image that is read through `window`. Raises
        `ArgumentError` for a layer used twice in a round, and for an x of another shape."""
        if layer in self._inputs:
            raise ArgumentError(f"synflow: layer {layer} is used twice in one pass")
        groups, columns = self._groups[layer], self._columns[layer]
        lanes = x.shape[-1] if window is None else window.lanes
        if window is None:
            if x.dim() != 2 or x.shape[0] != groups * columns or x.dtype != torch.float64:
                want = f"float64 [{groups * columns}, lanes]"
                raise ArgumentError(f"synflow: layer {layer} reads {want}, got {x.dtype} {tuple(x.shape)}")
            self._flow.read_matrix(layer, lanes)
        else:
            offsets = ready(window.offsets)
            last = (groups - 1) * window.group_stride + (int(offsets.max()) if columns else 0) + lanes
            fits = len(offsets) == columns and offsets.dtype == torch.int32 and x.dtype == torch.float64
            if not fits or lanes < 2 or last > x.numel() or (columns and int(offsets.min()) < 0):
                raise ArgumentError(f"synflow: the window does not fit layer {layer} and its image")
            stride, address = window.group_stride, offsets.data_ptr()
            self._flow.read_image(layer, address, stride, x.numel(), lanes)
        # The anchor makes autograd come back to a layer that reads the network's input.
        return _Product.apply(x, torch.zeros((), requires_grad=True), self, layer, lanes)  # type: ignore[no-any-return]

    @property
    def used(self) -> set[int]:
        """The layers whose product this round has computed."""
        return set(self._inputs)

    def select(self, groups: Sequence[Counted]) -> None:
        """End a round: keep the highest scores of each group, and drop the rest."""
        for layer, x in self._inputs.items():
            if layer not in self._gradients:  # no output depends on it
                g = x.new_zeros(self._shapes[layer][0], self._lanes[layer])
                self._flow.backward(layer, g.data_ptr(), 0)
                self._gradients[layer] = g
        status = self._flow.select([(list(g.layers), g.kept, g.seed) for g in groups])
        self._inputs.clear()
        self._gradients.clear()
        if status != "ok":
            raise ArgumentError("synflow's products overflow float64: scale the weights down")

    def kept(self) -> list[int]:
        """How many weights each layer keeps."""
        return [self._flow.kept(layer) for layer in range(len(self._shapes))]

    def masks(self) -> list[Tensor]:
        """Bool tensors of the weights' shapes."""
        found = [torch.empty(shape, dtype=torch.bool) for shape in self._shapes]
        for layer, mask in enumerate(found):
            self._flow.write_mask(layer, mask.data_ptr())
        return found


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, anchor: Tensor, products: FlowProducts, layer: int, lanes: int
    ) -> Tensor:
        x = ready(x.detach())
        y = x.new_empty(products._shapes[layer][0], lanes)
        products._flow.forward(layer, x.data_ptr(), y.data_ptr())
        products._inputs[layer], products._lanes[layer] = x, lanes
        ctx.products, ctx.layer, ctx.x_shape = products, layer, x.shape
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        g = ready(gradients[0])
        dx = g.new_empty(ctx.x_shape) if ctx.needs_input_grad[0] else None
        ctx.products._flow.backward(ctx.layer, g.data_ptr(), 0 if dx is None else dx.data_ptr())
        ctx.products._gradients[ctx.layer] = g
        return dx, None, None, None, None
