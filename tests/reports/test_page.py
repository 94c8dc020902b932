"""The page: whole, self-contained, escaped, the same twice, and nothing half-written on failure."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import synthetic

from lotterykit.errors import ArgumentError, LotterykitError
from lotterykit.reports import captions, check_ready, write_report
from lotterykit.reports import words as report_words
from lotterykit.reports.groups import groups

VOID = {"meta", "br", "link", "img", "hr", "input"}


class _Page(HTMLParser):
    """Collects links, ids, tags and text, and checks that tags nest."""

    def __init__(self, text):
        super().__init__()
        self.links, self.ids, self.tags, self.open, self.text = [], [], set(), [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [v for k, v in attrs if k in ("href", "src", "xlink:href", "srcset", "data", "action")]
        self.ids += [v for k, v in attrs if k == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def page(report):
    return _Page((report / "index.html").read_text(encoding="utf-8"))


def test_every_figure_has_its_data_beside_it(report):
    names = {p.name for p in (report / "figures").iterdir()}
    slugs = [f"{t}-single-shot-d5-w100-g1" for t in ("circle", "helix")] + ["circle-multi-shot-d5-w100-g1"]
    kinds = ("metric", "recovery", "layers", "ticket")
    assert names == {f"{s}-{k}.{e}" for s in slugs for k in kinds for e in ("svg", "csv")}
    assert {p.name for p in report.iterdir()} == {"index.html", "figures"}


def test_every_svg_is_xml_without_a_date(report):
    for path in (report / "figures").glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
        assert "dc:date" not in text


def test_page_needs_no_other_file_and_no_network(report, page):
    text = (report / "index.html").read_text(encoding="utf-8")
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert not {"link", "iframe", "img", "object"} & page.tags
    assert not re.search(r"<script[^>]*src", text)
    assert text.count("<script") == 2  # the data of the table, and what sorts and filters it
    assert not re.search(r"url\((?!#)", text)
    assert "@import" not in text
    assert len(page.ids) == len(set(page.ids))
    for reference in re.findall(r"url\(#([^)]+)\)", text):
        assert reference in page.ids
    assert text.count("<svg") == 12


def test_downloads_are_the_csv_files(report, page):
    inlined = [
        base64.b64decode(link.partition(",")[2]) for link in page.links if link.startswith("data:text/csv")
    ]
    assert sorted(inlined) == sorted(p.read_bytes() for p in (report / "figures").glob("*.csv"))


def test_page_tells_facts_collapse_and_truth(page):
    text = " ".join(" ".join(page.text).split())
    assert "A <test> & its title" in text
    for words in ("0.1.0", "2 (0 to 1)", "No live path from input to output", "not finite", "Ground truth"):
        assert words in text
    assert "trained by the other pipeline" in text  # the multi-shot group borrows its truth
    assert "How well the ticket hides" in text


def test_the_same_rows_in_any_order_give_the_same_bytes(tmp_path):
    pytest.importorskip("matplotlib")
    rows = synthetic.rows(("circle",), ("snip", "grasp"), ("truth", 0.1), seeds=2)
    rows += [synthetic.row("relu", "oracle", "truth", 0), synthetic.row("relu", "oracle", "truth", 1)]
    first = write_report(rows, tmp_path / "a")
    second = write_report(rows[::-1], tmp_path / "b")
    written = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(written) == 13
    for path in written:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes(), path
    assert first.read_bytes() == second.read_bytes()


def test_foreign_names_are_escaped(tmp_path):
    pytest.importorskip("matplotlib")
    evil = "<script>alert(1)</script>&\"'"
    rows = synthetic.rows((evil,), (evil, "$\\frac$"), (0.1,), seeds=1, init=evil)
    rows[0]["versions"]["cpu"] = evil
    page = _Page(write_report(rows, tmp_path, title=evil).read_text(encoding="utf-8"))
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert text.count("<script") == 2
    assert "<script>alert" not in text
    assert evil in " ".join(page.text)
    assert all(re.fullmatch(r"[a-z0-9.-]+", p.name) for p in (tmp_path / "figures").iterdir())
    for path in (tmp_path / "figures").glob("*.svg"):
        ElementTree.fromstring(path.read_text(encoding="utf-8"))


def test_no_rows(tmp_path):
    with pytest.raises(ArgumentError, match="no rows"):
        write_report([], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unwritable_folder_is_one_line(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArgumentError, match="cannot write the report") as error:
        write_report([synthetic.row("relu", "oracle", "truth", 0)], tmp_path / "file" / "out")
    assert "\n" not in str(error.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_failure_leaves_the_earlier_page(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    rows = [synthetic.row("relu", "oracle", "truth", 0)]
    page = write_report(rows, tmp_path)
    before = page.read_bytes()
    replace = os.replace

    def full_disk(source, target):
        if str(target).endswith("index.html"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(ArgumentError, match="No space left"):
        write_report(rows, tmp_path, title="another")
    assert page.read_bytes() == before
    assert not list(tmp_path.rglob(".*"))


def test_without_matplotlib_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(LotterykitError, match=r"pip install 'lotterykit\[plot\]'"):
        write_report([synthetic.row("relu", "oracle", "truth", 0)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("module", "advice"),
    [("matplotlib", r"pip install 'lotterykit\[plot\]'"), ("jinja2", "comes with torch.*pip install jinja2")],
)
def test_what_is_missing_is_said_before_the_work(module, advice, monkeypatch):
    pytest.importorskip("matplotlib")
    check_ready()
    for name in [n for n in sys.modules if n.split(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(LotterykitError, match=advice):
        check_ready()


def _text(path):
    return " ".join(" ".join(_Page(path.read_text(encoding="utf-8")).text).split())


def test_a_section_for_each_figure_with_its_rows_only(tmp_path):
    pytest.importorskip("matplotlib")
    spec = {"pipeline": "multi-shot", "gain": 0.0}
    rows = [
        r for reset in ("init", "never") for r in synthetic.rows(("circle",), ("snip",), ("truth",), **spec,
                                                                 reset=reset)
    ]  # fmt: skip
    rows += synthetic.rows(("relu",), ("snip",), ("truth",)) + synthetic.rows(("helix",), ("grasp",), (0.5,))
    keys = {t: {r["key"] for r in rows if r["spec"]["task"] == t} for t in ("circle", "relu")}
    figures = [
        {"name": 3, "title": "Singleshot results", "overlay": None, "keys": keys["relu"]},
        {"name": 7, "title": "Finetuning", "overlay": "reset", "keys": keys["circle"]},
        {"name": 9, "title": "Not yet run", "overlay": None, "keys": []},
    ]
    text = _text(write_report(rows, tmp_path, figures=figures))
    for word in ("Figure 3: Singleshot results", "Figure 7: Finetuning", "Figure 9: Not yet run",
                   "None of its results are in the store yet", "reset init and never (line styles)",
                   "Line styles tell reset apart (init, never)", "snip, reset never"):  # fmt: skip
        assert word in text
    assert "helix: " not in text
    assert "grasp" not in text
    names = {p.name for p in (tmp_path / "figures").glob("*.svg")}
    seven = "figure-7-circle-multi-shot-d5-w100-g0"
    parts = {f"{seven}-reset-{r}-{k}.svg" for r in ("init", "never") for k in ("layers", "ticket")}
    assert {n for n in names if n.startswith("figure-7")} == {
        f"{seven}-metric.svg",
        f"{seven}-recovery.svg",
        *parts,
    }
    assert len(names) == 10


def test_below_gain_1_the_caption_says_what_is_drawn():
    rows = synthetic.rows(("relu",), ("snip",), ("truth",))
    assert "output scale" not in captions.metric_caption(groups(rows)[0])
    (group,) = groups(synthetic.at_gain_0(rows))
    caption = captions.metric_caption(group)
    assert "before training the ground truth is drawn for its output times that scale" in caption
    assert "methods' points, and everything after training, are of outputs as they are" in caption
    note = report_words.notes(group)[0][1]
    planted = [r["metrics"]["before"]["mse"] for r in rows if r["spec"]["method"] == "oracle"]
    assert f"MSE {sum(planted) / 2:.3g} as planted (times its output scale)" in note


def test_collapsed_methods_are_marked_or_left_out_of_the_best():
    rows = synthetic.rows(("circle",), ("magnitude", "snip"), ("truth",), seeds=2)
    for row in rows:  # the better one is dead: in one seed, then in both
        row["collapse"]["no_live_path"] = row["spec"] | {"method": "snip", "seed": 0} == row["spec"]
        row["recovery"]["recall"] = {"snip": 0.9}.get(row["spec"]["method"], 0.2)
    recall = report_words.OVERVIEW.index("best recall")
    assert report_words.overview(groups(rows)[0])[recall] == ("0.9", "snip*")
    for row in rows:
        row["collapse"]["no_live_path"] = row["spec"]["method"] == "snip"
    assert report_words.overview(groups(rows)[0])[recall] == ("0.2", "magnitude")
    assert "snip" not in "".join(text for kind, text in report_words.notes(groups(rows)[0]) if kind != "warn")
    alone = [r for r in rows if r["spec"]["method"] == "snip"]
    assert report_words.overview(groups(alone)[0])[recall] == ("\u2013", "all collapsed")


def test_figures_of_an_earlier_report_go_and_foreign_files_stay(tmp_path):
    pytest.importorskip("matplotlib")
    write_report([synthetic.row("relu", "oracle", "truth", 0)], tmp_path)
    folder = tmp_path / "figures"
    earlier = {p.name for p in folder.iterdir()}
    assert len(earlier) == 4
    foreign = {"mine.svg": "<svg/>", "mine.csv": "a,b", "notes.csv": "1,2", "zebra.svg": "no xml \u00e9"}
    for name, text in foreign.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "folder.svg").mkdir()
    write_report([synthetic.row("circle", "oracle", "truth", 0)], tmp_path)
    left = {p.name for p in folder.iterdir()}
    assert not left & earlier
    assert {*foreign, "folder.svg"} < left
    assert {(folder / n).read_text(encoding="utf-8") for n in foreign} == set(foreign.values())
    assert len(left) == 4 + 5


def test_importing_reports_loads_neither_torch_nor_matplotlib():
    code = (
        "import sys, lotterykit.reports;"
        "print(sorted({'torch', 'matplotlib', 'jinja2', 'lotterykit.experiments'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_drawing_leaves_matplotlib_as_it_was(tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    before = dict(matplotlib.rcParams)
    write_report([synthetic.row("relu", "oracle", "truth", 0)], tmp_path)
    assert dict(matplotlib.rcParams) == before
