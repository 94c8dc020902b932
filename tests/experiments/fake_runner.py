"""Runners that stand in for the real one: quick, deterministic, torch-free, and bad on demand."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path

from lotterykit.errors import ArgumentError
from lotterykit.experiments.tasks import DataSets


def row(cell):
    """A small row with every field that a report reads; numbers depend on the spec alone."""
    number = int(cell.key()[:8], 16) / 2**32
    metric = (
        {"loss": number, "accuracy": number} if cell.task == "circle" else {"loss": number, "mse": number}
    )
    return {
        "key": cell.key(),
        "spec": cell.model_dump(mode="json"),
        "results_version": 1,
        "versions": {},
        "metrics": {"before": metric, "after": metric},
        "density": 0.1 if cell.density == "truth" else cell.density,
        "truth_density": 0.1,
        "kept": {"0.weight": [1, 10]},
        "collapse": {"empty_layers": [], "no_live_path": False, "round": None},
        "recovery": {
            "precision": number,
            "recall": number,
            "iou": number,
            "live": {"precision": number, "recall": number, "iou": number},
            "per_layer": {"0.weight": {"precision": number, "recall": number, "iou": number}},
        },
        "hiding": {},
        "output_scale": 1.0,
        "samples_scored": 0,
        "rounds": [],
        "edges": None,
        "curve": [number],
        "times": {"plant": 0.0, "score": 0.0, "train": 0.0, "total": time.time() % 1},
    }


def good(cells, *, progress=None):
    return [row(cell) for cell in cells]


def slow(cells, *, progress=None):
    """A tenth of a second a cell; notes each start in the file that LOTTERYKIT_TEST_LOG names."""
    for done, cell in enumerate(cells, 1):
        with Path(os.environ["LOTTERYKIT_TEST_LOG"]).open("a") as log:
            log.write(f"{os.getpid()} {cell.key()}\n")
        time.sleep(0.1)
        if progress is not None:
            progress(done / len(cells))
    return good(cells)


def endless(cells, *, progress=None):
    if cells[0].epochs == 0:  # the forecast asks what a cell costs without training
        return good(cells)
    Path(os.environ["LOTTERYKIT_TEST_LOG"]).write_text(str(os.getpid()))
    time.sleep(600)


def crash_on_seed_3(cells, *, progress=None):
    if any(cell.seed == 3 for cell in cells):
        os.kill(os.getpid(), signal.SIGKILL)
    return good(cells)


def crash_once(cells, *, progress=None):
    """The process dies at its first batch ever, then all is well."""
    try:
        Path(os.environ["LOTTERYKIT_TEST_LOG"]).touch(exist_ok=False)
    except FileExistsError:
        return good(cells)
    os._exit(7)


def raise_on_seed_3(cells, *, progress=None):
    if any(cell.seed == 3 for cell in cells):
        raise RuntimeError("seed 3\nis bad")
    return good(cells)


def hang_on_seed_3(cells, *, progress=None):
    if any(cell.seed == 3 and cell.epochs for cell in cells):  # the forecast asks without training
        time.sleep(600)
    return good(cells)


def greedy_on_seed_3(cells, *, progress=None):
    """Holds a gigabyte until it is killed for it."""
    if any(cell.seed == 3 for cell in cells):
        held = b"x" * 10**9
        time.sleep(60)
        raise RuntimeError(f"nobody minded {len(held)} bytes")
    return good(cells)


def noted_on_seed_3(cells, *, progress=None):
    """Raises after a note in the file that LOTTERYKIT_TEST_LOG names."""
    if any(cell.seed == 3 for cell in cells):
        note("raises")
    return raise_on_seed_3(cells)


def on_a_node(cells, *, progress=None, device="cpu"):
    """Half a second a cell; notes Ray's node, the key and when it ran; its row has the task's GPUs."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    for done, cell in enumerate(cells, 1):
        began = time.time()
        note(f"{node} {cell.key()} begins")
        time.sleep(0.5)
        note(f"{node} {cell.key()} {began} {time.time()}")
        if progress is not None:
            progress(done / len(cells))
    return [{**found, "versions": {"gpus": ray.get_gpu_ids()}} for found in good(cells)]


def note(line):
    with Path(os.environ["LOTTERYKIT_TEST_LOG"]).open("a") as log:
        log.write(line + "\n")


def draw(seed):
    note(f"drawn {seed}")
    return [seed] * 3


def reads_data(cells, *, progress=None, data=None):
    return [{**found, "versions": {"data": data}} for found in good(cells)]


def no_memory(cells, *, progress=None):
    raise MemoryError


def interrupted(cells, *, progress=None):
    raise KeyboardInterrupt


def bad_argument(cells, *, progress=None):
    raise ArgumentError("no such thing")


def short(cells, *, progress=None):
    return good(cells)[1:]


def not_json(cells, *, progress=None):
    return [{**found, "density": float("nan")} for found in good(cells)]


def other_key(cells, *, progress=None):
    return [{**found, "key": hashlib.sha256(b"").hexdigest()} for found in good(cells)]


def threads(cells, *, progress=None):
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")
    return [{**found, "versions": {n: os.environ.get(n) for n in names}} for found in good(cells)]


DATA_SETS = {"reads_data": DataSets(lambda cell: cell.seed, draw)}
