"""`lotterykit find | prune | train | check | verdict`, as typed."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import pytest

from lotterykit.cli import invoke
from lotterykit.errors import ArgumentError
from lotterykit.experiments.ticket import Ticket

SMALL = ["--data", "digits", "--validation", "100", "--steps", "60"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys, *command):
    """The one line on stderr of a command that ends with status 2."""
    assert invoke([str(word) for word in command]) == 2
    err = capsys.readouterr().err.splitlines()
    last = err[-1]
    assert last.startswith("lotterykit: ")
    assert not any("Traceback" in line for line in err)
    return last


def test_find_train_and_check(folder, capsys):
    assert invoke(["find", "imp", "--density", ".3", *SMALL]) == 0
    captured = capsys.readouterr()
    assert len(re.findall(r"imp: training \d+, density", captured.err)) == 7
    assert "level  density  result" in captured.out
    assert "imp: density 0.3, found in" in captured.out
    assert [path.name for path in folder.iterdir()] == ["ticket.safetensors"]  # no journal is left
    ticket = Ticket.load("ticket.safetensors")
    assert len(ticket.results["levels"]) == 7

    assert invoke(["train", "ticket.safetensors", "--start", "init", "--steps", "20", "--out", "t"]) == 0
    assert "test accuracy" in capsys.readouterr().out
    assert Ticket.load("t").density() == ticket.density()
    assert invoke(["check", "ticket.safetensors", "--control", "shuffle,reinit", "--seeds", "1"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "stop_accuracy, mean [least, greatest] of 1 trainings"
    assert [line.split()[0] for line in out[1:]] == ["ticket", "shuffle", "reinit"]


def test_find_from_toml_and_collapse(folder, capsys):
    (folder / "s.toml").write_text('method = "edge-popup"\ndensity = 0.2\nscore_epochs = 1\n')
    command = ["find", "s.toml", *SMALL, "--scope", "global", "--scaled-init", "--folder", "journal"]
    assert invoke(command) == 0
    assert Ticket.load("ticket.safetensors").recipe["init_density"] == 0.2
    assert "untrained: " in capsys.readouterr().out
    assert (folder / "journal").is_dir()
    assert invoke(["find", "magnitude", "--invert", "--density", ".005", *SMALL]) == 0
    assert "density 0.005" in capsys.readouterr().out


def test_prune(capsys):
    command = ["prune", "snip", "--density", ".1", "--data", "digits", "--allocation", "erk", "--out", "p"]
    assert invoke(command) == 0
    assert "density 0.1" in capsys.readouterr().out
    assert list(Ticket.load("p").snapshots) == ["init"]
    assert invoke(["train", "p", "--steps", "5"]) == 0


def test_plant_back(folder, capsys):
    command = ["plant-back", "--net", "lenet", "--data", "digits", "--density", ".2", "--recipe", "p4/lenet"]
    command += ["--steps", "40", "--shots", "2", "--shot-epochs", "1", "--levels", "2", "--level-epochs", "1"]
    command += ["--warmup-epochs", "0", "--densities", ".2", "--folder", "out"]
    assert invoke(command) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out[1:-1]] == [
        "ticket",
        "truth",
        *["planted"] * 2,
        *["unplanted"] * 2,
    ]
    written = {path.name for path in (folder / "out").iterdir()}
    tickets = {"ticket.safetensors", "truth.safetensors", "found-0.2.safetensors"}
    assert written == tickets | {"levels.csv", "journal"}
    assert "densities must be numbers" in refused(capsys, "plant-back", "--densities", "a")
    assert "not for resnet-20" in refused(capsys, "plant-back", "--net", "resnet-20", "--data", "digits")


def test_verdict(capsys):
    command = ["verdict", "magnitude", "--density", ".2", *SMALL, "--lrs", "1e-3,3e-3"]
    assert invoke(command) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out[:4]] == ["ticket", "reinit", "dense", "small-dense"]
    assert sum(line.startswith(("1 ", "2 ", "3 ", "4 ", "5 ")) for line in out) == 5


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["find", "ipm", "--density", ".1"], "unknown method 'ipm'; did you mean 'imp'"),
        (["find", "imp"], "density is missing"),
        (["find", "imp", "--density", "2"], "density is kept"),
        (["find", "imp", "--density", "tenth"], "density"),
        (["find", "imp", "--density", ".1", "--net", "lenet5"], "unknown network 'lenet5'"),
        (["find", "imp", "--density", ".1", "--dta", "digits"], "--data"),
        (["find", "imp", "--density", ".1", "--out", "no/such/t"], "its folder does not exist"),
        (["find", "imp", "--density", ".1", "--out", "."], "is a folder"),
        (["find", "none.toml"], "No such file"),
        (["prune", "imp", "--density", ".1"], "prune scores once, by one of random"),
        (["prune", "snip", "--density", ".1", "--shots", "2"], "shots 2 trains, use find"),
        (["train", "none"], "cannot read a ticket from none"),
        (["check", "none"], "cannot read a ticket from none"),
        (["verdict", "imp", "--density", ".1", "--lrs", "1e-3"], "at least 2 different learning rates"),
        (["verdict", "imp", "--density", ".1", "--lrs", "a,b"], "lrs must be numbers"),
    ],
)
def test_refusals(capsys, command, message):
    assert message in refused(capsys, *command)


def test_a_training_that_diverges_leaves_a_ticket(capsys):
    for method in (["magnitude"], ["gem-miner", "--score-epochs", "6"]):
        assert invoke(["find", *method, "--density", ".3", *SMALL, "--lr", "1e30"]) == 0
        results = Ticket.load("ticket.safetensors").results
        assert results["loss"] is None
        assert 0 <= results["accuracy"] < 0.3
    assert "the training diverged" in refused(
        capsys, "find", "imp", "--density", ".3", *SMALL, "--lr", "1e30", "--out", "other"
    )


def test_a_damaged_ticket_and_foreign_options(folder, capsys):
    assert invoke(["prune", "random", "--density", ".5", "--data", "digits", "--out", "p"]) == 0
    assert "no rewind point '5it', only init" in refused(capsys, "train", "p", "--start", "5it")
    assert "unknown control 'invrt'" in refused(capsys, "check", "p", "--control", "invrt")
    data = bytearray((folder / "p").read_bytes())
    data[-1] ^= 1
    (folder / "p").write_bytes(bytes(data))
    assert "damaged ticket" in refused(capsys, "check", "p")


def test_ctrl_c_leaves_a_journal_that_the_same_command_goes_on_from(folder):
    command = [sys.executable, "-m", "lotterykit", "find", "imp", "--density", ".05", "--data", "digits",
               "--steps", "3000"]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as run:
        for line in run.stderr:
            if "training 3" in line:
                run.send_signal(signal.SIGINT)
                break
        rest = run.stderr.read()
        assert run.wait() == 130
    assert "stopped; the same command goes on" in rest
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "training 1," not in again.stderr
    assert (folder / "ticket.safetensors").exists()
    assert not (folder / "ticket.safetensors.journal").exists()


def test_a_ticket_that_cannot_be_saved_leaves_its_journal(folder, capsys, monkeypatch):
    """And the end of one search leaves the journal of another that was stopped."""
    command = ["find", "magnitude", "--density", ".3", *SMALL]

    def full(self, path):
        raise ArgumentError(f"cannot write the ticket to {path}: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Ticket, "save", full)
        assert "No space left on device" in refused(capsys, *command)
    assert len(list((folder / "ticket.safetensors.journal" / "magnitude").iterdir())) == 2
    assert invoke(["find", "random", *command[2:]]) == 0
    capsys.readouterr()
    assert invoke(command) == 0
    assert "training" not in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["ticket.safetensors"]


def test_what_cannot_be_written_is_refused_before_the_work(folder, capsys, monkeypatch):
    search = ["--density", ".3", *SMALL]
    assert invoke(["prune", "random", *search, "--out", "p"]) == 0
    (folder / "file").write_text("")

    def read_only(**given):
        raise PermissionError(13, "Permission denied")

    def work(*given, **more):
        raise AssertionError("nothing may be trained")

    monkeypatch.setattr("lotterykit.experiments.searches.train_replicas", work)
    for command in (["find", "imp", *search], ["check", "p"], ["verdict", "magnitude", *search]):
        assert "file: File exists" in refused(capsys, *command, "--folder", "file")
    monkeypatch.setattr("tempfile.NamedTemporaryFile", read_only)
    for command in (["find", "imp", *search], ["prune", "random", *search], ["train", "p"]):
        assert "Permission denied" in refused(capsys, *command)
    assert sorted(path.name for path in folder.iterdir()) == ["file", "p"]


def test_training_on_another_data_set(capsys):
    assert invoke(["prune", "random", "--density", ".3", *SMALL, "--out", "p"]) == 0
    assert invoke(["train", "p", "--data", "digits", "--steps", "5"]) == 0
    assert "unknown data set 'mnits'" in refused(capsys, "train", "p", "--data", "mnits")
    assert "takes scale" in refused(capsys, "check", "p", "--scale", "1")


def test_quick_is_no_word_for_a_file(folder, capsys):
    (folder / "s.toml").write_text('method = "imp"\ndensity = 0.2\n')
    assert "--quick goes with a method's name" in refused(capsys, "find", "s.toml", "--quick")
