"""Native code under sanitizers: builds and runs what `make sanitize` promises, under build/sanitize.

    python tests/native/sanitize.py [--cases N] [--seed N]

1. AddressSanitizer and UndefinedBehaviorSanitizer over all of lotterykit._cpu, called by fuzz.py;
2. the same over csrc/cuda on the emulator (cuda_emulator.h), called by emulated_fuzz.py;
3. the same over fuzz.cpp, without Python: leaks count as well there;
4. ThreadSanitizer over fuzz.cpp, where clang is: it has an OpenMP runtime that TSan understands, gcc has not.

Exits with 1 where one of them has something to report.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import emulated

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "sanitize"
ADDRESS = ("-fsanitize=address,undefined,float-cast-overflow", "-fno-omit-frame-pointer", "-g1")
THREAD = ("-fsanitize=thread", "-g1")
# What fuzz.cpp calls: the ops that share their work among threads.
SOURCES = ("runtime", "tiles", "spmm", "sddmm", "topk_*", "conv2d*")
REPORT = re.compile(r"ERROR: \w+Sanitizer|WARNING: \w+Sanitizer|runtime error:|DEADLYSIGNAL")
OPTIONS = {
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "ignore_noninstrumented_modules=1",  # the OpenMP runtime itself
    "OMP_WAIT_POLICY": "passive",
}


def setup_functions() -> dict[str, Any]:
    """What setup.py defines: how compilers are found, and the build file of the modules."""
    with mock.patch("setuptools.setup"):
        return runpy.run_path(str(ROOT / "setup.py"))


def unsupported(cxx: list[str], flags: tuple[str, ...]) -> str | None:
    """Why `cxx` cannot build and run programs with `flags`, or None where it can."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    probe = FOLDER / "probe.cpp"
    probe.write_text("#include <cmath>\nint main() { return std::isnan(1.0); }\n")
    words = [*cxx, "-std=c++17", *flags, str(probe), "-o", str(probe.with_suffix(""))]
    for command in (words, [str(probe.with_suffix(""))]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return f"{cxx[0]} {flags[0]}: {(done.stderr.strip().splitlines() or ['it fails'])[-1]}"
    return None


def build_driver(cxx: list[str], flags: tuple[str, ...], name: str, optimisation: str = "-O1") -> Path:
    """fuzz.cpp with the ops it calls, as build/sanitize/`name`."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    sources = [path for pattern in SOURCES for path in sorted((ROOT / "csrc" / "cpu").glob(f"{pattern}.cpp"))]
    sources.append(ROOT / "tests" / "native" / "fuzz.cpp")
    words = [
        *cxx,
        "-std=c++17",
        optimisation,
        "-fopenmp",
        *flags,
        *map(str, sources),
        "-o",
        str(FOLDER / name),
    ]
    subprocess.run(words, check=True)
    return FOLDER / name


def build_module(setup: dict[str, Any]) -> Path:
    """lotterykit._cpu with ADDRESS, apart from the one that is installed."""
    environment = {"LOTTERYKIT_NO_CUDA": "1", "CXXFLAGS": " ".join(["-O1", *ADDRESS]), "LDFLAGS": ADDRESS[0]}
    library = FOLDER / "_cpu.so"
    with mock.patch.dict(os.environ, environment):
        tools = setup["find_tools"]()
        if "cpu" in tools.why:
            raise SystemExit(f"lotterykit._cpu cannot be built: {tools.why['cpu']}")
        (FOLDER / "build.ninja").write_text(setup["build_file"](tools, FOLDER, {"cpu": library}))
    jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
    subprocess.run([*tools.ninja, "-C", str(FOLDER), "--quiet", *jobs], check=True)
    return library


def reports(command: list[str], environment: Mapping[str, str]) -> int:
    """How often the sanitizers spoke up in a run, whose output is shown; a run that failed counts as one."""
    process = subprocess.Popen(
        command,
        env={**os.environ, **OPTIONS, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    found = 0
    assert process.stdout is not None
    for line in process.stdout:
        print("  " + line, end="", flush=True)
        found += bool(REPORT.search(line))
    return max(found, int(process.wait() != 0))


def preloaded(cxx: list[str]) -> str:
    """The sanitizers' runtimes, which Python must load before all else."""
    found = []
    for name in ("libasan.so", "libubsan.so"):
        path = subprocess.run(
            [*cxx, f"-print-file-name={name}"], capture_output=True, text=True
        ).stdout.strip()
        if not Path(path).is_absolute():
            raise SystemExit(
                f"{cxx[0]} has no {name}, which Python would have to load first: use gcc (CXX=g++)"
            )
        found.append(path)
    return " ".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="of each op")
    parser.add_argument("--seed", type=int, default=secrets.randbits(31))
    given = parser.parse_args()
    setup, count, seed = setup_functions(), str(given.cases), str(given.seed)
    cxx, found = setup["find_cxx"](), 0
    if (why := unsupported(cxx, ADDRESS)) is not None:
        raise SystemExit(f"AddressSanitizer: not run: {why}")

    print(f"AddressSanitizer, UndefinedBehaviorSanitizer: lotterykit._cpu, seed {seed}", flush=True)
    fuzz = [sys.executable, str(ROOT / "tests" / "native" / "fuzz.py"), str(build_module(setup))]
    runtimes = {"LD_PRELOAD": preloaded(cxx), "ASAN_OPTIONS": "detect_leaks=0"}  # Python itself leaks
    found += reports([*fuzz, "--cases", count, "--seed", seed], runtimes)

    print("AddressSanitizer, UndefinedBehaviorSanitizer: csrc/cuda on the emulator", flush=True)
    library = emulated.build(FOLDER / "emulated", cxx, setup["find_pybind11"](), emulated.ADDRESS)
    fuzz = [sys.executable, str(ROOT / "tests" / "native" / "emulated_fuzz.py"), str(library)]
    found += reports([*fuzz, "--cases", count, "--seed", seed], runtimes)

    print("AddressSanitizer, UndefinedBehaviorSanitizer, LeakSanitizer: fuzz.cpp", flush=True)
    found += reports([str(build_driver(cxx, ADDRESS, "fuzz-address")), count, seed], {})

    clang = shutil.which("clang++")
    why = "no clang" if clang is None else unsupported([clang], ("-fsanitize=thread", "-fopenmp"))
    if clang is None or why is not None:
        print(f"ThreadSanitizer: not run: {why}", flush=True)
    else:
        print("ThreadSanitizer: fuzz.cpp", flush=True)
        found += reports([str(build_driver([clang], THREAD, "fuzz-thread")), count, seed], {})
    print(f"reports = {found}")
    sys.exit(found > 0)


if __name__ == "__main__":
    main()
