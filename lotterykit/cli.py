"""The command line: `lotterykit find | prune | train | check | verdict | sweep | report | reproduce | ...`.

Whatever is wrong is said in one line on stderr, with exit status 2; failed cells give status 1, Ctrl-C 130.
Heavy imports wait until a command needs them: `--help` loads neither torch nor matplotlib.
"""

from __future__ import annotations

import logging
import os
import select
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from cyclopts.exceptions import UnknownOptionError, UnusedCliTokensError

from lotterykit import __version__
from lotterykit.bench.command import bench
from lotterykit.errors import ArgumentError, LotterykitError, unknown_name
from lotterykit.experiments import search_command
from lotterykit.experiments.flags import GridFlags, figure_names
from lotterykit.experiments.plant_back_command import plant_back
from lotterykit.experiments.resources import Resources

RUNNER = "lotterykit.experiments.plant_and_seek:run_batch"
ALLOCATOR_WORDS = ("allocate", "out of memory", "not enough memory", "overflow")  # of torch's RuntimeErrors
COMMAS = "several values of a flag are joined by commas: --density .1,.2"

app = App(
    name="lotterykit",
    help="Lottery-ticket research: find, plant, prune, sweep, compare.",
    version=__version__,
    suppress_keyboard_interrupt=False,
)
sweep = App(name="sweep", help="Run a grid of cells into a store; look at it, go on with it, export it.")
app.command(sweep)
app.command(bench)
for command in ("find", "prune", "train", "check", "verdict"):
    app.command(getattr(search_command, command))
app.command(plant_back, name="plant-back")


@sweep.command
def run(
    spec: Path | None = None,
    *,
    grid: Annotated[GridFlags | None, Parameter(name="*")] = None,
    oracle: bool = True,
    store: Path = Path("runs.sqlite"),
    workers: int | None = None,
    executor: str = "local",
    device: str = "cpu",
    resources: Annotated[Resources | None, Parameter(name="*")] = None,
    runner: Annotated[str, Parameter(show=False)] = RUNNER,
) -> int:
    """Run the cells of a TOML file, of flags, or of both (flags win); finished cells are never run again.

    Parameters
    ----------
    spec
        TOML file with tables [spec] and [grid] and the keys seeds and oracle.
    oracle
        Add the ground-truth row of every seed and setting.
    store
        SQLite file of the results; made if missing.
    workers
        Worker processes; one a core by default.
    executor
        local (worker processes), ray (a cluster or this machine) or inline (this process).
    device
        Where networks train: cpu, cuda or cuda:1.
    """
    from lotterykit.experiments.display import execute
    from lotterykit.experiments.grid import Grid, load_toml
    from lotterykit.experiments.sweep import Sweep

    fields, seeds = (grid or GridFlags()).fields()
    if spec is not None and fields and not spec.exists():
        raise ArgumentError(f"{spec}: no such file; {COMMAS}")
    base = load_toml(spec) if spec is not None else Grid()
    if spec is None and not fields:
        raise ArgumentError("nothing to run: give a TOML file, or at least --task, --method and --density")
    seeds = base.seeds if seeds is None else seeds
    whole = Grid(spec=base.spec, grid={**base.grid, **fields}, seeds=seeds, oracle=oracle and base.oracle)
    cells = whole.cells()
    return execute(
        Sweep.of(cells, runner=runner, device=device), store, workers, executor, resources=resources
    )


@sweep.command
def resume(
    store: Path,
    *,
    workers: int | None = None,
    executor: str = "local",
    device: str = "cpu",
    resources: Annotated[Resources | None, Parameter(name="*")] = None,
    runner: Annotated[str, Parameter(show=False)] = RUNNER,
) -> int:
    """Go on with every sweep that was started on STORE: run what is missing, failed or damaged."""
    from lotterykit.experiments.display import execute
    from lotterykit.experiments.store import Store
    from lotterykit.experiments.sweep import Sweep

    with Store(store) as opened:
        cells = opened.planned()
    if not cells:
        raise ArgumentError(f"{store}: no sweep was ever started on it")
    return execute(
        Sweep.of(cells, runner=runner, device=device), store, workers, executor, resources=resources
    )


@sweep.command
def status(store: Path, *, follow: bool = False, by: str = "") -> int:
    """How many cells of STORE are done, damaged, failed and missing, in all and by their settings.

    Parameters
    ----------
    store
        SQLite file of the results; another process may be writing it.
    follow
        Show a live table with the time left until all is done; status 1 where cells failed. Ctrl-C leaves it.
    by
        Settings with a line for each of their values, as method,seed; by default method, density and what
        else differs.
    """
    from lotterykit.experiments.status_display import follow_status, show_status

    return (follow_status if follow else show_status)(store, [n for n in by.split(",") if n])


@sweep.command
def export(store: Path, out: Path) -> int:
    """Write the rows of STORE to OUT, a .csv, .parquet or .jsonl file."""
    from lotterykit.experiments.display import tell_damaged
    from lotterykit.experiments.export import export as write
    from lotterykit.experiments.store import Store

    with Store(store) as opened:
        count = write(opened, out)
        tell_damaged(opened)
    print(f"{count} rows in {out}")
    return 0


@sweep.command
def check(store: Path) -> int:
    """Read all of STORE: its pages, every row against its digest. Status 1 where anything is damaged."""
    from lotterykit.experiments.store import Store

    with Store(store) as opened:
        faults = opened.check()
        count = 0 if faults else sum(1 for _ in opened.rows())  # damaged pages cannot be walked
    return _tell_faults(faults, f"{store}: {count} rows, all good")


@sweep.command
def backup(store: Path, out: Path) -> int:
    """Copy STORE, which a sweep may be writing to, to the new file OUT, and check the copy."""
    from lotterykit.experiments.backup import backup as copy
    from lotterykit.experiments.store import Store

    with Store(store) as opened:
        faults = copy(opened, out)
    return _tell_faults(faults, f"{out}: a checked copy of {store}")


def _tell_faults(faults: list[str], good: str) -> int:
    print("\n".join(faults) if faults else good)
    return 1 if faults else 0


@sweep.command
def log(store: Path, *, tensorboard: Path | None = None, mlflow: str | None = None) -> int:
    """Write the rows of STORE for TensorBoard or MLflow, a run for each cell; runs that are there stay.

    Parameters
    ----------
    store
        SQLite file of the results.
    tensorboard
        Log directory: look at it with tensorboard --logdir.
    mlflow
        SQLite file of an MLflow tracking store: look at it with mlflow ui --backend-store-uri sqlite:///FILE.
    """
    from lotterykit.experiments.log_command import log_store

    if tensorboard is None and mlflow is None:
        raise ArgumentError("nowhere to write to: give --tensorboard DIR, --mlflow FILE or both")
    log_store(store, tensorboard, mlflow)
    return 0


@app.command
def report(
    *stores: str, out: Path = Path("report"), title: str = "Plant 'n' Seek", figures: int | None = None
) -> int:
    """Write the HTML report of a store, or a comparison of several, with figures and CSV files.

    Parameters
    ----------
    stores
        SQLite files of results; several are compared under the names of their files, or as NAME=FILE.
    out
        Folder of the report.
    title
        Heading of the page.
    figures
        At most so many figures; by default all, or 6 of more than 20,000 results.
    """
    from lotterykit import reports
    from lotterykit.experiments.report_display import labelled, report_rows

    if not stores:
        raise ArgumentError("no store to report: give one, or several to compare")
    reports.check_ready()
    sweeps = {label: report_rows(path) for label, path in labelled(stores).items()}
    if len(sweeps) == 1:
        return _report(next(iter(sweeps.values())), out, title, most_figures=figures)
    return _report([], out, title, sweeps=sweeps, most_figures=figures)


@app.command
def reproduce(
    study: str,
    *,
    quick: bool = False,
    figure: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    store: Path | None = None,
    out: Path | None = None,
    workers: int | None = None,
    device: str = "cpu",
    dry_run: bool = False,
    runner: Annotated[str, Parameter(show=False)] = RUNNER,
) -> int:
    """Reproduce a paper: run what is missing, write the report, print its table.

    Parameters
    ----------
    study
        plant-n-seek (Fischer & Burkholz, ICLR 2022).
    quick
        A small version, a few minutes: 3 tasks, 5 methods, 5 densities, 2 seeds.
    figure
        Numbers of the paper's figures and names of controls; all by default (`lotterykit list figures`).
    store
        SQLite file of the results; plant-n-seek.sqlite by default.
    out
        Folder of the report; plant-n-seek by default.
    workers
        Worker processes; one a core by default.
    device
        Where networks train: cpu, cuda or cuda:1.
    dry_run
        Only forecast time and memory.
    """
    from lotterykit import reports
    from lotterykit.experiments import paper
    from lotterykit.experiments.display import execute, tell_damaged
    from lotterykit.experiments.folder import made_folder
    from lotterykit.experiments.store import Store, check_writable
    from lotterykit.experiments.sweep import Sweep

    if study not in STUDIES:
        raise unknown_name("study", study, STUDIES)
    if quick and figure:
        raise ArgumentError("--quick and --figure exclude each other: quick is no figure of the paper")
    names = figure_names(figure)
    cells = paper.quick() if quick else paper.cells(names or None)
    flags = {"figure": ",".join(map(str, names)), "store": store, "out": out, "workers": workers}
    flags |= {} if device == "cpu" else {"device": device}
    given = (f"--{name} {shlex.quote(str(value))}" for name, value in flags.items() if value)
    again = " ".join(["lotterykit reproduce", study, *["--quick"] * quick, *given])
    store, out = store or Path(f"{study}.sqlite"), out or Path(study)
    what = "quick" if quick else f"figures {', '.join(map(str, names or paper.STUDY))}"
    whole = Sweep.of(cells, runner=runner, device=device)
    if dry_run:
        print(whole.forecast(workers=workers, store=store))
        return 0
    reports.check_ready()
    check_writable(store)
    with made_folder(out):
        code = execute(whole, store, workers, "local", again)
        if code not in (0, 1):
            return code
        with Store(store) as opened:
            rows = list(opened.rows(cells))
            tell_damaged(opened, cells, again)
        sections = None if quick else paper.sections(names or None)
        return _report(rows, out, f"Plant 'n' Seek, {what}", figures=sections) or code


@app.command(name="list")
def list_names(what: str) -> int:
    """List the methods, controls, tasks, figures, networks, recipes or data sets.

    Parameters
    ----------
    what
        methods, controls, tasks, figures, networks, recipes or data.
    """
    from lotterykit.experiments import datasets, listing, paper, search_spec, spec

    lists = {
        "methods": lambda: [
            *spec.METHODS,
            *(f"{name}  (pipeline edge-popup)" for name in spec.EDGE_POPUP),
            *(f"{name}  (knows a part of the planted ticket)" for name in spec.LADDER),
            "oracle  (the planted ticket itself)",
            *(
                f"{name}  (find, of real networks)"
                for name in search_spec.METHODS
                if name not in spec.METHODS
            ),
        ],
        "controls": listing.control_lines,
        "tasks": lambda: list(spec.TASK_NAMES),
        "figures": lambda: [f"{f.name:>9}  {f.title} ({len(f.cells())} cells)" for f in paper.STUDY.values()],
        "networks": listing.network_lines,
        "recipes": listing.recipe_lines,
        "data": datasets.listing,
    }
    if what not in lists:
        raise unknown_name("list", what, lists)
    print("\n".join(lists[what]()))
    return 0


@app.command
def doctor() -> int:
    """What this installation can and cannot do, and why, a line each."""
    from lotterykit.bench.doctor import report as diagnose

    print("\n".join(diagnose()))
    return 0


STUDIES = ("plant-n-seek",)


def _report(rows: list[dict[str, Any]], out: Path, title: str, **options: Any) -> int:
    from lotterykit import reports

    page = reports.write_report(rows, out, title=title, **options)
    for label, own in (options.get("sweeps") or {"": rows}).items():
        print(f"{label}:\n" * bool(label) + reports.summary_table(own) + "\n")
    print(f"report: {page}")
    return 0


def invoke(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; its exit status."""
    try:
        with _warnings_on_stderr():
            code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("lotterykit: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 141  # as a shell calls what SIGPIPE ended
        line = _one_line(error)
        if line is None:
            raise
        print(f"lotterykit: {line}", file=sys.stderr)
        return 2
    return code if isinstance(code, int) else 0


class _Stderr(logging.Handler):
    """Warnings as lines on stderr, as it is then: a progress bar takes its place for a while."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"lotterykit: {' '.join(record.getMessage().split())}", file=sys.stderr, flush=True)


@contextmanager
def _warnings_on_stderr() -> Iterator[None]:
    """What the library warns of is said; errors are not: a command tells its failures at its end."""
    handler, logger = _Stderr(), logging.getLogger("lotterykit")
    handler.addFilter(lambda record: record.levelno == logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _one_line(error: Exception) -> str | None:
    """What to say of an error that has a reason outside this program; None for any other."""
    text = " ".join(str(error).split())
    if isinstance(error, UnknownOptionError) and error.argument_collection is not None:
        flags = [a.name for a in error.argument_collection if a.show and a.name.startswith("--")]
        return f"{text} Valid: {', '.join(flags)}"
    if isinstance(error, UnusedCliTokensError):
        return f"{text} ({COMMAS})"
    if isinstance(error, CycloptsError | LotterykitError | ValueError | OSError):
        return text
    allocator = isinstance(error, RuntimeError) and any(word in text.lower() for word in ALLOCATOR_WORDS)
    if isinstance(error, MemoryError | OverflowError) or allocator:
        return f"too large for this machine: {text or 'out of memory'}"
    return None


def _nobody_reads() -> bool:
    """Whether stdout's reader is gone, as after `| head`; what is left to print then goes nowhere."""
    out = sys.stdout.fileno()
    poll = select.poll()
    poll.register(out, 0)
    gone = bool(poll.poll(0))  # an error or a hang-up, which are always told
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), out)
    return gone


def main() -> None:
    """The console entry."""
    sys.exit(invoke())
