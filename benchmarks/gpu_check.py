"""What `make gpu-check` runs on a machine with an NVIDIA GPU: ceilings, checks against float64, goals.

Every stage is a process of its own with a time limit, so a crash or a hang costs that stage alone; its
results are in `$OUT` (default benchmarks/results) as soon as they exist. Exit status: 0 all checks ran and
passed, 1 a stage broke or a check failed or did not run (no Triton, lotterykit._cuda not built), 2 no GPU.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lotterykit.bench import (
    gpu_checks,
    gpu_checks_graphs,
    gpu_checks_products,
    gpu_checks_replicas,
    gpu_checks_sparse,
    gpu_crossover,
    gpu_goals,
    gpu_goals_products,
    gpu_goals_replicas,
    gpu_goals_sparse,
    gpu_synflow,
)
from lotterykit.bench.ceilings import ceilings
from lotterykit.ops.dispatch import missing

BUDGET = 540.0  # seconds for everything

# stage -> (backend it needs, time limit in seconds); the order is the order of importance
STAGES: dict[str, tuple[str, float]] = {
    "ceilings": ("reference", 60),
    "check-masked_linear": ("triton", 150),
    "check-topk_mask": ("cuda", 60),
    "check-replicas": ("cuda", 60),
    "check-spmm": ("cuda", 60),
    "check-sddmm": ("cuda", 60),
    "check-threshold": ("triton", 90),
    "masked_linear": ("triton", 180),
    "topk_mask": ("cuda", 60),
    "replicas": ("cuda", 90),
    "spmm": ("cuda", 60),
    "sddmm": ("cuda", 30),
    "edge_popup": ("triton", 40),
    "check-synflow": ("triton", 30),
    "synflow": ("triton", 60),
    "check-multi_tensor": ("triton", 30),
    "gem_miner": ("triton", 20),
    "check-masked_conv2d": ("triton", 90),
    "check-graphs": ("triton", 60),
    "masked_conv2d": ("triton", 40),
    "crossover": ("cuda", 90),
    "masked_copies": ("triton", 20),
    "check-match_neurons": ("triton", 30),
    "check-masked_linear-large": ("triton", 60),
    "check-masked_conv2d-large": ("triton", 60),
    "check-topk_mask-large": ("cuda", 60),
    "check-sparse-large": ("cuda", 60),
}
CHECKS: dict[str, Callable[[], list[str]]] = {
    "check-masked_linear": gpu_checks.check_masked_linear,
    "check-topk_mask": gpu_checks.check_topk_mask,
    "check-replicas": gpu_checks_replicas.check_replicas,
    "check-threshold": gpu_checks_products.check_threshold,
    "check-masked_conv2d": gpu_checks_products.check_masked_conv2d,
    "check-multi_tensor": gpu_checks_products.check_multi_tensor,
    "check-graphs": gpu_checks_graphs.check_graphs,
    "check-synflow": gpu_synflow.check_synflow,
    "check-match_neurons": gpu_synflow.check_match_neurons,
    "check-masked_conv2d-large": gpu_checks_products.check_masked_conv2d_large,
    "check-masked_linear-large": gpu_checks.check_masked_linear_large,
    "check-topk_mask-large": gpu_checks.check_topk_mask_large,
    "check-spmm": gpu_checks_sparse.check_spmm,
    "check-sddmm": gpu_checks_sparse.check_sddmm,
    "check-sparse-large": gpu_checks_sparse.check_sparse_large,
}
TIMINGS: dict[str, Callable[[gpu_goals.Report], None]] = {
    "masked_linear": gpu_goals.time_masked_linear,
    "topk_mask": gpu_goals.time_topk_mask,
    "replicas": gpu_goals_replicas.time_replicas,
    "spmm": gpu_goals_sparse.time_spmm,
    "sddmm": gpu_goals_sparse.time_sddmm,
    "crossover": gpu_crossover.time_crossover,
    "synflow": gpu_synflow.time_synflow,
    "edge_popup": gpu_goals_products.time_edge_popup,
    "gem_miner": gpu_goals_products.time_gem_miner,
    "masked_conv2d": gpu_goals_products.time_masked_conv2d,
    "masked_copies": gpu_goals_products.time_masked_copies,
}
VERDICTS = (
    gpu_goals.verdicts,
    gpu_goals_replicas.verdicts,
    gpu_goals_sparse.verdicts,
    gpu_crossover.verdicts,
)


def main() -> int:
    if not torch.cuda.is_available():
        print("gpu-check: torch sees no CUDA device, so there is nothing to check here", file=sys.stderr)
        return 2
    out = Path(os.environ.get("OUT") or Path(__file__).parent / "results")
    out.mkdir(parents=True, exist_ok=True)
    if len(sys.argv) == 2:
        return run_stage(sys.argv[1], out)
    lines, bad = run_stages(out)
    print("\n" + "\n".join(lines))
    return 1 if bad else 0


def run_stages(out: Path) -> tuple[list[str], bool]:
    """Every stage; the lines of the summary, and whether a stage broke or a check failed or did not run."""
    deadline, bad = time.monotonic() + BUDGET, False
    lines = [f"gpu-check on {torch.cuda.get_device_name()}"]
    for stage, (backend, limit) in STAGES.items():
        left = min(limit, deadline - time.monotonic())
        reason = missing(backend)
        if reason is None and left < 5:
            reason = f"the time budget of {BUDGET:.0f} s is spent"
        if reason is not None:
            lines.append(f"{stage}: {'NOT CHECKED' if stage in CHECKS else 'not run'}, {reason}")
            bad |= stage in CHECKS
        else:
            status = start_stage(stage, left)
            bad |= status is not None
            lines += [f"{stage}: {status}"] if status else []
            lines += summary(stage, out)
        summary_file(out).write_text("\n".join(lines) + "\n")
    return lines, bad


def start_stage(stage: str, limit: float) -> str | None:
    """Run one stage as a process; None, or what went wrong."""
    try:
        done = subprocess.run([sys.executable, __file__, stage], timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return f"cut off after {limit:.0f} s (what was measured is kept)"
    return None if done.returncode == 0 else f"FAILED with exit status {done.returncode}"


def run_stage(stage: str, out: Path) -> int:
    """In the stage's own process: 0, or 1 where a check failed."""
    print(f"{stage}: seed {torch.seed()}", flush=True)  # fresh inputs every time
    if stage == "ceilings":
        write(stage, out, ceilings())
        return 0
    if stage in TIMINGS:
        TIMINGS[stage](lambda table: write(stage, out, table))
        return 0
    failures = CHECKS[stage]()
    write(stage, out, {"failures": failures})
    for failure in failures[:20]:
        print(failure, flush=True)
    return 1 if failures else 0


def result_file(stage: str, out: Path) -> Path:
    return out / f"{gpu_slug()}-{stage}.json"


def summary_file(out: Path) -> Path:
    return out / f"{gpu_slug()}-summary.txt"


def gpu_slug() -> str:
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")


def write(stage: str, out: Path, results: dict[str, Any]) -> None:
    """The results with the machine and versions they were made on, whole or not at all."""
    properties = torch.cuda.get_device_properties(0)
    document = {
        "stage": stage,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "triton": triton_version(),
        },
        "unit": "microseconds a call, median",
        "results": results,
    }
    path = result_file(stage, out)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document, indent=1) + "\n")
    temporary.replace(path)


def triton_version() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return triton.__version__


def summary(stage: str, out: Path) -> list[str]:
    """What the stage's results file says, in a few lines."""
    path = result_file(stage, out)
    if not path.exists():
        return [f"{stage}: no results"]
    results = json.loads(path.read_text())["results"]
    if stage == "ceilings":
        return [f"{name}: {value:.1f}" for name, value in results.items()]
    if stage in CHECKS:
        return [f"{stage}: {len(results['failures'])} failures"]
    lines = []
    for row, peers in results.items():
        ours = peers.get("ours", {}).get("us")
        cells = []
        for peer, timing in peers.items():
            ratio = f" ({timing['us'] / ours:.2f}x)" if ours else ""
            cells.append(f"{peer} {timing['us']:.0f} us{ratio}")
        lines.append(f"{stage} {row}: " + ", ".join(cells))
    return lines + [line for verdicts in VERDICTS for line in verdicts(stage, results)]


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", stream=sys.stdout)  # peers that do not run
    sys.exit(main())
