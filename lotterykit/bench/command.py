"""`lotterykit bench`: the command line of this folder; torch loads when something is to be measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from lotterykit.errors import ArgumentError, check_density

Words = Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")]
Switch = Annotated[bool, Parameter(negative="")]


def bench(
    op: str | None = None,
    *,
    shape: Words = None,
    density: Words = None,
    dtype: Words = None,
    threads: Words = None,
    work: Words = None,
    backend: Words = None,
    peers: Words = None,
    device: str = "cpu",
    repeats: int = 41,
    clock: str = "wall",
    json: Path | None = None,
    plot: Path | None = None,
    roofline: Path | None = None,
    from_: Annotated[Path | None, Parameter(name="--from")] = None,
    list_: Annotated[bool, Parameter(name="--list", negative="")] = False,
    goals: Path | None = None,
) -> int:
    """Measure OP against every peer that is installed, on the same inputs, in alternating turns.

    Each result is checked against float64 before its peer is timed; one that is wrong is refused with the
    reason. Flags take several values, separated by spaces or commas.

    For example: lotterykit bench linear --shape 128x1024x1024 --density .1 .01 .001 --plot linear.svg

    Parameters
    ----------
    op
        linear, conv, topk, replicas, scores, synflow or another of `lotterykit bench --list`.
    shape
        Sizes joined by x, as `--list` names them: batch x in x out of linear.
    density
        Kept / total, in (0, 1]; .1 and .01 by default.
    dtype
        float32 (default), float64, bfloat16, float16.
    threads
        Threads of every peer; 1 by default.
    work
        What of the op, as forward or forward+backward; all by default.
    backend
        Backends of ours: auto (default), reference, cpu, triton, cuda.
    peers
        The peers to compare with; all by default.
    device
        cpu or cuda.
    repeats
        Timed calls of each peer; one that takes 3 seconds in all stops earlier.
    clock
        wall (default), or cpu: the CPU time of the process, for a machine that is shared; one thread only.
    json
        Write the results, with machine, versions and ceilings, to this file, anew after each setting.
    plot
        Write an SVG of speed-up against density, the crossover marked (needs the extra [plot]).
    roofline
        Write an SVG of all peers under peak FLOP/s and bandwidths, which are measured in the same run.
    from_
        Draw from a results file instead of measuring; --shape, --density, --dtype, --threads and --work
        choose among its rows.
    list_
        List ops and peers, with the reason where one is absent.
    goals
        Print the goals table from the results files in this folder.
    """
    if sum((op is not None, from_ is not None, list_, goals is not None)) != 1:
        raise ArgumentError("give one of an op to measure, --from FILE, --list and --goals FOLDER")
    if list_:
        from lotterykit.bench.tables import show_list

        show_list()
        return 0
    if goals is not None:
        return _goals(goals)
    outputs = [path for path in (json, plot, roofline) if path is not None]
    for path in outputs:
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise ArgumentError(f"{path}: cannot be written, there is no folder for it or it is one itself")
    if plot or roofline:
        from lotterykit.bench.charts import check_ready

        check_ready()
    axes: dict[str, Any] = {
        "shapes": _split(shape),
        "densities": [check_density(number) for number in _numbers("density", density, float)],
        "dtypes": _split(dtype),
        "threads": _numbers("threads", threads, int),
        "works": _split(work),
    }
    axes = {name: values for name, values in axes.items() if values}
    if from_ is not None:
        if json is not None:
            raise ArgumentError("--json writes what was measured: it does not go with --from")
        content = _chosen(from_, axes)
    else:
        names = _split(peers), _split(backend)
        content = _measured(
            op or "",
            axes,
            *names,
            device,
            repeats,
            clock,
            charted=plot is not None,
            roofed=roofline is not None,
            json=json,
        )
    _write(content, json, plot, roofline)
    return 0


def _measured(
    op: str,
    axes: dict[str, Any],
    peers: Sequence[str],
    backends: Sequence[str],
    device: str,
    repeats: int,
    clock: str,
    *,
    charted: bool,
    roofed: bool,
    json: Path | None,
) -> dict[str, Any]:
    from rich.console import Console

    from lotterykit.bench import charts, kernels, results
    from lotterykit.bench.tables import show_rows

    entries = kernels.entries_of(op, peers, backends)
    settings = kernels.grid(op, device=device, **axes)
    kernels.check_repeats(repeats)
    kernels.check_clock(clock, settings)
    # What no chart can show is said now and not after the measuring.
    if roofed and (reason := kernels.roofline_refusal(op, device)) is not None:
        raise ArgumentError(reason)
    if charted:
        kernels.check_baseline(op, entries)
    if charted or roofed:
        charts.panels_of([setting.as_dict() for setting in settings])
    # A file that is kept can be drawn under its roof later, and has what was measured when a run is stopped.
    more = {"ceilings": kernels.ceilings_of(settings)} if roofed or json is not None else {}
    rows: list[dict[str, Any]] = []

    def content() -> dict[str, Any]:
        return results.document(rows, repeats=repeats, device=device, **more)

    with Console(stderr=True).status(f"{op}: 0 of {len(settings)} settings") as status:

        def report(row: dict[str, Any]) -> None:
            rows.append(row)
            status.update(f"{op}: {len(rows)} of {len(settings)} settings")
            if json is not None:
                results.write(json, content())

        kernels.measure_all(settings, entries, repeats=repeats, clock=clock, report=report)
    show_rows(rows)
    return content()


def _chosen(path: Path, axes: dict[str, Any]) -> dict[str, Any]:
    """The results in `path`, with the rows that the axes choose; `ArgumentError` where none is left."""
    from lotterykit.bench import results
    from lotterykit.bench.tables import show_rows

    content = results.read(path)
    fields = {"densities": "density", "dtypes": "dtype", "threads": "threads", "works": "work"}
    shapes = axes.pop("shapes", None)
    rows = [
        row
        for row in content["rows"]
        if all(row[fields[name]] in values for name, values in axes.items())
        and (shapes is None or "x".join(map(str, row["shape"])) in shapes)
    ]
    if not rows:
        raise ArgumentError(
            f"{path}: none of its {len(content['rows'])} rows is of these shapes and densities"
        )
    show_rows(rows)
    return content | {"rows": rows}


def _write(content: dict[str, Any], json: Path | None, plot: Path | None, roofline: Path | None) -> None:
    from lotterykit.bench import charts

    if plot is not None:
        charts.speedup(content, plot)
    if roofline is not None:
        charts.roofline(content, roofline)
    for path in filter(None, (json, plot, roofline)):
        print(path)


def _goals(folder: Path) -> int:
    from lotterykit.bench.goals import judge_all
    from lotterykit.bench.tables import show_goals

    if not folder.is_dir():
        raise ArgumentError(f"{folder}: no such folder of results files")
    show_goals(judge_all(folder))
    return 0


def _split(words: Sequence[str] | None) -> list[str]:
    return [part.strip() for word in words or () for part in word.split(",") if part.strip()]


def _numbers(flag: str, words: Sequence[str] | None, kind: Callable[[str], Any]) -> list[Any]:
    found = []
    for word in _split(words):
        try:
            found.append(kind(word))
        except ValueError:
            raise ArgumentError(f"--{flag} takes numbers, got {word[:60]!r}") from None
    return found
