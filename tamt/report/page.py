"""The report as one self-contained HTML page, and as Markdown. Text from files is escaped."""

import html
import re
from collections.abc import Sequence

from tamt.report.figure import Figure, Missing
from tamt.report.numbers import number, percent, summary_text
from tamt.report.results import Results
from tamt.report.statistics import Summary
from tamt.report.style import colour_rules, styles_of, swatch
from tamt.report.svg import svg_of
from tamt.report.tables import Cell, Table, figure_table, rates_note
from tamt.version import __version__

GENERATOR = '<meta name="generator" content="tamt report">'
"""Marks a page that a new report may replace."""
MOST_ROWS = 30
"""Most rows of a table that is not folded in the page."""
CARD = re.compile(r'<section class="card" id="([\w.+-]+)"><h3>[^<]*(?:(<span)|</h3><p)')
"""The start of a figure or a table in the page: its name, and for a figure its tag."""
WIDE = 40
"""Most characters of a cell without line breaks."""
MOST_SHOWN = 250
"""Most rows of a table in the page; the CSV has all."""

STYLE = """
:root{color-scheme:light dark;--font:system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;
--surface:#fffffe;--page:#f5f6f8;--ink:#1b1f24;--muted:#5b6570;--rule:#d9dee4;--link:#00528a;LIGHT}
@media (prefers-color-scheme:dark){:root{--surface:#171b20;--page:#0f1215;--ink:#e8ebee;--muted:#a0a9b3;--rule:#333b44;
--link:#7cc0f0;DARK}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 var(--font);overflow-wrap:anywhere}
main,header{max-width:1240px;margin:0 auto;padding:0 16px}
header{padding-top:28px}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 4px}
h2{font-size:1.25rem;margin:40px 0 12px}
h3{font-size:1.05rem;margin:0}
p{margin:6px 0;max-width:75ch}
a{color:var(--link)}
.quiet{color:var(--muted);font-size:.875rem}
nav ul{columns:320px;list-style:none;padding:0;font-size:.875rem}
nav li{break-inside:avoid;padding:1px 0}
section.card{background:var(--surface);border:1px solid var(--rule);border-radius:8px;padding:16px;margin:0 0 16px}
.tag{font-size:.78rem;font-weight:400;color:var(--muted);border:1px solid var(--rule);border-radius:4px;padding:1px 6px;
margin-left:8px;white-space:nowrap}
.legend{display:flex;flex-wrap:wrap;gap:2px 16px;margin:8px 0;font-size:.85rem}
.legend span{display:inline-flex;align-items:center;gap:6px}
.swatch{width:26px;height:12px;flex:none}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr));gap:8px 16px}
.panels.few{grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),380px))}
.panels svg{display:block;width:100%;height:auto;max-width:520px}
.v{fill:transparent}
.v:hover{stroke:var(--ink);stroke-width:1}
.wide{overflow:auto;width:fit-content;max-width:100%;max-height:70vh;margin:8px 0;
border:1px solid var(--rule);border-radius:6px}
table{border-collapse:collapse;font-size:.82rem;font-variant-numeric:tabular-nums;overflow-wrap:normal}
th,td{padding:4px 10px;text-align:left;vertical-align:top;border-bottom:1px solid var(--rule)}
td.n,th.n{text-align:right;white-space:nowrap}
td{white-space:nowrap}
td.w{white-space:normal;min-width:22em;max-width:40em}
th{position:sticky;top:0;background:var(--surface);font-weight:600}
tr:last-child td{border-bottom:0}
details{margin:8px 0}
summary{cursor:pointer;font-size:.875rem;color:var(--link)}
ul{margin:6px 0;padding-left:20px}
#tip{position:fixed;display:none;pointer-events:none;max-width:min(320px,90vw);background:var(--ink);color:var(--page);
font-size:.8rem;line-height:1.35;padding:5px 9px;border-radius:5px;z-index:9}
@media print{details{display:none}}
"""
SCRIPT = """
const tip = document.getElementById("tip");
function show(event) {
  const mark = event.target.closest && event.target.closest(".v");
  if (!mark) { tip.style.display = "none"; return; }
  const title = mark.querySelector("title");
  if (title) {  // the browser would show it later, on top of this one
    mark.dataset.words = title.textContent;
    mark.setAttribute("aria-label", title.textContent);
    title.remove();
  }
  tip.textContent = mark.dataset.words;
  tip.style.display = "block";
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(event.clientX + 12, innerWidth - box.width - 4)) + "px";
  tip.style.top = (event.clientY > box.height + 16 ? event.clientY - box.height - 10 : event.clientY + 16) + "px";
}
document.addEventListener("pointermove", show);
document.addEventListener("pointerdown", show);
"""


def page(results: Results, found: Sequence[Figure | Missing], tables: Sequence[Table]) -> str:
    """The whole report as HTML."""
    figures = [item for item in found if isinstance(item, Figure)]
    missing = [item for item in found if isinstance(item, Missing)]
    by_name = {table.name: table for table in tables}
    first = [table for name in ("scores", "won-back") if (table := by_name.get(name))]
    rest = [table for table in tables if table not in first]
    title = f"Winning tickets: {results.folder.resolve().name}"
    links = [(figure.name, figure.title) for figure in figures]
    links += [("missing", "Missing figures")] * bool(missing) + [(table.name, table.title) for table in rest]
    style = STYLE.replace("LIGHT", colour_rules(0)).replace("DARK", colour_rules(1))
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"{GENERATOR}<title>{_escape(title)}</title><style>{style}</style></head><body>",
        f"<header><h1>{_escape(title)}</h1><p>{_escape(summary(results))}</p>",
        "<nav><details><summary>Contents</summary><ul>",
        *(f'<li><a href="#{_escape(name)}">{_escape(text)}</a></li>' for name, text in links),
        "</ul></details></nav>",
        "</header>",
        "<main>",
        *(_table_card(table) for table in first),
        *('<h2>Figures</h2><p class="quiet">Hover over a mark to see its values.</p>' for _ in figures[:1]),
        *(_figure_card(figure) for figure in figures),
        _missing_card(missing),
        "<h2>Tables</h2>",
        *(_table_card(table) for table in rest),
        f'</main><div id="tip" role="status"></div><script>{SCRIPT}</script></body></html>',
    ]
    return "\n".join(part for part in parts if part) + "\n"


def files_beside(page: str) -> set[str]:
    """The names of the pictures and tables that the report with this page, or an empty text, wrote beside it."""
    return {
        f"{name}.{kind}"
        for name, figure in CARD.findall(page)
        for kind in (("png", "pdf", "csv") if figure else ("csv",))
    }


def summary(results: Results) -> str:
    """The contents of the report in a few sentences."""
    masks, runs = sum(t.final for t in results.tickets), len(results.fine_tunings)
    on_the_way = len(results.tickets) - masks
    along = f" and {on_the_way} saved on the way" if on_the_way else ""
    count = len(results.skipped)
    items = "1 item was" if count == 1 else f"{count} items were"
    left = f" {items} left out; see the last table." if count else ""
    wrote = f"tamt {results.version}" if results.version else "an unknown version of tamt"
    return (
        f"{masks} final masks{along}, {runs} fine-tunings. Models: {', '.join(results.models)}. "
        f"Runs by {wrote}, report by tamt {__version__}.{left}{rates_note(results)}"
    )


def _figure_card(figure: Figure) -> str:
    legend = "".join(f"<span>{swatch(series)}{_escape(series.label)}</span>" for series in styles_of(figure))
    few = " few" if len(figure.panels) < 4 else ""
    panels = "".join(f"<div>{svg_of(panel, f'{figure.name}-{i}')}</div>" for i, panel in enumerate(figure.panels))
    numbers = _html_table(figure_table(figure))
    return (
        f'<section class="card" id="{_escape(figure.name)}"><h3>{_escape(figure.title)}'
        f'<span class="tag">{_escape(figure.paper)}</span></h3><p class="quiet">{_escape(figure.caption)}</p>'
        f'<div class="legend">{legend}</div><div class="panels{few}">{panels}</div>'
        f"<details><summary>Values</summary>{numbers}</details></section>"
    )


def _missing_card(missing: Sequence[Missing]) -> str:
    if not missing:
        return ""
    items = "".join(
        f'<li>{_escape(item.title)}<span class="tag">{_escape(item.paper)}</span><br>'
        f'<span class="quiet">needs {_escape(item.needs)}</span></li>'
        for item in missing
    )
    return f'<section class="card" id="missing"><h3>Missing figures</h3><ul>{items}</ul></section>'


def _table_card(table: Table) -> str:
    content = _html_table(table)
    if len(table.rows) > MOST_ROWS:
        content = f"<details><summary>{len(table.rows)} rows</summary>{content}</details>"
    return (
        f'<section class="card" id="{_escape(table.name)}"><h3>{_escape(table.title)}</h3>'
        f'<p class="quiet">{_escape(table.note)} File: {_escape(table.name)}.csv.</p>{content}</section>'
    )


def _html_table(table: Table) -> str:
    numeric = [any(isinstance(row[i], int | float | Summary) for row in table.rows) for i in range(len(table.columns))]
    shares = [column == "sparsity" for column in table.columns]
    head = "".join(
        f"<th{' class=n' if right else ''}>{_escape(column)}</th>"
        for column, right in zip(table.columns, numeric, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(_cell(cell_text(cell, share), right) for cell, right, share in zip(row, numeric, shares, strict=True))
        + "</tr>"
        for row in table.rows[:MOST_SHOWN]
    )
    more = len(table.rows) - MOST_SHOWN
    rest = f'<p class="quiet">{more} more rows are in {_escape(table.name)}.csv.</p>' if more > 0 else ""
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{rest}'


def _cell(text: str, right: bool) -> str:
    kind = " class=n" if right else " class=w" if len(text) > WIDE else ""
    return f"<td{kind}>{_escape(text)}</td>"


def cell_text(cell: Cell, share: bool = False) -> str:
    """A cell as text; a share of 0.7 becomes 70 %."""
    if cell is None:
        return "–"
    if isinstance(cell, Summary):
        return summary_text(cell).replace(" runs)", ")").replace(" run)", ")")
    if share and isinstance(cell, float):
        return percent(cell)
    return cell if isinstance(cell, str) else number(cell)


def markdown(results: Results, found: Sequence[Figure | Missing], tables: Sequence[Table]) -> str:
    """The main tables, the figures and the missing ones as Markdown, for a README."""
    parts = [f"# Winning tickets: {_plain(results.folder.resolve().name)}", _plain(summary(results))]
    for table in tables:
        if table.name in ("scores", "won-back", "times", "searches", "correlation", "paper"):
            parts += [f"## {table.title}", _plain(table.note), _markdown_table(table)]
    for item in found:
        if isinstance(item, Figure):
            parts += [
                f"## {_plain(item.title)} ({item.paper})",
                f"![{_plain(item.title)}]({item.name}.png)",
                item.caption,
            ]
    if missing := [item for item in found if isinstance(item, Missing)]:
        parts += ["## Missing figures"]
        parts += ["\n".join(f"- {_plain(m.title)} ({m.paper}): needs {m.needs}" for m in missing)]
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    shares = [column == "sparsity" for column in table.columns]
    rows = [[_plain(cell_text(cell, share)) for cell, share in zip(row, shares, strict=True)] for row in table.rows]
    lines = [map(_plain, table.columns), ["---"] * len(table.columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Text with all Markdown mark-up escaped."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _escape(text: str) -> str:
    return html.escape(text)
