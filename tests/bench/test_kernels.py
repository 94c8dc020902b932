import math

import pytest
import torch

from lotterykit.bench import kernels, layers, peers, problems, replicas
from lotterykit.bench.contender import Contender
from lotterykit.bench.kernels import admitted, check_repeats, entries_of, grid, measure
from lotterykit.bench.peers import PEERS, Peer
from lotterykit.bench.problems import OPS, parse_shape
from lotterykit.bench.setting import DTYPES, Setting
from lotterykit.bench.timing import Timing
from lotterykit.errors import ArgumentError, BackendError
from lotterykit.nn.convert import convert_
from lotterykit.ops.dispatch import missing

SHAPES = {
    "topk": (203, 4),
    "conv": (2, 3, 5, 7),
    "replicas": (2, 21, 3),
    "scores": (2, 9, 3),
    "synflow": (16, 13, 7),
    "synflow-scores": (16, 13, 7),
}


def setting(op, **changes):
    given = {"shape": SHAPES.get(op, (5, 13, 7)), "density": 0.3, "work": OPS[op].works[-1]} | changes
    return Setting(op, **given)


def entries(op, backends=()):
    return {n: e for n, e in entries_of(op, (), backends).items() if n != "torch-compile"}


@pytest.mark.parametrize("density", [1.0, 0.3, 1e-6])
@pytest.mark.parametrize(
    ("op", "work", "dtype"),
    [
        (op, work, dtype)
        for op, row in OPS.items()
        for work in row.works
        for dtype in ("float32", "float64", "bfloat16")
        if dtype in row.dtypes
    ],
)
def test_every_peer_gives_the_answer_or_a_reason(op, work, density, dtype):
    """No peer that is here is wrong, and every entry is either ready or refused."""
    here = entries(op, ("auto", "reference"))
    problem = OPS[op].problem(setting(op, work=work, density=density, dtype=dtype))
    ready, refused = admitted(problem, here)
    assert set(ready) | set(refused) == set(here)
    assert not any(reason.startswith("wrong") for reason in refused.values()), refused
    ours = [name for name in ready if ":" not in name and PEERS[name].ours]
    assert ours, refused
    if dtype != "bfloat16":
        assert not any(reason.startswith("fails") for reason in refused.values()), refused


@pytest.mark.parametrize("work", OPS["linear"].works)
@pytest.mark.parametrize(("density", "served"), [(0.05, "values"), (0.5, "weight")])
def test_auto_is_the_layer_that_the_crossovers_choose(monkeypatch, density, served, work):
    made = []
    monkeypatch.setattr(layers, "convert_", lambda *a, **k: made.append(convert_(*a, **k)) or made[-1])
    problem = OPS["linear"].problem(setting("linear", shape=(3, 300, 290), density=density, work=work))
    ready, refused = admitted(problem, entries_of("linear", ["auto"]) | {"dense": (PEERS["dense"], None)})
    assert set(ready) == {"auto", "dense"}, refused
    here = served if missing("cpu") is None else "weight"
    assert [list(dict(layer.named_parameters())) for layer in made] == [[here]]


def test_a_row_holds_times_ratios_and_reasons():
    before = torch.get_num_threads()
    row = measure(setting("linear"), entries("linear"), repeats=2)
    assert torch.get_num_threads() == before
    assert row["ours"] == "spmm"
    assert row["shape"] == [5, 13, 7]
    assert all(t["repeats"] == 2 and t["p20"] <= t["median"] <= t["p80"] for t in row["us"].values())
    assert set(row["ratio"]) == set(row["us"]) - {"spmm"}
    ratio = row["us"]["dense"]["median"] / row["us"]["spmm"]["median"]
    assert math.isclose(row["ratio"]["dense"], ratio)
    assert row["refused"]["torch-csr"] == "its backward is dense in the weight"
    nnz = problems.layer_problem(setting("linear")).inputs.csr.nnz
    assert row["flops"] == 3 * 2 * 5 * nnz
    assert math.isclose(row["gflops"], row["flops"] / row["us"]["spmm"]["median"] / 1e3)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda y: y * 1.001, "off float64, allowed"),
        (lambda y: y[:-1], "y is (4, 7), not (5, 7)"),
        (lambda y: y.double(), "y is torch.float64, not torch.float32"),
        (lambda y: torch.where(y == y.max(), float("nan"), y), "is nan off float64"),
    ],
)
def test_a_wrong_peer_is_refused_and_never_timed(monkeypatch, spoil, says):
    runs = []

    def build(problem):
        layer = problem.inputs

        def run():
            runs.append(1)
            return (spoil(layer.x @ layer.weight.T),)

        return Contender(run)

    monkeypatch.setitem(peers.PEERS, "wrong", Peer("spoilt", {"linear": build}))
    row = measure(setting("linear", work="forward"), entries_of("linear", ["wrong", "dense"]), repeats=2)
    assert says in row["refused"]["wrong"]
    assert row["refused"]["wrong"].startswith("wrong: y")
    assert "wrong" not in row["us"]
    assert "dense" in row["us"]
    assert len(runs) == 1


def test_a_wrong_gradient_is_refused(monkeypatch):
    right = PEERS["dense"].serves["linear"]

    def build(problem):
        contender = right(problem)
        return Contender(contender.run, lambda r: (r[0], r[1], problem.inputs.csr.gather(r[2]) * 1.01))

    monkeypatch.setitem(peers.PEERS, "wrong", Peer("spoilt", {"linear": build}))
    assert (
        "wrong: dvalues"
        in measure(setting("linear"), entries_of("linear", ["wrong"]), repeats=1)["refused"]["wrong"]
    )


def test_a_wrong_mask_is_refused_and_ties_are_not(monkeypatch):
    def wrong(problem):
        return Contender(lambda: [s < s.median() for s in problem.inputs.tensors])

    monkeypatch.setitem(peers.PEERS, "wrong", Peer("spoilt", {"topk": wrong}))
    row = measure(setting("topk", density=0.9), entries_of("topk"), repeats=1)  # the threshold is a tied zero
    assert "against the reference" in row["refused"]["wrong"]
    assert set(row["refused"]) == {"wrong"}
    assert {"kthvalue", "cat-topk", "sort", "one-read"} <= set(row["us"])


def test_a_peer_that_fails_is_refused_with_its_reason(monkeypatch):
    def build(problem):
        raise RuntimeError("no\nsuch kernel")

    monkeypatch.setitem(peers.PEERS, "broken", Peer("fails", {"spmm": build}))
    row = measure(setting("spmm"), entries_of("spmm", ["broken"]), repeats=1)
    assert row["refused"]["broken"] == "fails: RuntimeError: no such kernel"


def test_a_forced_backend_is_an_entry_of_its_own():
    named = entries_of("spmm", ["dense"], ["auto", "reference", "cuda"])
    assert list(named) == ["spmm", "spmm:reference", "spmm:cuda", "dense"]
    row = measure(setting("spmm"), named, repeats=1)
    assert {"spmm", "spmm:reference", "dense"} == set(row["us"])
    assert row["refused"]["spmm:cuda"]


@pytest.mark.skipif(missing("cpu") is not None, reason="lotterykit._cpu is not built")
def test_a_backend_that_lacks_a_dtype_says_so():
    row = measure(setting("spmm", dtype="bfloat16"), entries_of("spmm", ["spmm"], ["cpu"]), repeats=1)
    assert row["us"] == {}
    assert row["refused"] == {"spmm:cpu": "needs dtype float32, float64, got bfloat16"}
    assert "ours" not in row


def test_errors_of_an_op_that_is_ours_are_refusals_not_crashes(monkeypatch):
    def build(problem):
        raise BackendError("no backend")

    monkeypatch.setitem(peers.PEERS, "spmm", Peer("ours", {"spmm": build}, ours=("spmm",)))
    row = measure(setting("spmm"), entries_of("spmm", ["dense"]), repeats=1)
    assert row["refused"]["spmm"] == "fails: BackendError: no backend"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"op": "lineer"}, "did you mean 'linear'"),
        ({"shapes": ["12x12"]}, "batch x in x out"),
        ({"shapes": ["0x12x12"]}, "batch must lie in [1, 2147483647]"),
        ({"shapes": ["1x12x99999999999999999999"]}, "out must lie in"),
        ({"shapes": ["1x-2x3"]}, "got '1x-2x3'"),
        ({"shapes": ["1x²x3"]}, "got"),
        ({"densities": [0.0]}, "must lie in (0, 1]"),
        ({"densities": [float("nan")]}, "must lie in (0, 1]"),
        ({"dtypes": ["int8"]}, "unknown dtype"),
        ({"threads": [0]}, "threads must lie in [1, "),
        ({"threads": [10**6]}, "threads must lie in [1, "),
        ({"works": ["backward"]}, "unknown work of linear"),
        ({"device": "tpu"}, "unknown device"),
        ({"op": "conv", "shapes": ["1x2x3"]}, "batch x in x height and width x out"),
        ({"op": "synflow", "shapes": ["12"]}, "in x out x ..., as 784x300x100x10"),
        ({"op": "synflow", "shapes": ["12x0x7x5"]}, "out must lie in"),
        ({"op": "synflow", "shapes": ["x".join("9" * 101)]}, "in x out x ..."),
        ({"op": "synflow", "dtypes": ["bfloat16"]}, "unknown dtype of synflow"),
        ({"op": "replicas", "device": "cuda"}, "unknown device of replicas"),
    ],
)
def test_nonsense_is_refused_before_anything_runs(arguments, says):
    with pytest.raises(ArgumentError) as error:
        grid(**({"op": "linear"} | arguments))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_peers_backends_and_repeats_are_refused():
    for arguments, says in (
        (("linear", ["kthvalue"]), "unknown peer of linear"),
        (("linear", [], ["gpu"]), "did you mean 'cpu'"),
        (("conv3d",), "unknown op"),
    ):
        with pytest.raises(ArgumentError, match=says):
            entries_of(*arguments)
    for repeats in (0, -1, 10**9, True, 1.5):
        with pytest.raises(ArgumentError, match="repeats must lie in"):
            check_repeats(repeats)


def test_cpu_time_is_for_one_thread():
    row = measure(setting("spmm"), entries_of("spmm", ["dense"]), repeats=1, clock="cpu")
    assert row["clock"] == "cpu"
    with pytest.raises(ArgumentError, match="--threads 1 alone"):
        measure(setting("spmm", threads=2), entries_of("spmm"), repeats=1, clock="cpu")


def test_the_registries_fit_together():
    for name, peer in PEERS.items():
        assert peer.serves, name
        assert set(peer.serves) <= set(OPS), name
    for name, op in OPS.items():
        assert op.baseline in PEERS
        assert name in PEERS[op.baseline].serves
        assert len(parse_shape(name, op.example)) >= len(op.sides)
        assert any(peer.ours for peer in PEERS.values() if name in peer.serves)
    assert set(DTYPES) == {"float32", "float64", "bfloat16", "float16"}
    assert kernels.REPEATS > 41


def test_a_work_with_its_own_density_stands_once_in_a_grid():
    found = grid("replicas", densities=[1.0, 0.1])
    assert [(s.work, s.density) for s in found] == [
        ("random", 1.0),
        ("ticket", replicas.ticket_density((16, 100, 300))),
        ("random", 0.1),
    ]
    assert found[0].shape == (16, 100, 300)


def test_times_of_steps_are_those_of_one(monkeypatch):
    taken = Timing(12.0, 6.0, 18.0, 3)
    monkeypatch.setattr(kernels, "alternate", lambda functions, **_: dict.fromkeys(functions, taken))
    row = measure(setting("replicas", work="random"), entries_of("replicas"), repeats=1)
    assert row["us"]["train_replicas"] == {"median": 2.0, "p20": 1.0, "p80": 3.0, "repeats": 3}  # 2 replicas
    assert row["us"]["eager"]["median"] == 4.0  # the first of them
    assert row["ratio"] == {"eager": 2.0}
