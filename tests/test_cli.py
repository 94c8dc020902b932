"""Tests of `lotterykit.cli`."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from lotterykit import __version__
from lotterykit.cli import invoke
from lotterykit.errors import LotterykitError
from lotterykit.experiments.schema import SCHEMA_VERSION
from lotterykit.experiments.store import Store

RUNNERS = Path(__file__).parent / "experiments"


def sweep(**flags):
    """A small sweep, with `flags` changed or added."""
    given = {"task": "circle", "method": "snip,random", "density": ".1,truth", "seeds": "2"} | flags
    return ["sweep", "run", *(word for name, text in given.items() for word in (f"--{name}", text))]


SWEEP = sweep()
FAKE = ["--runner", "fake_runner:good", "--executor", "inline"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(RUNNERS))
    monkeypatch.setenv("LOTTERYKIT_TEST_LOG", str(tmp_path / "log"))
    return tmp_path


def refused(capsys, *command):
    """The one line on stderr of a command that ends with status 2, after what a slow machine says first."""
    assert invoke([str(word) for word in command]) == 2
    err = capsys.readouterr().err.removeprefix("measuring a few steps ...\n")
    assert err.startswith("lotterykit: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["swep"], 'Did you mean "sweep"'),
        (["sweep", "rum"], 'Did you mean "run"'),
        (["sweep", "run", "--taks", "circle"], "Did you mean --task"),
        (["sweep", "run", "--bogus", "3"], "Valid: --spec, --task, --method, --density"),
        (["doctor", "--bogus"], "Unknown option: --bogus"),
        (["sweep", "run", "--task", "relu", "--density", ".1", ".2"], "--density .1,.2"),
        (["sweep", "run", "--task", "relu", "--density", ".1", ".2", ".3"], "--density .1,.2"),
        (sweep(seeds=","), "seeds has no value"),
        (sweep(width="200000"), "width must be less than or equal to 100000, got 200000"),
        (sweep(width="9" * 23), "width must be less than or equal to 100000"),
        (sweep(width="9" * 5000), "width must be"),
        (sweep(samples="9" * 26), "samples must be less than or equal to 100000000"),
        (sweep(rounds="1000000000"), "rounds must be less than"),
        (sweep(depth="100000"), "depth must be less than or equal to 1000"),
        ([*sweep(), "--batch-size", "100000000000"], "batch_size must be less than"),
        (sweep(task="relu", noise="1e308"), "noise must be less than"),
        (sweep(width="100000"), "of memory"),
        (["sweep", "run"], "nothing to run"),
        (["sweep", "run", "no.toml"], "no.toml: No such file"),
        (["sweep", "run", "--task", "circle"], "method is missing"),
        (sweep(method="snipp"), "did you mean 'snip'"),
        (sweep(task="cirle"), "did you mean 'circle'"),
        (sweep(density="0"), "must lie in (0, 1], got 0"),
        (sweep(density=".1,1.5"), "got 1.5"),
        (sweep(density="-.5"), "got -0.5"),
        (sweep(depth="2"), "greater than or equal to 3, got 2"),
        (sweep(depth="x"), "valid integer, got 'x'"),
        (sweep(task="helix", width="20"), "30 wide, its mother only 20"),
        (sweep(seeds="0"), "seeds"),
        (sweep(workers="0"), "workers must be"),
        (sweep(workers="x"), "--workers"),
        (sweep(executor="loca"), "did you mean 'local'"),
        (sweep(executor="inline", timeout="5"), "timeout needs executor 'local' or 'ray'"),
        (sweep(timeout="-1"), "timeout must be a number of seconds above 0, got -1"),
        ([*sweep(), "--memory-per-worker", "4 gigs"], "text like 4GB or 500MB"),
        ([*sweep(), "--ray-address", "auto"], "ray_address needs executor 'ray', got 'local'"),
        (sweep(runner="nowhere:run"), "no runner"),
        (sweep(store="no/such/runs.sqlite"), "no/such does not exist"),
        (sweep(store="."), "is a directory"),
        (["sweep", "status", "no.sqlite"], "no such store"),
        (["sweep", "resume", "no.sqlite"], "no such store"),
        (["sweep", "export", "no.sqlite", "out.csv"], "no such store"),
        (["sweep", "check", "no.sqlite"], "no such store"),
        (["sweep", "backup", "no.sqlite", "out.sqlite"], "no such store"),
        (["report", "no.sqlite"], "no such store"),
        (["reproduce", "plant-n-sek"], "did you mean 'plant-n-seek'"),
        (["reproduce", "plant-n-seek", "--figure", "8"], "unknown figure '8'"),
        (["reproduce", "plant-n-seek", "--figure", "x"], "unknown figure 'x'"),
        (["reproduce", "plant-n-seek", "--figure", "3,x"], "unknown figure 'x'"),
        (["reproduce", "plant-n-seek", "--quick", "--store", "no/such"], "no does not exist"),
        (["reproduce", "plant-n-seek", "--quick", "--store", "."], "is a directory"),
        (["reproduce", "plant-n-seek", "--quick", "--figure", "3"], "exclude each other"),
        (["reproduce", "plant-n-seek", "--quick", "--out", "/proc/x/y"], "/proc/x/y"),
        (["list", "method"], "did you mean 'methods'"),
    ],
)
def test_bad_input_is_one_line_status_2_and_nothing_written(capsys, folder, command, says):
    assert says in refused(capsys, *command)
    assert os.listdir(folder) == []


@pytest.mark.parametrize("command", ["run", "status", "resume", "export", "check", "backup", "report"])
@pytest.mark.parametrize("kind", ["text", "foreign", "newer", "cut"])
def test_bad_stores_are_refused_untouched(capsys, folder, command, kind):
    path = folder / "s.sqlite"
    if kind == "text":
        path.write_text("x" * 5000)
    elif kind == "foreign":
        with closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE t (x)")
    else:
        assert invoke([*SWEEP, *FAKE, "--store", str(path)]) == 0
        capsys.readouterr()
        if kind == "newer":
            with closing(sqlite3.connect(path)) as db:
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        else:
            path.write_bytes(path.read_bytes()[:6000])
    before = path.read_bytes()
    words = {
        "run": [*SWEEP, *FAKE, "--store", path],
        "export": ["sweep", "export", path, "out.csv"],
        "backup": ["sweep", "backup", path, "out.sqlite"],
        "report": ["report", path],
    }.get(command, ["sweep", command, path])
    assert "s.sqlite" in refused(capsys, *words)
    assert path.read_bytes() == before
    assert [name for name in os.listdir(folder) if not name.startswith("s.sqlite")] == []


def test_run_status_resume_export(capsys, folder):
    assert invoke([*SWEEP, *FAKE]) == 0
    assert "forecast for 10 cells: about" in capsys.readouterr().out
    assert invoke([*SWEEP, *FAKE]) == 0
    assert "0 cells run in 1 s, 10 reused" in capsys.readouterr().out
    assert invoke(["sweep", "status", "runs.sqlite"]) == 0
    assert "10 of 10 cells done, 0 damaged, 0 failed" in capsys.readouterr().out
    with closing(sqlite3.connect("runs.sqlite")) as db, db:
        db.execute("DELETE FROM cells WHERE rowid <= 3")
        db.execute("UPDATE cells SET digest = '' WHERE rowid = 4")
    assert invoke(["sweep", "status", "runs.sqlite"]) == 0
    out = capsys.readouterr().out
    assert "6 of 10 cells done, 1 damaged" in out
    assert "lotterykit sweep resume runs.sqlite" in out
    assert invoke(["sweep", "resume", "runs.sqlite", *FAKE]) == 0
    out, err = capsys.readouterr()
    assert "4 cells run" in out
    assert "its row was damaged" in err
    assert invoke(["sweep", "export", "runs.sqlite", "out.csv"]) == 0
    assert len((folder / "out.csv").read_text().splitlines()) == 11


def test_check_and_backup(capsys, folder):
    assert invoke([*SWEEP, *FAKE]) == 0
    assert invoke(["sweep", "check", "runs.sqlite"]) == 0
    assert "runs.sqlite: 10 rows, all good" in capsys.readouterr().out
    assert invoke(["sweep", "backup", "runs.sqlite", "copy.sqlite"]) == 0
    assert "copy.sqlite: a checked copy of runs.sqlite" in capsys.readouterr().out
    assert "copy.sqlite: exists already" in refused(capsys, "sweep", "backup", "runs.sqlite", "copy.sqlite")
    with closing(sqlite3.connect("runs.sqlite")) as db, db:
        db.execute("UPDATE cells SET digest = '' WHERE rowid = 4")
    for command in (["check", "runs.sqlite"], ["backup", "runs.sqlite", "other.sqlite"]):
        assert invoke(["sweep", *command]) == 1
        assert "the digest does not match the content" in capsys.readouterr().out
    assert sorted(os.listdir(folder)) == ["copy.sqlite", "other.sqlite", "runs.sqlite"]


def test_flags_win_over_the_toml_file(capsys, folder):
    (folder / "s.toml").write_text(
        'seeds = 3\n[spec]\ntask = "relu"\n[grid]\nmethod = ["snip"]\ndensity = [0.1, 0.5]\n'
    )
    assert invoke(["sweep", "run", "s.toml", "--density", ".2", "--no-oracle", *FAKE]) == 0
    assert "3 cells run" in capsys.readouterr().out


def test_flags_supply_what_the_toml_file_lacks(capsys, folder):
    (folder / "s.toml").write_text('[spec]\nmethod = "snip"\n')
    assert "task is missing" in refused(capsys, "sweep", "run", "s.toml")
    assert invoke(["sweep", "run", "s.toml", "--task", "relu", "--density", ".1", *FAKE]) == 0
    (folder / "s.toml").write_text("[spec]\nseeds = 3\n")
    assert "seeds belongs at the top" in refused(capsys, "sweep", "run", "s.toml", "--task", "relu")


def test_a_comma_makes_a_list_of_one_seed(capsys):
    assert invoke([*sweep(seeds="7,", density=".1"), "--no-oracle", *FAKE]) == 0
    assert "2 cells run" in capsys.readouterr().out
    with Store("runs.sqlite") as store:
        assert {row["spec"]["seed"] for row in store.rows()} == {7}


def test_a_forecast_that_fails_does_not_stop_the_sweep(capsys):
    assert (
        invoke([*sweep(seeds="3,4"), "--executor", "inline", "--runner", "fake_runner:raise_on_seed_3"]) == 1
    )
    out, err = capsys.readouterr()
    assert "time unknown" in out
    assert "5 cells run" in out
    assert "5 cells failed" in err


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "too large for this machine: out of memory"),
        (OverflowError("cannot fit 'int'"), "too large"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 1 bytes"), "too large"),
        (RuntimeError("DefaultCPUAllocator: not enough memory"), "too large"),
    ],
)
def test_what_memory_cannot_hold_is_one_line(capsys, monkeypatch, error, says):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("lotterykit.experiments.sweep.Sweep.forecast", fail)
    assert says in refused(capsys, *SWEEP, *FAKE)


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr("lotterykit.experiments.sweep.Sweep.forecast", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        invoke([*SWEEP, *FAKE])


def test_a_long_forecast_says_that_it_measures_and_ctrl_c_stops_it(capsys, monkeypatch):
    def measure(*args, **kwargs):
        time.sleep(0.3)
        raise KeyboardInterrupt

    monkeypatch.setattr("lotterykit.experiments.display.MEASURING_SECONDS", 0.01)
    monkeypatch.setattr("lotterykit.experiments.sweep.Sweep.forecast", measure)
    assert invoke([*SWEEP, *FAKE]) == 130
    assert capsys.readouterr().err == "measuring a few steps ...\nlotterykit: stopped\n"


def test_a_store_in_use_is_refused_before_anything_is_measured(capsys, monkeypatch):
    def measure(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr("lotterykit.experiments.sweep.Sweep.forecast", measure)
    with Store("runs.sqlite", write=True):
        assert "another process" in refused(capsys, *SWEEP, *FAKE)


def test_damaged_rows_are_counted(capsys, folder):
    pytest.importorskip("matplotlib")
    assert invoke([*SWEEP, *FAKE]) == 0
    with closing(sqlite3.connect("runs.sqlite")) as db, db:
        db.execute("UPDATE cells SET digest = '' WHERE rowid <= 3")
    capsys.readouterr()
    says = "3 damaged rows left out: lotterykit sweep resume runs.sqlite\n"
    assert invoke(["sweep", "export", "runs.sqlite", "out.csv"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("7 rows in out.csv\n", says)
    assert invoke(["report", "runs.sqlite"]) == 0
    assert says in capsys.readouterr().err


def test_without_matplotlib_nothing_is_computed(capsys, folder, monkeypatch):
    def missing():
        raise LotterykitError("reports need matplotlib")

    monkeypatch.setattr("lotterykit.reports.check_ready", missing)
    assert "matplotlib" in refused(capsys, "reproduce", "plant-n-seek", "--quick")
    assert "matplotlib" in refused(capsys, "report", "runs.sqlite")
    assert os.listdir(folder) == []


def test_an_empty_report_folder_goes_again(capsys, folder, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("lotterykit.experiments.sweep.Sweep.run", stop)
    command = ["reproduce", "plant-n-seek", "--figure", "13", "--runner", "fake_runner:good", "--out", "a/b"]
    assert invoke(command) == 130
    assert os.listdir(folder) == []
    again = "lotterykit reproduce plant-n-seek --figure 13 --out a/b"
    assert capsys.readouterr().err == f"stopped; go on with: {again}\n"
    (folder / "a").mkdir()
    assert invoke(command) == 130
    assert os.listdir(folder) == ["a"]


def test_a_report_folder_that_cannot_be_written(capsys, folder, monkeypatch):
    def full(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    (folder / "out").mkdir()
    monkeypatch.setattr("lotterykit.experiments.folder.tempfile.NamedTemporaryFile", full)
    for out in ("out", "new"):
        says = refused(capsys, "reproduce", "plant-n-seek", "--quick", "--out", out)
        assert says == f"lotterykit: {out}: Permission denied\n"
    assert os.listdir(folder) == ["out"]


def test_failed_cells_give_status_1(capsys, folder):
    command = sweep(seeds="2,3", executor="inline", epochs="1")
    assert invoke([*command, "--runner", "fake_runner:raise_on_seed_3"]) == 1
    assert "RuntimeError: seed 3 is bad" in capsys.readouterr().err
    assert invoke(["sweep", "status", "runs.sqlite"]) == 0
    assert "5 failed" in capsys.readouterr().out
    assert invoke(["sweep", "resume", "runs.sqlite", *FAKE]) == 0


def test_limits_of_a_worker_are_on_the_command_line(capsys):
    command = [*sweep(seeds="3,", density=".1", method="snip", timeout="1"), "--no-oracle"]
    assert invoke([*command, "--memory-per-worker", "1GB", "--runner", "fake_runner:hang_on_seed_3"]) == 1
    err = capsys.readouterr().err
    assert "out of time: killed after 1." in err
    assert "lotterykit sweep resume runs.sqlite --timeout 1.0 --memory-per-worker 1GB\n" in err
    assert invoke(["sweep", "resume", "runs.sqlite", "--timeout", "9", "--runner", "fake_runner:good"]) == 0


def test_reproduce_runs_reports_and_finds_everything_done(capsys, folder):
    pytest.importorskip("matplotlib")
    command = ["reproduce", "plant-n-seek", "--figure", "13,13", "--runner", "fake_runner:good"]
    assert invoke(command) == 0
    out = capsys.readouterr().out
    assert "forecast for 220 cells" in out
    assert "report: " in out
    page = (folder / "plant-n-seek" / "index.html").read_text()
    assert "SynFlow with 1 and 100 scoring rounds" in page
    assert invoke([*command, "--dry-run"]) == 0
    assert "0 cells" in capsys.readouterr().out
    assert invoke(command) == 0
    assert "220 of 220 cells are done already" in capsys.readouterr().out
    assert invoke(["report", "plant-n-seek.sqlite", "--out", "again"]) == 0
    assert (folder / "again" / "index.html").exists()


def test_lists_name_everything(capsys):
    for what, names in (
        ("methods", "synflow"),
        ("tasks", "helix"),
        ("figures", "Varying noise"),
        ("networks", "266,610 parameters     266,200 prunable  1x28x28"),
        ("recipes", "adam 0.0012, 50000 iterations, batch 60"),
        ("data", "fashion-mnist"),
    ):
        assert invoke(["list", what]) == 0
        assert names in capsys.readouterr().out


def test_doctor_says_something(capsys):
    assert invoke(["doctor"]) == 0
    assert capsys.readouterr().out.strip()


def python(*words):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, timeout=60)


def test_help_and_version_load_nothing_heavy():
    code = (
        "import sys; from lotterykit.cli import invoke; code = invoke(sys.argv[1:]);"
        "print(code, [m for m in ('torch', 'matplotlib', 'pydantic', 'numpy') if m in sys.modules])"
    )
    for words in (["--help"], ["sweep", "run", "--help"], ["reproduce", "--help"], ["--version"]):
        done = python("-c", code, *words)
        assert done.stdout.splitlines()[-1] == "0 []", done.stderr
    assert python("-m", "lotterykit", "--version").stdout.strip() == __version__


def test_bad_input_in_a_process_of_its_own():
    done = python("-m", "lotterykit", "sweep", "status", "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "lotterykit: nowhere: no such store\n"


def test_output_that_nobody_reads_is_no_error():
    words = f"{sys.executable} -m lotterykit list figures"
    done = subprocess.run(
        ["bash", "-c", f"{words} | head -0; echo ${{PIPESTATUS[0]}}"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout in ("141\n", "0\n")  # 0 where head is slower to go than we to print


def test_ctrl_c_is_status_130_with_a_hint(folder):
    words = [*SWEEP, "--runner", "fake_runner:endless", "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "lotterykit", *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(RUNNERS)},
        start_new_session=True,
    )
    end = time.monotonic() + 60
    while not (folder / "log").exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.5)  # both workers are under way
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.removeprefix("measuring a few steps ...\n") == (
        "stopped, 10 cells under way lost; go on with: lotterykit sweep resume runs.sqlite\n"
    )
    assert sorted(os.listdir(folder)) == ["log", "runs.sqlite"]


def test_several_stores_are_compared_under_their_names(capsys, folder):
    pytest.importorskip("matplotlib")
    for epochs, name in (("1", "short"), ("2", "long")):
        command = sweep(seeds="2", executor="inline", epochs=epochs, store=f"{name}.sqlite")
        assert invoke([*command, "--runner", "fake_runner:good"]) == 0
    capsys.readouterr()
    os.mkdir("other")
    os.rename("long.sqlite", "other/short.sqlite")
    for names in (("short", "other/short.sqlite"), ("x", "y=short.sqlite")):
        assert "no such store" in refused(capsys, "report", *names)
    assert "two sweeps are called x" in refused(capsys, "report", "x=short.sqlite", "x=other/short.sqlite")
    assert "give one" in refused(capsys, "report")
    assert sorted(os.listdir()) == ["other", "short.sqlite"]
    assert invoke(["report", "short.sqlite", "new=other/short.sqlite", "--out", "page"]) == 0
    out = capsys.readouterr().out
    assert "short:\ncircle" in out
    assert "new:\ncircle" in out
    page = (folder / "page" / "index.html").read_text(encoding="utf-8")
    assert "sweep short" in page
    assert "epochs 2" in page
    assert "short minus new" in page or "new minus short" in page
    assert invoke(["report", "short.sqlite", "--figures", "0", "--out", "page"]) == 0
    assert os.listdir("page/figures") == []
    assert "figures of this large report are not drawn" in (folder / "page" / "index.html").read_text()
