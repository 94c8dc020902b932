"""The native replica engine equals the torch one, step for step, on every combination."""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import replace

import pytest
import torch
from replica_cases import RULES, SCORINGS, SGD_SCORES, assert_same, scored, spec

from lotterykit.errors import ArgumentError
from lotterykit.ops import dispatch
from lotterykit.ops.dispatch import use_backend
from lotterykit.training.batched import TorchBatch
from lotterykit.training.batched_scores import TorchScoreBatch
from lotterykit.training.recipe import Recipe, Split
from lotterykit.training.replicas import RunSpec, train_replicas
from lotterykit.training.scored import ScoreTraining

pytestmark = pytest.mark.skipif(dispatch.missing("cpu") is not None, reason="lotterykit._cpu is not built")

ISAS = ("plain", "avx2", "avx512")


def levels() -> list[str]:
    from lotterykit import _cpu

    return [isa for isa in ISAS if isa in _cpu.isa_levels()]


def native(specs: list[RunSpec], isa: str = "best"):
    from lotterykit.training.native import NativeBatch

    return NativeBatch(specs, torch.device("cpu"), isa=isa)


def native_scores(specs: list[RunSpec], isa: str = "best"):
    from lotterykit.training.native_scores import NativeScoreBatch

    return NativeScoreBatch(specs, torch.device("cpu"), isa=isa)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("density", [1.0, 0.6, 0.2, 0.04, 0.0])
def test_equals_torch_over_200_steps(loss: str, rule: str, density: float) -> None:
    """float64, dense and sparse layers, dead and constant neurons, pruned biases. 1e-9: 200 steps of Adam
    amplify the rounding of differently ordered sums."""
    recipe = Recipe(loss, epochs=25, batch_size=16, **RULES[rule])
    runs = [
        spec((3, 21, 17, 4), recipe, density, seed=1),
        spec((3, 21, 17, 4), recipe, density, seed=2, biases=True),
    ]
    expected = TorchBatch(runs, torch.device("cpu")).train(200, None)
    assert_same(native(runs).train(200, None), expected, 1e-9)


@pytest.mark.parametrize("batch", [1, 5, 8, 9, 16, 31, 32, 33, 64, 70, 120, 200])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_every_batch_size_and_instruction_set(batch: int, isa: str, dtype: torch.dtype) -> None:
    """The first 10 steps; float32 with SGD, as Adam's first steps are lr * sign(gradient) and a gradient
    of rounding size may have either sign."""
    if isa not in levels():
        pytest.skip(f"this processor has no {isa}")
    optimizer = {"optimizer": "sgd", "lr": 0.01, "momentum": 0.9} if dtype == torch.float32 else {}
    bound = 1e-5 if dtype == torch.float32 else 1e-11
    recipe = Recipe("cross_entropy", epochs=10, batch_size=batch, **optimizer)
    runs = [spec((5, 40, 19, 3), recipe, d, seed=i, dtype=dtype) for i, d in enumerate((1.0, 0.3, 0.05))]
    expected = TorchBatch(runs, torch.device("cpu")).train(10, None)
    assert_same(native(runs, isa).train(10, None), expected, bound)


@pytest.mark.parametrize(
    "layers",
    [(1, 1), (4, 1), (1, 3), (2, 1, 1), (6, 50, 2), (2, 7, 7, 7, 7, 7, 3), (100, 33, 10), (9, 130, 64, 8)],
)
@pytest.mark.parametrize("density", [1.0, 0.5, 0.1])
def test_every_shape(layers: tuple[int, ...], density: float) -> None:
    recipe = Recipe("mse", epochs=5, batch_size=32)
    runs = [spec(layers, recipe, density, seed=seed, biases=seed == 1) for seed in range(3)]
    assert_same(native(runs).train(None, None), TorchBatch(runs, torch.device("cpu")).train(None, None), 1e-9)


def test_what_is_pruned_afterwards_goes_on_alike() -> None:
    """State handed on to a sparser mask: neurons that died keep moving by what their moments hold."""
    recipe = Recipe("cross_entropy", epochs=3, batch_size=32)
    before = spec((3, 30, 30, 4), recipe, 0.5, seed=3)
    (trained,) = TorchBatch([before], torch.device("cpu")).train(None, None)
    masks = {
        k: m & (torch.rand(m.shape, generator=torch.Generator().manual_seed(5)) < 0.08)
        for k, m in before.masks.items()
    }
    after = [
        RunSpec(
            before.layers,
            before.data,
            recipe,
            weights=trained.weights,
            masks=masks,
            seed=9,
            optimizer=trained.optimizer,
        )
    ]
    expected = TorchBatch(after, torch.device("cpu")).train(None, None)
    assert_same(native(after).train(None, None), expected, 1e-9)
    unheard = ~masks["2.weight"].any(0)
    moved = expected[0].weights["0.bias"] != trained.weights["0.bias"]
    assert moved[unheard].any(), "without a neuron that moves by its moments alone this tests nothing"


def test_one_batch_of_different_networks() -> None:
    runs = [
        spec((3, 12, 4), Recipe("cross_entropy", epochs=2, lr=1e-2), 0.5, seed=1),
        spec((2, 30, 5, 2), Recipe("mse", epochs=2, optimizer="sgd", momentum=0.5), 0.2, seed=2),
    ]
    expected = [TorchBatch([run], torch.device("cpu")).train(None, None)[0] for run in runs]
    assert_same(native(runs).train(None, None), expected, 1e-10)


@pytest.mark.parametrize("isa", ISAS)
def test_bitwise_in_any_company_and_on_any_threads(isa: str) -> None:
    if isa not in levels():
        pytest.skip(f"this processor has no {isa}")
    recipe = Recipe("cross_entropy", epochs=2, batch_size=24)
    runs = [
        spec((4, 33, 20, 5), recipe, (1.0, 0.4, 0.05)[r % 3], seed=r, dtype=torch.float32) for r in range(9)
    ]
    together = native(runs, isa).train(None, None)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for members in ([0], [8, 4], list(range(8, -1, -1))):
                for i, result in zip(
                    members, native([runs[i] for i in members], isa).train(None, None), strict=True
                ):
                    assert result.curve == together[i].curve
                    assert all(torch.equal(w, together[i].weights[k]) for k, w in result.weights.items())
    finally:
        torch.set_num_threads(before)


def test_diverged_is_told() -> None:
    run = spec((2, 20, 3), Recipe("mse", epochs=3, optimizer="sgd", lr=1e30), 1.0, dtype=torch.float32)
    (result,) = native([run]).train(None, None)
    assert result.metrics["mse"] != result.metrics["mse"] or result.metrics["mse"] == float("inf")


def test_no_epochs_and_no_steps_evaluate() -> None:
    runs = [spec((3, 12, 4), Recipe("cross_entropy", epochs=0), 0.5)]
    assert_same(
        native(runs).train(None, None), TorchBatch(runs, torch.device("cpu")).train(None, None), 1e-10
    )
    runs = [spec((3, 12, 4), Recipe("cross_entropy", epochs=2), 0.5)]
    (result,) = native(runs).train(0, None)
    assert result.curve == []
    assert result.optimizer == {}


def test_a_signal_ends_it() -> None:
    """The handler runs while native code computes, and its exception comes out."""
    run = spec((50, 400, 400, 10), Recipe("cross_entropy", epochs=100), 1.0, n=3000, dtype=torch.float32)

    class Rung(Exception):
        pass

    def ring(*_: object) -> None:
        raise Rung

    before = signal.signal(signal.SIGALRM, ring)
    threading.Thread(target=lambda: (time.sleep(0.3), signal.raise_signal(signal.SIGALRM))).start()
    try:
        with pytest.raises(Rung):
            native([run]).train(None, None)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_the_route() -> None:
    run = spec((3, 12, 4), Recipe("cross_entropy", epochs=1), 0.5)
    assert "cpu: chosen" in dispatch.explain("train_replicas", [run])
    with use_backend("reference"):
        assert "reference: chosen" in dispatch.explain("train_replicas", [run])
        (reference,) = train_replicas([run])
    (ours,) = train_replicas([run])
    assert_same([ours], [reference], 1e-10)


@pytest.mark.parametrize("label", [-1, 4])
def test_classes_out_of_range(label: int) -> None:
    run = spec((3, 12, 4), Recipe("cross_entropy", epochs=1), 0.5)
    run.data.y_train[7] = label
    with pytest.raises(ArgumentError, match=r"y_train must hold classes in \[0, 4\)"):
        train_replicas([run])


@pytest.mark.parametrize("name", SCORINGS)
@pytest.mark.parametrize("rule", [SGD_SCORES, {}], ids=["sgd", "adam"])
def test_score_training_equals_torch(name: str, rule: dict) -> None:
    """float64, 200 steps, masks and all; scores that tie and scores that don't."""
    recipe = Recipe("cross_entropy", epochs=25, batch_size=16, **rule)
    runs = [scored(SCORINGS[name], recipe, seed=1), scored(SCORINGS[name], recipe, seed=2, ties=True)]
    expected = TorchScoreBatch(runs, torch.device("cpu")).train(200, None)
    found = native_scores(runs).train(200, None)
    assert_same(found, expected, 1e-9)
    for ours, theirs in zip(found, expected, strict=True):
        for key, mask in theirs.masks.items():
            assert torch.equal(ours.masks[key], mask), key
            scale = float(theirs.scores[key].abs().max()) or 1.0
            assert float((ours.scores[key] - theirs.scores[key]).abs().max()) <= 1e-9 * scale


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_first_masks_on_every_instruction_set(isa: str, dtype: torch.dtype) -> None:
    """Exact counts and the seeded order of ties, before any step; then bitwise alone and in company."""
    if isa not in levels():
        pytest.skip(f"this processor has no {isa}")
    runs = [
        scored(
            training, Recipe("cross_entropy", epochs=2, **SGD_SCORES), seed=i, ties=i % 2 == 0, dtype=dtype
        )
        for i, training in enumerate(t for t in SCORINGS.values() if t.method == "edge-popup")
    ]
    for run, ours in zip(runs, native_scores(runs, isa).train(0, None), strict=True):
        (theirs,) = TorchScoreBatch([run], torch.device("cpu")).train(0, None)
        assert all(torch.equal(ours.masks[key], mask) for key, mask in theirs.masks.items())
    together = native_scores(runs, isa).train(None, None)
    for run, whole in zip(runs, together, strict=True):
        (alone,) = native_scores([run], isa).train(None, None)
        assert alone.curve == whole.curve
        assert all(torch.equal(alone.scores[key], scores) for key, scores in whole.scores.items())


def test_scores_that_diverge() -> None:
    """A NaN ranks below all numbers, and counts stay exact."""
    recipe = Recipe("mse", epochs=2, batch_size=32, optimizer="sgd", lr=1e38)
    run = scored(ScoreTraining(density=0.9), recipe, seed=0, dtype=torch.float32)
    (result,) = native_scores([run]).train(None, None)
    assert any(bool(scores.isnan().any()) for scores in result.scores.values())
    for key, mask in result.masks.items():
        assert int(mask.sum()) == round(0.9 * mask.numel()), key


@pytest.mark.parametrize("density", [1.0, 0.2])
def test_full_trainings_agree_in_distribution(density: float) -> None:
    """25 seeds in float32, long after rounding has parted the two: the means lie in each other's 95 %
    confidence interval, and so does that of the paired differences around 0."""
    recipe = Recipe("mse", epochs=12, lr=3e-3)
    runs = []
    for seed in range(25):
        run = spec((2, 30, 30, 3), recipe, density, seed=seed, n=600, dtype=torch.float32)
        x = torch.cat([run.data.x_train, run.data.x_test])
        y = torch.stack([x[:, 0] * x[:, 1], x.square().sum(1), x[:, 0].abs()], 1)
        runs.append(replace(run, data=Split(x[:600], y[:600], x[600:], y[600:])))
    ours = torch.tensor([r.metrics["mse"] for r in native(runs).train(None, None)]).double()
    theirs = torch.tensor([r.metrics["mse"] for r in TorchBatch(runs, torch.device("cpu")).train(None, None)])
    untrained = native([replace(run, recipe=replace(recipe, epochs=0)) for run in runs]).train(None, None)
    assert float(theirs.mean()) < 0.8 * sum(r.metrics["mse"] for r in untrained) / 25, "it learns something"
    for values in (ours.log(), theirs.double().log()):
        assert float((ours.log().mean() - theirs.double().log().mean()).abs()) <= 2.064 * float(
            values.std() / 5
        )
    difference = ours.log() - theirs.double().log()
    assert float(difference.mean().abs()) <= 2.064 * float(difference.std() / 5) + 1e-6
