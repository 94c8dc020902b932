import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from written import binary, examples, idx, images_and_labels

import lotterykit as lk
from lotterykit.data.cifar import CIFAR10, CIFAR100
from lotterykit.data.images import DATASETS, channel_statistics, find, load
from lotterykit.errors import ArgumentError, LotterykitError


def write_mnist(folder: Path, train=40, test=12, seed=0) -> Path:
    folder.mkdir(parents=True)
    for half, count in (("train", train), ("t10k", test)):
        x, y = images_and_labels(count, seed)
        (folder / f"{half}-images-idx3-ubyte").write_bytes(idx(x))
        (folder / f"{half}-labels-idx1-ubyte").write_bytes(idx(y))
    return folder


def test_real_fashion_mnist_standardised(fashion_mnist):
    data = load("fashion-mnist", fashion_mnist, validation=5000, flatten=True)
    x, y, x_test, y_test = data.split
    assert [list(t.shape) for t in (x, y, x_test, y_test)] == [
        [55_000, 784],
        [55_000],
        [10_000, 784],
        [10_000],
    ]
    assert x.dtype == torch.float32
    assert float(x.double().mean()) == pytest.approx(0, abs=1e-6)
    assert float(x.double().std(correction=0)) == pytest.approx(1, abs=1e-6)
    held_x, held_y = data.validation
    assert (y.bincount() + held_y.bincount()).tolist() == [6_000] * 10
    assert float(x_test.double().mean()) == pytest.approx(0.0, abs=0.01)
    assert float(held_x.min()) == float(x.min()) == pytest.approx(float(data.black))
    assert data.folder == fashion_mnist
    assert data.classes == 10


def test_published_statistics_of_fashion_mnist(fashion_mnist):
    data = load("fashion-mnist", fashion_mnist, pixels="raw")
    assert data.mean == pytest.approx((0.2860405969887955,), abs=1e-12)
    assert data.std == pytest.approx((0.35302424451492237,), abs=1e-9)
    assert data.validation is None
    assert data.split[0].dtype == torch.uint8


def test_digits():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    data = load("digits", pixels="unit", validation=100)
    x, y, x_test, y_test = data.split
    assert (len(x), len(data.validation[0]), len(x_test)) == (1342, 100, 355)
    assert x.shape[1:] == (1, 8, 8)
    assert float(x.min()) == 0
    assert float(x.max()) == 1
    counts = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # as scikit-learn documents them
    assert sum(t.bincount() for t in (y, data.validation[1], y_test)).tolist() == counts
    assert y_test.bincount().tolist() == [count // 5 for count in counts]


def test_what_is_loaded_trains_as_it_is():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    data = lk.data.load("digits", validation=200, flatten=True)
    model = torch.nn.Linear(64, 10)
    recipe = lk.Recipe("cross_entropy", epochs=5, lr=1e-2)
    result = lk.train(model, data.split, recipe, validation=data.validation)
    assert result.metrics["accuracy"] > 0.9
    assert len(result.validation) == 5


def test_missing_packages_name_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(LotterykitError, match=r"pip install 'lotterykit\[data\]'"):
        load("digits")
    monkeypatch.setitem(sys.modules, "PIL", None)
    for folder in ("train/n01/images", "val/images"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "train/n01/images/a.JPEG").write_bytes(b"")
    (tmp_path / "val/val_annotations.txt").write_text("a.JPEG\tn01\n")
    with pytest.raises(LotterykitError, match=r"pip install 'lotterykit\[data\]'"):
        load("tiny-imagenet", tmp_path)


def test_optional_packages_are_loaded_late():
    code = "import sys, lotterykit.data; print([m for m in ('sklearn', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_order_of_the_search(nowhere, tmp_path, monkeypatch):
    debian = write_mnist(tmp_path / "debian" / "fashion-mnist", train=11)
    assert find("fashion-mnist") == debian
    environment = tmp_path / "environment"
    monkeypatch.setenv("LOTTERYKIT_DATA", str(environment))
    assert find("fashion-mnist") == debian, "a folder that is not there is passed by"
    plain = write_mnist(environment / "fashion-mnist", train=12)
    assert find("fashion-mnist") == plain
    torchvision = write_mnist(environment / "FashionMNIST" / "raw", train=13)
    assert find("fashion-mnist") == torchvision
    assert find("fashion-mnist", nowhere) == torchvision
    given = write_mnist(nowhere / "FashionMNIST" / "raw", train=14)
    assert find("fashion-mnist", nowhere) == given
    assert find("fashion-mnist", str(given)) == given
    assert len(load("fashion-mnist", nowhere).split[0]) == 14
    for file in given.iterdir():
        if "labels" in file.name:
            file.unlink()
    assert find("fashion-mnist", nowhere) == torchvision, "what lacks files is passed by"


def test_one_mnist_is_never_read_for_the_other(nowhere, monkeypatch):
    folder = write_mnist(nowhere / "fashion-mnist")
    for place in (nowhere, folder):
        monkeypatch.setenv("LOTTERYKIT_DATA", str(place))
        with pytest.raises(ArgumentError, match="mnist is in none of"):
            find("mnist")


def test_where_it_looked_and_how_to_get_it(nowhere, tmp_path, monkeypatch):
    broken = write_mnist(nowhere / "mnist")
    (broken / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(ArgumentError) as caught:
        load("mnist", nowhere)
    said = str(caught.value)
    for place in (nowhere, nowhere / "MNIST/raw", tmp_path / "debian/mnist"):
        assert str(place) in said
    assert f"{broken} (lacks t10k-labels-idx1-ubyte)" in said
    assert "LOTTERYKIT_DATA is not set" in said
    assert f"To get it: curl -fL --create-dirs --output-dir {nowhere}/MNIST/raw -O " in said
    assert "\n" not in said
    monkeypatch.setenv("LOTTERYKIT_DATA", "/some where")
    with pytest.raises(ArgumentError, match="'/some where'") as caught:
        load("cifar100")
    assert "is not set" not in str(caught.value)
    assert "/some where/cifar-100-python, /some where/cifar-100-binary" in str(caught.value)


@pytest.mark.parametrize("name", [name for name, row in DATASETS.items() if row.layouts])
def test_every_data_set_says_how_to_get_it(name, nowhere):
    with pytest.raises(ArgumentError, match="To get it: ") as caught:
        load(name)
    assert "{" not in str(caught.value).replace("{train,t10k}-{images-idx3,labels-idx1}", "")
    assert "$LOTTERYKIT_DATA" in str(caught.value)


@pytest.mark.parametrize("layout", ["pickled", "binary"])
@pytest.mark.parametrize(
    ("name", "kind", "folders"),
    [
        ("cifar10", CIFAR10, {"pickled": "cifar-10-batches-py", "binary": "cifar-10-batches-bin"}),
        ("cifar100", CIFAR100, {"pickled": "cifar-100-python", "binary": "cifar-100-binary"}),
    ],
)
def test_cifar_folders(nowhere, name, kind, folders, layout):
    folder = nowhere / folders[layout]
    folder.mkdir()
    halves = {}
    for seed, file in enumerate((*kind.train, kind.test)):
        halves[file] = x, y = examples(6 + seed, kind.classes, seed)
        if layout == "binary":
            (folder / f"{file}.bin").write_bytes(binary(x, y, kind))
        else:
            (folder / file).write_bytes(pickle.dumps({"data": x, kind.labels: y}))
    data = load(name, nowhere, pixels="raw")
    assert data.folder == folder
    x = np.concatenate([halves[file][0] for file in kind.train]).reshape(-1, 3, 32, 32)
    assert (data.split[0].numpy() == x).all()
    assert data.split[1].tolist() == [label for file in kind.train for label in halves[file][1]]
    assert (data.split[2].flatten(1).numpy() == halves[kind.test][0]).all()
    assert data.split[3].tolist() == halves[kind.test][1]
    pixels = x.astype(np.float64) / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), rel=1e-12)
    assert data.std == pytest.approx(pixels.std((0, 2, 3)).tolist(), rel=1e-12)
    standard = load(name, nowhere)
    want = (pixels - np.array(data.mean)[:, None, None]) / np.array(data.std)[:, None, None]
    np.testing.assert_allclose(standard.split[0].numpy(), want, atol=2e-6)
    want = (0 - np.array(data.mean)) / np.array(data.std)
    np.testing.assert_allclose(standard.black.numpy(), want, rtol=1e-6)


def test_validation_is_seeded_disjoint_and_leaves_the_order(nowhere):
    root = write_mnist(nowhere / "mnist", train=40)
    whole = load("mnist", root, pixels="raw").split[0].flatten(1).tolist()
    state = torch.get_rng_state()
    a, b, c = (load("mnist", root, pixels="raw", validation=15, seed=s, flatten=True) for s in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(a.validation[0], b.validation[0])
    assert not torch.equal(a.validation[0], c.validation[0])
    train, held = a.split[0].tolist(), a.validation[0].tolist()
    assert (len(train), len(held)) == (25, 15)
    assert sorted(train + held) == sorted(whole)
    assert [row for row in whole if row in train] == train
    labels = dict(zip(map(tuple, whole), load("mnist", root).split[1].tolist(), strict=True))
    assert [labels[tuple(row)] for row in held] == a.validation[1].tolist()
    assert [labels[tuple(row)] for row in train] == a.split[1].tolist()


def test_statistics_are_of_what_is_trained_on(nowhere):
    root = write_mnist(nowhere / "mnist", train=40)
    for pixels in ("standard", "unit", "raw"):
        data = load("mnist", root, pixels=pixels, validation=20)
        raw = load("mnist", root, pixels="raw", validation=20)
        assert data.mean == pytest.approx((raw.split[0].double().mean().item() / 255,), rel=1e-12)
        assert data.mean == raw.mean
    unit = load("mnist", root, pixels="unit")
    torch.testing.assert_close(unit.split[2] * 255, load("mnist", root, pixels="raw").split[2].float())


def test_a_channel_without_contrast_is_not_divided_by_zero():
    x = torch.tensor([[[[9]], [[0]]], [[[9]], [[255]]]], dtype=torch.uint8)
    assert channel_statistics(x, 255) == (pytest.approx((9 / 255, 0.5)), (1.0, 0.5))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": "fashon-mnist"}, "unknown data set 'fashon-mnist'; did you mean 'fashion-mnist'"),
        ({"name": ["mnist"]}, "unknown data set"),
        ({"root": "absent"}, "absent: no such folder, to look for mnist in"),
        ({"root": 3}, "root must be None or a path, got 3"),
        ({"validation": -1}, "validation must be an int of at least 0, got -1"),
        ({"validation": lambda examples: -examples}, "validation must be an int of at least 0, got -"),
        ({"validation": 0.1}, "validation must be an int"),
        ({"validation": True}, "validation must be an int"),
        ({"validation": 40}, "must leave some of the 40 training examples, got 40"),
        ({"seed": -1}, "seed must be"),
        ({"pixels": "standardised"}, "did you mean 'standard'"),
    ],
)
def test_bad_arguments(nowhere, arguments, says):
    write_mnist(nowhere / "mnist", train=40)
    with pytest.raises(ArgumentError, match=says):
        load(**{"name": "mnist", "root": nowhere} | arguments)
