"""The HTML and CSS of the report page (jinja2, autoescaped)."""

CSS = """
:root { --ink: #1d2530; --soft: #5c6672; --line: #dfe3e8; --back: #f6f7f9; --card: #fff; --accent: #0072b2;
  --warn: #a3341c; --warnback: #fdf1ee; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --soft: #a2acb8; --line: #343c47; --back: #14181e; --card: #1c222a;
    --accent: #63b3e4; --warn: #ff9d85; --warnback: #35211d; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .6rem; letter-spacing: -.01em; }
h2 { font-size: 1.5rem; margin: 3rem 0 .2rem; padding-top: 1rem; border-top: 3px solid var(--accent); }
h3 { font-size: 1.13rem; margin: 1.6rem 0 .3rem; }
h4 { font-size: 1rem; margin: 1.8rem 0 .4rem; }
p { margin: .4rem 0 .8rem; max-width: 78ch; }
.lead { font-size: 1.06rem; }
.soft, figcaption, .facts dt { color: var(--soft); }
a { color: var(--accent); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: .7rem 1.4rem;
  background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.2rem;
  margin: 1.2rem 0; }
.facts div { min-width: 0; }
.facts dt { font-size: .78rem; text-transform: uppercase; letter-spacing: .05em; }
.facts dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
.notes { padding-left: 1.2rem; margin: .5rem 0 1rem; max-width: 82ch; }
.notes .warn { color: var(--warn); }
figure { margin: 1.1rem 0 1.8rem; }
.paper { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: .8rem;
  overflow-x: auto; }
.paper svg { display: block; width: 100%; min-width: 640px; height: auto; }
figcaption { font-size: .9rem; margin-top: .5rem; max-width: 100ch; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
td small { display: block; white-space: nowrap; color: var(--soft); font-weight: 400; }
th, td { padding: .3rem .6rem; vertical-align: top; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: .9rem; }
td:has(a) { white-space: normal; min-width: 11rem; }
.scroll + p { font-size: .9rem; margin-top: .5rem; }
tr.first td { border-top: 2px solid var(--line); }
tr:last-child td { border-bottom: 0; }
tr.truth td { font-weight: 600; }
td.warn { color: var(--warn); background: var(--warnback); font-weight: 600; }
th .sort { all: unset; cursor: pointer; }
th .sort:hover { text-decoration: underline; }
th .sort:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
th[aria-sort=ascending] .sort::after { content: " \\25B2"; }
th[aria-sort=descending] .sort::after { content: " \\25BC"; }
table.sorted tr.first td { border-top: 0; }
tr.lit td { background: color-mix(in srgb, var(--accent) 18%, var(--card)); }
input, select, .bar button { font: inherit; font-size: .88rem; color: var(--ink); background: var(--card);
  border: 1px solid var(--line); border-radius: 6px; padding: .25rem .5rem; max-width: 100%; }
input[type=search] { width: 18rem; margin: 0 0 .5rem; }
input[aria-invalid=true] { border-color: var(--warn); outline: 1px solid var(--warn); }
.bar { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; margin: .6rem 0; }
.bar input[type=search] { margin: 0; }
.bar button { cursor: pointer; }
.bar button:disabled { opacity: .45; cursor: default; }
.bar output { color: var(--soft); font-size: .88rem; }
.filters td { padding-top: 0; }
.filters input { width: 4.4rem; }
.filters select { max-width: 9rem; }
table.all th { text-align: right; padding-left: .5rem; padding-right: .5rem; }
table.all td { padding-left: .5rem; padding-right: .5rem; }
table.all .word { text-align: left; max-width: 15rem; overflow: hidden; text-overflow: ellipsis; }
#tip { position: absolute; z-index: 9; max-width: 26rem; white-space: pre-line; pointer-events: none;
  background: var(--ink); color: var(--back); border-radius: 6px; padding: .4rem .6rem; font-size: .85rem; }
#tip[hidden] { display: none; }
.paper use.lit { filter: drop-shadow(0 0 2px #000); }
footer { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: 1rem; font-size: .88rem;
  color: var(--soft); }
@media print {
  @page { margin: 14mm; }
  :root { --ink: #000; --soft: #444; --line: #bbb; --back: #fff; --card: #fff; --accent: #0072b2;
    --warn: #a3341c; --warnback: #fff; }
  body { font-size: 9.5pt; }
  table { font-size: 8pt; }
  main { max-width: none; padding: 0; }
  figure, tr { break-inside: avoid; }
  h2, h3, h4 { break-after: avoid; }
  h2 { break-before: page; }
  th, td { white-space: normal; padding: .15rem .3rem; }
  .download, .bar, .filters, input, #tip, #results { display: none; }
  .paper { border: 0; padding: 0; }
  .paper svg { min-width: 0; }
}
"""

PAGE = """{%- macro show_table(table) %}
<h4>{{ table.heading }}</h4>
<div class="scroll"><table class="means">
<thead><tr>{% for cell in table.header %}<th scope="col">{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{%- for line in table.lines %}
<tr class="{{ line.kind }}"{% if line.row %} data-row="{{ line.row }}"{% endif %}>
{%- for cell in line.cells %}<td{% if cell.warn %} class="warn"{% endif %}>
{%- if cell.href %}<a href="{{ cell.href }}">{{ cell.text }}</a>
{%- else %}{{ cell.text }}{% endif %}
{%- if cell.small %}<small>{{ cell.small }}</small>{% endif %}</td>{% endfor %}</tr>
{%- endfor %}
</tbody></table></div>
<p class="soft">{{ table.caption }}</p>
{%- endmacro %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src
 'sha256-{{ script_hash }}'; base-uri 'none'; form-action 'none'">
<title>{{ title }}</title>
<style>{{ css }}</style>
</head>
<body>
<main>
<header>
<h1>{{ title }}</h1>
<p class="lead">{{ lead }}</p>
<dl class="facts">
{%- for name, value in facts %}
<div><dt>{{ name }}</dt><dd>{{ value }}</dd></div>
{%- endfor %}
</dl>
{%- if overview %}
{{ show_table(overview) }}
{%- endif %}
{%- if note %}
<p class="soft">{{ note }}</p>
{%- endif %}
<h3>How to read the figures</h3>
<ul class="notes">
{%- for note in legend %}
<li>{{ note }}</li>
{%- endfor %}
</ul>
</header>
{%- for section in sections %}
<section>
<h2>{{ section.heading }}</h2>
{%- if not section.groups %}
<p class="soft">None of its results are in the store yet.</p>
{%- endif %}
{%- for group in section.groups %}
<section id="{{ group.anchor }}">
<h3>{{ group.title }}</h3>
<p class="soft">{{ group.conditions }}</p>
<ul class="notes">
{%- for kind, note in group.notes %}
<li class="{{ kind }}">{{ note }}</li>
{%- endfor %}
</ul>
{%- for figure in group.figures %}
<h4>{{ figure.heading }}</h4>
<figure>
<div class="paper">{{ figure.svg }}</div>
<figcaption>{{ figure.caption }}
<span class="download"><a download="{{ figure.name }}.csv" href="{{ figure.csv }}">data
  (CSV)</a></span></figcaption>
</figure>
{%- endfor %}
{%- for table in group.tables %}
{{ show_table(table) }}
{%- endfor %}
</section>
{%- endfor %}
</section>
{%- endfor %}
<section id="results">
<h2>All results</h2>
<p class="soft">Every result of this report, one a row: click a heading to sort, type to filter; in a column
  of numbers &gt; 0.9, &lt;= 0.1 and 0.1..0.5 work too. A click on a marker of a figure shows the results
  behind it.</p>
<p class="plain">{{ count }} results. To show them here the page needs JavaScript; lotterykit sweep export
  writes them to a file.</p>
</section>
<footer>Made by lotterykit {{ version }} from {{ count }} stored results. This page needs no other file and
  no network;
the figures also lie beside it in the folder figures, each an SVG with its CSV.</footer>
</main>
<script type="application/json" id="all-results">{{ results }}</script>
<script>{{ script }}</script>
</body>
</html>
"""
