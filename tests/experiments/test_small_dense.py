"""Small dense widths: the largest network of one factor below the kept count, by brute force."""

from __future__ import annotations

import itertools
import os
import secrets
from fractions import Fraction
from typing import Any

import pytest
import torch

from lotterykit.errors import ArgumentError
from lotterykit.experiments.small_dense import small_dense_widths, weights_at
from lotterykit.mask import prunable_layers
from lotterykit.nn.models import NETWORKS, mlp, outline, weight_counts

SEED = int(os.environ.get("LOTTERYKIT_TEST_SEED") or secrets.randbits(31))


def mlp_weights(widths: list[int]) -> int:
    return sum(a * b for a, b in itertools.pairwise(widths))


def scaled(widths: list[int], step: int) -> list[int]:
    """Hidden widths times step / 20,000, rounded half up, at least 1."""
    return [widths[0], *(max(1, (2 * w * step + 20_000) // 40_000) for w in widths[1:-1]), widths[-1]]


def shapes_of(name: str) -> list[tuple[int, ...]]:
    return [tuple(layer.weight.shape) for _, layer in prunable_layers(outline(name))]  # type: ignore[union-attr]


def test_the_largest_network_from_below() -> None:
    """Against a scan of 20,000 factors."""
    print(f"replay with LOTTERYKIT_TEST_SEED={SEED}")
    g = torch.Generator().manual_seed(SEED)
    for _ in range(6):
        widths = torch.randint(1, 60, (int(torch.randint(2, 6, (1,), generator=g)),), generator=g).tolist()
        total = mlp_weights(widths)
        sizes = [(mlp_weights(s), s) for s in (scaled(widths, i) for i in range(20_001))]
        for kept in torch.randint(total + 1, (5,), generator=g).tolist():
            found = small_dense_widths(widths, kept)
            best = max((size for size, _ in sizes if size <= kept), default=sizes[0][0])
            assert mlp_weights(found) == best, (widths, kept)
            assert (best, found) in sizes
            assert (
                mlp_weights([p.shape[1] for p in mlp(found).parameters() if p.dim() == 2] + found[-1:])
                == best
            )


def test_ends() -> None:
    assert small_dense_widths([784, 300, 100, 10], 266_200) == [784, 300, 100, 10]
    assert small_dense_widths([784, 300, 100, 10], 266_199) == [784, 299, 100, 10]
    assert small_dense_widths([784, 300, 100, 10], 0) == [784, 1, 1, 10], "no fewer than width 1"
    assert small_dense_widths([5, 3], 15) == [5, 3], "nothing hidden to reduce"
    assert small_dense_widths([5, 3], 1) == [5, 3]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_by_name(name: str) -> None:
    shapes = shapes_of(name)
    total = weight_counts(outline(name))[1]
    assert weights_at(shapes, Fraction(1)) == total
    whole = small_dense_widths(shapes, total)
    assert whole == [shapes[0][1], *(shape[0] for shape in shapes)]
    narrow = small_dense_widths(shapes, total // 20)
    assert len(narrow) == len(whole)
    assert (narrow[0], narrow[-1]) == (whole[0], whole[-1])
    assert all(1 <= n <= w for n, w in zip(narrow, whole, strict=True))
    hidden = dict(zip(whole[1:-1], narrow[1:-1], strict=True))
    assert all(hidden[w] == n for w, n in zip(whole[1:-1], narrow[1:-1], strict=True)), "widths stay equal"


def test_a_chain_of_convolutions() -> None:
    """Channels feed the next convolution and, at 4 positions each, the linear layer."""
    shapes = [(8, 3, 3, 3), (16, 8, 3, 3), (20, 64), (10, 20)]
    chains = [scaled([3, 8, 16, 20, 10], step) for step in range(20_001)]
    counts = {27 * a + 9 * a * b + 4 * b * c + 10 * c: [3, a, b, c, 10] for _, a, b, c, _ in chains}
    for kept in range(50, 2800, 30):
        assert small_dense_widths(shapes, kept) == counts[max(count for count in counts if count <= kept)]


@pytest.mark.parametrize(
    ("network", "kept", "message"),
    [
        ([5, 4, 3], 33, r"kept must be an int in \[0, 32\], the weights of the network, got 33"),
        ([5, 4, 3], -1, "got -1"),
        ([5, 4, 3], 3.0, "got 3.0"),
        ([5, 4, 3], True, "got True"),
        ([5], 1, "widths must be at least two positive ints"),
        ([5, 0, 3], 1, "widths must be at least two positive ints"),
        ([], 1, "network must be widths or weight shapes"),
        ("lenet", 1, "network must be widths or weight shapes"),
        ([(4, 5), 3], 1, "network must be widths or weight shapes"),
        ([(4, 5), (3,)], 1, "network must be widths or weight shapes"),
        ([(4, 5), (3, 6)], 1, "layer 1 has 6 inputs, but no layer before it as many outputs"),
        ([(4, 5, 3, 3), (3, 6, 3, 3)], 1, "layer 1 has 6 inputs"),
    ],
)
def test_refusals(network: Any, kept: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        small_dense_widths(network, kept)
