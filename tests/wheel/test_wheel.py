"""The wheel, built from the source distribution as pip would, and used where the repository is not."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from filelock import FileLock  # comes with torch

import lotterykit

ROOT = Path(__file__).resolve().parents[2]
ABSENT = [name for name in ("build", "ninja", "pybind11", "pip") if importlib.util.find_spec(name) is None]
ABSENT += [] if any(map(shutil.which, ("c++", "g++", "clang++"))) else ["a C++ compiler"]
pytestmark = [
    pytest.mark.skipif(bool(ABSENT), reason=f"missing: {', '.join(ABSENT)}"),
    pytest.mark.skipif(sys.platform != "linux", reason="wheels are built for Linux"),
]
SYSTEM = {
    "libc", "libm", "libpthread", "libdl", "librt", "libgcc_s", "libstdc++", "libgomp",
    "ld-linux-x86-64", "ld-linux-aarch64",
}  # fmt: skip


def outside(**more: str) -> dict[str, str]:
    """This environment without what could lead to the repository."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LOTTERYKIT_", "PYTHON"))}
    return kept | more


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the source distribution and the wheel made of it; one test process builds for all."""
    parallel = "PYTEST_XDIST_WORKER" in os.environ
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if parallel else base) / "wheel"
    with FileLock(f"{folder}.lock"):
        if not any(folder.glob("*.whl")):
            build(folder)
    return folder


def build(folder: Path) -> None:
    """Build both in `folder`, from a copy of what the repository holds."""
    checkout = folder / "checkout"
    shutil.rmtree(folder, ignore_errors=True)
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "_build_report.json", "*.sqlite*")
    for name in ("csrc", "kernels", "lotterykit", "tests"):
        shutil.copytree(ROOT / name, checkout / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "MANIFEST.in"):
        shutil.copy(ROOT / name, checkout)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(checkout)],
        # -O1 halves the time: this is about what is packed; optimised code is tested everywhere else.
        env=os.environ | {"LOTTERYKIT_NO_CUDA": "1", "CXXFLAGS": "-O1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(checkout)


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def library(wheel, tmp_path_factory) -> Path:
    """The native module of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".so")]
        return Path(archive.extract(name, tmp_path_factory.mktemp("library")))


def test_the_source_distribution_is_whole_and_has_no_half_of_the_tests(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        file.relative_to(ROOT).as_posix()
        for folder in ("csrc", "kernels", "lotterykit")
        for file in (ROOT / folder).rglob("*")
        if file.suffix in (".py", ".cpp", ".cu", ".h", ".typed")
    }
    assert wanted | {"setup.py", "pyproject.toml", "LICENSE", "CHANGELOG.md"} <= names
    assert not [name for name in names if name.startswith("tests/")]


def test_the_wheel_holds_every_module_and_nothing_else(wheel):
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (info,) = [name for name in names if name.endswith("/METADATA")]
        lines = archive.read(info).decode().splitlines()
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "lotterykit").rglob("*.py")}
    modules |= {f"lotterykit/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "kernels").glob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert "lotterykit/py.typed" in names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"lotterykit"}
    assert f"Version: {declared['version']}" in lines
    assert f"Requires-Dist: {declared['dependencies'][0]}" in lines  # torch: to run, not to build


def test_native_code_needs_system_libraries_only(library):
    """torch's OpenMP runtime goes by the name of the system's, so libgomp is one; torch itself is none."""
    if shutil.which("readelf") is None:
        pytest.skip("missing: readelf")
    told = subprocess.run(["readelf", "--dynamic", library], capture_output=True, text=True, check=True)
    needed = {name.partition(".so")[0] for name in re.findall(r"\(NEEDED\).*\[(.+)\]", told.stdout)}
    assert "libc" in needed
    assert needed <= SYSTEM
    assert "RUNPATH" not in told.stdout
    assert "RPATH" not in told.stdout


def test_the_wheel_works_outside_the_repository(wheel, tmp_path):
    """In an environment that sees this one's packages, but not its editable install of ours."""
    home = tmp_path / "venv"
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    packages = next((home / "lib").glob("python*")) / "site-packages"
    # The .pth files of a folder that a .pth file names are not read: an editable install stays unseen.
    (packages / "host.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    subprocess.run([*install, "--no-index", str(wheel)], env=outside(), check=True, timeout=300)
    done = subprocess.run(
        [python, ROOT / "tests" / "wheel" / "smoke.py"],
        env=outside(OMP_NUM_THREADS="2"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"from {packages / 'lotterykit'}\n" in done.stdout
    assert "sweep: 4 cells run, 4 reused" in done.stdout


def test_the_version_stands_in_one_place():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert lotterykit.__version__ == declared
    newest = re.search(r"^## \[?(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == declared
    elsewhere = [
        path.relative_to(ROOT).as_posix()
        for folder in ("lotterykit", "kernels", "csrc")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".cpp", ".cu", ".h") and f'"{declared}"' in path.read_text()
    ]
    assert elsewhere == []
