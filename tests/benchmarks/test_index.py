"""The page that lists the measured results names every table, and is up to date."""

from benchmarks import index
from benchmarks.__main__ import main

STEP = """bert-base, device cpu, cpu A CPU, threads 2, torch 2.14, triton 3.8, commit abc, date 2026-01-01

| target    | against | at most | measured     | met |
|-----------|---------|---------|--------------|-----|
| time, mlm | HF      | 0.9 ×   | 0.7 ×        | yes |
| time, kd  | HF      | 0.9 ×   | 0.95 ×       | no  |
| time, x   | HF      | 0.9 ×   | not measured | –   |
"""


def test_a_line_for_each_table(tmp_path):
    (tmp_path / "cpu" / "long").mkdir(parents=True)
    (tmp_path / "cpu" / "step.md").write_text(STEP)
    (tmp_path / "cpu" / "long" / "step.md").write_text(STEP.replace("device cpu", "device A GPU"))
    (tmp_path / "cpu" / "README.md").write_text("# written by hand\n")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in index.page(tmp_path).splitlines()[-2:]]
    assert cells == [
        ["[cpu/long/step.md](cpu/long/step.md)", "A GPU", "torch 2.14, Triton 3.8", "abc", "2026-01-01", "1 of 2"],
        ["[cpu/step.md](cpu/step.md)", "A CPU, 2 threads", "torch 2.14, Triton 3.8", "abc", "2026-01-01", "1 of 2"],
    ]


def test_the_page_is_up_to_date():
    assert (index.RESULTS / index.PAGE).read_text(encoding="utf-8") == index.page(index.RESULTS)


def test_the_command_writes_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "RESULTS", tmp_path)
    assert main(["index"]) == 0
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == index.page(tmp_path)
