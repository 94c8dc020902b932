"""The page in a real browser: it logs nothing, fetches nothing, sorts, filters and answers the mouse."""

from __future__ import annotations

import chromium
import pytest
import synthetic

from lotterykit.reports import write_report

READY = "document.documentElement?.dataset.ready === 'yes'"
pytestmark = pytest.mark.skipif(chromium.find() is None, reason="no Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def sweeps():
    return {
        "old": synthetic.rows(("circle",), ("snip", "random"), ("truth", 0.1, 0.5), seeds=10, lr=1e-3),
        "new": synthetic.rows(("circle",), ("snip", "random"), ("truth", 0.1, 0.5), seeds=10, lr=1e-2),
    }


@pytest.fixture(scope="module")
def browser(sweeps, tmp_path_factory):
    pytest.importorskip("matplotlib")
    page = write_report([], tmp_path_factory.mktemp("report"), sweeps=sweeps)
    with chromium.Browser() as opened:
        opened.page = page
        yield opened


@pytest.fixture
def shown(browser):
    """The freshly opened page."""
    browser.logged.clear()
    browser.open(browser.page, READY)
    yield browser
    assert browser.logged == []
    assert browser.fetched == []


def _column(browser, name):
    """The texts of a column of the table of all results, as it is shown."""
    return browser.eval(f"""(() => {{
        const table = document.querySelector("table.all");
        const at = [...table.tHead.rows[0].cells].findIndex((c) => c.textContent === {name!r});
        return [...table.tBodies[0].rows].map((row) => row.cells[at].textContent);
    }})()""")


def _click(browser, code):
    x, y = browser.eval(f"""(() => {{
        const e = {code};
        e.scrollIntoView({{ block: "center", inline: "center", behavior: "instant" }});
        const box = e.getBoundingClientRect();
        return [box.x + box.width / 2, box.y + box.height / 2];
    }})()""")
    browser.mouse("mouseMoved", x, y)
    browser.mouse("click", x, y)
    return x, y


def _heading(name):
    return f"[...document.querySelectorAll('table.all .sort')].find((b) => b.textContent === '{name}')"


def test_all_results_by_pages(shown, sweeps):
    total = sum(map(len, sweeps.values()))
    assert shown.eval("document.querySelector('.bar output').textContent") == f"1 to 100 of {total}"
    assert len(_column(shown, "key")) == 100
    _click(shown, "[...document.querySelectorAll('.bar button')].find((b) => b.textContent === 'Later')")
    assert len(_column(shown, "key")) == total - 100


def test_a_click_on_a_heading_sorts_and_another_turns(shown, sweeps):
    values = [r["metrics"]["after"]["accuracy"] for rows in sweeps.values() for r in rows]
    rising = [float(f"{v:.4g}") for v in sorted(values)][:100]
    falling = [float(f"{v:.4g}") for v in sorted(values, reverse=True)][:100]
    _click(shown, _heading("accuracy after"))
    assert [float(v) for v in _column(shown, "accuracy after")] == rising
    _click(shown, _heading("accuracy after"))
    assert [float(v) for v in _column(shown, "accuracy after")] == falling


def test_text_and_columns_filter(shown, sweeps):
    shown.type(".bar input[type=search]", "SNIP new")
    assert set(_column(shown, "method")) == {"snip"}
    assert set(_column(shown, "sweep")) == {"new"}
    assert len(_column(shown, "key")) == 30
    shown.type("[aria-label='only accuracy after']", ">= 0.9")
    wanted = [
        float(f"{r['metrics']['after']['accuracy']:.4g}") for r in sweeps["new"]
        if r["spec"]["method"] == "snip" and float(f"{r['metrics']['after']['accuracy']:.4g}") >= 0.9
    ]  # fmt: skip
    assert 0 < len(wanted) < 30
    assert sorted(float(v) for v in _column(shown, "accuracy after")) == sorted(wanted)
    shown.type("[aria-label='only seed']", "2..4")
    assert set(_column(shown, "seed")) <= {"2", "3", "4"}
    shown.type("[aria-label='only seed']", "x")
    assert (
        shown.eval("document.querySelector(\"[aria-label='only seed']\").getAttribute('aria-invalid')")
        == "true"
    )
    _click(shown, "[...document.querySelectorAll('.bar button')].find((b) => b.textContent === 'Show all')")
    assert "filtered" not in shown.eval("document.querySelector('.bar output').textContent")


def test_tables_of_means_sort_and_filter(shown):
    table = "[...document.querySelectorAll('table.means')].find((t) => t.querySelector('tr[data-row]'))"
    recall = f"(() => {{ const t = {table}; const at = [...t.tHead.rows[0].cells].findIndex("
    recall += "(c) => c.textContent === 'recall'); return [...t.tBodies[0].rows].filter((r) => !r.hidden)"
    recall += ".map((r) => Number(r.cells[at].textContent)); })()"
    before = shown.eval(recall)
    _click(shown, f"[...{table}.querySelectorAll('.sort')].find((b) => b.textContent === 'recall')")
    assert shown.eval(recall) == sorted(before) != before
    box = f"{table}.parentElement.previousElementSibling"
    shown.eval(f"{box}.id = 'means-filter'")
    shown.type("#means-filter", "random old")
    assert len(shown.eval(recall)) == 3


def test_the_mouse_on_a_marker_shows_its_row_and_a_click_its_results(shown):
    wanted = "svg[aria-label^='Sweeps side'] use.mark[data-method=snip][data-asked='0.1'][data-sweep=old]"
    x, y = shown.eval(f"""(() => {{
        const e = document.querySelector("{wanted}");
        e.scrollIntoView({{ block: "center", behavior: "instant" }});
        const box = e.getBoundingClientRect();
        return [box.x + box.width / 2, box.y + box.height / 2];
    }})()""")
    shown.mouse("mouseMoved", x, y)
    assert not shown.eval("document.getElementById('tip').hidden")
    assert "snip, sweep old, density 0.1\nbefore accuracy " in shown.eval(
        "document.getElementById('tip').textContent"
    )
    assert shown.eval("document.querySelector('tr.lit').cells[0].textContent") == "snip, sweep old"
    shown.mouse("click", x, y)
    assert set(_column(shown, "asked")) == {"0.1"}
    assert set(_column(shown, "method")) == {"snip"}
    assert set(_column(shown, "sweep")) == {"old"}
    assert len(_column(shown, "key")) == 10
    shown.mouse("mouseMoved", 5, 5)
    assert shown.eval("document.getElementById('tip').hidden")


def test_nothing_is_wider_than_the_window_and_print_hides_what_needs_a_mouse(shown):
    for media, dark in (("", False), ("", True), ("print", False)):
        shown.media(media, dark)
        wide = shown.eval("document.documentElement.scrollWidth > document.documentElement.clientWidth")
        assert not wide, (media, dark)
        displayed = shown.eval("getComputedStyle(document.querySelector('.bar')).display")
        assert displayed == ("none" if media == "print" else "flex")
    shown.media()


def test_without_the_script_the_page_is_whole(browser):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(browser.page)
        assert browser.eval("document.documentElement.dataset.ready") is None
        assert "JavaScript" in browser.eval("document.querySelector('.plain').textContent")
        assert browser.eval("document.querySelectorAll('use.mark title').length") > 20
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
