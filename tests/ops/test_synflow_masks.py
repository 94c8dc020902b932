"""synflow_masks against rounds of autograd and sorting in float64."""

from __future__ import annotations

import random
import signal
import subprocess
import sys

import pytest
import torch
from test_synflow_scores import ISA, by_autograd, needs_native, random_chain
from test_topk_mask import rank_of

from lotterykit.errors import ArgumentError
from lotterykit.ops import dispatch
from lotterykit.ops.synflow_masks import (
    Counted,
    rounded,
    synflow_masks,
    synflow_masks_cpu,
    synflow_masks_reference,
)


def by_sorting(weights, rounds, masks, biases):
    """Score by autograd, sort by (score to 32 bits, tie rank), keep the first."""
    masks = [m.clone() for m in masks] or [torch.ones_like(w, dtype=torch.bool) for w in weights]
    for groups in rounds:
        found = by_autograd(weights, masks, biases)
        for group in groups:
            flat = torch.cat([rounded(found[i]).flatten() for i in group.layers]).tolist()
            inside = torch.cat([masks[i].flatten() for i in group.layers]).tolist()
            order = [p for p in range(len(flat)) if inside[p]]
            order.sort(key=lambda p: (-flat[p], rank_of(p, group.seed)))
            kept = torch.zeros(len(flat), dtype=torch.bool)
            kept[order[: group.kept]] = True
            for i in group.layers:
                masks[i] = kept[: masks[i].numel()].view(masks[i].shape)
                kept = kept[masks[i].numel() :]
    return masks


def random_rounds(rng, weights, masks):
    counts = [int(m.sum()) for m in masks] or [w.numel() for w in weights]
    layers = tuple(range(len(weights)))
    local = rng.random() < 0.3
    groups = [((i,), counts[i]) for i in layers] if local else [(layers, sum(counts))]
    number, density = rng.choice([1, 2, 10]), rng.choice([0.0, 0.05, 0.3, 1.0])
    return [
        [Counted(g, round(total * density ** (r / number)), rng.randrange(2**63)) for g, total in groups]
        for r in range(1, number + 1)
    ]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_rounds_keep_what_autograd_and_sorting_keep(seed):
    rng = random.Random(seed)
    for case in range(150):
        weights, masks, biases = random_chain(rng)
        if case % 3 == 0:  # weights of one magnitude: most scores tie
            weights = [torch.where(w.isnan(), w, w.sign()) for w in weights]
        rounds = random_rounds(rng, weights, masks)
        expected = by_sorting([w.nan_to_num() for w in weights], rounds, masks, biases)
        found = synflow_masks_reference(weights, rounds, masks, biases)
        assert same(found.masks, expected), case
        assert found.kept[-1].tolist() == [int(m.sum()) for m in expected]
        for isa in ISA:
            native = synflow_masks_cpu(weights, rounds, masks, biases, isa=isa)
            assert same(native.masks, expected), (case, isa)
            assert torch.equal(native.kept, found.kept)
            assert torch.equal(native.live, found.live)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_hundred_rounds_of_the_lenet_are_the_references(dtype):
    weights = [torch.randn(b, a, dtype=dtype) for a, b in ((784, 60), (60, 40), (40, 10))]
    total = sum(w.numel() for w in weights)
    rounds = [[Counted((0, 1, 2), round(total * 0.01 ** (r / 100)), r)] for r in range(1, 101)]
    expected = synflow_masks_reference(weights, rounds, [], [None] * 3)
    for isa in ISA:
        found = synflow_masks_cpu(weights, rounds, [], [None] * 3, isa=isa)
        assert same(found.masks, expected.masks)
        assert torch.equal(found.kept, expected.kept)
        assert bool(found.live.all())


def test_collapsed_layers_are_told():
    weights = [torch.ones(2, 3), torch.ones(1, 2)]
    rounds = [[Counted((0,), 3), Counted((1,), 1)], [Counted((0,), 1), Counted((1,), 0)]]
    for found in (synflow_masks(weights, rounds), synflow_masks_reference(weights, rounds, [], [None] * 2)):
        assert found.kept.tolist() == [[3, 1], [1, 0]]
        assert found.live.tolist()[1] is False
    empty = synflow_masks([torch.empty(0, 3), torch.empty(2, 0)], [[Counted((0, 1), 0)]])
    assert empty.live.tolist() == [False]
    assert synflow_masks(weights, []).kept.shape == (0, 2)


def test_tied_weights_fall_by_the_seed():
    weights = [torch.full((50, 40), 0.5)]
    first, again, other = (synflow_masks(weights, [[Counted((0,), 1000, s)]]).masks[0] for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert 0.3 < float((first == other).float().mean()) < 0.7
    assert abs(int(first[:25].sum()) - 500) < 100


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_native)])
@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([Counted((0,), 7)], "keeps 7 of layers"),
        ([Counted((0,), -1)], "keeps -1"),
        ([Counted((0,), 1.0)], "keeps 1.0"),
        ([Counted((1,), 1)], "names layers"),
        ([Counted((0,), 1), Counted((0,), 1)], "one group only"),
        ([Counted((0, 0), 1)], "twice"),
        ([Counted((0,), 1, -3)], "seed"),
    ],
)
def test_bad_rounds_are_refused(backend, groups, message):
    with dispatch.use_backend(backend), pytest.raises(ArgumentError, match=message):
        synflow_masks([torch.ones(2, 3)], [groups])


@needs_native
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
def test_ctrl_c_is_answered_in_the_middle_of_the_rounds():
    code = """
import signal, time, torch
from lotterykit.ops.synflow_masks import Counted, synflow_masks
weights = [torch.rand(1000, 1000) for _ in range(3)]
rounds = [[Counted((0, 1, 2), 3_000_000 - r)] for r in range(1, 3000)]
signal.signal(signal.SIGALRM, signal.default_int_handler)
signal.setitimer(signal.ITIMER_REAL, 0.3)
try:
    synflow_masks(weights, rounds)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "interrupted\n", done.stderr
