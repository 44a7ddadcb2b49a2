"""The page, opened in a browser; figures and files beside it."""

import csv
import html
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from example_study import ExampleStudy, write_example

from tamt.methods import METHODS
from tamt.report.drawing import put_legend, pyplot, write_pictures
from tamt.report.figure import Chart, Figure, Point, Series
from tamt.report.figures import figures_of
from tamt.report.read import read_results
from tamt.report.report import report
from tamt.report.style import colour_of, mark_of, styles_of, swatch, told_apart
from tamt.report.svg import svg_of

FIGURES = [
    "fig-01",
    "fig-03",
    "fig-05",
    "fig-06",
    "fig-07",
    "fig-08",
    "fig-09",
    "fig-11",
    "score-by-time",
    "search-",
    "layers-d",
    "layers-s",
]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with the runs for every figure, and a run whose name is a script."""
    folder = tmp_path_factory.mktemp("study")
    example: ExampleStudy = write_example(folder, sparsities=(0.7,), seeds=2, tasks=("cola",))
    model = "<script>alert(1)</script>"
    example.weights[model] = example.weights["roberta-base"]
    row = {"model": model, "task": model, "method": "full", "sparsity": 0.0, "metric": "<b>", "score": 0.5, "seed": 0}
    config = {"task": model, "model": model}
    example.write("finetune/<script>alert(2)<", config, [{**row, "train_samples": 9, "mask": None}])
    example.write("finetune/<img src=x onerror=alert(3)>", config, [{**row, "score": None}])
    report(folder)
    return folder


def test_every_figure_is_a_picture_and_a_table(study: Path) -> None:
    names = {path.stem for path in (study / "report").glob("*.png")}
    for figure in FIGURES:
        assert any(name.startswith(figure) for name in names), figure
    for kind in ("pdf", "csv"):
        assert names <= {path.stem for path in (study / "report").glob(f"*.{kind}")}
    text = (study / "report" / "report.md").read_text()
    assert all(f"]({name}.png)" in text for name in names)


def test_page_picture_and_table_show_the_same_numbers(study: Path) -> None:
    read = read_results(study)
    figure = next(
        f for f in figures_of(read) if isinstance(f, Figure) and f.name == "fig-03-score-by-sparsity-roberta-base"
    )
    points = [p for c in figure.panels if isinstance(c, Chart) for s in c.series for p in s.points]
    references = [c.reference for c in figure.panels if isinstance(c, Chart) and c.reference]
    with (study / "report" / f"{figure.name}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(points) + len(references)
    assert {float(row["y mean"]) for row in rows} >= {point.y for point in points}
    page = (study / "report" / "report.html").read_text()
    section = page[page.index(f'id="{figure.name}"') :].split("</section>")[0]
    titles = re.findall(r'class="v"[^>]*><title>(.*?)</title>', section)
    assert len(titles) == len(rows)
    assert all(any(f"{point.y:.1f} ± {point.spread:.1f}" in html.unescape(t) for t in titles) for point in points)


def test_what_comes_from_files_is_escaped(study: Path) -> None:
    page = (study / "report" / "report.html").read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert page.count("<script>") == 1  # our own
    assert "<img" not in page
    assert "<script>" not in (study / "report" / "report.md").read_text().replace("\\<", "")


def test_the_page_is_small_and_names_no_address(study: Path) -> None:
    page = (study / "report" / "report.html").read_text()
    assert len(page) < 3_000_000
    addresses = set(re.findall(r"(?:https?:)?//[\w.]+[^\"'\s)]*", page))
    assert {address for address in addresses if "w3.org" not in address} == set()  # those name XML's dialects


def test_a_report_replaces_the_one_before(study: Path, tmp_path: Path) -> None:
    target = tmp_path / "study"
    example = ExampleStudy(target)
    ticket = example.search("bert-base-uncased", "omp", 0.7)[0]
    example.finetune("bert-base-uncased", "cola", ticket, 0)
    before = report(target)["results"][0]
    example.finetune("bert-base-uncased", "cola", ticket, 1)
    after = report(target)["results"][0]
    assert (before["fine_tunings"], after["fine_tunings"]) == (1, 2)
    assert after["left_out"] == 0


def test_a_report_leaves_no_file_of_the_one_before(tmp_path: Path) -> None:
    example = ExampleStudy(tmp_path / "study")
    for method in ("omp", "tamt-kd"):
        for ticket in example.search("bert-base-uncased", method, 0.7):
            example.finetune("bert-base-uncased", "cola", ticket, 0)
    for folder in example.folder.glob("*/*tamt-kd*"):
        shutil.move(folder, tmp_path)
    report(example.folder, output=tmp_path / "alone")
    alone = {path.name for path in (tmp_path / "alone").iterdir()}
    for folder in tmp_path.glob("*tamt-kd*"):
        shutil.move(folder, example.folder / ("finetune" if folder.name.startswith("cola") else "search"))
    report(example.folder)
    target = example.folder / "report"
    assert alone < {path.name for path in target.iterdir()}
    for name in ("scores.png", "missing.csv", "notes.txt"):
        (target / name).write_text("mine")
    for folder in example.folder.glob("*/*tamt-kd*"):
        shutil.rmtree(folder)
    report(example.folder)
    assert {path.name for path in target.iterdir()} == {*alone, "scores.png", "missing.csv", "notes.txt"}


@pytest.mark.parametrize("last", ["write_pictures", "markdown", "files_beside"])
def test_an_interrupted_report_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str) -> None:
    example = ExampleStudy(tmp_path / "study")
    ticket = example.search("bert-base-uncased", "omp", 0.7)[0]
    example.finetune("bert-base-uncased", "cola", ticket, 0)

    def interrupt(*words: object) -> None:
        if last == "write_pictures":
            write_pictures(*words)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"tamt.report.report.{last}", interrupt)
        with pytest.raises(KeyboardInterrupt):
            report(example.folder)
    assert any((example.folder / "report").iterdir())
    report(example.folder)
    report(example.folder, output=tmp_path / "alone")
    assert {p.name for p in (example.folder / "report").iterdir()} == {p.name for p in (tmp_path / "alone").iterdir()}


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Headless Chromium."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here; apt-get install chromium brings one")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_the_page_in_a_browser(study: Path, browser, width: int, scheme) -> None:
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: requests.append(request.url))
    address = (study / "report" / "report.html").as_uri()
    page.goto(address)
    for name in FIGURES:
        panels = page.locator(f'section[id^="{name}"] .panels svg')
        assert panels.count() > 0, name
        sizes = panels.evaluate_all("all => all.map(svg => svg.getBoundingClientRect().width)")
        assert min(sizes) > 250, name
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    mark = page.locator('section[id^="fig-03"] circle.v').first
    mark.hover(force=True)  # or one that lies over it
    assert "± " in page.locator("#tip").inner_text()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) < 200) == (scheme == "dark")
    ink = page.locator(".panels svg text").first.evaluate("text => getComputedStyle(text).fill")
    assert (sum(map(int, re.findall(r"\d+", ink))) > 450) == (scheme == "dark")
    assert complaints == []
    assert requests == [address]
    context.close()


def test_ticks_are_labelled_with_their_values() -> None:
    points = tuple(Point(x, 50.0) for x in (0.105, 0.125, 0.135))
    chart = Chart("a", "sparsity (%)", "score", (Series("OMP", "omp", points),))
    assert {"0.105", "0.125", "0.135"} <= set(re.findall(r"<text[^>]*>([^<]*)</text>", svg_of(chart, "a")))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_mark_in_the_legend(method: str) -> None:
    assert "fill=" in swatch(Series(method, method, ()))


def test_variants_of_one_method_are_told_apart() -> None:
    def figure(*names: str) -> Figure:
        series = tuple(
            Series(name, "tamt", (Point(0.1, 0.2),), line=False, dashed=True, variant=name) for name in names
        )
        return Figure("fig", "title", "", "", (Chart("", "x", "y", (*series, Series("OMP", "omp", ()))),))

    def looks(figure: Figure) -> list[tuple[str, str]]:
        return [(colour_of(series.style), mark_of(series)) for series in styles_of(figure)]

    names = ["attention", "contrastive", "kd", "kd + attention", "logits", "mlm"]
    several, one = told_apart([figure(*names), figure("kd")])
    assert len({*looks(several)}) == len(names) + 1
    assert looks(one)[0] == looks(several)[names.index("kd")]  # the same in every figure
    assert looks(told_apart([figure("kd")])[0]) == looks(figure("kd"))


@pytest.mark.parametrize(("words", "columns"), [(1, 5), (6, 3), (40, 1)])
def test_the_legend_of_a_picture_takes_as_many_columns_as_fit(words: int, columns: int) -> None:
    drawing = pyplot().figure(figsize=(11, 3), layout="constrained")
    put_legend(drawing, [Series(f"label {i}" + " more" * words, "omp", ()) for i in range(6)])
    drawing.canvas.draw()
    (legend,) = drawing.legends
    assert (legend.get_window_extent().width <= drawing.bbox.width) == (columns > 1)
    assert len({round(text.get_window_extent().x0) for text in legend.get_texts()}) == columns
    pyplot().close(drawing)
