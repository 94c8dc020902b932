"""The reduced form of `make sanitize`: ops that share their work among threads, without Python or torch."""

from __future__ import annotations

import random
import subprocess
import sys

import fenced
import pytest
import sanitize
import torch

pytest.importorskip("setuptools")


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """The C++ driver with sanitizers, built without optimisation: that halves the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sanitize, "FOLDER", tmp_path_factory.mktemp("sanitize"))
        try:
            cxx = sanitize.setup_functions()["find_cxx"]()
        except Exception as why:
            pytest.skip(str(why))
        if (why := sanitize.unsupported(cxx, (*sanitize.ADDRESS, "-fopenmp"))) is not None:
            pytest.skip(why)
        yield sanitize.build_driver(cxx, sanitize.ADDRESS, "fuzz", "-O0")


def test_random_calls_give_the_sanitizers_nothing_to_report(driver, capfd):
    seed = random.randrange(2**31)
    found = sanitize.reports([str(driver), "60", str(seed)], {})
    out = capfd.readouterr().out
    assert found == 0, f"seed {seed}\n{out}"
    assert "60 cases" in out


def test_a_report_and_a_crash_are_counted(capfd):
    say = "import sys; print('x.cpp:1:2: runtime error: division by zero'); sys.exit(0)"
    assert sanitize.reports([sys.executable, "-c", say], {}) == 1
    assert sanitize.reports([sys.executable, "-c", "import os; os.abort()"], {}) == 1
    assert sanitize.reports([sys.executable, "-c", "print('ok')"], {}) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="closed pages are tried on Linux")
@pytest.mark.parametrize("seed", [0, 3])  # one at the end of its memory, one at the beginning
def test_a_fenced_tensor_holds_the_same_and_ends_the_process_past_its_end(seed):
    x = torch.randn(3, 5)
    assert torch.equal(fenced.fenced(x, random.Random(seed)), x)
    code = (
        f"import sys, random, ctypes; sys.path.insert(0, {str(sanitize.ROOT / 'tests' / 'native')!r})\n"
        "import torch, fenced\n"
        f"x = fenced.fenced(torch.ones(15), random.Random({seed}))\n"
        "near = x.data_ptr() % 4096 and x.data_ptr() + 60 or x.data_ptr() - 1\n"
        "print('there', flush=True); ctypes.string_at(near, 1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("there\n", -11), done.stderr
