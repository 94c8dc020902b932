"""Generated cases of the implicit GEMM against float64 (generated.py): convolutions by bits, linear layers
and convolutions by scores or |scores|."""

import torch
from generated import DTYPES, excess, main
from lotterykit.kernels import masked_conv2d as conv
from lotterykit.kernels import threshold, weight_gradient

from lotterykit.ops.conv_geometry import geometry_of, of_torch, out_size
from lotterykit.ops.formats import pack_bits
from lotterykit.ops.threshold import fixed_threshold, kept_mask, score_thresholds
from lotterykit.ops.topk_mask import seed_words


def scored(draw, shape, dtype):
    """Scores and a threshold: normal, tied or with special values; counted, fixed, of several tensors."""
    rng, generator = draw.rng, draw.generator
    scores = torch.randn(shape, generator=generator).to(dtype)
    kind = rng.choice(["normal", "tied", "constant", "special"])
    if kind == "tied":
        scores = (scores * 2).round() / 2
    elif kind == "constant":
        scores = scores.sign() * 0.25
    elif kind == "special":
        values = torch.tensor([torch.inf, -torch.inf, 0.0, -0.0, 1.0], dtype=dtype)
        scores = values[torch.randint(5, shape, generator=generator)]
    absolute, seed = rng.random() < 0.5, rng.randrange(2**63)
    if rng.random() < 0.3:
        chosen = fixed_threshold(rng.choice([0.5, 0.0, -0.3]), absolute=absolute)
    else:
        before = [torch.randn(rng.randrange(20), generator=generator).to(dtype)]
        total = sum(s.numel() for s in (before[0], scores))
        k = round(rng.choice([0.0, 0.1, 0.5, 1.0]) * total)
        chosen = score_thresholds([*before, scores], k=k, seed=seed, absolute=absolute)[1]
    if scores.numel() and rng.random() < 0.2:
        scores.view(-1)[0] = torch.nan  # never kept, and its gradient is its own affair
    return draw.laid(scores), chosen


def products(x, weight, g, geometry):
    """y, dx, dw of a dense layer, linear where `geometry` is empty."""
    x, weight = x.clone().requires_grad_(True), weight.clone().requires_grad_(True)
    if geometry:
        images, rest = of_torch(x, geometry)
        y = torch.nn.functional.conv2d(images, weight, None, *rest)
    else:
        y = torch.nn.functional.linear(x, weight)
    return y.detach(), *torch.autograd.grad(y, (x, weight), g)


def linear(draw):
    """Shapes of x and weight, and no geometry."""
    batch, n_in, n_out = (draw.rng.choice((0, 1, 1, 2, 7, 8, 9, 16, 17, 33)) for _ in range(3))
    if draw.rng.random() < 0.05:
        n_in = n_out = 70  # several tiles, and steps of one
    return (batch, n_in), (n_out, n_in), []


def convolution(draw):
    """Shapes of x and weight, and the geometry. The interpreter's time goes by groups and taps, so both are
    few, and 3x3 is rare."""
    rng = draw.rng
    while True:
        groups = rng.choice([1, 1, 1, 2, 3])
        n_in, n_out = groups * rng.choice([1, 2, 5, 9, 9, 33]), groups * rng.choice([1, 3, 8, 17])
        kernel = rng.choice([(1, 1), (1, 1), (1, 2), (2, 1)] if groups > 1 else KERNELS)
        stride, dilation = (rng.choice([(1, 1), (1, 1), (1, 1), (2, 2), (1, 2), (3, 1)]) for _ in range(2))
        around = rng.choice([(0, 0), (1, 1), (2, 0), (5, 6), "same" if stride == (1, 1) else "valid"])
        size = rng.choice([1, 2, 3, 5, 8]), rng.choice([1, 2, 4, 5])
        shape = (rng.choice([0, 1, 1, 2]), n_in, *size)
        geometry = geometry_of("case", kernel, stride, around, dilation, groups)
        out = out_size(torch.empty(shape), geometry)
        if min(out) >= 1 and shape[0] * out[0] * out[1] <= 80:
            return shape, (n_out, n_in // groups, *kernel), geometry


KERNELS = [(1, 1), (1, 1), (1, 2), (1, 2), (3, 1), (2, 2), (2, 3), (3, 3)]


class Layer:
    """A drawn layer: x, weight, dL/dy, bias or None, geometry, results full of NaN, and their rounding."""

    def __init__(self, case, draw, problem):
        self.case, self.dtype = case, DTYPES[case % 3]
        x_shape, w_shape, self.geometry = problem(draw)
        self.x, self.weight = (draw.normal(*shape, dtype=self.dtype) for shape in (x_shape, w_shape))
        size = out_size(self.x, self.geometry) if self.geometry else ()
        self.y = draw.laid(torch.full((x_shape[0], w_shape[0], *size), torch.nan, dtype=self.dtype))
        self.g = draw.normal(*self.y.shape, dtype=self.dtype)
        self.bias = draw.normal(w_shape[0], dtype=self.dtype) if case % 2 else None
        self.dx = draw.laid(torch.full(x_shape, torch.nan, dtype=self.dtype))
        weight_gradient.LEAST_STEPS = draw.rng.choice([1, 8])  # 1: pixels are split and added up

    def exact(self, mask):
        """(value, sum of |products|, number of products) of y, dx and dw, in float64."""
        kept = torch.where(mask, self.weight, 0.0).double()
        plain = self.x.double(), kept, self.g.double()
        ones = torch.ones_like(plain[0]), mask.double(), torch.ones_like(plain[2])
        found = [
            list(row)
            for row in zip(
                *(products(*t, self.geometry) for t in (plain, [t.abs() for t in plain], ones)), strict=True
            )
        ]
        if self.bias is not None:
            along = self.bias.double().view(-1, *[1] * (self.x.dim() - 2))
            value, size, terms = found[0]
            found[0] = [value + along, size + along.abs(), terms + 1]
        return found

    def failures(self, found):
        shapes = f"x {tuple(self.x.shape)}, weight {tuple(self.weight.shape)}"
        where = f"case {self.case}: {shapes}, {self.dtype}, {self.geometry}"
        return [f"{name}: {what} ({where})" for name, what in found.items() if what]


def masked_conv2d(case, draw):
    """Failures of a convolution by bits; pruned weights hold NaN."""
    layer = Layer(case, draw, convolution)
    mask = draw.mask(*layer.weight.shape)
    bits = pack_bits(mask)
    layer.weight.masked_fill_(~mask, torch.nan)
    dw = draw.laid(torch.full_like(layer.weight, torch.nan))
    conv.forward(layer.x, layer.weight, bits, layer.bias, layer.y, layer.geometry)
    conv.dx(layer.g, layer.weight, bits, layer.dx, layer.geometry)
    conv.dw(layer.g, layer.x, bits, dw, layer.geometry)
    y, dx, (value, size, terms) = layer.exact(mask)
    return layer.failures(
        {
            "y": excess(layer.y, *y),
            "dx": excess(layer.dx, *dx),
            "dw": excess(dw, torch.where(mask, value, 0.0), size, terms),
        }
    )


def threshold_layer(case, draw, problem):
    """Failures of a layer by scores, in its own dtype or in float32."""
    layer = Layer(case, draw, problem)
    dtype = torch.float32 if case % 3 == 1 else layer.dtype
    scores, chosen = scored(draw, layer.weight.shape, dtype)
    mask = kept_mask(scores, chosen)
    plain = chosen.cut, chosen.absolute, seed_words(chosen.seed), chosen.offset
    dw, ds = (torch.full(layer.weight.shape, torch.nan, dtype=one) for one in (layer.dtype, dtype))
    threshold.forward(layer.x, layer.weight, scores, plain, layer.bias, layer.y, layer.geometry)
    threshold.dx(layer.g, layer.weight, scores, plain, layer.dx, layer.geometry)
    outputs = draw.rng.choice([(dw, ds), (dw, None), (None, ds)])
    threshold.weight_and_score_gradients(
        layer.g, layer.x, layer.weight, scores, plain, *outputs, layer.geometry
    )
    y, dx, (value, size, terms) = layer.exact(mask)
    found = {"y": excess(layer.y, *y), "dx": excess(layer.dx, *dx)}
    if outputs[0] is not None:
        found["dw"] = excess(dw, torch.where(mask, value, 0.0), size, terms)
    if outputs[1] is not None:
        sign = scores.double().sign() if chosen.absolute else torch.ones_like(scores).double()
        slope = torch.where(scores.isnan(), 0.0, value * layer.weight.double() * sign)
        got = ds.masked_fill(scores.isnan(), 0.0)
        found["ds"] = excess(got, slope, size * layer.weight.double().abs(), terms)
    return layer.failures(found)


def threshold_linear(case, draw):
    return threshold_layer(case, draw, linear)


def threshold_conv2d(case, draw):
    return threshold_layer(case, draw, convolution)


if __name__ == "__main__":
    main({op.__name__: op for op in (masked_conv2d, threshold_linear, threshold_conv2d)})
