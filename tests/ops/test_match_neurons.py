"""match_neurons against a plain loop in float64."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch.library import opcheck

from lotterykit.errors import ArgumentError
from lotterykit.ops import dispatch
from lotterykit.ops.match_neurons import (
    match_neurons,
    match_neurons_cpu,
    match_neurons_reference,
    sample_inputs,
)

needs_native = pytest.mark.skipif(dispatch.missing("cpu") is not None, reason=str(dispatch.missing("cpu")))
BACKENDS = [
    match_neurons_reference,
    pytest.param(match_neurons_cpu, marks=needs_native),
]


def by_loops(theta, candidates):
    """(chosen, lambda or None) of each target: the rule in words, in Python's own numbers."""
    free, found = set(range(len(candidates))), []
    for row in theta.tolist():
        use = [p for p, value in enumerate(row) if value != 0]
        if not use:
            found.append((-1, None))
            continue
        best = []
        for j in sorted(free):
            m = candidates[j].tolist()
            dot, norm = sum(row[p] * m[p] for p in use), math.sqrt(sum(m[p] ** 2 for p in use))
            cosine = dot / norm / math.sqrt(sum(row[p] ** 2 for p in use)) if norm else -math.inf
            best.append((cosine, norm, j, dot))
        top = max(best)[0]
        if top > 0:
            best = [b for b in best if b[0] >= top - 1e-12]
        _, norm, j, dot = max(best, key=lambda b: (b[1], -b[2]))
        free.remove(j)
        found.append((j, dot / norm**2 if top > 0 else None))
    return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_rule(backend, seed):
    rng = random.Random(seed)
    for _ in range(150):
        targets, places = rng.randint(0, 9), rng.choice([0, 1, 2, 3, 7])
        count = targets + rng.randint(0, 6)
        theta = torch.randn(targets, places, dtype=torch.float64)
        theta *= torch.rand(targets, places) < rng.random()
        candidates = torch.randn(count, places, dtype=torch.float64)
        if rng.random() < 0.4:  # cosines and norms tie, zeros too
            theta, candidates = theta.sign(), candidates.round()
        if rng.random() < 0.2:
            candidates = -candidates.abs()
            theta = theta.abs()
        expected = by_loops(theta, candidates)
        found = backend(theta, candidates)
        assert found.chosen.tolist() == [j for j, _ in expected]
        assert found.aligned.tolist() == [factor is not None for _, factor in expected]
        for i, (_, factor) in enumerate(expected):
            if factor is not None:
                assert float(found.product[i] / found.norm[i] ** 2) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_may_be_strided(backend):
    theta, candidates = torch.randn(3, 8).double().t()[::2], torch.randn(3, 20).double().t()[::2]
    found, expected = backend(theta, candidates), backend(theta.clone(), candidates.clone())
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("theta", "candidates", "message"),
    [
        (torch.ones(1, 2), torch.ones(2, 2).double(), "theta must be float64"),
        (torch.ones(1, 2).double(), torch.ones(2, 2), "candidates must be float64"),
        (torch.ones(2).double(), torch.ones(2, 2).double(), "theta must be"),
        (torch.ones(1, 2).double(), [[1.0, 2.0]], "got list"),
        (torch.ones(1, 2).double(), torch.ones(2, 3).double(), "2 places, candidates 3"),
        (torch.ones(3, 2).double(), torch.ones(2, 2).double(), "3 targets need as many"),
        (torch.ones(1, 2).double().to_sparse(), torch.ones(2, 2).double(), "dense"),
        (torch.ones(1, 2).double(), torch.full((2, 2), float("nan")).double(), "candidates holds infinities"),
        (torch.full((1, 2), float("inf")).double(), torch.ones(2, 2).double(), "theta holds infinities"),
    ],
)
def test_bad_arguments(theta, candidates, message):
    with pytest.raises(ArgumentError, match=message):
        match_neurons(theta, candidates)


@pytest.mark.parametrize("sample", range(len(sample_inputs(torch.Generator()))))
def test_opcheck(sample, seed):
    args, kwargs = sample_inputs(torch.Generator().manual_seed(seed))[sample]
    opcheck(torch.ops.lotterykit.match_neurons, args, kwargs)


def test_compiles_in_one_graph():
    chosen = torch.compile(lambda a, b: match_neurons(a, b).chosen + 1, fullgraph=True, backend="aot_eager")
    theta, candidates = torch.randn(3, 4).double(), torch.randn(6, 4).double()
    assert torch.equal(chosen(theta, candidates), match_neurons(theta, candidates).chosen + 1)
