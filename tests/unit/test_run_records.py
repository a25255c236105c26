"""What a run records beside its results: epochs for other programs, and all messages in its log."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from foveate.files.run_layout import FoldLayout
from foveate.messages.display import CallingDisplay, Silent
from foveate.reports.events import write_events
from foveate.reports.mlflow_runs import write_to_mlflow
from foveate.reports.wandb_runs import write_to_wandb
from foveate.runs.folder import log_into

ROWS = """epoch,train_loss,val_auroc,val_loss,lr,seconds,seconds_reading,peak_memory_mib,patch_trust
1,0.7,0.5,0.69,0.001,2.5,0.5,100,0.25
2,0.6,,0.68,0.0005,2.0,0.25,110,0.5
"""


def read_events(fold: Path) -> dict[str, list[tuple[int, float, float]]]:
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    util = pytest.importorskip("tensorboard.util.tensor_util")
    events: dict[str, list[tuple[int, float, float]]] = {}
    for event in loader.EventFileLoader(str(FoldLayout(fold).events)).Load():
        for value in event.summary.value:
            number = float(util.make_ndarray(value.tensor))
            events.setdefault(value.tag, []).append((event.step, number, event.wall_time))
    return events


def test_epochs_are_events_of_tensorboard(tmp_path: Path) -> None:
    FoldLayout(tmp_path).epochs.write_text(ROWS, encoding="utf-8")
    write_events(tmp_path)
    events = read_events(tmp_path)
    assert sorted(events) == [
        "lr", "memory/peak_mib", "method/patch_trust", "time/data", "time/epoch", "train/loss",
        "val/auroc", "val/loss",
    ]  # fmt: skip
    assert [(step, round(value, 4)) for step, value, _ in events["train/loss"]] == [
        (1, 0.7), (2, 0.6),
    ]  # fmt: skip
    assert [step for step, _, _ in events["val/auroc"]] == [1]
    (_, _, first), (_, _, second) = events["lr"]
    assert second - first == pytest.approx(2.0, abs=1e-3)


def test_a_further_epoch_is_appended(tmp_path: Path) -> None:
    """A TensorBoard that is open reads on at the byte where it was."""
    pytest.importorskip("tensorboard")
    layout = FoldLayout(tmp_path)
    layout.epochs.write_text(ROWS, encoding="utf-8")
    write_events(tmp_path)
    size = layout.events.stat().st_size
    layout.epochs.write_text(ROWS + "3,0.5,0.9,0.6,0.0001,2.0,0.2,110,0.5\n", encoding="utf-8")
    write_events(tmp_path)
    assert layout.events.stat().st_size > size
    assert len(read_events(tmp_path)["lr"]) == 3


def test_without_epochs_there_are_no_events(tmp_path: Path) -> None:
    write_events(tmp_path)
    assert list(tmp_path.iterdir()) == []


THIRD = "3,0.5,0.9,0.6,0.0001,2.0,0.2,110,0.5\n"


def write_epochs(fold: Path, text: str = ROWS) -> None:
    fold.mkdir(parents=True, exist_ok=True)
    FoldLayout(fold).epochs.write_text(text, encoding="utf-8")


def test_epochs_are_a_run_of_mlflow_in_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    fold = tmp_path / "it's a run" / "fold_0"
    write_epochs(fold)
    write_to_mlflow(fold)
    write_epochs(fold, ROWS + THIRD)
    write_to_mlflow(fold)  # as after a restart: the run is found again
    write_epochs(fold.with_name("fold_1"))
    write_to_mlflow(fold.with_name("fold_1"))
    client = mlflow.MlflowClient((fold.parent / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("foveate")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["it's a run/fold_0", "it's a run/fold_1"]
    (run,) = (run for run in runs if run.info.run_name.endswith("fold_0"))
    loss = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in loss] == [(1, 0.7), (2, 0.6), (3, 0.5)]
    auroc = client.get_metric_history(run.info.run_id, "val/auroc")
    assert [(metric.step, metric.value) for metric in auroc] == [(1, 0.5), (3, 0.9)]
    assert {path.name for path in tmp_path.iterdir()} == {"it's a run"}


def test_mlflow_that_cannot_be_reached_stops_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("mlflow")
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "file" / "below").as_uri())
    write_epochs(tmp_path / "run" / "fold_0")
    for _ in range(2):
        write_to_mlflow(tmp_path / "run" / "fold_0")
    (warning,) = (r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)
    assert "MLflow could not write the figures of the epochs" in warning


def test_epochs_are_a_run_of_wandb_that_is_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    fold = tmp_path / "run" / "fold_0"
    write_epochs(fold)
    write_to_wandb(fold)
    write_epochs(fold, ROWS + THIRD)
    write_to_wandb(fold)
    write_epochs(fold.with_name("fold_1"))
    write_to_wandb(fold.with_name("fold_1"))  # ends the run of the first fold
    first, second = sorted((fold.parent / "wandb").glob("offline-run-*"), key=os.path.getmtime)
    assert first.name.partition("-")[0] == "offline"
    (file,) = first.glob("run-*.wandb")
    content = file.read_bytes()
    for word in (b"train/loss", b"val/auroc", b"method/patch_trust", b"run/fold_0"):
        assert word in content
    assert second != first


class Recording(Silent):
    """A display that remembers its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_the_log_holds_all_lines_with_times(tmp_path: Path) -> None:
    display = Recording()
    with log_into(tmp_path, display) as logged:
        logged.say("24 images")
        logging.getLogger("foveate").warning("one file is odd")
        for done in range(5):
            logged.bar("fold 1", done, 4, "loss 0.5")
        logged.say("warning: few patients")
    assert display.lines == ["24 images", "warning: one file is odd", "warning: few patients"]
    lines = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert all(line[:4].isdecimal() and line[19] == "," for line in lines)
    texts = [line.split(" ", 3)[3] for line in lines]
    assert texts[0].startswith("foveate ")
    assert texts[1:] == [
        "24 images", "one file is odd", "fold 1: 0 of 4 loss 0.5", "fold 1: 4 of 4 loss 0.5",
        "warning: few patients",
    ]  # fmt: skip


def test_lines_for_python_are_logged_once(tmp_path: Path) -> None:
    with log_into(tmp_path, CallingDisplay()) as logged:
        logged.say("24 images")
        with pytest.warns(UserWarning, match="few patients"):
            logged.say("warning: few patients")
    text = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert text.count("24 images") == text.count("few patients") == 1
