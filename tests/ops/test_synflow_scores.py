"""synflow_scores against autograd in float64, on every backend and instruction set."""

from __future__ import annotations

import importlib.util
import itertools
import random

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from lotterykit.errors import ArgumentError
from lotterykit.ops import dispatch
from lotterykit.ops.synflow_scores import (
    sample_inputs,
    synflow_scores,
    synflow_scores_cpu,
    synflow_scores_reference,
)

needs_native = pytest.mark.skipif(dispatch.missing("cpu") is not None, reason=str(dispatch.missing("cpu")))
ISA = importlib.import_module("lotterykit._cpu").isa_levels() if dispatch.missing("cpu") is None else []


def by_autograd(weights, masks, biases) -> list[Tensor]:
    """w dR/dw / R, with R by matrix products: the definition."""
    leaves = [w.detach().double().abs().requires_grad_() for w in weights]
    x = torch.ones(weights[0].shape[1], dtype=torch.float64)
    for i, leaf in enumerate(leaves):
        x = (torch.where(masks[i], leaf, 0.0) if masks else leaf) @ x
        x = x if biases[i] is None else x + biases[i].double().abs()
    total = x.sum()
    if float(total.detach()) == 0.0:
        return [torch.zeros_like(leaf) for leaf in leaves]
    gradients = torch.autograd.grad(total, leaves)
    return [(leaf * g / total).detach() for leaf, g in zip(leaves, gradients, strict=True)]


def random_chain(rng: random.Random):
    widths = [rng.choice([1, 2, 3, 7, 8, 9, 17, 33]) for _ in range(rng.randint(2, 6))]
    dtype = rng.choice([torch.float32, torch.float64])
    weights = [torch.randn(b, a, dtype=dtype) for a, b in itertools.pairwise(widths)]
    density = rng.choice([0.0, 0.1, 0.5, 0.9, 1.0])
    masks = [torch.rand(w.shape) < density for w in weights] if rng.random() < 0.7 else []
    if rng.random() < 0.3:
        weights = [w.t().contiguous().t() for w in weights]
    biases = [torch.randn(w.shape[0], dtype=dtype) if rng.random() < 0.4 else None for w in weights]
    for w, m in zip(weights, masks, strict=False):
        w[~m] = float("nan")  # pruned entries may hold anything
    return weights, masks, biases


def test_scores_are_autograds(seed):
    rng = random.Random(seed)
    for _ in range(200):
        weights, masks, biases = random_chain(rng)
        expected = by_autograd([w.nan_to_num() for w in weights], masks, biases)
        results = [synflow_scores_reference(weights, masks, biases)]
        results += [synflow_scores_cpu(weights, masks, biases, isa=isa) for isa in ISA]
        results.append(synflow_scores(weights, masks=masks or None, biases=biases))
        for found in results:
            for got, want in zip(found, expected, strict=True):
                assert got.dtype == torch.float64
                # sums of at most 6 layers of 33 products, all positive: relative errors add up
                torch.testing.assert_close(got, want, rtol=6 * 35 * 2.0**-52, atol=1e-300)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("bias", [False, True])
def test_no_depth_overflows(scale, bias):
    """A factor on each weight changes no share of the flow, though 40 of them leave float64's range."""
    weights = [torch.randn(6, 6, dtype=torch.float64) for _ in range(40)]
    biases = [torch.randn(6, dtype=torch.float64) * bias for _ in weights]
    expected = by_autograd(weights, [], biases)
    factors = [scale ** (i + 1) if abs(i * torch.tensor(scale).log10()) < 250 else 0.0 for i in range(40)]
    scaled = [w * scale for w in weights]
    if bias and 0.0 in factors:
        biases = [b * 0 for b in biases]
        expected = by_autograd(weights, [], biases)
    else:
        biases = [b * f for b, f in zip(biases, factors, strict=True)]
    for found in [synflow_scores_reference(scaled, [], biases), synflow_scores(scaled, biases=biases)]:
        for got, want in zip(found, expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-11, atol=0)


def test_biases_far_above_the_weights():
    """The first layer's share is 1e-40 of the flow: tiny, and not rounded away."""
    weights = [torch.full((2, 2), 1e-20), torch.full((1, 2), 1e-20)]
    biases = [None, torch.ones(1)]
    for found in [synflow_scores_reference(weights, [], biases), synflow_scores(weights, biases=biases)]:
        torch.testing.assert_close(
            found[0], torch.full((2, 2), 1e-40, dtype=torch.float64), rtol=1e-6, atol=0
        )


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_native)])
def test_bad_arguments_are_refused_in_one_line(backend):
    w = torch.randn(3, 2)
    nan = torch.tensor([[float("nan"), 1.0]])
    cases = [
        (([],), {}, "at least one tensor"),
        ((w,), {}, "at least one tensor"),
        (([w, "w"],), {}, r"weights\[1\] must be dense float32 or float64 \[out, in\], got str"),
        (([w.half()],), {}, "float32 or float64"),
        (([w[0]],), {}, r"\[out, in\]"),
        (([w.to_sparse()],), {}, "dense"),
        (([w, torch.randn(2, 3).double()],), {}, "share dtype"),
        (([w, w],), {}, r"reads 2 inputs, weights\[0\] has 3 outputs"),
        (([w],), {"masks": []}, "masks must be one for each"),
        (([w],), {"masks": [w]}, r"masks\[0\] must be bool \(3, 2\)"),
        (([w],), {"masks": [w.t() > 0]}, r"masks\[0\]"),
        (([w],), {"biases": []}, "biases must be one for each"),
        (([w],), {"biases": [torch.ones(2)]}, r"biases\[0\] must be \[3\]"),
        (([nan],), {}, r"weights\[0\] holds infinities or NaN"),
        (([w, 1 / torch.zeros(1, 3)],), {}, r"weights\[1\] holds infinities or NaN"),
        (([w],), {"biases": [torch.full((3,), float("inf"))]}, r"biases\[0\] holds infinities"),
        (([torch.full((1, 2), 1.5e308, dtype=torch.float64)],), {}, "overflow"),
    ]  # fmt: skip
    with dispatch.use_backend(backend):
        for args, kwargs, message in cases:
            with pytest.raises(ArgumentError, match=message):
                synflow_scores(*args, **kwargs)
        kept = torch.tensor([[False, True]])
        assert synflow_scores([nan], masks=[kept])[0].tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("sample", range(len(sample_inputs(torch.Generator()))))
def test_opcheck(sample, seed):
    args, kwargs = sample_inputs(torch.Generator().manual_seed(seed))[sample]
    opcheck(torch.ops.lotterykit.synflow_scores, args, kwargs)


def test_compiles_in_one_graph():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def halved(a, b):
        return [s / 2 for s in synflow_scores([a, b])]

    a, b = torch.randn(4, 3), torch.randn(2, 4)
    eager = synflow_scores([a, b])
    assert all(torch.equal(x, y / 2) for x, y in zip(halved(a, b), eager, strict=True))


def test_inputs_stay_and_no_gradient_flows():
    w = torch.nn.Parameter(torch.randn(3, 2))
    before = w.detach().clone()
    (score,) = synflow_scores([w])
    assert not score.requires_grad
    assert torch.equal(w.detach(), before)
    assert "reference" in dispatch.explain("synflow_scores", [w])
