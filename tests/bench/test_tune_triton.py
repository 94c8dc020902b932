"""The autotuner without a GPU: what it chooses by a pretended timer, and the table that it writes."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tune_triton.py"
CONFIGS = Path(__file__).parents[2] / "kernels" / "configs.py"


def loaded(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tuner():
    return loaded(SCRIPT)


@pytest.fixture
def table():
    return loaded(CONFIGS)


def test_the_fastest_candidate_wins_and_a_small_gain_changes_nothing(tuner, table):
    configs = table.CONFIGS
    wide, narrow = ("masked_linear", "half", "wide"), ("masked_linear", "half", "narrow")
    untouched = dict(configs)

    def timer(key):
        config = configs.get((*key, 90)) or configs[(*key, 0)]
        if config.stages == 4:
            return None  # asks for more shared memory than there is
        if key == narrow:
            return 99.0 if (*key, 90) in configs else 100.0
        return 10.0 if (config.i, config.j, config.r) == (64, 256, 32) and config.stages == 3 else 20.0

    tuner.tune(configs, table.Config, [wide, narrow], 90, timer)
    assert configs.pop((*wide, 90)) == table.Config(64, 256, 32, 8, 3)
    assert configs.pop((*narrow, 90)) is not None  # the present one cannot run: whatever can is better
    assert configs == untouched

    def even(key):
        return 99.0 if (*key, 90) in configs else 100.0

    tuner.tune(configs, table.Config, [wide], 90, even)
    assert configs == untouched


def test_the_table_is_written_as_it_is_read(tuner, table, tmp_path):
    text = CONFIGS.read_text()
    assert tuner.written(text, table.CONFIGS) == text
    table.CONFIGS["kept_product", "tf32", "wide", 90] = table.Config(128, 256, 32, 8, 4)
    path = tmp_path / "configs.py"
    path.write_text(tuner.written(text, table.CONFIGS))
    again = loaded(path)
    assert again.CONFIGS == table.CONFIGS
    assert again.Config.__doc__ == table.Config.__doc__
    subprocess.run([sys.executable, "-m", "ruff", "format", "--check", "--line-length=110", path], check=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_says_in_one_line_that_there_is_no_gpu():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len((done.stderr + done.stdout).splitlines()) == 1
