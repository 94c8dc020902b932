"""Builds the native modules with one incremental, parallel ninja build; metadata is in pyproject.toml.

`lotterykit._cpu` (csrc/bindings_cpu.cpp, csrc/cpu) needs a C++17 compiler, `lotterykit._cuda`
(csrc/bindings_cuda.cpp, csrc/cuda) also nvcc. Whatever is missing costs speed, never the install: the
reason goes to `lotterykit/_build_report.json`, which `lotterykit.ops.dispatch.missing` reads.

Environment: CXX, NVCC, CXXFLAGS, LDFLAGS, MAX_JOBS; LOTTERYKIT_NO_NATIVE=1 and LOTTERYKIT_NO_CUDA=1 skip.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# Without pip's build isolation nobody else checks, and an older one refuses pyproject.toml in many words.
if int(setuptools.__version__.split(".")[0]) < 77:
    sys.exit(
        f"lotterykit: building needs setuptools >= 77, found {setuptools.__version__}: "
        "pip install --upgrade setuptools"
    )

ROOT = Path(__file__).resolve().parent
MODULES = {"cpu": "lotterykit._cpu", "cuda": "lotterykit._cuda"}
# One machine code for each generation; the PTX of the newest serves those that come after, which code of an
# architecture with an 'a' never does.
CUDA_ARCHITECTURES = ("80", "90a", "100")
CXXFLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]


class Missing(Exception):
    """Why a module cannot be built here, in one line."""


@dataclass
class Tools:
    """The commands found; `why` holds the reason for each one that was not."""

    cxx: list[str] = field(default_factory=list)
    openmp: list[str] = field(default_factory=list)
    nvcc: list[str] = field(default_factory=list)
    code: list[str] = field(default_factory=list)  # what nvcc makes: "sm_80", ..., and PTX, "compute_100"
    ninja: list[str] = field(default_factory=list)
    includes: list[str] = field(default_factory=list)
    why: dict[str, str] = field(default_factory=dict)


def run(command: list[str], **kwargs: object) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, errors="replace", **kwargs)


def last_line(text: str) -> str:
    """The first line that speaks of an error, else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "no message")[
        :300
    ]


def flags_of(name: str) -> list[str]:
    return shlex.split(os.environ.get(name, ""))


def compiles(command: list[str], source: str) -> str | None:
    """None where `command` compiles and links `source` into a shared library, else why not."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "probe.cpp")
        path.write_text(source)
        shared = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
        try:
            done = run([*command, "-shared", "-fPIC", *shared, str(path), "-o", str(path.with_suffix(".so"))])
        except OSError as error:
            return str(error)
        return None if done.returncode == 0 else last_line(done.stderr)


def find_cxx() -> list[str]:
    if chosen := flags_of("CXX"):
        candidates = [chosen]
    else:
        candidates = [[path] for name in ("c++", "g++", "clang++") if (path := shutil.which(name))]
    if not candidates:
        raise Missing("no C++ compiler was found (c++, g++, clang++ or CXX) when lotterykit was installed")
    probe = "#include <optional>\nstd::optional<int> probe() { return 1; }\n"
    why = ""
    for command in candidates:
        failure = compiles([*command, "-std=c++17"], probe)
        if failure is None:
            return command
        why = why or f"{shlex.join(command)} does not compile C++17: {failure}"
    raise Missing(why)


def find_openmp(cxx: list[str]) -> list[str]:
    """The OpenMP flags, or none (a compiler without OpenMP builds single-threaded code).

    torch ships its own runtime under the soname libgomp.so.1, and lotterykit.ops imports torch before
    lotterykit._cpu. The loader resolves our dependency of the same soname to the one already loaded, so
    the process has a single OpenMP runtime and a single thread pool: no rpath, no static libgomp here.
    """
    probe = "#include <omp.h>\nint probe() { return omp_get_max_threads(); }\n"
    return ["-fopenmp"] if compiles([*cxx, "-std=c++17", "-fopenmp"], probe) is None else []


def find_pybind11() -> str:
    with contextlib.suppress(ImportError):
        import pybind11

        return pybind11.get_include()
    spec = importlib.util.find_spec("torch")  # torch ships the headers; found without importing torch
    if spec and spec.origin:
        include = Path(spec.origin).parent / "include"
        if (include / "pybind11").is_dir():
            return str(include)
    raise Missing("pybind11 is not installed in the build environment")


def find_ninja() -> list[str]:
    with contextlib.suppress(ImportError):
        import ninja

        path = Path(ninja.BIN_DIR, "ninja")
        if path.exists():
            return [str(path)]
    if path := shutil.which("ninja"):
        return [path]
    raise Missing("ninja is not installed in the build environment")


def find_nvcc() -> tuple[list[str], list[str]]:
    """nvcc, and the code that it is to make for those architectures that it knows."""
    if os.environ.get("LOTTERYKIT_NO_CUDA") == "1":
        raise Missing("LOTTERYKIT_NO_CUDA=1 was set when lotterykit was installed")
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    nvcc = flags_of("NVCC") or [shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin") or ""]
    if not nvcc[0]:
        raise Missing("nvcc was not found when lotterykit was installed")
    try:
        listed = run([*nvcc, "--list-gpu-code"])
    except OSError as error:
        raise Missing(f"nvcc does not run: {error}") from error
    if listed.returncode:
        raise Missing(f"nvcc does not run: {last_line(listed.stderr or listed.stdout)}")
    known = [arch for arch in CUDA_ARCHITECTURES if f"sm_{arch.rstrip('a')}" in listed.stdout.split()]
    if not known:
        raise Missing(f"nvcc knows none of sm_{', sm_'.join(CUDA_ARCHITECTURES)}")
    return nvcc, [*(f"sm_{arch}" for arch in known), f"compute_{known[-1].rstrip('a')}"]


def find_tools() -> Tools:
    tools = Tools()
    if os.environ.get("LOTTERYKIT_NO_NATIVE") == "1":
        why = "LOTTERYKIT_NO_NATIVE=1 was set when lotterykit was installed"
        tools.why = {"cpu": why, "cuda": why}
        return tools
    try:
        tools.cxx = find_cxx()
        tools.openmp = find_openmp(tools.cxx)
        tools.includes = [sysconfig.get_path("include"), find_pybind11()]
        tools.ninja = find_ninja()
    except Missing as why:
        tools.why = {"cpu": str(why), "cuda": str(why)}
        return tools
    try:
        tools.nvcc, tools.code = find_nvcc()
    except Missing as why:
        tools.why["cuda"] = str(why)
    return tools


def quoted(words: list[str]) -> str:
    return shlex.join(words).replace("$", "$$")


def escaped(path: Path | str) -> str:
    """A path as ninja reads it."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def build_file(tools: Tools, folder: Path, targets: dict[str, Path]) -> str:
    """The text of build.ninja: every object with its depfile, one shared library for each module."""
    cxx = [*tools.cxx, *CXXFLAGS, *tools.openmp, *flags_of("CXXFLAGS")]
    includes = [f"-isystem{path}" for path in tools.includes]
    shared = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
    link = [*tools.cxx, *shared, *tools.openmp, *flags_of("LDFLAGS")]
    nvcc = [
        *tools.nvcc,
        "-ccbin",
        next((w for w in tools.cxx if "cache" not in w), "c++"),
        "-std=c++17",
        "-O3",
        *(f"-gencode=arch={made.replace('sm', 'compute')},code={made}" for made in tools.code),
    ]
    nvcc += ["--threads", "0", "-Xptxas", "-v", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
    code = f'-DLOTTERYKIT_CUDA_CODE="{",".join(tools.code)}"'
    rules = {
        "cxx": f"{quoted(cxx)} -MMD -MF $out.d -c $in -o $out",
        "binding": f"{quoted([*cxx, *includes])} -MMD -MF $out.d -c $in -o $out",
        "link": f"{quoted(link)} $in -o $out",
        "nvcc": f"{quoted(nvcc)} -MD -MF $out.d -c $in -o $out",
        "cudabinding": f"{quoted([*cxx, *includes, code])} -MMD -MF $out.d -c $in -o $out",
        "cudalink": f"{quoted(link)} $in -o $out {quoted(cudart(tools)) if tools.nvcc else ''}",
    }
    text = ["ninja_required_version = 1.5"]
    for name, command in rules.items():
        text += [f"rule {name}", f"  command = {command}"]
        text += ["  depfile = $out.d", "  deps = gcc"] if "$out.d" in command else []
    for kind, target in targets.items():
        cuda = "cuda" if kind == "cuda" else ""
        sources = {ROOT / "csrc" / f"bindings_{kind}.cpp": f"{cuda}binding"}
        sources |= dict.fromkeys(sorted((ROOT / "csrc" / kind).glob("*.cpp")), "cxx")
        sources |= dict.fromkeys(sorted((ROOT / "csrc" / kind).glob("*.cu")), "nvcc")
        objects = []
        for source, rule in sources.items():
            objects.append(escaped(folder / f"{kind}_{source.name}.o"))
            text.append(f"build {objects[-1]}: {rule} {escaped(source)}")
        text.append(f"build {escaped(target)}: {cuda}link {' '.join(objects)}")
    return "\n".join(text) + "\n"


def cudart(tools: Tools) -> list[str]:
    """The link words of the static CUDA runtime, from nvcc's own account of where it lives."""
    told = run([*tools.nvcc, "--dryrun", "-x", "cu", os.devnull, "-o", os.devnull])
    for line in (told.stderr + told.stdout).splitlines():
        if "LIBRARIES=" in line:
            found = [word for word in shlex.split(line.split("LIBRARIES=", 1)[1]) if word.startswith("-L")]
            return [*found, "-lcudart_static", "-ldl", "-lpthread", "-lrt"]
    return ["-lcudart_static", "-ldl", "-lpthread", "-lrt"]


class NinjaBuild(build_ext):
    """build_ext that hands all sources to ninja; a module that fails is left out with its reason."""

    def run(self) -> None:
        super().run()
        folders = [Path(self.build_lib, "lotterykit")] + ([ROOT / "lotterykit"] if self.inplace else [])
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "_build_report.json").write_text(json.dumps(self.report, indent=1) + "\n")
            for kind, entry in self.report.items():  # a stale library must not outlive a failed build
                if not entry["built"]:
                    (folder / Path(self.get_ext_filename(MODULES[kind])).name).unlink(missing_ok=True)

    def build_extensions(self) -> None:
        tools = find_tools()
        wanted = {kind: name for kind, name in MODULES.items() if kind not in tools.why}
        targets = {kind: Path(self.get_ext_fullpath(name)).resolve() for kind, name in wanted.items()}
        failures = self.ninja(tools, targets) if targets else {}
        self.report = {}
        for kind in MODULES:
            reason = tools.why.get(kind) or failures.get(kind)
            self.report[kind] = {"built": reason is None, "reason": reason}
            if reason:
                print(f"lotterykit: {MODULES[kind]} is not built: {reason}", file=sys.stderr)
        if self.report["cpu"]["built"]:
            self.report["cpu"] |= {"compiler": shlex.join(tools.cxx), "openmp": bool(tools.openmp)}
        if self.report["cuda"]["built"]:
            self.report["cuda"] |= {"architectures": tools.code}

    def ninja(self, tools: Tools, targets: dict[str, Path]) -> dict[str, str]:
        """Build `targets`; returns the reason for each that failed."""
        # Not build_temp: an editable install gives that a new folder each time, and nothing would be reused.
        folder = ROOT / "build" / f"native-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        folder.mkdir(parents=True, exist_ok=True)
        objects = {kind: folder / target.name for kind, target in targets.items()}
        (folder / "build.ninja").write_text(build_file(tools, folder, objects))
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        command = [*tools.ninja, "-C", str(folder), "-k", "0", *jobs]
        done = run(command)
        print(done.stdout + done.stderr)
        failures = {}
        for kind, built in objects.items():
            if done.returncode:
                again = run([*command, str(built)])
                if again.returncode:
                    failures[kind] = f"compiling failed: {last_line(again.stdout + again.stderr)}"
                    continue
            targets[kind].parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(built, targets[kind])
        return failures


setup(
    ext_modules=[Extension(name, sources=[], optional=True) for name in MODULES.values()],
    cmdclass={"build_ext": NinjaBuild},
)
