"""Thresholds keep what topk_mask keeps, on every backend; the native bits are those of plain torch."""

from __future__ import annotations

import importlib
import random

import pytest
import torch
from threshold_cases import BACKENDS, random_scores, random_threshold

from lotterykit.errors import ArgumentError
from lotterykit.ops import dispatch, fixed_threshold, score_thresholds, topk_mask
from lotterykit.ops.csr import CSR
from lotterykit.ops.threshold import Kept, Threshold, kept_mask, score_cut_op

needs_native = pytest.mark.skipif(dispatch.missing("cpu") is not None, reason=str(dispatch.missing("cpu")))
ISA = importlib.import_module("lotterykit._cpu").isa_levels() if dispatch.missing("cpu") is None else []


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("absolute", [False, True])
def test_thresholds_keep_exactly_what_topk_mask_keeps(seed, backend, absolute):
    rng = random.Random(seed)
    for _ in range(100):
        dtype = rng.choice([torch.float32, torch.float64, torch.bfloat16])
        sides = [(rng.randrange(9), rng.randrange(30)) for _ in range(rng.randint(1, 3))]
        scores = [random_scores(rng, shape, dtype) for shape in sides]
        total, ties = sum(s.numel() for s in scores), rng.randrange(2**63)
        k = rng.choice([0, total, rng.randint(0, total)])
        with dispatch.use_backend(backend, ops=["topk_mask"]):
            thresholds = score_thresholds(scores, k=k, seed=ties, absolute=absolute)
        wanted = topk_mask([s.abs() for s in scores] if absolute else scores, k=k, seed=ties)
        for s, threshold, mask in zip(scores, thresholds, wanted, strict=True):
            assert torch.equal(kept_mask(s, threshold), mask)


@needs_native
def test_a_sampled_bracket_gives_the_same_threshold():
    for scores in (torch.randn(300, 400), torch.randint(-3, 4, (300, 400)).float()):
        (threshold,) = score_thresholds([scores], density=0.1, seed=5)
        assert torch.equal(kept_mask(scores, threshold), topk_mask([scores.abs()], density=0.1, seed=5)[0])


def test_a_device_and_a_transform_rank_every_place(seed):
    rng = random.Random(seed)
    for _ in range(30):
        scores = random_scores(rng, (5, 9), torch.float64)
        threshold = random_threshold(rng, scores)
        batched = torch.func.vmap(lambda s, t=threshold: kept_mask(s, t))(scores[None])
        assert torch.equal(batched[0], kept_mask(scores, threshold))


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_native_bits_weights_and_structures(seed, dtype):
    rng = random.Random(seed)
    for _ in range(150):
        shape = (rng.choice([0, 1, 2, 5, 40]), rng.choice([0, 1, 7, 8, 9, 64, 65, 131]))
        scores, weight = random_scores(rng, shape, dtype), torch.randn(shape, dtype=dtype)
        threshold = random_threshold(rng, scores)
        if scores.numel() and rng.random() < 0.3:
            scores[rng.randrange(shape[0]), rng.randrange(shape[1])] = torch.nan
            weight[rng.randrange(shape[0]), rng.randrange(shape[1])] = torch.nan
        mask = kept_mask(scores, threshold)
        assert not mask[scores.isnan()].any()
        csr = CSR.from_mask(mask)
        for isa in ISA:
            kept = Kept(scores, threshold, isa=isa)
            assert kept.nnz == int(mask.sum())
            wanted = torch.where(mask, weight, 0.0)
            torch.testing.assert_close(kept.dense(weight), wanted, rtol=0, atol=0, equal_nan=True)
            values, structure = kept.compressed(weight, transposed=True)
            torch.testing.assert_close(values, csr.gather(weight), rtol=0, atol=0, equal_nan=True)
            for place in (0, 1, 3, 4, 6):
                assert torch.equal(structure[place], csr.tensors[place])
            slope = torch.randn(shape, dtype=dtype)
            for absolute in (False, True):
                wanted = slope * weight * (scores.nan_to_num(0.0).sign() if absolute else 1)
                got = kept.score_gradient(slope.clone(), weight, absolute)
                torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)


@needs_native
def test_native_results_do_not_depend_on_threads():
    scores, weight = torch.randn(900, 700), torch.randn(900, 700)
    (threshold,) = score_thresholds([scores], density=0.1)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            kept = Kept(scores, threshold)
            values, structure = kept.compressed(weight, transposed=True)
            slope = kept.score_gradient(weight.clone(), weight, True)
            found.append([kept.bits, kept.dense(weight), values, slope, *structure])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_opcheck_and_compile():
    for scores in ([torch.randn(3, 4)], [torch.randn(5), torch.zeros(2, 3), torch.empty(0)]):
        torch.library.opcheck(score_cut_op, (scores, 2, 1, True))

    def masks(a, b):
        return [kept_mask(s, t) for s, t in zip((a, b), score_thresholds([a, b], k=7), strict=True)]

    a, b = torch.randn(4, 5), torch.randn(6).round()
    compiled = torch.compile(
        lambda a, b: score_thresholds([a, b], k=7)[1].cut, fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(a, b), score_thresholds([a, b], k=7)[0].cut)
    assert sum(int(m.sum()) for m in masks(a, b)) == 7


def test_nothing_to_rank():
    assert score_thresholds([], k=0) == []
    assert kept_mask(torch.empty(0, 3), score_thresholds([torch.empty(0, 3)], k=0)[0]).shape == (0, 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: score_thresholds([torch.tensor([1.0, torch.nan])], k=1), "NaN at flat index 1"),
        (lambda: score_thresholds([torch.ones(2)], k=3), r"k must lie in \[0, 2\]"),
        (lambda: score_thresholds([torch.ones(2)]), "exactly one of density and k"),
        (lambda: score_thresholds(torch.ones(2), k=1), "sequence of tensors"),
        (lambda: score_thresholds([torch.ones(2)], k=1, seed=-1), "seed must be"),
        (lambda: torch.func.vmap(lambda s: score_thresholds([s], k=1)[0].cut)(torch.ones(2, 2)), "outside"),
        (lambda: fixed_threshold(torch.nan), "least must be a number"),
        (lambda: fixed_threshold("0.5"), "least must be a number"),
    ],
)
def test_bad_arguments(call, words):
    with pytest.raises(ArgumentError, match=words):
        call()


def test_a_threshold_names_its_parts():
    threshold = fixed_threshold(0.5)
    assert threshold == Threshold(threshold.cut, False, 0, 0)
    assert threshold.cut.tolist() == [0.5, 2**32 - 1]
