"""Searches run together, and go on from their journals after a crash."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lotterykit.errors import ArgumentError
from lotterykit.experiments.find import find_ticket, find_tickets
from lotterykit.experiments.imp import IMP
from lotterykit.experiments.search_spec import SearchSpec
from lotterykit.experiments.searches import run_together
from lotterykit.experiments.setup import Setup, chain_of
from lotterykit.experiments.ticket import Ticket
from lotterykit.experiments.trainings import Training, Turn
from lotterykit.mask import Masks
from lotterykit.nn import mlp, network
from lotterykit.training.recipe import Recipe, Split
from lotterykit.training.source import Loaders

DIGITS = {"data": "digits", "validation": 100}


class Stop(Exception):
    """What a test raises in place of a power cut."""


def residual(seed: int) -> nn.Module:
    """A small network that no replica can be: a convolution, batch-norm, a residual layer, dropout."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
            self.inner, self.out = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4 * 64, 10)

        def forward(self, x):
            h = self.norm(self.conv(x)).relu()
            h = (h + self.inner(h)).relu()
            return self.out(nn.functional.dropout(h.flatten(1), 0.2, self.training))

    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return Net()


def spec_of(method: str, **more) -> SearchSpec:
    return SearchSpec(**({"method": method, "density": 0.3, "steps": 240} | DIGITS | more))


@pytest.mark.parametrize("build", [None, residual])
@pytest.mark.parametrize(
    "spec",
    [
        spec_of("imp", rewind="7it", prune_fraction=0.5, batch_size=40),
        spec_of("snip", shots=2, shot_epochs=1, reset="not-last"),
        spec_of("edge-popup", score_epochs=4, scope="global", gradual_every=1, score_batch=256),
        spec_of("gem-miner", score_epochs=7, freeze_every=2, score_batch=256, penalty=1e-4),
    ],
)
def test_a_search_that_was_stopped_ends_bitwise_like_one_that_was_not(tmp_path, build, spec, monkeypatch):
    # short pieces, so that trainings are cut inside as well
    monkeypatch.setattr("lotterykit.experiments.trainings.PIECE", 20)
    spec = spec.model_copy(update={"net": "mine", "recipe": "p4/lenet"}) if build else spec
    whole = find_ticket(spec, build=build)
    for at in (1, 2):

        def stop(name, number, training, at=at):
            if number == at:
                raise Stop

        with pytest.raises(Stop):
            find_ticket(spec, build=build, folder=tmp_path, progress=stop)
    took = Turn.take

    def crash(self, part):
        took(self, part)
        if not self.finished:
            raise Stop

    monkeypatch.setattr(Turn, "take", crash)
    with pytest.raises(Stop):
        find_ticket(spec, build=build, folder=tmp_path)
    monkeypatch.setattr(Turn, "take", took)
    begun: list[int] = []
    found = find_ticket(spec, build=build, folder=tmp_path, progress=lambda *what: begun.append(what[1]))
    assert found.digest() == whole.digest()
    assert begun[0] >= 2  # the first training came from the journal
    again = find_ticket(spec, build=build, folder=tmp_path, progress=lambda *what: begun.append(-1))
    assert again.digest() == whole.digest()
    assert -1 not in begun


@pytest.mark.parametrize(
    ("spec", "build"),
    [
        (spec_of("imp", prune_fraction=0.5, steps=600, density=0.5), None),
        (spec_of("edge-popup", score_epochs=30, anneal=True, steps=10), None),
        (spec_of("gem-miner", score_epochs=30, freeze_every=3, steps=10), None),
        (
            spec_of("gem-miner", score_epochs=12, freeze_every=3, steps=10, net="mine", recipe="p4/lenet"),
            residual,
        ),
    ],
)
def test_kill_9_inside_a_training_loses_no_more_than_a_piece(tmp_path, spec, build, monkeypatch):
    code = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_searches
from lotterykit.experiments import trainings
from lotterykit.experiments.find import find_ticket
from lotterykit.experiments.search_spec import SearchSpec
trainings.PIECE = 20
build = getattr(test_searches, sys.argv[3], None)
find_ticket(SearchSpec(**eval(sys.argv[4])), build=build, folder=Path(sys.argv[1]))
"""
    first = tmp_path / spec.method / "001.safetensors"
    command = [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen([*command, "" if build is None else build.__name__, repr(spec.set())]) as run:
        while run.poll() is None and not first.exists():
            time.sleep(0.001)
        os.kill(run.pid, signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
    with safetensors.safe_open(first, "pt") as file:
        content = json.loads(file.metadata()["content"])
    assert not content["finished"]
    steps: list[int] = []
    took = Turn.take

    def take(self, part):
        steps.append(self.at)
        took(self, part)

    monkeypatch.setattr(Turn, "take", take)
    monkeypatch.setattr("lotterykit.experiments.trainings.PIECE", 20)
    found = find_ticket(spec, build=build, folder=tmp_path)
    assert steps[0] == content["at"] > 0
    assert found.digest() == find_ticket(spec, build=build).digest()


def test_kill_9_loses_nothing_that_was_written(tmp_path):
    code = """
import sys
from pathlib import Path
from lotterykit.experiments.find import find_ticket
from lotterykit.experiments.search_spec import SearchSpec
spec = SearchSpec(method="imp", density=.1, data="digits", validation=100, steps=400)
find_ticket(spec, folder=Path(sys.argv[1])).save(sys.argv[2])
"""
    out = tmp_path / "ticket"
    for _ in range(2):
        run = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "journal"), str(out)])
        before = len(list(tmp_path.glob("journal/imp/*.safetensors")))
        while run.poll() is None and len(list(tmp_path.glob("journal/imp/*.safetensors"))) < before + 3:
            time.sleep(0.01)
        if run.poll() is None:
            os.kill(run.pid, signal.SIGKILL)
        run.wait()
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "journal"), str(out)], check=True)
    spec = SearchSpec(method="imp", density=0.1, data="digits", validation=100, steps=400)
    assert Ticket.load(out).digest() == find_ticket(spec).digest()


def test_searches_together_are_those_alone():
    specs = {str(seed): spec_of("imp", seed=seed, lr=1e-3 * (1 + seed)) for seed in range(3)}
    specs["snip"] = spec_of("snip")
    together = find_tickets(specs)
    for name, spec in specs.items():
        assert together[name].digest() == find_ticket(spec).digest()


def test_the_journal_of_another_search_is_refused(tmp_path):
    find_ticket(spec_of("snip"), folder=tmp_path)
    with pytest.raises(ArgumentError, match=r"001\.safetensors is of another search, other data"):
        find_ticket(spec_of("snip", seed=1), folder=tmp_path)
    first = tmp_path / "snip" / "001.safetensors"
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(bytes(data))
    with pytest.raises(ArgumentError, match=r"001\.safetensors is damaged"):
        find_ticket(spec_of("snip"), folder=tmp_path)
    first.write_bytes(b"half a file")
    with pytest.raises(ArgumentError, match="is no training that could be gone on with"):
        find_ticket(spec_of("snip"), folder=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match="cannot write to the folder"):
        find_ticket(spec_of("snip"), folder=tmp_path / "file")


def test_loaders_are_cut_at_the_ends_of_epochs(tmp_path, monkeypatch):
    monkeypatch.setattr("lotterykit.experiments.trainings.PIECE", 4)
    x, y = torch.randn(60, 6), torch.randint(3, (60,))
    data = Loaders(DataLoader(TensorDataset(x, y), 10, shuffle=True), [(x, y)])
    start = mlp([6, 9, 3])
    imp = IMP(Recipe("cross_entropy", epochs=4), {"0.weight": 0.5, "2.weight": 0.5}, 0.5, 6, 22)
    setup = Setup(lambda: mlp([6, 9, 3]), data)
    state = dict(start.state_dict())
    whole = run_together({"a": imp.search(state)}, setup)["a"]
    cuts = []
    took = Turn.take

    def crash(self, part):
        took(self, part)
        cuts.append(self.at)
        if len(cuts) in (2, 4):
            raise Stop

    monkeypatch.setattr(Turn, "take", crash)
    for _ in range(2):
        with pytest.raises(Stop):
            run_together({"a": imp.search(state)}, setup, folder=tmp_path)
    found = run_together({"a": imp.search(state)}, setup, folder=tmp_path)["a"]
    assert set(cuts) == {6, 12, 18, 22}
    assert found.digest() == whole.digest()


@pytest.mark.parametrize("method", ["edge-popup", "gem-miner"])
def test_scores_of_loaders_are_cut_at_the_ends_of_epochs(tmp_path, monkeypatch, method):
    monkeypatch.setattr("lotterykit.experiments.trainings.PIECE", 4)
    x, y = torch.randn(60, 6), torch.randint(3, (60,))
    data = Loaders(DataLoader(TensorDataset(x, y), 10, shuffle=True), [(x, y)])
    spec = SearchSpec(method=method, density=0.4, net="mine", recipe="p4/lenet", steps=4, score_epochs=6)

    def build(seed):
        return mlp([6, 9, 3], seed=seed)

    whole = find_ticket(spec, build=build, data=data)
    took, cuts = Turn.take, []

    def crash(self, part):
        took(self, part)
        cuts.append(self.at)
        if len(cuts) in (2, 5):
            raise Stop

    monkeypatch.setattr(Turn, "take", crash)
    for _ in range(2):
        with pytest.raises(Stop):
            find_ticket(spec, build=build, data=data, folder=tmp_path)
    found = find_ticket(spec, build=build, data=data, folder=tmp_path)
    assert cuts == [6, 12, 18, 24, 30, 36, 4]
    assert found.digest() == whole.digest()


def test_fully_connected_networks_are_told_from_others():
    data = Split(
        torch.randn(20, 1, 8, 8), torch.randint(10, (20,)), torch.randn(5, 1, 8, 8), torch.randint(10, (5,))
    )
    lenet = chain_of(Setup(lambda: network("lenet", input=(1, 8, 8)), data))
    assert lenet is not None
    assert lenet.widths == (64, 300, 100, 10)
    assert lenet.outer["0.weight"] == "1.weight"
    for other in (
        Setup(lambda: network("conv-2", input=(1, 8, 8)), data),
        Setup(lambda: network("lenet", input=(1, 8, 8), dropout=0.5), data),
        Setup(lambda: network("lenet", input=(1, 8, 8)), data, augment=lambda x, seed, step: x),
        Setup(lambda: nn.Sequential(nn.Linear(64, 10, bias=False)), data),
        Setup(lambda: nn.Linear(64, 10), data),
    ):
        assert chain_of(other) is None


def test_an_identity_names_all_that_a_training_depends_on():
    state = dict(mlp([2, 3]).state_dict())
    masks = Masks({"0.weight": torch.ones(3, 2, dtype=torch.bool)})
    base = Training(state, masks, Recipe("mse"))
    others = [
        Training(dict(mlp([2, 3], seed=1).state_dict()), masks, Recipe("mse")),
        Training(state, Masks({"0.weight": torch.zeros(3, 2, dtype=torch.bool)}), Recipe("mse")),
        Training(state, masks, Recipe("mse", lr=2.0)),
        Training(state, masks, Recipe("mse"), seed=1),
        Training(state, masks, Recipe("mse"), first=1),
        Training(state, masks, Recipe("mse"), last=1),
    ]
    assert len({t.identity() for t in [base, *others]}) == 7
    assert Training(dict(state), masks, Recipe("mse")).identity() == base.identity()


def test_a_journal_of_other_arithmetic_is_refused(tmp_path, monkeypatch):
    """Those that were written before there was a version are of the first."""
    training = Training({"w": torch.zeros(2)}, Masks({"w": torch.ones(2, dtype=torch.bool)}), Recipe("mse"))
    assert training.identity() == "3942427df10a80e05e063fbf39afd304"
    found = find_ticket(spec_of("snip"), folder=tmp_path)
    assert find_ticket(spec_of("snip"), folder=tmp_path).digest() == found.digest()
    monkeypatch.setattr("lotterykit.experiments.trainings.TRAINING_VERSION", 2)
    with pytest.raises(ArgumentError, match="or another version: give another folder"):
        find_ticket(spec_of("snip"), folder=tmp_path)


def test_the_journal_of_other_data_is_refused(tmp_path):
    """Shapes, seeds and recipes are alike: only the images, the labels or the layers differ."""
    x, y = torch.randn(60, 6), torch.randint(3, (60,))
    held = x[50:] + 1, y[50:]
    network = mlp([6, 9, 3])
    imp = IMP(Recipe("cross_entropy", epochs=2), {"0.weight": 0.5, "2.weight": 0.5}, 0.5, 2, 4)

    def run(x=x, y=y, held=held, build=lambda: mlp([6, 9, 3]), augment=None):
        setup = Setup(build, Split(x[:50], y[:50], x[50:], y[50:]), held, augment)
        return run_together({"a": imp.search(dict(network.state_dict()))}, setup, folder=tmp_path)["a"]

    def other():
        return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))

    first = run()
    assert run().digest() == first.digest()
    for changed in (
        {"x": x * 2},
        {"y": (y + 1) % 3},
        {"held": (x[50:], y[50:])},
        {"held": None},
        {"build": other},
        {"augment": lambda x, seed, step: x},
    ):
        with pytest.raises(ArgumentError, match=r"001\.safetensors is of another search, other data"):
            run(**changed)


def test_a_journal_that_does_not_name_its_data_is_gone_on_with(tmp_path):
    first = find_ticket(spec_of("snip"), folder=tmp_path)
    for path in tmp_path.rglob("*.safetensors"):
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert len(metadata.pop("setup")) == len(metadata.pop("digest")) == 32
        safetensors.torch.save_file(tensors, path, metadata)
    begun: list[str] = []
    again = find_ticket(spec_of("snip"), folder=tmp_path, progress=lambda name, *_: begun.append(name))
    assert again.digest() == first.digest()
    assert begun == []
