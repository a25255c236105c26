"""A training in two processes writes and prints once, and survives kills."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from foveate.runs.folder import read_json, read_rows
from helpers.commands import Child, run_child

SECONDS = 900.0
OPTIONS = (
    *("--encoder", "small", "--encoder.width", "8", "--encoder.dim", "16"),
    *("--view.patch-px", "32", "--view.spacing-um", "2", "--view.glimpse-spacing-um", "32"),
    *("--method", "glimpse", "--method.patches", "4", "--method.eval-patches", "4"),
    *("--epochs", "2", "--train.batch-size", "3", "--train.checkpoint-seconds", "0.05"),
    *("--heatmaps", "0"),
)
LATEST = "fold_0/checkpoints/latest.safetensors"


def start(table: Path, run: Path, *more: str) -> Child:
    return Child("train", table, "--out", run, *OPTIONS, *more)


def finish(table: Path, run: Path, *more: str) -> str:
    child = start(table, run, *more)
    _, err = child.communicate(timeout=SECONDS)
    assert child.returncode == 0, err
    return err


def wait_for(path: Path) -> None:
    until = time.monotonic() + SECONDS
    while not path.is_file():
        assert time.monotonic() < until, f"never came: {path}"
        time.sleep(0.01)


def process_ids(child: Child) -> list[psutil.Process]:
    first = psutil.Process(child.pid)
    return [first, *first.children(recursive=True)]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "fold_0" / "model" / "model.safetensors")


def assert_same_weights(run: Path, other: Path, *, within: float) -> None:
    actual, expected = weights_of(run), weights_of(other)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=within, atol=within, msg=name)


@pytest.mark.slow
def test_two_processes_train_the_same_model_as_one_and_survive_kills(
    tiny_cohort: Path, tmp_path: Path
) -> None:
    """Weights agree within float tolerance with and without kills, for one and two processes.

    Dropout draws anew in each process, so it is left out where one is compared with two.
    """
    plain = ("--method.dropout", "0", "--devices")
    undisturbed, one, killed = tmp_path / "whole", tmp_path / "one", tmp_path / "killed"
    output = finish(tiny_cohort, undisturbed, *plain, "2")
    assert output.count("task: binary") == 1
    assert "rank" not in output.lower()
    finish(tiny_cohort, one, *plain, "1")
    assert_same_weights(one, undisturbed, within=1e-3)

    child = start(tiny_cohort, killed, *plain, "2")
    wait_for(killed / LATEST)
    time.sleep(0.2)
    for process in process_ids(child):
        process.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    child = start(tiny_cohort, killed, *plain, "2")
    time.sleep(0.5)
    wait_for(killed / "fold_0" / "metrics.csv")
    processes = process_ids(child)
    assert len(processes) == 2
    processes[1].kill()
    _, err = child.communicate(timeout=SECONDS)
    assert child.returncode == 1, err
    assert "process 1 of this run ended with code -9" in err
    assert len([line for line in err.splitlines() if line.startswith("error:")]) == 1
    finish(tiny_cohort, killed, *plain, "2")
    assert_same_weights(killed, undisturbed, within=1e-4)
    rows, expected = (read_rows(run / "fold_0" / "metrics.csv") for run in (killed, undisturbed))
    for key in ("epoch", "train_loss", "val_loss"):
        for a, b in zip(rows, expected, strict=True):
            assert float(a[key]) == pytest.approx(float(b[key]), abs=1e-4)
    assert read_json(killed / "splits.json") == read_json(undisturbed / "splits.json")
    assert not list(killed.rglob("*.part"))


def test_too_many_devices_are_refused(tiny_cohort: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    words = ("train", tiny_cohort, "--out", tmp_path / "run", *OPTIONS)
    result = run_child(*words, "--devices", "2", "--train.device", "cuda")
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("error: train.device")
