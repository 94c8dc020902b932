"""Tests of `lotterykit.experiments.store`, `schema`, `lock` and `export`."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from fake_runner import row

from lotterykit.cli import invoke
from lotterykit.errors import ArgumentError, StoreError
from lotterykit.experiments.export import export
from lotterykit.experiments.grid import Grid
from lotterykit.experiments.lock import WriterLock
from lotterykit.experiments.report_display import labelled, report_rows
from lotterykit.experiments.schema import SCHEMA_VERSION
from lotterykit.experiments.spec import CellSpec
from lotterykit.experiments.store import Store, check_writable

CELLS = Grid(spec={"task": "circle", "method": "snip", "density": [0.1, 0.5]}, seeds=3).cells()


@pytest.fixture
def path(tmp_path):
    """A store with all `CELLS` done."""
    path = tmp_path / "runs.sqlite"
    with Store(path, write=True) as store:
        store.plan(CELLS)
        assert store.commit([row(cell) for cell in CELLS]) == len(CELLS)
    return path


def change(path, statement, *values):
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(statement, values)


def test_rows_come_back_as_they_were(path):
    with Store(path) as store:
        assert [r["key"] for r in store.rows(CELLS)] == [cell.key() for cell in CELLS]
        for found, cell in zip(store.rows(CELLS), CELLS, strict=True):
            assert {**found, "times": 0} == {**row(cell), "times": 0}
        assert len(list(store.rows())) == len(CELLS)
        assert store.planned() == CELLS
        assert store.done(CELLS) == (set(CELLS), {})
        assert store.check() == []


def test_nothing_lies_beside_a_closed_store(path):
    with Store(path) as store:
        list(store.rows())
    assert os.listdir(path.parent) == [path.name]


def test_a_good_row_is_never_replaced(path):
    with Store(path, write=True) as store:
        before = list(store.rows())
        assert store.commit([{**row(CELLS[0]), "density": 0.77}]) == 0
        assert list(store.rows()) == before


def test_layers_keep_their_order(tmp_path):
    names = ["0.weight", "2.weight", "10.weight"]
    with Store(tmp_path / "s", write=True) as store:
        store.commit([{**row(CELLS[0]), "kept": {name: [1, 2] for name in names}}])
        assert list(next(store.rows())["kept"]) == names


@pytest.mark.parametrize(
    "tamper",
    [
        ("UPDATE cells SET result = replace(result, '0.1', '0.2') WHERE key = ?", "digest"),
        ("UPDATE cells SET digest = 'x' WHERE key = ?", "digest"),
        ("UPDATE cells SET result = 'x' WHERE key = ?", "digest"),
        ("UPDATE cells SET result = x'00ff' WHERE key = ?", "not text"),
    ],
)
def test_a_damaged_row_is_not_done_and_is_replaced(path, tamper):
    statement, says = tamper
    change(path, statement, CELLS[0].key())
    with Store(path, write=True) as store:
        good, bad = store.done(CELLS)
        assert good == set(CELLS[1:])
        assert says in bad[CELLS[0]]
        assert len(store.check()) == 1
        assert len(list(store.rows())) == len(CELLS) - 1
        assert (store.damaged(), store.damaged(CELLS), store.damaged(CELLS[1:])) == (1, 1, 0)
        assert store.commit([row(CELLS[0])]) == 1
        assert store.damaged() == 0
        assert store.done(CELLS) == (set(CELLS), {})


def test_a_row_that_lost_its_key_counts_as_damaged(path):
    change(path, "UPDATE cells SET key = NULL WHERE key = ?", CELLS[0].key())
    with Store(path) as store:
        assert (len(list(store.rows())), store.damaged()) == (len(CELLS) - 1, 1)


def test_a_row_under_another_key_is_not_done(path):
    change(path, "DELETE FROM cells WHERE key = ?", CELLS[0].key())
    change(path, "UPDATE cells SET key = ? WHERE key = ?", CELLS[0].key(), CELLS[1].key())
    with Store(path) as store:
        assert CELLS[0] in store.done(CELLS)[1]


@pytest.mark.parametrize("bad", [{"density": float("nan")}, {"key": "0" * 64}, {"spec": {}}, {"x": {1, 2}}])
def test_a_bad_row_is_refused_whole(path, bad):
    new = CellSpec(**{**CELLS[0].model_dump(), "seed": 99})
    with Store(path, write=True) as store:
        with pytest.raises(StoreError, match="not a result row"):
            store.commit([row(new), {**row(CELLS[0]), **bad}])
        assert store.done([new]) == (set(), {})


def test_failures_are_kept_until_the_cell_is_done(tmp_path):
    with Store(tmp_path / "s", write=True) as store:
        store.fail(CELLS[0], "why", 3)
        assert store.failures() == {CELLS[0].key(): ("why", 3)}
        store.commit([row(CELLS[0])])
        assert store.failures() == {}


def test_reading_cannot_write(path):
    with Store(path) as store, pytest.raises(StoreError, match="opened for reading"):
        store.plan(CELLS)


def refused(path, says, *, modes=(False, True)):
    """Opening `path` is refused in one line, and neither it nor its folder changes."""
    before = path.read_bytes() if path.is_file() else None
    beside = sorted(os.listdir(path.parent)) if path.parent.is_dir() else None
    for write in modes:
        with pytest.raises(StoreError, match=says) as caught:
            Store(path, write=write)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
    assert (path.read_bytes() if path.is_file() else None) == before
    assert (sorted(os.listdir(path.parent)) if path.parent.is_dir() else None) == beside


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"SQLite format 3\0" + b"\xff" * 200, bytes(range(256)) * 20]
)
def test_files_that_are_no_store(tmp_path, content):
    (tmp_path / "s").write_bytes(content)
    refused(tmp_path / "s", "not a lotterykit store")


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_foreign_sqlite_files(tmp_path, mode):
    path = tmp_path / "s"
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA journal_mode = {mode}")
        db.execute("CREATE TABLE cells (key)")
        db.commit()
    refused(path, "not a lotterykit store")


def test_store_without_its_tables(path):
    change(path, "DROP TABLE plan")
    refused(path, "lacks plan")


def test_store_of_a_newer_version(path):
    change(path, f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    refused(path, "newer lotterykit")


def test_truncated_and_overwritten_stores(path):
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:4096] + os.urandom(8192) + whole[12288:]):
        path.write_bytes(damaged)
        with pytest.raises(StoreError) as caught, Store(path, write=True) as store:
            list(store.rows(CELLS))
        assert "\n" not in str(caught.value)
        assert path.read_bytes() == damaged


@pytest.mark.parametrize("where", ["no/such/folder/s", "file/s", ".", "/proc/s", "a\0b"])
def test_unusable_paths(tmp_path, where):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError) as caught:
        Store(tmp_path / where, write=True)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(path):
    path.parent.chmod(0o555)
    try:
        with Store(path) as store:
            assert len(list(store.rows())) == len(CELLS)
        refused(path, "locked", modes=(True,))
        refused(path.with_name("new"), "not writable", modes=(True,))
    finally:
        path.parent.chmod(0o755)


def test_a_dangling_link_is_refused(tmp_path):
    (tmp_path / "s").symlink_to(tmp_path / "gone")
    refused(tmp_path / "s", "a link to .*gone, which does not exist")


def test_a_connection_that_fails_is_one_line(path, monkeypatch):
    def fail(*args, **kwargs):
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr("lotterykit.experiments.schema.check_ours", lambda path: None)
    monkeypatch.setattr("lotterykit.experiments.store.check_ours", lambda path: None)
    monkeypatch.setattr("lotterykit.experiments.schema.sqlite3.connect", fail)
    with pytest.raises(StoreError, match="unable to open database file"):
        Store(path)


def test_a_rotten_store_says_where(path):
    pages = path.read_bytes()
    path.write_bytes(pages[:-4096] + os.urandom(4096))
    with pytest.raises(StoreError) as caught:
        check_writable(path)
    assert "corrupt: " in str(caught.value)
    assert "***" not in str(caught.value)


def test_check_writable_leaves_nothing(path, tmp_path):
    check_writable(path)
    check_writable(tmp_path / "new")
    assert os.listdir(tmp_path) == [path.name]
    for store in (path, tmp_path / "new"):
        with Store(store, write=True), pytest.raises(StoreError, match="another process"):
            check_writable(store)


def test_reading_what_is_missing_creates_nothing(tmp_path):
    refused(tmp_path / "s", "no such store", modes=(False,))
    assert os.listdir(tmp_path) == []


def test_a_second_writer_is_refused_in_and_across_processes(path):
    code = "import sys; from lotterykit.experiments.store import Store; Store(sys.argv[1], write=True)"
    with Store(path, write=True) as store:
        with pytest.raises(StoreError, match="another process"):
            Store(path, write=True)
        command = [sys.executable, "-c", code, path]
        other = subprocess.run(command, capture_output=True, text=True, check=False)
        assert f"another process ({os.getpid()}) is writing to it" in other.stderr
        with Store(path) as reader:
            assert len(list(reader.rows())) == len(CELLS)
        store.plan(CELLS)
    Store(path, write=True).close()


def test_a_writer_that_lost_its_lock_cannot_write(path):
    late = Store(path, write=True)
    path.with_name(path.name + ".lock").unlink()  # someone clears away what looks like a leftover
    with Store(path, write=True), pytest.raises(StoreError, match="taken over"):
        late.commit([row(CELLS[0])])
    late.close()


HALF_CHECKPOINT = """
import os, resource, signal, sys
sys.path.insert(0, {here!r})
from test_store import CELLS, row
from lotterykit.experiments.store import Store
store = Store({path!r}, write=True)
store.commit([row(cell) for cell in CELLS])
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize({path!r}) + 4096,) * 2)
store.close()
"""


@pytest.mark.parametrize("write", [False, True])
def test_a_kill_within_a_checkpoint_loses_nothing(tmp_path, write):
    path = tmp_path / "s"
    code = HALF_CHECKPOINT.format(here=os.path.dirname(__file__), path=str(path))
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGXFSZ
    header = path.read_bytes()[:100]
    assert int.from_bytes(header[28:32], "big") * 4096 > path.stat().st_size  # half a file by itself
    with Store(path, write=write) as store:
        assert len(list(store.rows())) == len(CELLS)
        assert store.check() == []


def test_a_store_has_one_lock_by_whatever_name(path, tmp_path):
    (tmp_path / "link").symlink_to(path)
    with Store(path, write=True), pytest.raises(StoreError, match="another process"):
        Store(tmp_path / "link", write=True)
    with Store(tmp_path / "link", write=True), pytest.raises(StoreError, match="another process"):
        Store(path, write=True)


def test_a_store_that_another_makes_before_we_have_the_lock_keeps_its_rows(tmp_path, monkeypatch):
    class Late(WriterLock):
        """A lock that comes after another writer has made, filled and closed the store."""

        def __init__(self, store):
            monkeypatch.undo()
            with Store(store, write=True) as other:
                other.commit([row(cell) for cell in CELLS])
            super().__init__(store)

    monkeypatch.setattr("lotterykit.experiments.store.WriterLock", Late)
    with Store(tmp_path / "s", write=True) as store:
        assert len(list(store.rows())) == len(CELLS)


def test_drafts_of_killed_writers_go(tmp_path):
    others = [".other.1.new", ".s.csv.1.new", ".s.sqlite.1.00ab.new"]  # an export and a backup, beside it
    for name in (".s.1.new", ".s.1.new-journal", *others):
        (tmp_path / name).write_text("")
    Store(tmp_path / "s", write=True).close()
    assert sorted(os.listdir(tmp_path)) == [*others, "s"]


def test_a_store_without_a_log_is_not_written(path, monkeypatch):
    class NoLog(sqlite3.Connection):
        """SQLite where memory cannot be shared: it keeps the old journal and says so."""

        def execute(self, statement, *values):
            return super().execute(statement.replace("= WAL", "= DELETE"), *values)

    connect = sqlite3.connect
    monkeypatch.setattr(
        "lotterykit.experiments.schema.sqlite3.connect", lambda *a, **k: connect(*a, factory=NoLog, **k)
    )
    with pytest.raises(StoreError, match="no write-ahead log there"):
        Store(path, write=True)
    Store(path).close()


def test_commits_are_synchronised_to_a_log(path):
    with Store(path, write=True) as store:
        pragmas = ("journal_mode", "synchronous")
        assert [store._db.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas] == ["wal", 2]
        said = []
        store._db.set_trace_callback(said.append)
        store.commit([row(CELLS[0])])
        assert (said[0], said[-1]) == ("BEGIN IMMEDIATE", "COMMIT")


@pytest.mark.parametrize(
    ("page", "byte", "says"), [("first", 0, "malformed"), ("last", 2048, "out of order|invalid page number")]
)
def test_damaged_pages_are_told_a_line_each(path, capsys, page, byte, says):
    with closing(sqlite3.connect(path)) as db:
        (size,) = db.execute("PRAGMA page_size").fetchone()
        (first,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'cells'").fetchone()
    start = (first - 1) * size if page == "first" else path.stat().st_size - size
    with path.open("r+b") as file:
        file.seek(start + byte)
        file.write(b"\xff" * 64)
    with Store(path) as store:
        faults = store.check()
    assert re.search(says, "\n".join(faults))
    assert not any("\n" in fault or "***" in fault for fault in faults)
    assert invoke(["sweep", "check", str(path)]) == 1
    assert capsys.readouterr() == ("\n".join(faults) + "\n", "")


def test_check_reads_the_plan_too(path):
    change(path, "UPDATE plan SET spec = '{}' WHERE key = ?", CELLS[0].key())
    with Store(path) as store:
        (fault,) = store.check()
        assert fault.startswith(f"planned cell {CELLS[0].key()[:12]}: ")
        with pytest.raises(StoreError, match="unreadable planned cell"):
            store.planned()


def test_a_lock_file_left_by_a_killed_writer_does_not_matter(path):
    path.with_name(path.name + ".lock").write_text("12345")
    Store(path, write=True).close()
    assert os.listdir(path.parent) == [path.name]


def test_disk_full_is_one_line_and_keeps_earlier_rows(path):
    new = [CellSpec(**{**CELLS[0].model_dump(), "seed": seed}) for seed in range(100, 160)]
    with Store(path, write=True) as store:
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages + 1}")
        with pytest.raises(StoreError, match="full"):
            store.commit([row(cell) for cell in new])
        assert len(list(store.rows())) == len(CELLS)
    with Store(path, write=True) as store:
        assert store.commit([row(cell) for cell in new]) == len(new)


def test_export_csv(path, tmp_path):
    with Store(path) as store:
        assert export(store, tmp_path / "out.csv") == len(CELLS)
    lines = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert len(lines) == len(CELLS)
    assert {line["spec.density"] for line in lines} == {"0.1", "0.5", "truth"}
    assert all(0 <= float(line["metrics.after.accuracy"]) <= 1 for line in lines)


def test_export_json_lines_holds_whole_rows(path, tmp_path):
    with Store(path) as store:
        export(store, tmp_path / "out.jsonl")
        assert list(map(json.loads, (tmp_path / "out.jsonl").open())) == list(store.rows())


def test_export_parquet(path, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    odd = {"mixed": 1, "wide": 2**64, "empty": [], "none": None, "part": None, "nested": [[1]]}
    even = {"mixed": "a", "wide": 1, "empty": [], "none": None, "part": [0.5, 1], "nested": [[2]]}
    cells = [CellSpec(**{**CELLS[0].model_dump(), "seed": seed}) for seed in (50, 51)]
    with Store(path, write=True) as store:
        store.commit([{**row(cell), **more} for cell, more in zip(cells, (odd, even), strict=True)])
        assert export(store, tmp_path / "out.parquet") == len(CELLS) + 2
        rows = {found["key"]: found for found in store.rows()}
    table = parquet.read_table(tmp_path / "out.parquet")
    found = {column.name: str(column.type) for column in table.schema}
    expected = {
        "spec.density": "string", "spec.seed": "int64", "spec.invert": "bool", "density": "double",
        "spec.gain": "double", "metrics.after.accuracy": "double", "kept.0.weight": "list<element: int64>",
        "curve": "list<element: double>", "mixed": "string", "wide": "string", "nested": "string",
        "none": "null", "part": "list<element: double>",
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert "edges" not in found
    lines = {line["key"]: line for line in table.to_pylist()}
    assert lines.keys() == rows.keys()
    for key, line in lines.items():
        assert line["metrics.after.accuracy"] == rows[key]["metrics"]["after"]["accuracy"]
        assert line["curve"] == rows[key]["curve"]
    first, second = (lines[cell.key()] for cell in cells)
    assert [first[name] for name in odd] == ["1", str(2**64), [], None, None, "[[1]]"]
    assert [second[name] for name in even] == ["a", "1", [], None, [0.5, 1.0], "[[2]]"]
    assert lines[CELLS[0].key()]["mixed"] is None


def test_export_parquet_in_groups(path, tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("lotterykit.experiments.export.GROUP", 4)
    with Store(path) as store:
        assert export(store, tmp_path / "out.parquet") == len(CELLS)
        keys = [found["key"] for found in store.rows()]
    file = parquet.ParquetFile(tmp_path / "out.parquet")
    groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    assert [count for count in groups if count] == [4] * (len(CELLS) // 4) + [len(CELLS) % 4] * (
        len(CELLS) % 4 > 0
    )
    assert file.read()["key"].to_pylist() == keys


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_export_of_text_that_is_no_utf_8(path, tmp_path, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow.parquet")
    odd = {"a\ud800": "b\ud801", "texts": ["c\ud802", None]}
    with Store(path, write=True) as store:
        store.commit([{**row(CellSpec(**{**CELLS[0].model_dump(), "seed": 50})), **odd}])
        assert export(store, tmp_path / f"out.{ending}") == len(CELLS) + 1
    content = (tmp_path / f"out.{ending}").read_bytes()
    for place in ("d800", "d801", "d802"):
        assert f"\\u{place}".encode() in content


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_an_export_beside_a_running_writer_is_of_one_moment(path, tmp_path, monkeypatch, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    read = Store.rows

    def late(store, cells=None):
        """Rows, and after them one with a column of its own from another writer."""
        yield from read(store, cells)
        new = CellSpec(**{**CELLS[0].model_dump(), "seed": next(seeds)})
        with Store(path, write=True) as other:
            other.commit([{**row(new), "news": 1}])

    seeds = iter(range(50, 60))
    monkeypatch.setattr(Store, "rows", late)
    with Store(path) as store:
        assert export(store, tmp_path / f"out.{ending}") == len(CELLS)
    assert b"news" not in (tmp_path / f"out.{ending}").read_bytes()
    with Store(path) as store:
        assert len(list(read(store))) == len(CELLS) + (1 if ending == "jsonl" else 2)


def test_export_follows_no_link(path, tmp_path):
    (tmp_path / f".out.csv.{os.getpid()}.new").symlink_to(tmp_path / "victim")
    with Store(path) as store:
        export(store, tmp_path / "out.csv")
    assert sorted(os.listdir(tmp_path)) == ["out.csv", path.name]


def test_export_parquet_names_the_extra_it_lacks(path, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with Store(path) as store, pytest.raises(ArgumentError, match=r"pip install 'lotterykit\[parquet\]'"):
        export(store, tmp_path / "out.parquet")
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("name", ["out.xlsx", "out", "no/such/out.csv", f"{'long' * 64}.csv"])
def test_export_refuses_in_one_line(path, name):
    with Store(path) as store, pytest.raises((ArgumentError, StoreError), match=name):
        export(store, path.parent / name)
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    ("statements", "says"),
    [
        (["CREATE TRIGGER t AFTER UPDATE ON meta BEGIN DELETE FROM cells; END"], "the trigger t"),
        (["ALTER TABLE cells RENAME TO c", "CREATE VIEW cells AS SELECT * FROM c"], "lacks cells"),
        (["CREATE VIEW v AS SELECT 1"], "the view v"),
        (
            ["DROP TABLE plan", "CREATE TABLE plan (key, spec AS (zeroblob(1000000000)))"],
            "a generated column",
        ),
    ],
)
def test_a_store_that_holds_code_is_refused_and_left(tmp_path, statements, says):
    path = tmp_path / "s.sqlite"
    Store(path, write=True).close()
    with closing(sqlite3.connect(path)) as db, db:
        for statement in statements:
            db.execute(statement)
    before = path.read_bytes()
    for write in (False, True):
        with pytest.raises(StoreError, match=says):
            Store(path, write=write)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "odd",
    [
        {"density": 10**400},
        {"density": float("nan")},
        {"times": {"a": [[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]}},
        {"times": {"a": [-(10**19)]}},
    ],
    ids=["integer", "nan", "depth", "integer within"],
)
def test_a_row_that_no_report_could_read_is_damaged(tmp_path, odd):
    """Its key and digest fit: somebody made it."""
    path, cell = tmp_path / "s.sqlite", CellSpec(task="circle", method="snip", density=0.1)
    with Store(path, write=True) as store:
        store.commit([row(cell)])
    with closing(sqlite3.connect(path)) as db, db:
        key, spec, result = db.execute("SELECT key, spec, result FROM cells").fetchone()
        text = json.dumps(json.loads(result) | odd)
        digest = hashlib.sha256("\0".join((key, spec, text)).encode()).hexdigest()
        db.execute("UPDATE cells SET result = ?, digest = ?", (text, digest))
    with Store(path) as store:
        assert list(store.rows()) == []
        assert store.damaged() == 1
        assert store.brief() == ([], 1)


def test_a_results_version_that_is_no_number_is_a_damaged_row(path, capsys):
    with closing(sqlite3.connect(path)) as db:
        key, spec, result = db.execute("SELECT key, spec, result FROM cells").fetchone()
    text = json.dumps(json.loads(result) | {"results_version": "2"})
    digest = hashlib.sha256("\0".join((key, spec, text)).encode()).hexdigest()
    change(path, "UPDATE cells SET result = ?, digest = ? WHERE key = ?", text, digest, key)
    assert len(report_rows(path)) == len(CELLS) - 1
    assert "1 damaged" in capsys.readouterr().err


def test_stores_of_one_name_are_told_by_their_folders(tmp_path):
    a, b = str(tmp_path / "a" / "s.sqlite"), str(tmp_path / "b" / "s.sqlite")
    assert list(labelled([a, b])) == ["a/s", "b/s"]
    with pytest.raises(ArgumentError, match=f"two sweeps are called {tmp_path}/a/s: "):
        labelled([a, a])


def test_an_export_follows_no_link_that_waits_in_its_place(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("mine")
    with Store(tmp_path / "s.sqlite", write=True) as store:
        (tmp_path / f".out.csv.{os.getpid()}.new").symlink_to(mine)
        assert export(store, tmp_path / "out.csv") == 0
    assert mine.read_text() == "mine"
    assert not (tmp_path / "out.csv").is_symlink()


def test_a_store_whose_index_lacks_a_row_is_not_written_to(tmp_path):
    """A row committed to it would not be found again."""
    path = tmp_path / "s.sqlite"
    with Store(path, write=True) as store:
        store.commit([row(CellSpec(task="circle", method="snip", density=0.1))])
    with closing(sqlite3.connect(path)) as db:
        index = "SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_cells_1'"
        (page,), (size,) = db.execute(index).fetchone(), db.execute("PRAGMA page_size").fetchone()
    data = bytearray(path.read_bytes())
    key = CellSpec(task="circle", method="snip", density=0.1).key().encode()
    data[data.index(key, (page - 1) * size)] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match="corrupt: row 1 missing from index"):
        Store(path, write=True)
