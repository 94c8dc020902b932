"""`measure`: one setting, every peer checked against float64, then timed in turns; `grid`: many settings."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from lotterykit.bench.ceilings import cpu_ceilings
from lotterykit.bench.contender import Contender
from lotterykit.bench.peers import PEERS, Peer, forced, unserved
from lotterykit.bench.problems import OPS, parse_shape
from lotterykit.bench.setting import DTYPES, Problem, Setting
from lotterykit.bench.timing import CLOCKS, alternate
from lotterykit.errors import ArgumentError, check_density, unknown_name
from lotterykit.ops.dispatch import BACKENDS

SECONDS = 3.0  # a peer that has taken as long gets no further turn
REPEATS = 10_000  # the most that can be asked
Entry = tuple[Peer, str | None]  # a peer and the backend forced for it


def entries_of(op: str, peers: Sequence[str] = (), backends: Sequence[str] = ()) -> dict[str, Entry]:
    """Name -> peer and forced backend, ours first: "spmm", or "spmm:reference" where a backend is forced.

    No `peers`: all that serve `op`; ours are always among them. Raises `ArgumentError` for unknown names.
    """
    if op not in OPS:
        raise unknown_name("op", op, OPS)
    serving = [name for name, peer in PEERS.items() if op in peer.serves]
    for name in peers:
        if name not in serving:
            raise unknown_name(f"peer of {op}", name, serving)
    for name in backends:
        if name not in (*BACKENDS, "auto"):
            raise unknown_name("backend", name, ("auto", *BACKENDS))
    mine = [name for name in serving if PEERS[name].ours]
    chosen = [name for name in mine if name in peers] or mine
    entries: dict[str, Entry] = {}
    for name, backend in itertools.product(chosen, backends or ("auto",)):
        forced_to = None if backend == "auto" else backend
        entries[name if forced_to is None else f"{name}:{backend}"] = (PEERS[name], forced_to)
    others = [name for name in serving if name not in mine and (not peers or name in peers)]
    return entries | {name: (PEERS[name], None) for name in others}


def grid(
    op: str,
    *,
    shapes: Sequence[str] = (),
    densities: Sequence[float] = (0.1, 0.01),
    dtypes: Sequence[str] = ("float32",),
    threads: Sequence[int] = (1,),
    works: Sequence[str] = (),
    device: str = "cpu",
) -> list[Setting]:
    """All settings of the axes. Raises `ArgumentError`, before anything runs, for what cannot be."""
    if op not in OPS:
        raise unknown_name("op", op, OPS)
    for work in works:
        if work not in OPS[op].works:
            raise unknown_name(f"work of {op}", work, OPS[op].works)
    for dtype in dtypes:
        if dtype not in OPS[op].dtypes:
            raise unknown_name(f"dtype of {op}", dtype, OPS[op].dtypes)
    cores = os.cpu_count() or 1
    for count in threads:
        if not 1 <= count <= cores:
            raise ArgumentError(f"threads must lie in [1, {cores}], the cores of this machine, got {count}")
    if device not in OPS[op].devices:
        raise unknown_name(f"device of {op}", device, OPS[op].devices)
    if device == "cuda" and not torch.cuda.is_available():
        raise ArgumentError("device cuda was asked for, but torch sees no CUDA device")
    axes = itertools.product(
        [parse_shape(op, shape) for shape in shapes or (OPS[op].example,)],
        dtypes,
        [check_density(density) for density in densities],
        threads,
        works or OPS[op].works,
    )
    own = OPS[op].own
    settings = [
        Setting(op, shape, own[work](shape) if work in own else density, work, dtype, count, device)
        for shape, dtype, density, count, work in axes
    ]
    return list(dict.fromkeys(settings))  # a work with a density of its own is measured once


def measure(
    setting: Setting,
    entries: dict[str, Entry],
    *,
    repeats: int = 41,
    seconds: float = SECONDS,
    clock: str = "wall",
) -> dict[str, Any]:
    """The row of one setting: for every entry its microseconds, or the reason why it was not timed.

    `us`: median, p20, p80, repeats by name; `ratio`: a peer's median over that of the first of ours;
    `refused`: name -> reason (absent, not for this setting, failed, or wrong: nothing is timed before its
    result agreed with float64); `gflops` of the first of ours, where the op has products.
    """
    check_repeats(repeats)
    check_clock(clock, [setting])
    with _threads(setting.threads):
        problem = OPS[setting.op].problem(setting)
        ready, refused = admitted(problem, entries)
        timings = alternate(
            {name: contender.run for name, contender in ready.items()},
            repeats=repeats,
            device=setting.device,
            seconds=seconds,
            around=lambda name: forced(*entries[name]),
            clock=clock,
        )
    timings = {name: timing.each_of(ready[name].steps) for name, timing in timings.items()}
    row = setting.as_dict() | {"clock": clock, "flops": problem.flops, "traffic": problem.traffic}
    row |= {"us": {name: timing.as_dict() for name, timing in timings.items()}, "refused": refused}
    ours = next((name for name in timings if entries[name][0].ours), None)
    if ours is not None:
        median = timings[ours].median
        row |= {"ours": ours, "ratio": {n: t.median / median for n, t in timings.items() if n != ours}}
        if problem.flops:
            row["gflops"] = problem.flops / median / 1e3
    return row


def admitted(problem: Problem, entries: dict[str, Entry]) -> tuple[dict[str, Contender], dict[str, str]]:
    """The contenders whose results are right, and the reasons of all others."""
    ready: dict[str, Contender] = {}
    refused: dict[str, str] = {}
    for name, (peer, backend) in entries.items():
        reason = unserved(peer, backend, problem.setting)
        if reason is None:
            with forced(peer, backend):
                try:
                    contender = peer.serves[problem.setting.op](problem)
                    outputs = contender.outputs(contender.run())
                    reason = None if peer.floor else problem.wrong(outputs)
                    if reason is not None:
                        reason = f"wrong: {reason}"
                except Exception as error:  # whatever a peer does, the others are measured
                    reason = f"fails: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if reason is None:
            ready[name] = contender
        else:
            refused[name] = reason
    return ready, refused


def measure_all(
    settings: Sequence[Setting],
    entries: dict[str, Entry],
    *,
    repeats: int = 41,
    seconds: float = SECONDS,
    clock: str = "wall",
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
    """The rows of all settings; `report` gets each as soon as it is there."""
    rows = []
    for setting in settings:
        rows.append(measure(setting, entries, repeats=repeats, seconds=seconds, clock=clock))
        report(rows[-1])
    return rows


def ceilings_of(settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """`cpu_ceilings` for each dtype and thread count of those settings that a roofline can show."""
    found = []
    under_a_roof = [s for s in settings if roofline_refusal(s.op, s.device) is None]
    for dtype, threads in dict.fromkeys((s.dtype, s.threads) for s in under_a_roof):
        with _threads(threads):
            found.append({"dtype": dtype, "threads": threads, **cpu_ceilings(DTYPES[dtype])})
    return found


def check_repeats(repeats: object) -> None:
    """Raises `ArgumentError` for no count of timed calls."""
    if isinstance(repeats, bool) or not isinstance(repeats, int) or not 1 <= repeats <= REPEATS:
        raise ArgumentError(f"repeats must lie in [1, {REPEATS}], got {repeats!r}")


def check_clock(clock: str, settings: Sequence[Setting]) -> None:
    """Raises `ArgumentError` for an unknown clock, and for one that does not tell what settings take."""
    if clock not in CLOCKS:
        raise unknown_name("clock", clock, CLOCKS)
    if clock == "cpu" and any(s.threads > 1 or s.device != "cpu" for s in settings):
        raise ArgumentError("--clock cpu adds up all threads: it goes with device cpu and --threads 1 alone")


def check_baseline(op: str, entries: dict[str, Entry]) -> None:
    """Raises `ArgumentError` where the peer that speed-ups are over is not among the entries."""
    if OPS[op].baseline not in entries:
        raise ArgumentError(f"--plot shows speed-ups over {OPS[op].baseline}: name it in --peers")


def roofline_refusal(op: str, device: str) -> str | None:
    """Why there is nothing to put under a roof, or no roof, or None."""
    if "batch" not in OPS[op].sides:
        return f"{op} has no products to count, so no roofline"
    return None if device == "cpu" else f"a roofline is drawn of the CPU, got device {device}"


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
