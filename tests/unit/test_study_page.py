"""The page over several runs: all sections, links, pairs, and what does not belong together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import foveate
from foveate.errors import CheckpointError, OptionError
from foveate.evaluation.comparison import Contestant, compare_contestants
from foveate.evaluation.scores import evaluate_rows
from foveate.reports import write_study
from foveate.runs.folder import read_json, read_rows, write_rows
from foveate.tasks import restore_task
from helpers.commands import Completed, read_refusal
from unit.test_report import CLASSES, Page, handmade_run, write_json

TASK = restore_task("binary", {"classes": list(CLASSES)}, {})


def shifted(run: Path, folder: Path, seed: int) -> Path:
    """Return a copy of a run whose answers are less certain, with another seed."""
    shutil.copytree(run, folder)
    rows = read_rows(folder / "predictions_oof.csv")
    for i, row in enumerate(rows):
        p = 0.5 + 0.4 * (float(row[f"prob_{CLASSES[1]}"]) - 0.5) + 0.05 * ((i * seed) % 7 - 3)
        row |= {f"prob_{CLASSES[0]}": f"{1 - p:.6f}", f"prob_{CLASSES[1]}": f"{p:.6f}"}
        row["predicted"] = CLASSES[int(p >= 0.4321)]
    write_rows(folder / "predictions_oof.csv", rows, list(rows[0]))
    write_json(folder / "metrics.json", evaluate_rows(rows, TASK))
    with (folder / "config.yaml").open("a", encoding="utf-8") as file:
        file.write(f"train:\n  seed: {seed}\n  epochs: 30\n")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs of a study")
    first = handmade_run(folder / "first", folds=2)
    return {
        "first": first,
        "second": shifted(first, folder / "second", 3),
        "third": shifted(first, folder / "third", 4),
    }


def contestants(runs: dict[str, Path], drop: str = "") -> list[Contestant]:
    entries = []
    for name, run in runs.items():
        rows = read_rows(run / "predictions_oof.csv")
        rows = rows[1:] if name == drop else rows
        scores = read_json(run / "metrics.json")["metrics"]
        entries.append(Contestant(name, rows, scores, read_json(run / "cost.json"), "", split=name))
    return entries


def page_of(runs: dict[str, Path], path: Path, drop: str = "") -> Page:
    path.parent.mkdir(exist_ok=True)
    write_study(runs, compare_contestants(contestants(runs, drop), TASK), TASK, path)
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(runs: dict[str, Path]) -> Page:
    """Write the page of all runs into the folder ``pages`` beside them."""
    return page_of(runs, runs["first"].parent / "pages" / "study.html")


def test_the_page_shows_every_section(runs: dict[str, Path], page: Page) -> None:
    folder = runs["first"].parent
    sections = [attrs.get("id") for tag, attrs in page.tags if tag == "section"]
    assert sections == [
        "question", "data", "plan", "runs", "pairs", "curves", "run-1", "run-2", "run-3",
        "answers-table", "quarantine", "versions", "commands",
    ]  # fmt: skip
    text = page.visible_text()
    for run in runs.values():
        score = read_json(run / "metrics.json")["metrics"]["auroc"]
        assert f"{score['value']:.3f}" in text
        assert f"{score['lo']:.3f} to {score['hi']:.3f}" in text
    for words in (
        "labels.csv", "136 images in the table", "at most 30 end to end",
        "Runs that differ in their seed only", "(3 runs)", "2 folds", "Worst and best cases",
        "foveate train --config", f"foveate report '{folder}",
    ):  # fmt: skip
        assert words in text, words
    assert "not compared" not in text
    pictures = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert pictures
    assert all(source.startswith("data:") for source in pictures)
    names = {tag for tag, _ in page.tags}
    assert not names & {"iframe", "link", "object", "embed", "form", "base"}


def test_links_lead_to_the_pictures_of_each_run(runs: dict[str, Path], page: Page) -> None:
    folder = runs["first"].parent / "pages"
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    pictures = [link for link in links if link.endswith(".png")]
    assert len({link.split("/")[1] for link in pictures}) == len(runs)
    from urllib.parse import unquote

    assert all((folder / unquote(link)).is_file() for link in pictures)


def test_answers_of_all_runs_stand_side_by_side(runs: dict[str, Path], page: Page) -> None:
    text = page.visible_text()
    rows = {name: read_rows(run / "predictions_oof.csv") for name, run in runs.items()}
    for i in (0, 7, 43):
        alike = [answers[i] for answers in rows.values()]
        right = sum(row["predicted"] == row["label"] for row in alike)
        cells = [f"{r['predicted']} {float(r['prob_' + r['predicted']]):.2f}" for r in alike]
        assert f"{alike[0]['label']} {right} of 3 {' '.join(cells)}" in text


def test_runs_of_other_test_images_are_not_paired(runs: dict[str, Path]) -> None:
    content = compare_contestants(contestants(runs, drop="second"), TASK)
    pairs = {(pair["first"], pair["second"]) for pair in content["differences"]}
    assert pairs == {("first", "third")}
    page = page_of(runs, runs["first"].parent / "unpaired.html", drop="second")
    assert "2 pairs of runs are not compared" in page.visible_text()


def test_a_damaged_index_and_missing_files_leave_the_rest(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    copies = {
        name: Path(shutil.copytree(run, tmp_path / name)) for name, run in list(runs.items())[:2]
    }
    (copies["first"] / "env.json").unlink()
    (copies["first"] / "heatmaps" / "index.json").write_text("[", encoding="utf-8")
    shutil.rmtree(copies["second"] / "heatmaps")
    for fold in copies["second"].glob("fold_*/metrics.csv"):
        fold.unlink()
    text = page_of(copies, tmp_path / "study.html").visible_text()
    assert "first: parts are left out: env.json is missing; heatmaps/index.json" in text
    assert "not installed" in text


# -- the command -----------------------------------------------------------------------------------


def test_the_page_of_one_run_is_written_again(picture_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(picture_run, tmp_path / "run"))
    (run / "report.html").unlink()
    assert foveate.report(run) == run / "report.html"
    assert (run / "report.html").is_file()
    assert foveate.report([run]) == run / "report.html"


def test_the_command_writes_one_page(
    picture_run: Path, tmp_path: Path, foveate: Callable[..., Completed]
) -> None:
    other = Path(shutil.copytree(picture_run, tmp_path / "other"))
    out = tmp_path / "pages" / "study.html"
    result = foveate("report", picture_run, other, "--out", out)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"report:   {out}\n"
    text = Page(out.read_text(encoding="utf-8")).visible_text()
    assert "same answers" in text
    assert [path.name for path in out.parent.iterdir()] == ["study.html"]


def test_runs_that_do_not_belong_together_are_refused_by_name(
    picture_run: Path, tmp_path: Path, foveate: Callable[..., Completed]
) -> None:
    out = tmp_path / "study.html"

    def refuse(*words: object) -> str:
        message = read_refusal(foveate("report", *words))
        assert not out.exists()
        return message

    other = Path(shutil.copytree(picture_run, tmp_path / "other"))
    splits = read_json(other / "splits.json")
    image = next(iter(splits["labels"]))
    old = splits["labels"][image]
    splits["labels"][image] = {"dark": "plain", "plain": "dark"}[old]
    (other / "splits.json").write_text(json.dumps(splits), encoding="utf-8")
    message = refuse(picture_run, other, "--out", out)
    assert f"image '{image}' has the label '{old}' in run, but" in message
    assert "in other: give runs on the same labels" in message

    splits["patients"] = {f"{i}x": p for i, p in splits["patients"].items()}
    (other / "splits.json").write_text(json.dumps(splits), encoding="utf-8")
    assert "other and run have no image in common" in refuse(picture_run, other, "--out", out)

    (other / "metrics.json").unlink()
    message = refuse(picture_run, other, "--out", out)
    assert f"{other} holds no finished run (metrics.json is missing)" in message

    assert "a run is given twice" in refuse(picture_run, picture_run, "--out", out)
    assert "--out: missing for several runs" in refuse(picture_run, other)
    assert "leave --out out" in refuse(picture_run, "--out", out)
    assert "a name that ends in .html" in refuse(picture_run, other, "--out", tmp_path)


def test_python_refuses_alike(picture_run: Path) -> None:
    with pytest.raises(OptionError, match="expected the folders"):
        foveate.report([])
    with pytest.raises(CheckpointError, match="holds no run"):
        foveate.report(picture_run.parent / "none")
