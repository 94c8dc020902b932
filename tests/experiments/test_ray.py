"""Tests of the executor `ray` (`ray_crew`, `cluster`, `shelf`) on a cluster of nodes on one machine."""

from __future__ import annotations

import ipaddress
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from fake_runner import row
from notes import Notes

from lotterykit.cli import invoke
from lotterykit.errors import ArgumentError, LotterykitError
from lotterykit.experiments.cluster import connected, on_loopback, slots
from lotterykit.experiments.executors import find_executor, most_at_once
from lotterykit.experiments.grid import Grid
from lotterykit.experiments.resources import Resources
from lotterykit.experiments.shelf import Shelf
from lotterykit.experiments.spec import group
from lotterykit.experiments.store import Store
from lotterykit.experiments.sweep import Sweep
from lotterykit.experiments.tasks import Task

ray = pytest.importorskip("ray", reason="no Ray for this platform")
ray_crew = pytest.importorskip("lotterykit.experiments.ray_crew")
CELLS = Grid(spec={"task": "circle", "method": "snip", "density": 0.1}, seeds=8, oracle=False).cells()
HERE = Path(__file__).parent
SHARE = 80 << 20  # of the object store, a node


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A cluster of two nodes, the second with what Ray takes for a GPU; the log of its runners."""
    from ray.cluster_utils import Cluster

    log = tmp_path_factory.mktemp("ray") / "log"
    with pytest.MonkeyPatch.context() as patch, on_loopback():
        patch.setenv("LOTTERYKIT_TEST_LOG", str(log))
        head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": SHARE}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        cluster.add_node(num_cpus=2, num_gpus=1, object_store_memory=SHARE)
        try:
            yield cluster, log
        finally:
            cluster.shutdown()


@pytest.fixture
def cluster(world):
    """The cluster; this process has not joined it."""
    world[1].write_text("")
    ray.shutdown()
    return world[0]


@pytest.fixture
def joined(world):
    """This process has joined the cluster, whose workers are warm from one test to the next."""
    world[1].write_text("")
    if not ray.is_initialized():
        ray.init(address=world[0].address, log_to_driver=False)


@pytest.fixture
def log(world):
    return world[1]


def run(runner, *, batches=None, workers=3, size=4, device="cpu", **resources):
    notes = Notes()
    find_executor("ray")(
        batches or group(CELLS, size),
        runner=f"fake_runner:{runner}" + ("" if device == "cpu" else f"@{device}"),
        workers=workers,
        report=notes,
        resources=Resources(**resources).checked("ray", device),
    )
    return notes


def numbers(rows):
    """Rows without what may differ between two runs."""
    return [{**found, "times": None} for found in rows]


def seeds(notes):
    return sorted(cell.seed for cell, _ in notes.found)


def test_every_cell_is_reported_once(cluster):
    notes = run("on_a_node", size=2, ray_address=cluster.address)
    assert not ray.is_initialized()
    assert seeds(notes) == list(range(8))
    assert notes.given_up == []
    assert all(
        numbers([found]) == numbers([{**row(c), "versions": {"gpus": []}}]) for c, found in notes.found
    )
    assert 0 < max(notes.shares) <= 1


def test_a_node_that_dies_in_the_middle_costs_no_cell(cluster, log, tmp_path):
    """Three nodes, the third killed once it has begun a batch."""
    victim = cluster.add_node(num_cpus=1, object_store_memory=SHARE)
    killed = []

    def kill(progress):
        lines = [line for line in log.read_text().splitlines() if line.startswith(victim.node_id)]
        at_first_of_two = len(lines) % 4 == 1
        if not killed and at_first_of_two and progress.finished:
            cluster.remove_node(victim, allow_graceful=False)
            killed.append(progress.finished)

    sweep = Sweep(
        {"task": "circle", "method": "snip"}, {"density": [0.1, 0.5]}, 6, runner="fake_runner:on_a_node"
    )
    result = sweep.run("ray", 9, tmp_path / "a.sqlite", progress=kill, ray_address=cluster.address)
    assert killed
    assert killed[0] < len(sweep.cells)
    assert (result.ran, result.failed) == (18, [])
    begun = Counter(line.split()[1] for line in log.read_text().splitlines() if line.endswith("begins"))
    lost = [key for key, count in begun.items() if count > 1]
    assert set(begun) == {cell.key() for cell in sweep.cells}
    assert 1 <= len(lost) <= 2, "only the batch of the dead node runs again"
    with Store(tmp_path / "a.sqlite") as store:
        assert store.check() == []
        assert len(list(store.rows())) == 18
    undisturbed = Sweep.of(sweep.cells, runner="fake_runner:good").run("inline", store=tmp_path / "b.sqlite")
    expected = [{**found, "versions": {"gpus": []}} for found in undisturbed.rows]
    assert numbers(result.rows) == numbers(expected)


def test_real_rows_are_those_of_the_other_executors(cluster, tmp_path):
    small = {"task": "circle", "samples": 200, "epochs": 1, "width": 40}
    grid = {"method": ["magnitude", "synflow"], "density": [0.1, "truth"], "gain": [0.0, 1.0]}
    sweep = Sweep(small, grid, 1)
    rows = sweep.run("ray", 2, tmp_path / "ray.sqlite", ray_address=cluster.address).rows
    inline = sweep.run("inline", 1, tmp_path / "inline.sqlite").rows
    assert len(rows) == 10
    assert numbers(rows) == numbers(inline)


def test_data_that_batches_share_are_drawn_once(joined, log):
    batches = [CELLS[:3], CELLS[1:5], [CELLS[2]]]  # seeds 1 and 2 are read by several
    notes = run("reads_data", batches=batches)
    assert sorted(log.read_text().splitlines()) == ["drawn 1", "drawn 2"]
    given = [found["versions"]["data"] for _, found in sorted(notes.found, key=lambda pair: pair[0].seed)]
    both, second = {1: [1] * 3, 2: [2] * 3}, {2: [2] * 3}
    assert given.count(both) == 7
    assert given.count(second) == 1
    assert notes.given_up == []


def test_a_shelf_drops_what_nobody_reads_any_more(joined):
    tasks = [Task(CELLS[:3]), Task(CELLS[1:4])]
    shelf = Shelf([task.cells for task in tasks], "fake_runner:reads_data", {"num_cpus": 1})
    assert [sorted(shelf.take(task)) for task in tasks] == [[1, 2], [1, 2]]
    assert shelf.take(Task(CELLS[1:2], attempts=1)) == {}
    shelf.leave(tasks[0])
    assert sorted(shelf._drawn) == [1, 2]
    shelf.leave(tasks[1])
    assert shelf._drawn == {}


def test_a_dead_worker_costs_its_batch_whose_cells_are_tried_alone(joined):
    notes = run("crash_on_seed_3")
    assert seeds(notes) == [0, 1, 2, 4, 5, 6, 7]
    (failure,) = notes.given_up
    assert (failure.cell.seed, failure.attempts, failure.error) == (3, 3, "the worker died")


def test_an_exception_costs_its_cell_alone(joined):
    notes = run("raise_on_seed_3")
    assert len(notes.found) == 7
    assert [failure.error for failure in notes.given_up] == ["RuntimeError: seed 3 is bad"]
    assert {failure.attempts for failure in run("bad_argument").given_up} == {2}
    assert all("no good rows" in failure.error for failure in run("short").given_up)


def test_a_task_that_always_loses_its_node_is_given_up(joined, log, monkeypatch):
    """What the runner raises stands for a lost node."""
    monkeypatch.setattr(ray_crew, "LOST", (RuntimeError,))
    notes = run("noted_on_seed_3")
    assert seeds(notes) == [0, 1, 2, 4, 5, 6, 7]
    (failure,) = notes.given_up
    assert failure.attempts == 3
    assert len(log.read_text().splitlines()) == 1 + ray_crew.NODE_LOSSES + 2


def test_limits_end_a_cell_that_hangs_or_holds_too_much(joined):
    slow = run("hang_on_seed_3", timeout=0.5)
    big = run("greedy_on_seed_3", memory_per_worker="600MB")
    for notes, says in ((slow, "out of time: killed after"), (big, "out of memory: the worker held 1")):
        assert seeds(notes) == [0, 1, 2, 4, 5, 6, 7]
        (failure,) = notes.given_up
        assert (failure.cell.seed, failure.attempts) == (3, 3)
        assert failure.error.startswith(says)


def test_batches_share_a_gpu(joined, log):
    notes = run("on_a_node", workers=8, size=1, device="cuda", gpus_per_task=0.5, cpus_per_task=0.5)
    assert {tuple(found["versions"]["gpus"]) for _, found in notes.found} == {(0,)}
    lines = [line.split() for line in log.read_text().splitlines() if not line.endswith("begins")]
    assert len({node for node, *_ in lines}) == 1
    spans = [(float(a), float(b)) for *_, a, b in lines]
    assert max(sum(a <= start < b for a, b in spans) for start, _ in spans) == 2


def test_as_many_batches_run_at_once_as_the_cluster_has_room_for(cluster):
    for resources, device, expected in [
        ({}, "cpu", 3),
        ({"cpus_per_task": 0.1}, "cpu", 30),
        ({"cpus_per_task": 2}, "cpu", 1),
        ({"gpus_per_task": 0.25}, "cuda", 2),
        ({"gpus_per_task": 0.25, "cpus_per_task": 0.5}, "cuda", 4),
        ({"cpus_per_task": 64}, "cpu", 1),  # the cluster may still grow
    ]:
        allowed = Resources(ray_address=cluster.address, **resources).checked("ray", device)
        assert most_at_once("ray", allowed) == expected


def test_the_room_of_a_cluster_that_the_caller_has_joined_counts(monkeypatch):
    nodes = [{"Alive": True, "Resources": {"CPU": 40.0}}, {"Alive": True, "Resources": {"CPU": 30.0}}]
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert most_at_once("ray", Resources(cpus_per_task=2).checked("ray", "cpu")) == 35


def test_a_ray_that_fails_is_one_line(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with (
        pytest.raises(LotterykitError, match=r"Ray failed: RaySystemError: .*the head is gone") as error,
        connected(Resources().checked("ray", "cpu"), 1),
    ):
        raise ray.exceptions.RaySystemError("the head\nis gone")
    assert "\n" not in str(error.value)


def test_a_ray_that_fails_hides_no_ctrl_c(monkeypatch):
    def fail(*words, **named):
        raise ray.exceptions.RaySystemError("the head is gone")

    def stop():
        raise KeyboardInterrupt

    crew = ray_crew.RayCrew.__new__(ray_crew.RayCrew)
    crew.running = {object(): ray_crew.Run(Task(CELLS[:1]), 0)}
    monkeypatch.setattr(ray, "wait", fail)
    monkeypatch.setattr(crew, "_first_look", stop)
    with pytest.raises(KeyboardInterrupt):
        crew.work()


def test_a_cluster_without_a_fit_node_is_given_up(cluster, monkeypatch, caplog):
    monkeypatch.setattr(ray_crew, "NODE_SECONDS", 1)
    with pytest.raises(LotterykitError, match="no node of the Ray cluster has the 64 CPUs and 0 GPUs"):
        run("good", cpus_per_task=64, ray_address=cluster.address)
    assert "waiting 1 s for one" in caplog.text


def test_a_cluster_that_is_not_there_is_one_line(cluster):
    with pytest.raises(LotterykitError, match=r"no Ray cluster at 127\.0\.0\.1:1") as error:
        run("good", ray_address="127.0.0.1:1")
    assert len(str(error.value).splitlines()) == 1


def test_a_cluster_that_the_caller_has_joined_stays_joined(joined, world):
    with pytest.raises(ArgumentError, match="leave ray_address out"):
        run("good", ray_address=world[0].address)
    assert seeds(run("good")) == list(range(8))
    assert slots(Resources().checked("ray", "cpu")) == 3
    with pytest.raises(ArgumentError, match="no node of the Ray cluster has the 64 CPUs"):
        run("good", cpus_per_task=64)


def test_the_command_line_runs_on_ray(joined, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    grid = ["--task", "circle", "--method", "snip", "--density", ".1", "--seeds", "3,4", "--no-oracle"]
    words = ["--executor", "ray", "--cpus-per-task", "0.5", "--timeout", "60"]
    assert invoke(["sweep", "run", *grid, *words, "--runner", "fake_runner:raise_on_seed_3"]) == 1
    out, err = capsys.readouterr()
    assert "1 cells run" in out
    assert "RuntimeError: seed 3 is bad" in err
    again = "lotterykit sweep resume runs.sqlite --executor ray --timeout 60.0 --cpus-per-task 0.5"
    assert err.rstrip().endswith(f"try again with: {again}")
    assert invoke([*again.split()[1:], "--runner", "fake_runner:good"]) == 0
    assert "1 cells run" in capsys.readouterr().out


def test_sigterm_is_given_back(cluster):
    before = signal.getsignal(signal.SIGTERM)
    with connected(Resources(ray_address=cluster.address), 1):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_token_mode_of_our_own_ray_is_not_left_behind(cluster, monkeypatch):
    def start(cpus):
        os.environ["RAY_AUTH_MODE"] = "token"

    monkeypatch.setattr("lotterykit.experiments.cluster._start", start)
    for before in (None, "disabled"):
        monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
        if before is not None:
            monkeypatch.setenv("RAY_AUTH_MODE", before)
        with connected(Resources(), 1):
            assert os.environ["RAY_AUTH_MODE"] == "token"
        assert os.environ.get("RAY_AUTH_MODE") == before


SCRIPT = """
import sys
sys.path.insert(0, {here!r})
from lotterykit.experiments.sweep import Sweep
Sweep(dict(task="circle", method="snip"), dict(density=[.1, .5]), 4, runner="fake_runner:hang_on_seed_3").run(
    "ray", workers=2, store={store!r})
"""


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads /proc")
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill-9"])
def test_ray_of_our_own_listens_on_loopback_alone_and_goes_with_us(tmp_path, sign):
    """A piped script, which Ray's workers need not import again."""
    store = tmp_path / "runs.sqlite"
    script = SCRIPT.format(here=str(HERE), store=str(store))
    command = [sys.executable, "-c", script]
    with (tmp_path / "out").open("w") as out:
        driver = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        assert wait_until(lambda: driver.poll() is not None or stored(store) == 6, 60)
        family = descendants(driver.pid)
        assert len(family) > 4
        listening = addresses(family)
        assert len(listening) > 2
        assert {a for a in listening if not ipaddress.ip_address(a).is_loopback} == set()
        os.killpg(driver.pid, sign)
        assert driver.wait(timeout=30) != 0
        assert wait_until(lambda: not any(alive(pid) for pid in family), 20), "Ray outlived its driver"
    finally:
        driver.kill()
    assert (tmp_path / "out").read_text() == ""
    assert stored(store) == 6
    sweep = Sweep({"task": "circle", "method": "snip"}, {"density": [0.1, 0.5]}, 4, runner="fake_runner:good")
    assert sweep.run("inline", store=store).ran == 6


def stored(path):
    if not path.exists():
        return 0
    with Store(path) as store:
        return len(list(store.rows()))


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


def status(pid):
    """(state, parent) of a process, None where there is none."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return words[0], int(words[1])


def alive(pid):
    found = status(pid)
    return found is not None and found[0] != "Z"


def descendants(pid):
    """The process and all below it."""
    parents = {int(p.name): found[1] for p in Path("/proc").glob("[0-9]*") if (found := status(p.name))}
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return family


def addresses(pids):
    """Local addresses of the TCP sockets of these processes that listen and of unconnected UDP ones."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                name = os.readlink(link)
            except OSError:
                continue
            if name.startswith("socket:["):
                inodes.add(name[8:-1])
    found = []
    for table, state in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[9] in inodes and words[3] == state:
                found.append(_address(words[1].split(":")[0]))
    return found


def _address(text):
    """An address as the kernel writes it: hexadecimal, each word of four bytes reversed."""
    raw = b"".join(bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8))
    address = ipaddress.ip_address(raw)
    return str(getattr(address, "ipv4_mapped", None) or address)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0100007F", "127.0.0.1"),
        ("00000000", "0.0.0.0"),
        ("0000000000000000FFFF00000100007F", "127.0.0.1"),
        ("00000000000000000000000000000000", "::"),
        ("00000000000000000000000001000000", "::1"),
    ],
)
def test_addresses_are_read_as_the_kernel_writes_them(text, expected):
    assert _address(text) == expected
