"""The table of all answers, on the report and on the page of predictions, in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest

from conftest import picture
from foveate.runs.folder import read_rows
from helpers.commands import Completed

Command = Callable[..., Completed]


def read_table(page: Path) -> list[list[str]]:
    """Return the cells of the table of answers, as text."""
    text = page.read_text(encoding="utf-8")
    (table,) = re.findall(r'<table id="answers".*?</table>', text, re.DOTALL)
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return [[unescape(re.sub(r"<[^>]+>", "", cell)).strip() for cell in row] for row in cells]


def test_the_report_shows_every_answer_of_the_test_part(picture_run: Path) -> None:
    titles, *rows = read_table(picture_run / "report.html")
    stored = read_rows(picture_run / "predictions_oof.csv")
    assert [row[0] for row in rows] == [row["image_id"] for row in stored]
    judged = titles.index("judgement")
    for shown, row in zip(rows, stored, strict=True):
        is_right = row["label"] == row["predicted"]
        assert ("right" in shown[judged]) == is_right, shown
    assert 'href="heatmaps/' in (picture_run / "report.html").read_text(encoding="utf-8")


def test_predictions_have_a_page_with_doubts_and_failures(
    picture_run: Path, tmp_path: Path, foveate: Command
) -> None:
    folder = tmp_path / "new"
    picture(folder / "good.png", 1)
    picture(folder / "a<b>.png", 2, shape=(96, 96))
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    result = foveate("predict", picture_run, folder, "--out", tmp_path / "out")
    assert result.returncode == 2
    assert "predictions.html" in result.stdout
    page = tmp_path / "out" / "predictions.html"
    titles, *rows = read_table(page)
    assert [row[0] for row in rows] == [
        row["image_id"] for row in read_rows(tmp_path / "out" / "predictions.csv")
    ]
    assert "judgement" not in titles, "there are no labels"
    text = page.read_text(encoding="utf-8")
    assert "broken.png" in text
    assert "<b>.png" not in text, "names are escaped"
    assert "http" not in text.replace("http://www.w3.org", ""), "nothing is loaded"


def test_an_evaluation_has_a_page_with_its_scores(
    picture_run: Path, picture_table: Path, tmp_path: Path, foveate: Command
) -> None:
    out = tmp_path / "out"
    assert foveate("evaluate", picture_run, picture_table, "--out", out).returncode == 0
    text = (out / "predictions.html").read_text(encoding="utf-8")
    assert "AUROC" in text
    assert "trained these models" in text
    titles, *rows = read_table(out / "predictions.html")
    assert len(rows) == 24
    assert "in training" in titles


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
def test_a_browser_sorts_and_filters_the_table(picture_run: Path, tmp_path: Path) -> None:
    script = """
<script>
window.addEventListener("load", function () {
  var heads = document.querySelectorAll("#answers thead th");
  var body = document.querySelector("#answers tbody"), column = heads.length - 1;
  while (isNaN(body.rows[0].cells[column].textContent || "-")) { column -= 1; }
  heads[column].click();
  var values = Array.from(body.rows).map(function (r) { return r.cells[column].textContent; });
  var field = document.querySelector("input[data-filter]");
  field.value = body.rows[0].cells[0].textContent;
  field.dispatchEvent(new Event("input"));
  var left = Array.from(body.rows).filter(function (r) { return !r.hidden; }).length;
  document.title = values.join(" ") + " | " + left;
});
</script>"""
    page = tmp_path / "page.html"
    page.write_text(
        (picture_run / "report.html").read_text(encoding="utf-8") + script, encoding="utf-8"
    )
    words = ("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom")
    dom = subprocess.run(
        [*words, page.as_uri()], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    values, left = re.findall(r"<title>(.*?)</title>", dom)[0].split(" | ")
    numbers = [float(value) for value in values.split()]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) > 1
    assert left == "1"
