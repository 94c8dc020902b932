"""The CUDA replica engine equals the CPU's, step for step; its kernel runs on the emulator, without a GPU."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType

import emulated
import pytest
import sanitize
import torch
from replica_cases import RULES, SCORINGS, SGD_SCORES, assert_same, scored, spec

from lotterykit.bench import gpu_checks_replicas
from lotterykit.errors import ArgumentError
from lotterykit.ops import dispatch
from lotterykit.ops.dispatch import use_backend
from lotterykit.training.recipe import Recipe
from lotterykit.training.replicas import RunResult, RunSpec, train_replicas
from lotterykit.training.scored import ScoreTraining

pytest.importorskip("setuptools")
pytestmark = pytest.mark.skipif(dispatch.missing("cpu") is not None, reason="lotterykit._cpu is not built")

CPU = torch.device("cpu")
RESIDENCES = ("all", "work and net", "work", "none")  # csrc/cuda/replica.h


@pytest.fixture(scope="module")
def module(tmp_path_factory) -> ModuleType:
    setup = sanitize.setup_functions()
    try:
        tools = setup["find_cxx"](), setup["find_pybind11"]()
    except Exception as why:
        pytest.skip(str(why))
    return emulated.load(emulated.build_once(emulated.run_folder(tmp_path_factory), *tools))


@pytest.fixture(params=[None, 1], ids=["in order", "shuffled"])
def cuda(module, request) -> Iterator[Callable[..., list[RunResult]]]:
    """Trains on the emulator, its threads and blocks in each order."""
    with emulated.installed(module), emulated.order(request.param):
        yield train


def train(specs: list[RunSpec], steps: int | None = None, split: int | None = None) -> list[RunResult]:
    """`split`: steps a launch."""
    from lotterykit.training.cuda import CudaBatch

    batch = CudaBatch(specs, CPU)
    batch.steps = split or batch.steps
    return batch.train(steps, None)


def train_scores(specs: list[RunSpec], steps: int | None = None, split: int | None = None) -> list[RunResult]:
    from lotterykit.training.cuda import CudaScoreBatch

    batch = CudaScoreBatch(specs, CPU)
    batch.steps = split or batch.steps
    return batch.train(steps, None)


def native_scores(specs: list[RunSpec], steps: int | None = None) -> list[RunResult]:
    from lotterykit.training.native_scores import NativeScoreBatch

    return NativeScoreBatch(specs, CPU).train(steps, None)


def native(specs: list[RunSpec], steps: int | None = None) -> list[RunResult]:
    from lotterykit.training.native import NativeBatch

    return NativeBatch(specs, CPU).train(steps, None)


def limit(monkeypatch, module: ModuleType, block_bytes: int) -> None:
    monkeypatch.setattr(module, "shared_memory", lambda device: [block_bytes, block_bytes + 1024, 3])


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("density", [1.0, 0.6, 0.2, 0.04, 0.0])
def test_equals_the_cpu_over_200_steps(loss: str, rule: str, density: float, module) -> None:
    """float64, dense and sparse layers, dead and constant neurons, pruned biases. 1e-9: 200 steps of Adam
    amplify the rounding of differently ordered sums."""
    recipe = Recipe(loss, epochs=25, batch_size=16, **RULES[rule])
    runs = [
        spec((3, 21, 17, 4), recipe, density, seed=1),
        spec((3, 21, 17, 4), recipe, density, seed=2, biases=True),
    ]
    with emulated.installed(module), emulated.order(None):
        assert_same(train(runs, 200), native(runs, 200), 1e-9)


@pytest.mark.parametrize("batch", [1, 5, 31, 32, 33, 64, 70, 120, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_every_batch_size(batch: int, dtype: torch.dtype, cuda) -> None:
    """The first 10 steps; float32 with SGD, as Adam's first steps are lr * sign(gradient) and a gradient
    of rounding size may have either sign."""
    optimizer = {"optimizer": "sgd", "lr": 0.01, "momentum": 0.9} if dtype == torch.float32 else {}
    bound = 1e-5 if dtype == torch.float32 else 1e-11
    recipe = Recipe("cross_entropy", epochs=10, batch_size=batch, **optimizer)
    runs = [spec((5, 40, 19, 3), recipe, d, seed=i, dtype=dtype) for i, d in enumerate((1.0, 0.3, 0.05))]
    assert_same(cuda(runs, 10), native(runs, 10), bound)


@pytest.mark.parametrize(
    "layers",
    [(1, 1), (4, 1), (1, 3), (2, 1, 1), (6, 50, 2), (2, 7, 7, 7, 7, 7, 3), (100, 33, 10), (9, 130, 64, 8)],
)
@pytest.mark.parametrize("density", [1.0, 0.5, 0.1])
def test_every_shape(layers: tuple[int, ...], density: float, cuda) -> None:
    recipe = Recipe("mse", epochs=3, batch_size=32)
    runs = [spec(layers, recipe, density, seed=seed, biases=seed == 1) for seed in range(3)]
    assert_same(cuda(runs), native(runs), 1e-9)


@pytest.mark.parametrize("density", [1.0, 0.2, 0.1, 0.01])
def test_the_networks_of_the_paper(density: float, cuda) -> None:
    recipe = Recipe("cross_entropy", epochs=1, batch_size=32)
    runs = [spec((2, 100, 100, 100, 4), recipe, density, seed=seed) for seed in range(2)]
    assert_same(cuda(runs), native(runs), 1e-9)


@pytest.mark.parametrize(
    ("kilobytes", "batch", "wanted"),
    [
        (227, 16, "all"),
        (62, 16, "work and net"),
        (48, 16, "work"),
        (3, 16, "none"),
        (227, 100, "work and net"),
        (62, 100, "work and net"),
        (48, 100, "work"),
        (3, 100, "none"),
    ],
)
def test_wherever_the_state_lies(kilobytes: int, batch: int, wanted: str, module, cuda, monkeypatch) -> None:
    """Batches of several passes as well: 100 examples do not fit at once where there is little room."""
    limit(monkeypatch, module, kilobytes << 10)
    recipe = Recipe("cross_entropy", epochs=2, batch_size=batch)
    runs = [spec((3, 40, 30, 4), recipe, d, seed=i, biases=True) for i, d in enumerate((1.0, 0.2))]
    assert_same(cuda(runs), native(runs), 1e-9)
    assert launched(runs[:1]) == {wanted}


def launched(runs: list[RunSpec]) -> set[str]:
    from lotterykit.training.cuda import CudaBatch

    return {RESIDENCES[residence] for _, _, residence, *_ in CudaBatch(runs, CPU).launches}


def test_what_is_pruned_afterwards_goes_on_alike(cuda) -> None:
    """State handed on to a sparser mask: neurons that died keep moving by what their moments hold."""
    recipe = Recipe("cross_entropy", epochs=3, batch_size=32)
    before = spec((3, 30, 30, 4), recipe, 0.5, seed=3)
    (trained,) = native([before])
    masks = {
        k: m & (torch.rand(m.shape, generator=torch.Generator().manual_seed(5)) < 0.08)
        for k, m in before.masks.items()
    }
    after = replace(before, weights=trained.weights, masks=masks, seed=9, optimizer=trained.optimizer)
    expected = native([after])
    assert_same(cuda([after]), expected, 1e-9)
    unheard = ~masks["2.weight"].any(0)
    moved = expected[0].weights["0.bias"] != trained.weights["0.bias"]
    assert moved[unheard].any(), "without a neuron that moves by its moments alone this tests nothing"


def test_one_batch_of_different_networks(cuda) -> None:
    runs = [
        spec((3, 12, 4), Recipe("cross_entropy", epochs=2, lr=1e-2), 0.5, seed=1),
        spec((2, 30, 5, 2), Recipe("mse", epochs=2, optimizer="sgd", momentum=0.5), 0.2, seed=2),
        spec((2, 90, 80, 2), Recipe("mse", epochs=2), 1.0, seed=3),
    ]
    assert_same(cuda(runs), native(runs), 1e-10)


def test_bitwise_in_any_company_and_any_launches(cuda) -> None:
    recipe = Recipe("cross_entropy", epochs=2, batch_size=24)
    runs = [
        spec((4, 33, 20, 5), recipe, (1.0, 0.4, 0.05)[r % 3], seed=r, dtype=torch.float32) for r in range(6)
    ]
    together = cuda(runs)
    for members in ([0], [5, 4], list(range(5, -1, -1))):
        for split in (None, 1, 3):
            results = cuda([runs[i] for i in members], split=split)
            for i, result in zip(members, results, strict=True):
                assert result.curve == together[i].curve
                assert all(torch.equal(w, together[i].weights[k]) for k, w in result.weights.items())
                assert all(torch.equal(m, together[i].optimizer[k]) for k, m in result.optimizer.items())


def test_the_order_of_threads_does_not_matter(module) -> None:
    """Bitwise: no sum depends on which thread comes first, and no barrier is missing."""
    recipe = Recipe("mse", epochs=2, batch_size=40)
    runs = [spec((4, 70, 40, 5), recipe, d, seed=3, dtype=torch.float32) for d in (1.0, 0.3, 0.03)]
    found = []
    for seed in (None, 1, 2, 3):
        with emulated.installed(module), emulated.order(seed):
            found.append(train(runs))
    for results in found[1:]:
        for result, first in zip(results, found[0], strict=True):
            assert result.curve == first.curve
            assert all(torch.equal(w, first.weights[k]) for k, w in result.weights.items())


def test_diverged_is_told(cuda) -> None:
    run = spec((2, 20, 3), Recipe("mse", epochs=3, optimizer="sgd", lr=1e30), 1.0, dtype=torch.float32)
    (result,) = cuda([run])
    assert result.metrics["mse"] != result.metrics["mse"] or result.metrics["mse"] == float("inf")


def test_no_epochs_and_no_steps_evaluate(cuda) -> None:
    runs = [spec((3, 12, 4), Recipe("cross_entropy", epochs=0), 0.5)]
    assert_same(cuda(runs), native(runs), 1e-10)
    runs = [spec((3, 12, 4), Recipe("cross_entropy", epochs=2), 0.5)]
    (result,) = cuda(runs, 0)
    assert result.curve == []
    assert result.optimizer == {}
    assert_same(cuda(runs, 5), native(runs, 5), 1e-10)


def test_a_signal_ends_it_between_launches(cuda) -> None:
    run = spec((3, 12, 4), Recipe("cross_entropy", epochs=100_000), 1.0, n=64, dtype=torch.float32)

    class Rung(Exception):
        pass

    def ring(*_: object) -> None:
        raise Rung

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(Rung):
            cuda([run])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def assert_same_scores(ours: list[RunResult], theirs: list[RunResult]) -> None:
    assert_same(ours, theirs, 1e-9)
    for one, other in zip(ours, theirs, strict=True):
        assert set(one.masks) == set(other.masks)
        for key, mask in other.masks.items():
            assert torch.equal(one.masks[key], mask), key
        for key, scores in other.scores.items():
            scale = float(scores.abs().max()) or 1.0
            assert float((one.scores[key] - scores).abs().max()) <= 1e-9 * scale


@pytest.mark.parametrize("name", SCORINGS)
@pytest.mark.parametrize("rule", [SGD_SCORES, {}], ids=["sgd", "adam"])
def test_score_training_equals_the_cpu(name: str, rule: dict, module) -> None:
    """float64, 200 steps, masks and all; scores that tie and scores that don't; biases under a mask."""
    recipe = Recipe("cross_entropy", epochs=25, batch_size=16, **rule)
    runs = [scored(SCORINGS[name], recipe, seed=1), scored(SCORINGS[name], recipe, seed=2, ties=True)]
    if not SCORINGS[name].bias:
        runs.append(replace(runs[0], masks={"0.bias": torch.arange(23) % 3 > 0}))
    with emulated.installed(module), emulated.order(None):
        found = train_scores(runs, 200)
    assert_same_scores(found, native_scores(runs, 200))


@pytest.mark.parametrize("kilobytes", [227, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_first_masks_wherever_the_state_lies(kilobytes: int, dtype, module, cuda, monkeypatch) -> None:
    """Exact counts and the seeded order of ties, before any step; then bitwise alone and in company."""
    limit(monkeypatch, module, kilobytes << 10)
    deep = {"layers": (3, 9, 8, 7, 6, 9, 4)}
    runs = [
        scored(
            t, Recipe("cross_entropy", epochs=2, **SGD_SCORES), seed=i, ties=i % 2 == 0, dtype=dtype, **how
        )
        for i, t in enumerate(t for t in SCORINGS.values() if t.method == "edge-popup")
        for how in ({}, deep)
    ]
    for ours, theirs in zip(train_scores(runs, 0), native_scores(runs, 0), strict=True):
        assert all(torch.equal(ours.masks[key], mask) for key, mask in theirs.masks.items())
        assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-5)
    together = train_scores(runs)
    for split in (None, 1):
        for result, whole in zip(train_scores(runs[::-1], split=split), together[::-1], strict=True):
            assert result.curve == whole.curve
            assert all(torch.equal(result.scores[key], scores) for key, scores in whole.scores.items())


def test_scores_that_diverge(cuda) -> None:
    """A NaN ranks below all numbers, and counts stay exact."""
    recipe = Recipe("mse", epochs=2, batch_size=32, optimizer="sgd", lr=1e38)
    run = scored(ScoreTraining(density=0.9), recipe, seed=0, dtype=torch.float32)
    (result,) = train_scores([run])
    assert any(bool(scores.isnan().any()) for scores in result.scores.values())
    for key, mask in result.masks.items():
        assert int(mask.sum()) == round(0.9 * mask.numel()), key


@pytest.mark.parametrize("every", [1, 3, 5, 20])
def test_evaluates_within_epochs_and_on_a_validation_split(every: int, cuda) -> None:
    """8 steps an epoch; the learning rates of a stretch that begins within one."""
    recipe = Recipe("mse", epochs=3, batch_size=16, evaluate_every=every, **RULES["adam warm-up"])
    runs = [spec((3, 21, 17, 4), recipe, d, seed=i) for i, d in enumerate((1.0, 0.2))]
    other = spec((3, 21, 17, 4), recipe, 1.0, seed=7).data
    runs[1] = replace(runs[1], validation=(other.x_train[:37], other.y_train[:37]))
    for split in (None, 1):
        found, expected = cuda(runs, split=split), native(runs)
        assert_same(found, expected, 1e-10)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.steps == theirs.steps
            for one, two in zip(ours.validation, theirs.validation, strict=True):
                assert one == pytest.approx(two, rel=1e-9)


def test_data_that_replicas_share_is_copied_once(module) -> None:
    from lotterykit.training.cuda import CudaBatch

    run = spec((3, 12, 4), Recipe("cross_entropy", epochs=1), 0.5)
    with emulated.installed(module):
        batch = CudaBatch([run, replace(run, seed=1), spec((3, 12, 4), run.recipe, 0.5, seed=2)], CPU)
    assert len({tensor.data_ptr() for data in batch.data for pair in data for tensor in pair}) == 8


def test_too_many_neurons_are_refused(module) -> None:
    run = spec((65_536, 1), Recipe("mse", epochs=1), 1.0, n=2, dtype=torch.float32)
    with emulated.installed(module), pytest.raises(ArgumentError, match="fewer than 65536 neurons"):
        train([run])


def test_the_route(module) -> None:
    run = spec((3, 12, 4), Recipe("cross_entropy", epochs=1), 0.5)
    with emulated.installed(module), emulated.order(None), use_backend("cuda"):
        assert "cuda: chosen" in dispatch.explain("train_replicas", [run])
        (ours,) = train_replicas([run])
    assert_same([ours], train_replicas([run]), 1e-10)
    run = scored(SCORINGS["layer"], run.recipe, 0)
    with emulated.installed(module), emulated.order(None), use_backend("cuda"):
        assert "cuda: chosen" in dispatch.explain("train_scores", [run])
        (ours,) = train_replicas([run])
    assert_same_scores([ours], train_replicas([run]))


def test_the_check_for_a_gpu_passes_on_the_emulator(module, monkeypatch) -> None:
    monkeypatch.setattr(gpu_checks_replicas, "SHAPES", ((2, 40, 40, 4), (1, 1), (33, 21, 17, 4)))
    with emulated.installed(module), emulated.order(None):
        assert gpu_checks_replicas.check_replicas(4, device="cpu") == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_without_a_device_one_line_says_so() -> None:
    run = spec((3, 12, 4), Recipe("cross_entropy", epochs=1), 0.5)
    with pytest.raises(ArgumentError, match="torch sees no CUDA device"):
        train_replicas([run], device="cuda")
