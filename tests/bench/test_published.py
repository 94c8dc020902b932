"""The published peers where they are absent, broken or here: never needed, always with a reason."""

import sys
import types

import pytest

from lotterykit.bench import published
from lotterykit.bench.kernels import entries_of, measure
from lotterykit.bench.setting import Setting

SETTING = Setting("linear", (16, 13, 7), 0.4, "forward+backward")
CHECKS = {"sparseprop": published.sparseprop_missing, "sparselab": published.sparselab_missing}


@pytest.fixture(autouse=True)
def fresh():
    yield
    published.missing.cache_clear()


@pytest.mark.parametrize("name", CHECKS)
def test_an_absent_library_says_how_to_get_it(name, monkeypatch):
    monkeypatch.setattr(published.importlib.util, "find_spec", lambda name: None)
    published.missing.cache_clear()
    assert CHECKS[name]() == f"not installed: pip install {name}"
    row = measure(SETTING, entries_of("linear", [name]), repeats=1)
    assert row["refused"][name] == f"not installed: pip install {name}"


@pytest.mark.parametrize("name", CHECKS)
def test_a_library_that_does_not_load_says_why(name, monkeypatch):
    monkeypatch.setattr(published.importlib.util, "find_spec", lambda name: types.ModuleType(name))

    def broken(name):
        raise ImportError("undefined symbol:\n _ZN3c10")

    monkeypatch.setattr(published.importlib, "import_module", broken)
    published.missing.cache_clear()
    assert CHECKS[name]() == "does not load: ImportError: undefined symbol: _ZN3c10"


def test_what_they_cannot_do_is_known_beforehand(monkeypatch):
    monkeypatch.delitem(sys.modules, "sparselab", raising=False)
    wide = Setting("linear", (1, 5000, 5000), 1.0, "forward")
    half = Setting("linear", (1, 5, 5), 1.0, "forward", dtype="float64")
    gpu = Setting("linear", (1, 5, 5), 1.0, "forward", device="cuda")
    assert published.sparseprop_refuses(wide) == "rounds offsets above 16777216 kept weights"
    odd = Setting("conv", (12, 3, 8, 4), 0.5, "forward")
    assert published.sparseprop_images_refuses(odd) == "takes batches of multiples of 8, got 12"
    assert published.sparseprop_images_refuses(wide) == published.sparseprop_refuses(wide)
    for refuses in (published.sparseprop_refuses, published.sparselab_refuses):
        assert refuses(half) == "computes in float32 alone, got float64"
        assert refuses(gpu) == "runs on the CPU alone, got cuda"
        assert refuses(SETTING) is None


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("density", [1.0, 0.4, 1e-6])
@pytest.mark.parametrize("work", ["forward", "forward+backward"])
def test_where_it_is_installed_it_is_right(name, density, work):
    if (reason := CHECKS[name]()) is not None:
        pytest.skip(reason)
    setting = Setting("linear", (17, 13, 7), density, work)
    row = measure(setting, entries_of("linear", [name]), repeats=1)
    assert name in row["us"], row["refused"]
