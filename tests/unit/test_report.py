"""The report page of a run made of handwritten files, with names that could break HTML."""

from __future__ import annotations

import base64
import csv
import json
import os
import re
import shutil
import time
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate import reports
from foveate.errors import CheckpointError
from foveate.evaluation.scores import evaluate_rows
from foveate.presentation import write_duration, write_memory, write_percent, write_pixels
from foveate.reports import write_progress, write_report
from foveate.tasks import restore_task
from foveate.tasks.classes.curves import (
    average_precision_recall,
    average_roc,
    collect_answers,
    compute_precision_recall,
    compute_roc,
)
from foveate.tasks.classes.figures import plot_precision_recall, plot_roc, read_areas

CLASSES = ("normal", "Tumor <größer & 'böse'>")
NASTY = "<script>alert(1)</script>.svs"


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(k for r in rows for k in r)))
        writer.writeheader()
        writer.writerows(rows)


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def handmade_run(folder: Path, *, folds=1, classes=CLASSES, n=44, heatmaps=7, seed=5) -> Path:
    """Write a run folder as training leaves it, with `n` test images."""
    rng = np.random.default_rng(seed)
    k = len(classes)
    target = rng.permutation(np.arange(n) % k)
    logits = rng.normal(size=(n, k)) + 2.0 * np.eye(k)[target]
    prob = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    predicted = prob.argmax(1)
    ids = [f"Präparat_{i:03d}.svs" for i in range(n - 1)] + [NASTY]
    patients = [f"P{i // 2:03d}" for i in range(n)]
    rows = [
        {
            "image_id": ids[i],
            "patient_id": patients[i],
            "path": f"/data/{ids[i]}",
            "label": classes[target[i]],
            "predicted": classes[predicted[i]],
            **{f"prob_{c}": f"{p:.6f}" for c, p in zip(classes, prob[i], strict=True)},
            "threshold": "0.4321" if k == 2 else "",
            "fold": str(i % folds),
        }
        for i in range(n)
    ]
    write_csv(folder / "predictions_oof.csv", rows)
    name = "binary" if k == 2 else "multiclass"
    _write_small_files(folder, folds, classes, ids, patients)
    change = {"auroc": {"value": 0.0312, "lo": 0.004, "hi": 0.0587},
              "log_loss": {"value": 0.021, "lo": -0.01, "hi": 0.05}}  # fmt: skip
    write_json(
        folder / "metrics.json",
        {
            **evaluate_rows(rows, restore_task(name, {"classes": list(classes)}, {})),
            "frozen": {"auroc": {"value": 0.8765, "lo": 0.71, "hi": 0.951}},
            "gain": change,
        },
    )
    for fold in range(folds):
        write_history(folder / f"fold_{fold}", rng)
        fold_rows = [row for row in rows if row["fold"] == str(fold)]
        write_csv(folder / f"fold_{fold}" / "predictions.csv", fold_rows)
        card = {"method": "glimpse", "task": name, "settled": {"classes": list(classes)}}
        provenance = {"threshold": 0.4321 if k == 2 else None, "temperature": 1.37 + fold}
        model = folder / f"fold_{fold}" / "model"
        write_json(model / "model.json", {**card, "provenance": provenance})
        (model / "model.safetensors").touch()
    _write_heatmaps(folder / "heatmaps", rows, classes, heatmaps)
    return folder


def _write_small_files(folder, folds, classes, ids, patients):
    text = "table:\n  path: labels.csv\nmethod: glimpse\nencoder: resnet18\ntask: auto\n"
    (folder / "config.yaml").write_text(text + f"note: '{NASTY}'\n", encoding="utf-8")
    write_json(
        folder / "env.json",
        {"foveate": "0.1.0", "python": "3.12.3", "torch": "2.9.0", "openslide-python": None,
         "platform": "Linux-6.8-x86_64", "argv": ["foveate", "train", "Etiketten.csv"]},
    )  # fmt: skip
    owners = dict(zip(ids, patients, strict=True)) | {f"T{i}": f"Q{i}" for i in range(90)}
    others = [f"T{i}" for i in range(90)]
    parts = [
        {"train": others[:70], "val": others[70:], "test": [i for j, i in enumerate(ids)
                                                            if j % folds == f]}
        for f in range(folds)
    ]  # fmt: skip
    write_json(
        folder / "splits.json",
        {"schema": 1, "hash": "9f" * 32, "seed": 0, "patients": owners, "folds": parts},
    )
    write_csv(
        folder / "quarantine.csv",
        [
            {"image_id": NASTY + "2", "path": f"/data/{NASTY}", "stage": "open",
             "reason": "UnreadableImage: <b>tile 3</b> cannot be decoded"},
            {"image_id": "doppelt", "path": "x.tif", "stage": "table", "reason": "twice"},
            {"image_id": "T3", "path": "t3.svs", "stage": "fold 0", "reason": "truncated"},
        ],
    )  # fmt: skip
    write_json(
        folder / "cost.json",
        {"seconds": 4385.2, "seconds_reading": 1315.6, "seconds_computing": 3069.6,
         "peak_rss_mib": 3412.0, "peak_device_mib": 0.0, "decoded_px": 812_345_678,
         "asked_px": 400_000_000, "level0_px": 68_640_000_000, "decoded_fraction": 0.011835,
         "seconds_per_image": 2.34},
    )  # fmt: skip
    write_json(
        folder / "baseline.json",
        [{"method": "downsampled", "run": "demo/downsampled", "seconds": 512.0,
          "peak_rss_mib": 900.0, "peak_device_mib": 0.0, "decoded_fraction": 0.0021,
          "metrics": {"auroc": {"value": 0.512, "lo": 0.33, "hi": 0.69, "method": "m", "n": 44},
                      "balanced_accuracy": {"value": 0.5, "lo": 0.4, "hi": 0.6, "method": "m",
                                            "n": 44}}}],
    )  # fmt: skip
    write_json(
        folder / "localisation.json", {"hit_fraction": 0.8636, "n": 22, "lo": 0.667, "hi": 0.953}
    )


def write_history(fold, rng, epochs=24):
    rows = [
        {
            "epoch": epoch,
            "train_loss": f"{0.7 * np.exp(-epoch / 9) + 0.03 * rng.random():.6g}",
            "val_loss": f"{0.25 + 0.45 * np.exp(-epoch / 7) + 0.05 * rng.random():.6g}",
            "val_auroc": f"{0.93 - 0.4 * np.exp(-epoch / 5) + 0.02 * rng.random():.6g}",
            "lr": f"{5e-4 * (1 + np.cos(np.pi * epoch / epochs)) / 2:.6g}",
            "seconds": 100,
            "seconds_reading": f"{30 + 5 * rng.random():.3f}",
            "seconds_computing": f"{70 + 5 * rng.random():.3f}",
            "peak_memory_mib": 3000,
            "decoded_px": 1e9,
            "asked_px": 5e8,
        }
        for epoch in range(1, epochs + 1)
    ]
    write_csv(fold / "metrics.csv", rows)


def _write_heatmaps(folder, rows, classes, n):
    folder.mkdir(parents=True, exist_ok=True)
    index = []
    for i, row in enumerate(sorted(rows, key=lambda row: row["label"] == row["predicted"])):
        stem = f"bild {i} #ü" if i < n else None
        probs = {c: float(row[f"prob_{c}"]) for c in classes}
        entry = {key: row[key] for key in ("image_id", "label", "predicted")} | {"probs": probs}
        if stem is not None:
            wave = np.add.outer(np.arange(300) * (i + 1), np.arange(500)) % 255
            Image.fromarray(wave.astype(np.uint8)).save(folder / f"{stem}.png")
            write_json(folder / f"{stem}.geojson", {"type": "FeatureCollection", "features": []})
        index.append(
            entry
            | {"png": stem and f"{stem}.png", "geojson": stem and f"{stem}.geojson"}
        )  # fmt: skip
    write_json(folder / "index.json", index)


class Page(HTMLParser):
    """A parser that checks closing tags and collects text, links and images."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text.append(data)

    def visible_text(self):
        return " ".join(" ".join(self.text).split())


def page_of(run):
    path = write_report(run)
    assert path == run / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def without_curves(run):
    """Remove the files that figures are drawn from, for pages of which only words are read."""
    (run / "predictions_oof.csv").unlink()
    for path in run.glob("fold_*/*.csv"):
        path.unlink()
    return run


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Write a run and its page; tests only read it."""
    run = handmade_run(tmp_path_factory.mktemp("shown") / "erster Lauf")
    return run, page_of(run)


def test_page_contains_the_numbers(shown):
    run, page = shown
    text = page.visible_text()
    metrics = json.loads((run / "metrics.json").read_text())
    for score in metrics["metrics"].values():
        assert f"{score['value']:.3f}" in text
        assert f"{score['lo']:.3f} to {score['hi']:.3f}" in text
    for row in metrics["confusion"]:
        for count in row:
            assert any(tag == "td" for tag, _ in page.tags)
            assert str(count) in text
    for words in (
        "1 h 13 min", "3.3 GiB", "0.81 gigapixels", "68.64 gigapixels", "1.2 %", "30 %", "70 %",
        "0.432", "downsampled", "0.512", "In 19 of 22 images", "67 % to 95 %", "twice",
        "44 images of 22 patients", "foveate predict", "openslide-python", "not installed",
    ):  # fmt: skip
        assert words in text, words
    assert "136 images in the table" in text
    assert "2 set aside before the split" in text
    assert "134 images of 112 patients" in text
    assert (run / "figures").is_dir()
    assert {p.name for p in (run / "figures").iterdir()} == {
        "roc.png", "precision_recall.png", "calibration.png", "scores.png", "benefit.png",
        "training.png",
    }  # fmt: skip


def test_page_is_self_contained_and_runs_only_its_own_script(shown):
    run, page = shown
    names = {tag for tag, _ in page.tags}
    assert not names & {"iframe", "link", "object", "embed", "form", "base"}
    for tag, attrs in page.tags:
        assert tag != "script" or not attrs
        assert not any(name.startswith("on") for name in attrs)
        assert attrs.get("src", "data:image/").startswith("data:image/")
        href = attrs.get("href", "#")
        assert href.startswith(("#", "heatmaps/"))
        if tag == "img":
            assert len(attrs["alt"]) > 10
    text = (run / "report.html").read_text(encoding="utf-8")
    template = Path(reports.__file__).with_name("answers.html.j2").read_text(encoding="utf-8")
    scripts = [re.findall(r"<script.*?</script>", html, re.DOTALL) for html in (text, template)]
    assert len(scripts[0]) == 1
    assert scripts[0] == scripts[1], "the script holds nothing of the run"
    assert "http" not in re.sub(r"data:image/[^\"]*", "", text)
    assert "@import" not in text
    assert "url(" not in text
    assert NASTY in page.visible_text()
    for source in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", text):
        svg = base64.b64decode(source).decode("utf-8")
        assert "<script" not in svg
        assert not re.search(r"href=\"(?!#)", svg)


def test_links_lead_to_files_and_errors_come_first(shown):
    from urllib.parse import unquote

    run, page = shown
    links = [a["href"] for _, a in page.tags if a.get("href", "").startswith("heatmaps/")]
    assert len(links) >= 14
    assert all((run / unquote(link)).is_file() for link in links)
    verdicts = [a.get("class") for t, a in page.tags if t == "figure" and a.get("class")]
    assert verdicts == sorted(verdicts, key=["wrong", "right", "unlabelled"].index)
    assert {"wrong", "right"} <= set(verdicts)
    assert "7 images of 44 have a picture" in page.visible_text()


def test_pictures_unlike_the_training_are_marked(tmp_path):
    run = without_curves(handmade_run(tmp_path / "run"))
    assert "Unlike the images of training" not in page_of(run).visible_text()
    path = run / "heatmaps" / "index.json"
    entries = json.loads(path.read_text(encoding="utf-8"))
    entries[0]["unlike"] = "grey, not in colour; <b>tiny</b>"
    write_json(path, entries)
    text = page_of(run).visible_text()
    assert "Unlike the images of training: grey, not in colour; <b>tiny</b>" in text


def test_index_cannot_reach_outside_its_folder(tmp_path):
    run = without_curves(handmade_run(tmp_path / "run"))
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    entry = {"image_id": "x", "png": "../../secret.png", "geojson": None, "label": "", "probs": {}}
    write_json(run / "heatmaps" / "index.json", [entry])
    assert "No heatmaps" in page_of(run).visible_text()


NO_FIGURE_NEEDS = ("env.json", "quarantine.csv", "cost.json", "heatmaps", "baseline.json")


@pytest.mark.parametrize(
    "name",
    ["config.yaml", "env.json", "splits.json", "quarantine.csv", "predictions_oof.csv",
     "metrics.json", "cost.json", "heatmaps", "baseline.json", "localisation.json", "fold_0",
     "fold_0/metrics.csv"],
)  # fmt: skip
def test_page_without_any_single_file_is_written(name, tmp_path):
    run = handmade_run(tmp_path / "run")
    if name in NO_FIGURE_NEEDS:
        without_curves(run)
    path = run / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = page_of(run).visible_text()
    if name in ("config.yaml", "env.json", "splits.json", "metrics.json", "cost.json"):
        assert f"{name} is missing" in text


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", "\x00", '{"metrics": 3}'])
def test_page_with_damaged_files_is_written(content, tmp_path):
    run = handmade_run(tmp_path / "run")
    for path in [*run.glob("*.json"), *run.glob("*.csv"), *run.rglob("index.json"),
                 *run.rglob("model.json"), run / "config.yaml"]:  # fmt: skip
        path.write_text(content, encoding="utf-8")
    assert "foveate report" in page_of(run).visible_text()


def test_page_of_a_run_that_has_just_begun(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("method: glimpse\n")
    text = page_of(run).visible_text()
    assert "No scores yet" in text
    assert "metrics.json is missing" in text


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds no run"):
        write_report(tmp_path)
    with pytest.raises(CheckpointError, match="holds no run"):
        write_report(tmp_path / "nothing")
    assert not list(tmp_path.iterdir())


def test_page_states_which_models_predict(tmp_path):
    run = without_curves(handmade_run(tmp_path / "run", folds=3, n=60))
    assert "answered by the models of all 3 folds together" in page_of(run).visible_text()
    config = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(config + "refit: true\n", encoding="utf-8")
    assert "No model answers for new images yet" in page_of(run).visible_text()
    about = {"refit": True, "n_train": 60, "train": {"seconds": 75.0}}
    write_json(run / "refit" / "model" / "model.json", {"provenance": about})
    (run / "refit" / "model" / "model.safetensors").touch()
    text = page_of(run).visible_text()
    assert "one model, refitted on all 60 images after the folds (1 min 15 s)" in text
    (run / "fold_1" / "model" / "model.json").unlink()
    assert "the model of fold_1 is missing" in page_of(run).visible_text()


def test_frozen_start_is_shown_beside_the_run(tmp_path):
    run = without_curves(handmade_run(tmp_path / "run", folds=2))
    (run / "baseline.json").unlink()
    text = page_of(run).visible_text()
    assert "glimpse, frozen start 0.876 0.710 to 0.951" in text
    assert "AUROC +0.031 (95 % interval +0.004 to +0.059): clearly better" in text
    assert "log loss +0.021 (95 % interval -0.010 to +0.050): no clear change" in text
    assert "a temperature of 1.37, 2.37 (one per fold)" in text

    metrics = json.loads((run / "metrics.json").read_text())
    metrics["gain"]["log_loss"]["lo"] = 0.001
    write_json(run / "metrics.json", metrics)
    assert "+0.050): clearly worse" in page_of(run).visible_text()

    metrics["frozen"], metrics["gain"] = "?", {"auroc": {"value": None}, "log_loss": 3}
    write_json(run / "metrics.json", metrics)
    text = page_of(run).visible_text()
    assert "frozen start" not in text
    assert "changed" not in text


def test_page_of_several_classes_and_folds(tmp_path):
    run = handmade_run(tmp_path / "run", folds=3, classes=("A", "B $x_1$", "C%"), n=60)
    page = page_of(run)
    text = page.visible_text()
    assert "3 folds" in text
    assert "on average over the classes" in text
    assert sum(tag == "tr" for tag, _ in page.tags) > 20


def test_cautions_are_shown(tmp_path):
    run = without_curves(handmade_run(tmp_path / "run"))
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["metrics"]["auroc"] |= {"value": 0.55, "lo": 0.41, "hi": 0.7}
    write_json(run / "metrics.json", metrics)
    (run / "config.yaml").write_text("permute_labels: true\n")
    text = page_of(run).visible_text()
    assert "cannot be told from chance" in text
    assert "shuffled on purpose" in text
    assert "Only 22 test patients" in text


def test_the_same_files_give_the_same_page(tmp_path):
    run = handmade_run(tmp_path / "run")
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_the_progress_figure_is_fast_and_complete(tmp_path):
    write_history(tmp_path, np.random.default_rng(0), epochs=60)
    write_progress(tmp_path)
    old = time.time() - 60
    os.utime(tmp_path / "progress.png", (old, old))
    begun = time.process_time()  # of the processor: other work must not fail this
    write_progress(tmp_path)
    assert time.process_time() - begun < 2.0  # 0.3 s on an idle machine
    with Image.open(tmp_path / "progress.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10
    events = {"events.out.tfevents.foveate"} if find_spec("tensorboard") else set()
    assert {p.name for p in tmp_path.iterdir()} == {"metrics.csv", "progress.png"} | events


def test_a_young_progress_figure_is_not_drawn_again(tmp_path):
    write_history(tmp_path, np.random.default_rng(0), epochs=3)
    write_progress(tmp_path)
    first = (tmp_path / "progress.png").read_bytes()
    write_history(tmp_path, np.random.default_rng(0), epochs=60)
    write_progress(tmp_path)
    assert (tmp_path / "progress.png").read_bytes() == first
    old = time.time() - 60
    os.utime(tmp_path / "progress.png", (old, old))
    write_progress(tmp_path)
    assert (tmp_path / "progress.png").read_bytes() != first


def test_the_progress_figure_accepts_few_epochs(tmp_path):
    write_progress(tmp_path)
    assert not list(tmp_path.iterdir())
    write_csv(tmp_path / "metrics.csv", [{"epoch": 1, "train_loss": 0.7, "lr": 1e-4}])
    write_progress(tmp_path)
    assert (tmp_path / "progress.png").is_file()


def test_curves_agree_with_scikit_learn():
    from sklearn.metrics import auc, average_precision_score, roc_auc_score

    rng = np.random.default_rng(1)
    for _ in range(20):
        positive = rng.random(50) < 0.4
        score = np.round(rng.random(50) + 0.3 * positive, 1)
        assert auc(*compute_roc(score, positive)) == pytest.approx(roc_auc_score(positive, score))
        recall, precision = compute_precision_recall(score, positive)
        area = float((np.diff(recall) * precision[1:]).sum())
        assert area == pytest.approx(average_precision_score(positive, score))
    assert compute_roc(np.ones(3), np.ones(3, bool)) is None
    assert compute_precision_recall(np.ones(3), np.zeros(3, bool)) is None


def test_mean_curves_of_folds_have_the_mean_area():
    from sklearn.metrics import auc

    rng = np.random.default_rng(2)
    curves = []
    for _ in range(4):
        positive = np.arange(400) % 2 == 1
        curves.append((rng.normal(size=400) + positive, positive))
    rocs = [compute_roc(*curve) for curve in curves]
    areas = [auc(*curve) for curve in rocs]
    assert auc(*average_roc(rocs)) == pytest.approx(np.mean(areas), abs=0.005)
    recalls = [compute_precision_recall(*curve) for curve in curves]
    recall, precision = average_precision_recall(recalls)
    expected = np.mean([(np.diff(r) * p[1:]).sum() for r, p in recalls])
    assert np.trapezoid(precision, recall) == pytest.approx(expected, abs=0.02)


# -- what the figures say -------------------------------------------------------------------------


def texts(figure):
    """Return all legend entries and texts of a figure, and its axes by title."""
    labels = []
    for axes in figure.axes:
        if axes.get_legend() is not None:
            labels += [t.get_text() for t in axes.get_legend().get_texts()]
        labels += [t.get_text() for t in axes.texts]
    return labels, {axes.get_title(): axes for axes in figure.axes}


def read_folds(run):
    from foveate.reports.run_files import read_run

    return read_run(run)


def test_curves_of_folds_have_names_and_different_styles(tmp_path):
    from matplotlib.figure import Figure

    from foveate.reports.figures import plot_training

    run = read_folds(handmade_run(tmp_path / "run", folds=3, n=60))
    answers = collect_answers(run.predictions, run.task.classes)
    for draw, name in ((plot_roc, "auroc"), (plot_precision_recall, "auprc")):
        figure = Figure()
        draw(figure, answers, read_areas(run.metrics, answers, name))
        labels, _ = texts(figure)
        for k in range(3):
            value = run.metrics["folds"][k]["metrics"][name]["value"]
            assert f"fold {k + 1}  {value:.3f}" in labels
        assert f"mean of 3 folds  {run.metrics['metrics'][name]['value']:.3f}" in labels
        lines = [line for line in figure.axes[0].lines if str(line.get_label()).startswith("fold")]
        assert len({line.get_color() for line in lines}) == 3
    figure = Figure()
    plot_training(figure, run.folds)
    labels, panels = texts(figure)
    for title in ("validation auroc", "learning rate"):
        lines = [ln for ln in panels[title].lines if str(ln.get_label()).startswith("fold")]
        assert len({line.get_color() for line in lines}) == 3
    assert {"training", "validation", "fold 1", "fold 2", "fold 3"} <= set(labels)


def test_missing_or_constant_validation_scores_add_no_empty_axis(tmp_path):
    from matplotlib.figure import Figure

    from foveate.reports.progress import fit_scores, plot_score

    epochs = [{"epoch": str(k), "train_loss": "0.5"} for k in (1, 2, 3)]
    for values, expected in (
        (["", "", ""], None),
        (["0.5"] * 3, (0.4, 0.6)),
        (["1.0"] * 3, (0.9, 1.02)),
        (["0.0"] * 3, (-0.02, 0.1)),
        (["0.1", "0.9", "0.5"], (0.04, 0.96)),
    ):
        rows = [row | {"val_auroc": v} for row, v in zip(epochs, values, strict=True)]
        axes = Figure().subplots()
        plot_score(axes, rows)
        fit_scores(axes, [rows])
        if expected is None:
            assert list(axes.get_yticks()) == []
            assert "no score" in axes.texts[0].get_text()
        else:
            assert axes.get_ylim() == pytest.approx(expected)


def test_page_shows_the_folds_and_explains_the_number(tmp_path):
    run = handmade_run(tmp_path / "run", folds=3, n=60)
    text = page_of(run).visible_text()
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["pooling"] in text
    assert "AUROC within folds, outer test" in text
    assert "of images of their own fold" in text
    for k, fold in enumerate(metrics["folds"]):
        auroc = fold["metrics"]["auroc"]
        assert f"fold {k + 1} {fold['n_images']} {fold['n_patients']} {auroc['value']:.3f}" in text
    single = page_of(handmade_run(tmp_path / "single")).visible_text()
    assert "within folds" not in single
    assert "own fold" not in single


def test_the_threshold_is_shown_beside_the_probability(tmp_path):
    run = handmade_run(tmp_path / "run")
    text = page_of(run).visible_text()
    index = json.loads((run / "heatmaps" / "index.json").read_text())[0]
    name = CLASSES[1]
    assert f"probability of {name} {index['probs'][name]:.3f} , called so from 0.432 on" in text


def test_numbers_are_formatted_as_words():
    assert [write_duration(s) for s in (0.0145, 4.25, 42, 200.4, 4385, None)] == [
        "14 ms", "4.2 s", "42 s", "3 min 20 s", "1 h 13 min", "–",
    ]  # fmt: skip
    assert [write_memory(m) for m in (812.3, 3482.0)] == ["812 MiB", "3.4 GiB"]
    assert [write_percent(p) for p in (0.43, 0.043, 0.0043, 0.0, 1.0)] == [
        "43 %", "4.3 %", "0.43 %", "0 %", "100 %",
    ]  # fmt: skip
    assert [write_pixels(p) for p in (12e6, 3.14e9)] == ["12.0 megapixels", "3.14 gigapixels"]


def test_curves_are_drawn_where_nothing_could_be_scored() -> None:
    from matplotlib.figure import Figure

    from foveate.reports.figures import plot_training
    from foveate.reports.run_files import FoldFiles

    rows = [
        {"epoch": str(i), "train_loss": "0.7", "seconds": "1", "seconds_reading": "0"}
        for i in (1, 2, 3)
    ]
    figure = Figure()
    plot_training(figure, [FoldFiles("fold_0", rows, [], {})])
    figure.draw_without_rendering()
    words = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert any("cannot be ranked" in text for text in words)
