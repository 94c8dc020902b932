"""One build serves every processor of its kind: no machine flags, and code that runs on the least of them."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import sanitize

pytest.importorskip("setuptools")

CPU_SOURCES = sorted((sanitize.ROOT / "csrc" / "cpu").glob("*.cpp"))
AARCH64 = "aarch64-linux-gnu-g++"


def need(*tools: str) -> None:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"missing: {', '.join(missing)}")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(sanitize, "FOLDER", tmp_path)
    return tmp_path


def test_no_file_is_compiled_for_the_machine_that_builds(tmp_path):
    setup = sanitize.setup_functions()
    tools = setup["Tools"](cxx=["c++"], openmp=["-fopenmp"], ninja=["ninja"], includes=["include"])
    text = setup["build_file"](tools, tmp_path, {"cpu": tmp_path / "_cpu.so"})
    words = shlex.split(text.replace("$", ""))
    assert "-fopenmp" in words
    assert [word for word in words if word.startswith(("-march", "-mcpu", "-mtune", "-mavx"))] == []


def run_emulated(emulator: list[str], driver: Path) -> None:
    """Random calls of the ops in an emulated processor, which ends the process at an instruction it lacks."""
    done = subprocess.run([*emulator, driver, "40", "1"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "40 cases of 6 ops, instruction sets up to 0" in done.stdout


def test_an_x86_64_processor_without_avx_runs_the_plain_code(folder):
    need("g++", "qemu-x86_64-static")
    driver = sanitize.build_driver(["g++"], ("-static",), "fuzz")
    run_emulated(["qemu-x86_64-static", "-cpu", "Nehalem"], driver)


def test_an_aarch64_processor_runs_the_plain_code(folder):
    need(AARCH64, "qemu-aarch64-static")
    run_emulated(["qemu-aarch64-static"], sanitize.build_driver([AARCH64], ("-static",), "fuzz"))


@pytest.mark.parametrize("source", CPU_SOURCES, ids=lambda path: path.stem)
def test_every_source_compiles_for_aarch64(source):
    need(AARCH64)
    words = [AARCH64, "-std=c++17", "-fopenmp", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", str(source)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
