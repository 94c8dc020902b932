"""`find_ticket`: every method on real digits, specs and their refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lotterykit as lk
from lotterykit.errors import ArgumentError
from lotterykit.experiments.controls import control
from lotterykit.experiments.find import find_ticket, prune_ticket
from lotterykit.experiments.named import OF_NETWORK
from lotterykit.experiments.recipes import RECIPES
from lotterykit.experiments.resolved import resolve
from lotterykit.experiments.search_display import summary
from lotterykit.experiments.search_spec import METHODS, SCORE_TRAINED, SearchSpec, load_search
from lotterykit.experiments.verdict import SIMILAR, SUFFICIENT_EPOCHS
from lotterykit.nn import mlp
from lotterykit.nn.models import NETWORKS
from lotterykit.pruning import prune_
from lotterykit.training.recipe import Split, batch_order
from lotterykit.training.source import Loaders

DIGITS = {"data": "digits", "validation": 100, "steps": 80}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_a_ticket_of_the_density(method):
    more = {"score_epochs": 7} if method in SCORE_TRAINED else {}
    spec = SearchSpec(method=method, density=0.2, **DIGITS, **more)
    ticket = find_ticket(spec)
    kept = sum(k for k, _ in ticket.masks.counts().values())
    total = sum(n for _, n in ticket.masks.counts().values())
    exact = sum(round(0.2 * n) for _, n in ticket.masks.counts().values())
    assert kept == (exact if method == "edge-popup" else round(0.2 * total))
    assert {"init", "final"} <= set(ticket.snapshots)
    for name, mask in ticket.masks.items():
        assert not ticket.snapshots["final"][name][~mask].any()
        assert not torch.equal(ticket.snapshots["final"][name], ticket.rewind()[name])
    assert SearchSpec(**ticket.recipe["search"]) == spec
    assert ticket.results["accuracy"] > 0.15
    assert ticket.results["stop_step"] == 80
    again = ticket.apply_(lk.nn.network("lenet", input=(1, 8, 8)), "final").eval()
    images = lk.data.load("digits", validation=100)
    with torch.no_grad():
        right = (again(images.split[2]).argmax(1) == images.split[3]).double().mean()
    assert abs(float(right) - ticket.results["accuracy"]) < 1e-9


def test_pruning_at_init_is_that_of_prune_():
    """The mask of one shot, and of two with training between, against the public pieces."""
    spec = SearchSpec(method="snip", density=0.1, **DIGITS)
    one = resolve({"": spec})[""]
    x, y = one.setup.data.x_train, one.setup.data.y_train
    order = batch_order(len(x), 0, 0)
    batch = torch.cat([order[y[order] == c][:10] for c in range(10)])
    model = lk.nn.network("lenet", input=(1, 8, 8), init="glorot_normal", seed=0)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    data = [(x[batch], y[batch])]
    masks = prune_(model, "snip", density=0.1, data=data, loss_fn=nn.functional.cross_entropy)
    ticket = prune_ticket(spec)
    assert all(torch.equal(ticket.masks[name], masks[name]) for name in masks)
    assert all(torch.equal(ticket.snapshots["init"][name], start[name]) for name in start)
    assert "accuracy" not in ticket.results

    model = lk.nn.network("lenet", input=(1, 8, 8), init="glorot_normal", seed=0)
    recipe = lk.Recipe("cross_entropy", epochs=1, batch_size=60, lr=1.2e-3)
    for density in (0.1**0.5, 0.1):
        lk.train(model, one.setup.data, recipe)
        prune_(model, "snip", density=density, data=data, loss_fn=nn.functional.cross_entropy)
        model.load_state_dict(start, strict=False)
    found = find_ticket(SearchSpec(method="snip", density=0.1, shots=2, shot_epochs=1, **DIGITS)).masks
    masks = lk.Masks.from_model(model)
    different = sum(int((found[name] != masks[name]).sum()) for name in masks)
    assert different <= 0.002 * sum(mask.numel() for mask in masks.values())  # float32 of two engines


def test_scores_of_ones_own(tmp_path):
    """A callable that scores as magnitude does finds its ticket, in rounds and shots alike."""

    def largest(model, batches, loss_fn):
        assert sum(1 for _ in batches) == 1
        return {name: p.detach().abs() for name, p in model.named_parameters() if name.endswith("weight")}

    fields = {"density": 0.1, "shots": 2, "shot_epochs": 1, **DIGITS}
    own = find_ticket(SearchSpec(method="snip", **fields), score=largest, folder=tmp_path)
    named = find_ticket(SearchSpec(method="magnitude", **fields))
    assert all(torch.equal(own.masks[name], named.masks[name]) for name in named.masks)
    assert own.recipe["score"].endswith("largest")
    assert own.results["accuracy"] == named.results["accuracy"]
    with pytest.raises(ArgumentError, match="found by scores of your own"):
        own.check("invert")
    with pytest.raises(ArgumentError, match="score stands in for a method that scores, one of random"):
        find_ticket(SearchSpec(method="imp", density=0.1, **DIGITS), score=largest)


def test_own_networks_data_and_values():
    x, y = torch.randn(120, 6), torch.randn(120, 2)
    data = Split(x[:100], y[:100], x[100:], y[100:])
    spec = SearchSpec(method="imp", density=0.3, net="mine", recipe="p4/lenet", steps=30)
    ticket = find_ticket(spec, build=lambda seed: mlp([6, 20, 2], seed=seed), data=data)
    assert "mse" in ticket.results
    assert "network" not in ticket.recipe
    with pytest.raises(ArgumentError, match="network 'mine' has no recipe of its own"):
        find_ticket(spec.model_copy(update={"recipe": None}), build=lambda seed: mlp([6, 20, 2]), data=data)


@pytest.mark.parametrize(
    ("method", "more", "epochs"),
    [
        *[(method, {}, 1) for method in ("snip", "grasp", "synflow", "prospr")],
        *[(method, {}, 0) for method in ("random", "magnitude")],
        ("random", {"allocation": "smart-ratio"}, 0),
        ("snip", {"rounds": 5}, 1),
        ("snip", {"shots": 3, "shot_epochs": 2}, 9),
        ("magnitude", {"shots": 3, "shot_epochs": 2}, 6),
        ("edge-popup", {"score_epochs": 3}, 3),
        ("gem-miner", {"score_epochs": 6}, 6),
    ],
)
def test_costs_are_those_of_rare_gems_table_1(method, more, epochs):
    ticket = find_ticket(SearchSpec(method=method, density=0.2, **{**DIGITS, "steps": 5}, **more))
    assert ticket.results["epochs"] == epochs
    said = f"found in {epochs} epoch" if epochs == 1 else f"found in {epochs} epochs"
    assert summary(SearchSpec(method=method, density=0.2), ticket)[-1].endswith(said)


def test_collapse_stands_in_the_result():
    found = {
        density: find_ticket(SearchSpec(method="random", density=density, **DIGITS)).results
        for density in (0.5, 4e-4, 1e-9)
    }
    assert (found[0.5]["empty_layers"], found[0.5]["no_live_path"]) == ([], False)
    assert found[4e-4]["no_live_path"] is True  # 20 weights at random
    assert found[1e-9]["empty_layers"] == ["1.weight", "3.weight", "5.weight"]


def test_every_data_set_has_its_threshold():
    assert set(lk.data.DATASETS) <= set(SIMILAR)
    for name, spelt in (("cifar10", "cifar-10"), ("cifar100", "cifar-100")):
        assert SIMILAR[name] == SIMILAR[spelt]
        assert SUFFICIENT_EPOCHS[name] == SUFFICIENT_EPOCHS[spelt] == 160


def test_every_network_has_a_recipe():
    assert set(OF_NETWORK) == set(NETWORKS)
    assert set(OF_NETWORK.values()) <= set(RECIPES)


def test_fewer_steps_shrink_the_schedule():
    spec = SearchSpec(method="imp", density=0.5, net="resnet-20", data="digits", steps=300)
    one = resolve({"": spec})[""]
    assert one.steps == 300
    assert one.recipe.milestones == (200, 250)
    assert one.recipe.warmup == 200
    full = resolve({"": spec.model_copy(update={"steps": None})})[""]
    assert full.recipe.milestones == (20_000, 25_000)
    epochs = spec.model_copy(update={"net": "resnet-20-padded", "steps": 160})  # of the recipe's 150 epochs
    assert resolve({"": epochs})[""].recipe.milestones == (round(160 * 80 / 150), round(160 * 120 / 150))
    rates = [resolve({"": epochs})[""].recipe.learning_rate(step, 15) for step in (0, 84, 85, 127, 128)]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001])
    changed = resolve({"": spec.model_copy(update={"lr": 0.5, "weight_decay": 0.25, "batch_size": 7})})[""]
    assert (changed.recipe.lr, changed.recipe.weight_decay, changed.recipe.batch_size) == (0.5, 0.25, 7)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "imp2"}, "unknown method 'imp2'; did you mean 'imp'"),
        ({"density": 0.0}, "density is kept / total"),
        ({"density": "x"}, "density"),
        ({"net": "lenett"}, "unknown network 'lenett'; did you mean 'lenet'"),
        ({"data": "mnits"}, "unknown data set 'mnits'; did you mean 'mnist'"),
        ({"recipe": "p5/lenet"}, "unknown recipe"),
        ({"recipe": "p3/resnet-18-imagenet"}, "is for resnet-18 on imagenet, not for lenet: one for it is"),
        ({"rewind": "5"}, 'rewind must be "init", "<k>it" or "<k>ep"'),
        ({"rewind": "100it"}, "rewind must be a step in"),
        ({"rounds": 3}, "rounds is for random, magnitude"),
        ({"method": "snip", "rewind": "5it"}, "rewind is for imp only, got method 'snip'"),
        ({"method": "snip", "reset": "never"}, "need shots"),
        ({"method": "snip", "samples": 1000}, "training examples, samples asks for 1000"),
        ({"method": "gem-miner", "score_epochs": 3}, "density 0.2 needs more than 5 epochs"),
        ({"method": "edge-popup", "freeze_every": 3}, "freeze_every is for gem-miner only"),
        ({"scope": "layer"}, "unknown scope 'layer'"),
        ({"validation": 10**6}, "validation must leave some"),
        ({"seed": -1}, "seed"),
        ({"net": "resnet-20", "density": 0.0001}, "are never pruned"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        find_ticket(SearchSpec(**({"method": "imp", "density": 0.2} | DIGITS | fields)))
    assert "\n" not in str(caught.value)


def conv(seed):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


def images(count: int = 220) -> Split:
    x, y = torch.randn(count, 1, 8, 8), torch.arange(count) % 10
    return Split(x[:200], y[:200], x[200:], y[200:])


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        ("imp", lambda d: d._replace(y_train=d.y_train + 5), r"must lie in \[0, 10\), got 5 to 14"),
        ("imp", lambda d: d._replace(y_train=d.y_train - 3), r"must lie in \[0, 10\), got -3 to 6"),
        ("imp", lambda d: d._replace(y_test=d.y_test + 90), r"must lie in \[0, 10\), got 90 to 99"),
        ("imp", lambda d: d._replace(y_train=d.y_train.int()), "must be int64, got torch.int32"),
        ("snip", lambda d: d._replace(y_train=d.y_train[:9]), "as many inputs as targets, got 200 and 9"),
        ("imp", lambda d: d._replace(x_train=d.x_train[:0], y_train=d.y_train[:0]), "got 0 and 0"),
        ("imp", lambda d: d[:3], "four tensors x_train, y_train, x_test, y_test, got tuple of 3"),
        ("imp", lambda d: "digits", "four tensors x_train, y_train, x_test, y_test, got str"),
    ],
)
def test_data_of_ones_own_that_do_not_fit(method, change, message):
    spec = SearchSpec(method=method, density=0.3, net="mine", recipe="p4/lenet", steps=4)
    with pytest.raises(ArgumentError, match=message):
        find_ticket(spec, build=conv, data=change(images()))


def test_data_of_ones_own():
    """A plain tuple will do; a class without examples stops only those who ask for some of each."""
    data = images()
    fields = {"density": 0.3, "net": "mine", "recipe": "p4/lenet", "steps": 4}
    found = find_ticket(SearchSpec(method="imp", **fields), build=conv, data=tuple(data))
    assert found.digest() == find_ticket(SearchSpec(method="imp", **fields), build=conv, data=data).digest()
    lacking = data._replace(y_train=torch.where(data.y_train == 3, 4, data.y_train))
    for method in ("synflow", "magnitude", "random"):
        ticket = prune_ticket(SearchSpec(method=method, **fields), build=conv, data=lacking)
        whole = prune_ticket(SearchSpec(method=method, **fields), build=conv, data=data)
        assert all(torch.equal(ticket.masks[name], mask) for name, mask in whole.masks.items())
    with pytest.raises(ArgumentError, match="class 3 has 0 training examples, samples asks for 10"):
        prune_ticket(SearchSpec(method="snip", **fields), build=conv, data=lacking)
    with pytest.raises(ArgumentError, match="validation goes with data="):
        find_ticket(SearchSpec(method="imp", density=0.3, **DIGITS), validation=(data.x_test, data.y_test))


@pytest.mark.parametrize("method", ["imp", "snip", "gem-miner"])
def test_searches_neither_read_nor_move_torchs_generator(method):
    """Neither does a loader that shuffles, nor a module that initialises itself as torch does."""
    data = images()
    loaders = Loaders(
        DataLoader(TensorDataset(data.x_train, data.y_train), 20, shuffle=True),
        DataLoader(TensorDataset(data.x_test, data.y_test), 20, shuffle=True),
    )

    def build(seed):
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))

    more = {"score_epochs": 6} if method == "gem-miner" else {}
    spec = SearchSpec(method=method, density=0.3, net="mine", recipe="p4/lenet", steps=12, **more)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        found.append(find_ticket(spec, build=build, data=loaders))
        assert torch.equal(torch.random.get_rng_state(), before)
    assert found[0].digest() == found[1].digest()
    other = find_ticket(spec.model_copy(update={"seed": 1}), build=build, data=loaders)
    assert not torch.equal(other.snapshots["init"]["0.weight"], found[0].snapshots["init"]["0.weight"])
    assert found[0].check("reinit", seeds=1, build=build, data=loaders).metric == "accuracy"


def test_scaled_init_divides_the_weights_by_the_root_of_the_density():
    spec = SearchSpec(method="edge-popup", density=0.25, scaled_init=True, score_epochs=1, **DIGITS)
    one = resolve({"": spec})[""]
    plain = resolve({"": spec.model_copy(update={"scaled_init": False})})[""]
    for name, tensor in one.state.items():
        own = plain.state[name]
        torch.testing.assert_close(tensor, own * 2 if name.endswith("weight") else own)
        assert torch.equal(one.dense_state()[name], own)
    ticket = find_ticket(spec)
    assert ticket.recipe["init_density"] == 0.25
    assert ticket.snapshots["init"]["1.weight"].abs().unique().tolist() == pytest.approx(
        [2 * (2 / 64) ** 0.5]
    )
    again = control(ticket, "reinit", seed=3).snapshots["init"]["1.weight"]
    assert again.abs().unique().tolist() == pytest.approx([2 * (2 / 64) ** 0.5])
    assert "init_density" not in plain.told()
    with pytest.raises(ArgumentError, match="scaled_init is for edge-popup only"):
        SearchSpec(method="gem-miner", density=0.25, scaled_init=True)
    with pytest.raises(ArgumentError, match="build says itself how it scales"):
        find_ticket(spec.model_copy(update={"net": "mine", "recipe": "p4/lenet"}), build=conv, data=images())


@pytest.mark.parametrize("validation", [None, 0, 100])
def test_data_are_loaded_once(monkeypatch, validation):
    calls = []

    def load(name, **options):
        calls.append(name)
        return lk.data.load(name, **options)

    monkeypatch.setattr("lotterykit.experiments.named.load", load)
    spec = SearchSpec(method="imp", density=0.2, **(DIGITS | {"validation": validation}))
    setup = resolve({"a": spec, "b": spec.model_copy(update={"seed": 1})})["a"].setup
    assert calls == ["digits"]
    examples = len(lk.data.load("digits").split[0])
    held = examples // 6 if validation is None else validation
    assert len(setup.data.x_train) == examples - held
    assert (setup.validation is None) == (held == 0)


def test_toml(tmp_path):
    path = tmp_path / "search.toml"
    path.write_text('method = "imp"\ndensity = 0.1\nrewind = "2ep"\n')
    assert load_search(path, seed=3) == SearchSpec(method="imp", density=0.1, rewind="2ep", seed=3)
    for text, message in (
        ("density = 0.1", "search.toml: method is missing"),
        ('method = "imp"\ndensity = 2.0', "search.toml: density is kept"),
        ('method = "imp"\ndensty = 0.1', "unknown key 'densty'; did you mean 'density'"),
        ("method = ", "not valid TOML"),
    ):
        path.write_text(text)
        with pytest.raises(ArgumentError, match=message):
            load_search(path)
    with pytest.raises(ArgumentError, match="No such file"):
        load_search(tmp_path / "none.toml")
