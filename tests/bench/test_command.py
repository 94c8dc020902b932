"""`lotterykit bench` from the command line, on shapes that take no time."""

import json

import pytest

from lotterykit.bench import kernels
from lotterykit.bench.ceilings import cpu_ceilings
from lotterykit.cli import invoke

ROOF = ("gflops", "L2", "L3", "memory")

QUICK = ["--shape", "4x9x7", "--repeats", "2", "--peers", "spmm,dense,dense-masked"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kernels, "cpu_ceilings", lambda dtype: dict.fromkeys(ROOF, 10.0))
    return tmp_path


def test_measures_and_writes_what_it_prints(folder, capsys):
    command = ["bench", "linear", *QUICK, "--density", ".5", ".1,.2", "--backend", "auto,reference"]
    assert invoke([*command, "--json", "a.json"]) == 0
    out = capsys.readouterr().out
    for word in ("linear 4x9x7 forward, float32, 1 thread", "density 0.2", "spmm:reference", "a.json"):
        assert word in out
    content = json.loads((folder / "a.json").read_text())
    assert [row["density"] for row in content["rows"]] == [0.5, 0.5, 0.1, 0.1, 0.2, 0.2]
    assert set(content["rows"][0]["us"]) == {"spmm", "spmm:reference", "dense", "dense-masked"}
    assert content["repeats"] == 2
    assert list(folder.iterdir()) == [folder / "a.json"]


def test_draws_from_a_file_and_chooses_among_its_rows(folder, capsys):
    pytest.importorskip("matplotlib")
    assert invoke(["bench", "spmm", *QUICK, "--density", ".5,.1", "--json", "a.json", "--plot", "a.svg"]) == 0
    assert invoke(["bench", "--from", "a.json", "--density", ".1", "--plot", "b.svg"]) == 0
    assert invoke(["bench", "--from", "a.json", "--roofline", "c.svg"]) == 0
    assert "density 0.5" not in capsys.readouterr().out.split("a.svg")[1].split("b.svg")[0]
    assert (folder / "a.svg").read_text().startswith("<?xml")
    assert (folder / "b.svg").exists()
    assert invoke(["bench", "--from", "a.json", "--shape", "1x1x1"]) == 2
    assert "none of its 2 rows" in capsys.readouterr().err


def test_lists_ops_and_peers_and_judges_goals(folder, capsys):
    assert invoke(["bench", "--list"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("linear", "topk", "sparselab", "torch-compile"))
    assert invoke(["bench", "--goals", "."]) == 0
    out = capsys.readouterr().out
    assert "C1 at 0.1" in out
    assert "0 of " in out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "give one of an op"),
        (["linear", "--list"], "give one of an op"),
        (["lin"], "did you mean 'linear'"),
        (["linear", "--shape", "1x2"], "batch x in x out"),
        (["linear", "--density", "1.5"], "must lie in (0, 1]"),
        (["linear", "--density", "many"], "--density takes numbers, got 'many'"),
        (["linear", "--threads", "1.5"], "--threads takes numbers"),
        (["linear", "--threads", "0"], "threads must lie in"),
        (["linear", "--repeats", "0"], "repeats must lie in"),
        (["linear", "--clock", "cup"], "did you mean 'cpu'"),
        (["linear", "--repeats", "many"], "repeats"),
        (["linear", "--peers", "sparseprob"], "did you mean 'sparseprop'"),
        (["linear", "--json", "no/such/folder.json"], "cannot be written"),
        (["linear", "--plot", "."], "cannot be written"),
        (["linear", *QUICK[:4], "--peers", "dense", "--plot", "a.svg"], "name it in --peers"),
        (["linear", "--shape", "1x1x1,2x1x1,3x1x1,4x1x1", "--plot", "a.svg"], "at most 6 panels, got 8"),
        (["topk", "--roofline", "a.svg"], "no products to count"),
        (["--from", "absent.json"], "No such file"),
        (["--from", "absent.json", "--json", "b.json"], "does not go with --from"),
        (["--goals", "absent"], "no such folder"),
        (["linear", "--bogus"], "Unknown option"),
    ],
)
def test_nonsense_is_one_line_and_status_2(folder, capsys, flags, says):
    assert invoke(["bench", *flags]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert list(folder.iterdir()) == []


def test_ceilings_hold_what_a_roofline_needs(monkeypatch):
    monkeypatch.setattr("lotterykit.bench.ceilings.cache_bytes", lambda: {"L2": 2**12, "L3": 2**14})
    found = cpu_ceilings(seconds=0.01)
    assert set(found) == set(ROOF)
    assert all(value > 0 for value in found.values())


def test_help_reads_well(capsys):
    assert invoke(["bench", "--help"]) == 0
    out = capsys.readouterr().out
    for flag in (
        "--shape",
        "--density",
        "--threads",
        "--backend",
        "--peers",
        "--json",
        "--plot",
        "--roofline",
    ):
        assert flag in out
