"""lotterykit._cuda for a machine without a GPU: csrc/cuda compiled by a C++ compiler against cuda_emulator.h.

`build` makes the module, `installed` puts it in the place of the real one and lets the "cuda" rows of ROUTES
serve tensors on the CPU, so that validation, dispatch, autograd, bindings, launchers and kernels all run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import importlib.util
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "tests" / "native"
# What csrc/cuda includes of the toolkit.
HEADERS = ("cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h", "cuda_pipeline_primitives.h")
# nvcc knows no strict aliasing, and g++ no `#pragma unroll`.
FLAGS = ("-std=c++17", "-fPIC", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-fno-strict-aliasing")
# Static shared memory as variables that AddressSanitizer can watch.
ADDRESS = ("-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g1", "-DLOTTERYKIT_EMULATED_STATIC")


def write_headers(folder: Path) -> None:
    """The toolkit's headers, all of them the emulator, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for header in HEADERS:
        (folder / header).write_text(f'#pragma once\n#include "{NATIVE / "cuda_emulator.h"}"\n')


def build_cases(folder: Path, cxx: Sequence[str], flags: Sequence[str] = ("-O1",)) -> Path:
    """emulator_cases.cpp as a program in `folder`."""
    write_headers(folder)
    sources = [str(NATIVE / name) for name in ("cuda_emulator.cpp", "emulator_cases.cpp")]
    program = folder / "emulator_cases"
    subprocess.run([*cxx, *FLAGS, *flags, f"-I{folder}", *sources, "-o", str(program)], check=True)
    return program


def build(folder: Path, cxx: Sequence[str], pybind11: str, flags: Sequence[str] = ("-O1",)) -> Path:
    """The kernels as libemulated_cuda.so, and the real bindings on them as _cuda.so, in `folder`."""
    write_headers(folder)
    common = [*cxx, *FLAGS, *flags]
    objects, running = [], []
    for source in (NATIVE / "cuda_emulator.cpp", *sorted((ROOT / "csrc" / "cuda").glob("*.c*"))):
        objects.append(str(folder / f"{source.name}.o"))
        words = [*common, f"-I{folder}", "-x", "c++", "-c", str(source), "-o", objects[-1]]
        running.append(subprocess.Popen(words, stderr=subprocess.PIPE, text=True))
    for process in running:
        _, errors = process.communicate()
        if process.returncode:
            raise RuntimeError(errors)
    library = folder / "libemulated_cuda.so"
    words = [*cxx, *flags, "-shared", *objects, "-o", str(library)]
    subprocess.run(words, check=True)
    includes = [f"-isystem{path}" for path in (pybind11, sysconfig.get_path("include"))]
    words = [*common, "-O0", "-fvisibility=hidden", '-DLOTTERYKIT_CUDA_CODE="emulated"', *includes, "-shared"]
    words += [str(ROOT / "csrc" / "bindings_cuda.cpp"), str(library), f"-Wl,-rpath,{folder}"]
    subprocess.run([*words, "-o", str(folder / "_cuda.so")], check=True)
    return folder / "_cuda.so"


def build_once(root: Path, cxx: Sequence[str], pybind11: str) -> Path:
    """`build` in a folder of `root` that all processes of a test run share: the first one builds."""
    with open(root / "emulated.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        module = root / "emulated" / "_cuda.so"
        return module if module.exists() else build(root / "emulated", cxx, pybind11)


def run_folder(factory: Any) -> Path:
    """The temporary folder of a whole test run, from pytest's `tmp_path_factory`; under pytest-xdist each
    worker's own lies in it."""
    own = Path(factory.getbasetemp())
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def load(path: Path) -> ModuleType:
    # Under a name of its own: pybind11 hands out the real module again for a second one of the same name.
    spec = importlib.util.spec_from_file_location("emulated._cuda", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def installed(module: ModuleType) -> Iterator[None]:
    """`module` as lotterykit._cuda, its device the CPU."""
    from lotterykit.ops import dispatch, operands, routes

    missing = dispatch.missing
    rows = tuple(
        dataclasses.replace(row, device="cpu") if row.backend == "cuda" else row for row in routes.ROUTES
    )
    with (
        mock.patch.object(routes, "ROUTES", rows),
        mock.patch.object(dispatch, "missing", lambda name: None if name == "cuda" else missing(name)),
        mock.patch.object(operands, "current_queue", return_value=contextlib.nullcontext((0, 0))),
    ):
        # Not by patch.dict, which would unload what is imported meanwhile.
        before = sys.modules.get("lotterykit._cuda")
        sys.modules["lotterykit._cuda"] = module
        try:
            yield
        finally:
            del sys.modules["lotterykit._cuda"]
            if before is not None:
                sys.modules["lotterykit._cuda"] = before


@contextlib.contextmanager
def order(seed: int | None) -> Iterator[None]:
    """Threads and blocks in a random order drawn by `seed`, or from first to last."""
    with mock.patch.dict(os.environ):
        os.environ.pop("LOTTERYKIT_EMULATED_ORDER", None)
        if seed is not None:
            os.environ["LOTTERYKIT_EMULATED_ORDER"] = str(seed)
        yield
