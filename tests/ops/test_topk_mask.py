"""topk_mask against an independent float64 sort, on every backend and instruction set."""

from __future__ import annotations

import importlib.util
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.library import opcheck

from lotterykit.errors import ArgumentError, BackendError
from lotterykit.ops import dispatch
from lotterykit.ops.guess import Guess
from lotterykit.ops.topk_mask import (
    call_of,
    sample_inputs,
    tie_rank,
    topk_cut_cpu,
    topk_mask,
    topk_mask_cpu,
    topk_mask_reference,
)

needs_native = pytest.mark.skipif(dispatch.missing("cpu") is not None, reason=str(dispatch.missing("cpu")))
needs_cuda = pytest.mark.skipif(dispatch.missing("cuda") is not None, reason=str(dispatch.missing("cuda")))
ISA = importlib.import_module("lotterykit._cpu").isa_levels() if dispatch.missing("cpu") is None else []
INF = float("inf")


def rank_of(position: int, seed: int) -> int:
    """The tie order in Python's own integers: an implementation apart from the one under test."""
    z = (seed + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    z ^= z >> 31
    x = position ^ z % 2**32
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x ^= z >> 32
    x = x * 0x846CA68B % 2**32
    return x ^ x >> 16


def oracle(scores, k, seed=0, within=None, rank=rank_of):
    """Masks by sorting (score, tie rank) in float64."""
    flat = [float(v) for s in scores for v in s.double().reshape(-1).tolist()]
    inside = (
        [True] * len(flat) if within is None else [bool(v) for w in within for v in w.reshape(-1).tolist()]
    )
    order = sorted((p for p in range(len(flat)) if inside[p]), key=lambda p: (-flat[p], rank(p, seed)))
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[order[:k]] = True
    return [m.view(s.shape) for m, s in zip(mask.split([s.numel() for s in scores]), scores, strict=True)]


def same(a, b):
    return len(a) == len(b) and all(
        x.dtype == torch.bool and torch.equal(x, y) for x, y in zip(a, b, strict=True)
    )


def random_scores(rng: random.Random, largest: int = 300) -> list[torch.Tensor]:
    """Tensors with ties, infinities and both zeros; odd, empty, transposed and strided ones."""
    g = torch.Generator().manual_seed(rng.randrange(2**31))
    dtype = rng.choice([torch.float32] * 4 + [torch.float64, torch.float16, torch.bfloat16])
    kind = rng.choice(["normal", "levels", "zeros", "constant", "extremes"])
    tensors = []
    for _ in range(rng.randint(1, 5)):
        n = rng.choice([0, 1, 2, 3, 7, 8, 15, 16, 17, 63, 64, 65, rng.randint(0, largest)])
        x = torch.randn(2 * n, generator=g)
        if kind == "levels":
            x = (x * 2).round()
        elif kind == "zeros":
            x = x.abs() * (torch.rand(2 * n, generator=g) < 0.3)
            x[torch.rand(2 * n, generator=g) < 0.2] = -0.0
        elif kind == "constant":
            x = torch.full_like(x, rng.choice([0.0, -0.0, 1.0, INF, -INF]))
        elif kind == "extremes":
            values = torch.tensor([INF, -INF, 0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38, 1.0])
            x = values[torch.randint(9, (2 * n,), generator=g)]
        x = x.to(dtype)
        shape = rng.choice(["flat", "strided", "transposed"])
        tensors.append(x[:n] if shape == "flat" else x[::2] if shape == "strided" else x.view(2, n).t())
    return tensors


def test_a_thousand_vectors_keep_exactly_what_sorting_keeps(seed):
    rng = random.Random(seed)
    for _ in range(1000):
        scores, ties = random_scores(rng), rng.randrange(2**63)
        n = sum(s.numel() for s in scores)
        k = rng.choice([0, n, rng.randint(0, n)])
        expected = oracle(scores, k, ties)
        assert sum(int(m.sum()) for m in expected) == k
        assert same(topk_mask_reference(scores, k=k, seed=ties), expected)
        assert same(topk_mask(scores, k=k, seed=ties), expected)
        for isa in ISA:
            assert same(topk_mask_cpu(scores, k=k, seed=ties, isa=isa), expected), isa


def test_only_entries_within_compete(seed):
    rng = random.Random(seed)
    for _ in range(200):
        scores, ties = random_scores(rng), rng.randrange(2**63)
        within = [torch.rand(s.shape) < rng.random() for s in scores]
        k = rng.randint(0, sum(int(w.sum()) for w in within))
        expected = oracle(scores, k, ties, within)
        assert same(topk_mask_reference(scores, k=k, seed=ties, within=within), expected)
        assert same(topk_mask(scores, k=k, seed=ties, within=within), expected)
        for isa in ISA:
            assert same(topk_mask_cpu(scores, k=k, seed=ties, within=within, isa=isa), expected), isa


def large_scores(kind: str, n: int, dtype: torch.dtype) -> list[torch.Tensor]:
    x = torch.randn(n, dtype=dtype)
    if kind == "zeros":  # as SynFlow leaves them
        x = x.abs() * (torch.rand(n) < 0.3)
    elif kind == "constant":
        x = torch.ones_like(x)
    elif kind == "sorted":
        x = x.sort().values
    elif kind == "periodic":
        x = x[:1000].repeat(n // 1000 + 1)[:n].clone()
    return [part.clone() for part in x.tensor_split(11)]


@needs_native
@pytest.mark.parametrize("kind", ["normal", "zeros", "constant", "sorted", "periodic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_blocks_threads_and_instruction_sets_agree(kind, dtype):
    scores = large_scores(kind, 1_700_003, dtype)
    within = [torch.rand(s.shape) < 0.6 for s in scores]
    before = torch.get_num_threads()
    try:
        for density, inside in [(0.001, None), (0.1, None), (0.5, within), (0.9, None)]:
            k = round(density * 1_700_003)
            expected = topk_mask_reference(scores, k=k, seed=3, within=inside)
            assert sum(int(m.sum()) for m in expected) == k
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                for isa in ISA:
                    assert same(topk_mask_cpu(scores, k=k, seed=3, within=inside, isa=isa), expected)
    finally:
        torch.set_num_threads(before)


def scores_against_the_sample(kind: str, n: int) -> torch.Tensor:
    """Made against the sample of csrc/cpu/topk_mask.cpp (seed 5): only its histograms can be right."""
    draws = int(0.5 * n ** (2 / 3))
    order = torch.arange(draws)
    jitter = tie_rank(order, 5).double() * 2.0**-32
    sampled = ((order.double() + jitter) * (n / draws)).long().clamp(max=n - 1)
    x = torch.randn(n).clamp(-9, 9)
    x[sampled] = 20.0 if kind == "misses" else torch.where(order % 2 == 0, 10.0, -10.0)
    return x


@needs_native
@pytest.mark.parametrize(("kind", "n"), [("misses", 3_000_000), ("is too wide", 5_000_000)])
def test_selection_is_exact_where_the_sample(kind, n):
    x = scores_against_the_sample(kind, n)
    within = [torch.ones(n, dtype=torch.bool)]
    expected = topk_mask_reference([x], k=n // 2, seed=5)
    assert same(topk_mask_cpu([x], k=n // 2, seed=5), expected)
    assert same(topk_mask_cpu([x], k=n // 2, seed=5, within=within), expected)


@needs_native
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("k", [1_000_000, 7_000_000])  # fewer and more than there are numbers
def test_nan_is_refused_where_the_first_pass_gives_up_before_it(k, sign):
    x = scores_against_the_sample("is too wide", 14_000_000)
    x[6_300_000:] = sign * float("nan")
    with pytest.raises(ArgumentError, match=r"scores\[0\] holds NaN at flat index 6300000;"):
        topk_mask_cpu([x], k=k, seed=5)


@needs_native
@pytest.mark.parametrize("kind", ["normal", "zeros", "constant", "sorted"])
@pytest.mark.parametrize("isa", ISA)
def test_a_guess_changes_no_mask_in_a_series(kind, isa):
    scores, guess, within = large_scores(kind, 200_003, torch.float32), Guess(), None
    for number in range(8):
        k = round(0.9 ** (number + 1) * 200_003)
        expected = topk_mask_reference(scores, k=k, seed=number, within=within)
        found = topk_cut_cpu(scores, k=k, seed=number, within=within, isa=isa, guess=guess)[0]
        assert same(found, expected)
        within = expected
        scores = [s * (1 + 0.01 * torch.randn(s.shape)) for s in scores]


@needs_native
@pytest.mark.parametrize("kind", ["normal", "zeros", "constant"])
@pytest.mark.parametrize("thresholds", [(0.0,), (1e300, -1e300), (-0.3, -0.3), (1.0,) * 3, (float("inf"),)])
def test_a_wrong_guess_changes_no_mask(kind, thresholds):
    scores = large_scores(kind, 100_003, torch.float32)
    for k in (0, 1, 30_000, 90_000, 100_003):
        guess = Guess()
        for number, threshold in enumerate(thresholds):
            guess.learn(threshold, number * 2**30 - 1)
        expected = topk_mask_reference(scores, k=k, seed=4)
        assert same(topk_cut_cpu(scores, k=k, seed=4, guess=guess)[0], expected)
        assert same(topk_mask(scores, k=k, seed=4, guess=guess), expected)
    scores[3][7] = float("nan")
    with pytest.raises(ArgumentError, match=r"scores\[3\] holds NaN at flat index 7;"):
        topk_mask(scores, k=1000, guess=guess)


@needs_native
@pytest.mark.parametrize("density", [0.9, 0.5, 0.2])  # of zeros 70 %: inside the tie, and outside
@pytest.mark.parametrize("zeros", [0.0, 0.7])
def test_a_guess_brackets_the_next_threshold(density, zeros):
    scores, guess, hits = torch.rand(50_000) * (torch.rand(50_000) >= zeros), Guess(), 0
    for number in range(10):
        bracket = guess.bracket()
        _, threshold, rank = topk_cut_cpu([scores], k=round(density * 50_000), seed=number, guess=guess)
        if number > 1:  # one threshold tells nothing of how fast it moves
            low, high, low_rank, high_rank = bracket
            assert high - low < 0.2
            assert threshold > 0 or low_rank < high_rank + 2**30
            hits += low <= threshold <= high and (threshold > 0 or high_rank <= rank <= low_rank)
        scores, density = scores * 0.99, density * 0.998
    assert hits >= 4  # of 8: chance may throw a threshold off


@needs_native
def test_a_guess_that_is_no_interval_is_refused():
    class Broken(Guess):
        def bracket(self):
            return 1.0, float("nan"), 0, 0

    with pytest.raises(ValueError, match="no interval"):
        topk_cut_cpu([torch.rand(9000)], k=5, guess=Broken())


def test_masks_are_monotone_in_k_and_in_rounds():
    scores = [(torch.randn(40, 5) * 2).round(), (torch.randn(77) * 2).round()]
    within = None
    for k in (200, 150, 149, 30, 0):
        masks = topk_mask(scores, k=k, seed=9, within=within)
        assert same(masks, topk_mask(scores, k=k, seed=9))
        assert within is None or all(bool((w | ~m).all()) for m, w in zip(masks, within, strict=True))
        within = masks


def test_ties_fall_evenly_over_tensors_and_change_with_the_seed():
    scores = [torch.zeros(10_000), torch.zeros(10_000)]
    masks = topk_mask(scores, density=0.5, seed=1)
    assert abs(int(masks[0].sum()) - 5000) < 300  # hypergeometric: 50 is one standard deviation
    assert abs(int(masks[0][:5000].sum()) - 2500) < 250
    other = topk_mask(scores, density=0.5, seed=2)
    assert 0.4 < float((masks[0] == other[0]).float().mean()) < 0.6


@pytest.mark.parametrize("ties", [0, 1, 12345, 2**32, 2**63 - 1])
def test_the_tie_order_is_a_bijection_of_32_bits(ties):
    # Invertible step by step: every output leads back to its input.
    positions = torch.randint(2**32, (10_000,))
    x = tie_rank(positions, ties)
    assert x.tolist()[:50] == [rank_of(p, ties) for p in positions.tolist()[:50]]
    first, second = (rank_state(ties) >> s & 0xFFFFFFFF for s in (0, 32))
    y = x.numpy().astype(np.uint64)
    word = np.uint64(0xFFFFFFFF)
    y = y ^ y >> np.uint64(16)
    y = y * np.uint64(pow(0x846CA68B, -1, 2**32)) & word
    y = y ^ np.uint64(second)
    y = y ^ y >> np.uint64(15) ^ y >> np.uint64(30)
    y = y * np.uint64(pow(0x7FEB352D, -1, 2**32)) & word
    y = y ^ y >> np.uint64(16) ^ np.uint64(first)
    assert np.array_equal(y.astype(np.int64), positions.numpy())
    assert len(set(tie_rank(torch.arange(1 << 16), ties).tolist())) == 1 << 16


def rank_state(seed: int) -> int:
    z = (seed + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def test_the_oracle_catches_a_tie_rule_by_index():
    scores = [torch.zeros(50), torch.zeros(50)]
    by_index = oracle(scores, 50, rank=lambda position, seed: position)
    assert not same(topk_mask(scores, k=50), by_index)
    assert same(topk_mask(scores, k=50), oracle(scores, 50))


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_native)])
@pytest.mark.parametrize("n", [5, 50_000])
@pytest.mark.parametrize("k", [0, 1, 3, 10])
def test_nan_is_refused_by_tensor_and_index(backend, n, k):
    x = torch.randn(n, 2)
    x[n // 2, 1] = float("nan")
    x[n - 1, 1] = -float("nan")
    with dispatch.use_backend(backend):
        with pytest.raises(ArgumentError, match=rf"scores\[2\] holds NaN at flat index {n // 2 * 2 + 1};"):
            topk_mask([torch.ones(3), torch.empty(0), x, x], k=k)
        within = [torch.ones(3, dtype=torch.bool), ~x.isnan()]
        assert sum(int(m.sum()) for m in topk_mask([torch.ones(3), x], k=k, within=within)) == k
        with pytest.raises(ArgumentError, match="NaN"):
            topk_mask([x.bfloat16()], k=2 * n)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_native)])
def test_bad_arguments_are_refused_in_one_line(backend):
    x = torch.randn(4, 3)
    inside = x > -INF
    half = torch.arange(12).view(4, 3) < 6
    cases = [
        (([x],), {}, "exactly one of density and k"),
        (([x],), {"density": 0.5, "k": 6}, "exactly one"),
        (([x],), {"density": 0.0}, r"\(0, 1\]"),
        (([x],), {"density": 1.5}, r"\(0, 1\]"),
        (([x],), {"k": 13}, r"\[0, 12\]"),
        (([x],), {"k": -1}, r"\[0, 12\]"),
        (([x],), {"k": 2.0}, "k must be an int"),
        (([x],), {"k": 2, "seed": -1}, "seed"),
        ((x,), {"k": 2}, "sequence of tensors"),
        (([x, 3.0],), {"k": 2}, r"scores\[1\] must be a tensor"),
        (([x, x.double()],), {"k": 2}, "share dtype"),
        (([x.int()],), {"k": 2}, "floating"),
        (([x.to_sparse()],), {"k": 2}, "dense"),
        (([x],), {"k": 2, "within": []}, "mask for each"),
        (([x],), {"k": 2, "within": [inside.float()]}, "bool"),
        (([x],), {"k": 2, "within": [inside.view(3, 4)]}, "shape"),
        (([x],), {"k": 7, "within": [half]}, "only 6 compete"),
        (([x],), {"density": 0.6, "within": [half]}, "only 6 compete"),
        (([torch.zeros(1).expand(2**32)],), {"k": 2}, r"2\*\*32"),
    ]
    with dispatch.use_backend(backend):
        for args, kwargs, message in cases:
            with pytest.raises(ArgumentError, match=message):
                topk_mask(*args, **kwargs)


def test_empty_and_whole_selections():
    assert topk_mask([], k=0) == []
    assert topk_mask([torch.empty(0, 3)], density=0.5)[0].shape == (0, 3)
    x = torch.randn(5)
    assert not topk_mask([x], k=0)[0].any()
    assert topk_mask([x, x.view(1, 5)], density=1.0)[1].all()
    assert topk_mask([torch.tensor(2.0), torch.tensor(1.0)], k=1)[0].shape == ()


def test_no_gradient_flows_and_inputs_stay():
    x = torch.randn(30, requires_grad=True)
    before = x.detach().clone()
    (mask,) = topk_mask([x * 2], k=7)
    assert not mask.requires_grad
    assert torch.equal(x.detach(), before)
    negative = torch.randn(9, dtype=torch.complex64).conj().imag
    assert negative.is_neg()
    assert same(topk_mask([negative], k=4), oracle([negative.clone()], 4))


@pytest.mark.parametrize("sample", range(len(sample_inputs(torch.Generator()))))
def test_opcheck(sample, seed):
    args, kwargs = sample_inputs(torch.Generator().manual_seed(seed))[sample]
    opcheck(torch.ops.lotterykit.topk_mask, args, kwargs)
    tracked = [s.detach().clone().requires_grad_() for s in args[0]]
    opcheck(torch.ops.lotterykit.topk_mask, (tracked, *args[1:]), kwargs)


def test_compiles_in_one_graph():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def kept(x, y):
        masks = topk_mask([x * x, y], density=0.25, seed=4)
        return [m.float() * 2 for m in masks]

    x, y = torch.randn(8, 4), torch.randn(20)
    eager = topk_mask([x * x, y], density=0.25, seed=4)
    assert all(torch.equal(a, b.float() * 2) for a, b in zip(kept(x, y), eager, strict=True))


def test_call_of_names_device_and_dtype():
    assert call_of([torch.ones(3)], k=1) == dispatch.Call("topk_mask", "cpu", torch.float32)
    assert "reference" in dispatch.explain("topk_mask", [torch.ones(3)], k=1)
    with dispatch.use_backend("cuda"), pytest.raises(BackendError, match="needs cuda tensors, got cpu"):
        topk_mask([torch.ones(3)], k=1)


@needs_native
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
def test_ctrl_c_is_answered_in_the_middle_of_a_selection():
    """A child sends itself SIGINT once the first mask is written; the last one must then stay unwritten."""
    code = """
import os, signal, threading, time, torch
import lotterykit._cpu as native
x, first, rest, last = torch.rand(1 << 20), *(torch.full((1 << 20,), 2, dtype=torch.uint8) for _ in range(3))
many = 4000  # one million scores, 4,000 times over: seconds of work, little memory
def interrupt():
    while first[0] == 2:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt).start()
masks = [first.data_ptr()] + [rest.data_ptr()] * (many - 2) + [last.data_ptr()]
try:
    native.topk_mask([x.data_ptr()] * many, [], masks, [1 << 20] * many, False, 1 << 20, 0, 1, "plain")
except KeyboardInterrupt:
    print("interrupted", bool((last == 2).all()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "interrupted True\n"


@needs_cuda
def test_cuda_keeps_the_same_entries(seed):
    rng = random.Random(seed)
    for _ in range(300):
        scores, ties = random_scores(rng, 20_000), rng.randrange(2**63)
        within = None if rng.random() < 0.5 else [torch.rand(s.shape) < 0.5 for s in scores]
        competing = sum(s.numel() if within is None else int(within[i].sum()) for i, s in enumerate(scores))
        k = rng.randint(0, competing)
        expected = topk_mask_reference(scores, k=k, seed=ties, within=within)
        inside = None if within is None else [w.cuda() for w in within]
        with dispatch.use_backend("cuda"):
            masks = topk_mask([s.cuda() for s in scores], k=k, seed=ties, within=inside)
        assert same([m.cpu() for m in masks], expected)
    poisoned = pytest.raises(ArgumentError, match=r"scores\[1\] holds NaN at flat index 2;")
    with poisoned, dispatch.use_backend("cuda"):
        topk_mask([torch.ones(3).cuda(), torch.tensor([1, 2, float("nan")]).cuda()], k=2)
