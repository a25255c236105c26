"""Ctrl-C, a scheduler's SIGTERM, a kill and a full disk cost no answer and leave no debris."""

from __future__ import annotations

import json
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import PICTURE_RUN, picture
from foveate.files.lock import NAME
from foveate.runs.folder import read_json, read_rows
from helpers.commands import Child, Completed, read_refusal, run_child

Command = Callable[..., Completed]
SECONDS = 300.0
N_IMAGES = 40


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write pictures and return the path of their table of labels."""
    folder = tmp_path_factory.mktemp("labelled")
    rows = ["path,label"]
    for i in range(N_IMAGES):
        picture(folder / "in" / f"N{i:02d}.png", 200 + i)
        rows.append(f"in/N{i:02d}.png,{'dark' if i % 2 else 'plain'}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder / "labels.csv"


@pytest.fixture(scope="module")
def undisturbed(
    labelled: Path, picture_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    result = run_child("evaluate", picture_run, labelled, "--out", out)
    assert result.returncode == 0, result.stderr
    return out


def wait_for(process: Child, path: Path, n_lines: int) -> None:
    until = time.monotonic() + SECONDS
    while not (path.is_file() and path.read_bytes().count(b"\n") >= n_lines):
        assert time.monotonic() < until
        assert process.poll() is None, "it ended before it could be stopped"
        time.sleep(0.002)


def interrupt(process: Child, *signals: signal.Signals) -> str:
    """Send signals a moment apart, and return what the command printed to standard error."""
    for number in signals:
        process.send_signal(number)
        time.sleep(0.05)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 128 + signals[0], err
    return err


def assert_in_order(err: str, out: Path) -> None:
    """Check the message of an interrupted command, and that it left nothing half-written."""
    assert "Traceback" not in err
    assert "error" not in err.lower()
    assert err.rstrip().splitlines()[-1] == (
        "interrupted. The same command continues where this one stopped."
    )
    assert err.count("interrupted") == 1
    assert not list(out.rglob("*.part"))
    assert not (out / NAME).exists()


def scores(out: Path) -> tuple[object, list[dict[str, str]]]:
    """Return metrics and predictions, without what depends on time."""
    rows = read_rows(out / "predictions.csv")
    kept = [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]
    return read_json(out / "metrics.json"), kept


@pytest.mark.parametrize(
    "signals",
    [
        pytest.param((signal.SIGINT, signal.SIGINT), marks=pytest.mark.slow, id="SIGINT+SIGINT"),
        pytest.param((signal.SIGTERM,), id="SIGTERM"),
    ],
)
def test_an_interrupted_evaluation_ends_in_order_and_continues(
    labelled: Path,
    picture_run: Path,
    undisturbed: Path,
    tmp_path: Path,
    foveate: Command,
    signals: tuple[signal.Signals, ...],
) -> None:
    words = ("evaluate", picture_run, labelled, "--out", tmp_path / "out")
    process = Child(*words)
    wait_for(process, tmp_path / "out" / "answers.jsonl", 3)
    assert_in_order(interrupt(process, *signals), tmp_path / "out")
    assert not (tmp_path / "out" / "metrics.json").exists()
    result = foveate(*words)
    assert result.returncode == 0, result.stderr
    assert f"of {N_IMAGES} images are answered already" in result.stderr
    assert scores(tmp_path / "out") == scores(undisturbed)


@pytest.mark.slow
def test_workers_end_with_an_interrupted_prediction(
    labelled: Path, picture_run: Path, tmp_path: Path
) -> None:
    words = ("predict", picture_run, labelled, "--out", tmp_path / "out", "--workers", "2")
    process = Child(*words)
    wait_for(process, tmp_path / "out" / "answers.jsonl", 3)
    assert_in_order(interrupt(process, signal.SIGTERM), tmp_path / "out")


def test_a_training_ends_in_order_on_sigterm(
    picture_table: Path, tmp_path: Path, foveate: Command
) -> None:
    words = ("train", picture_table, "--out", tmp_path / "run", *PICTURE_RUN)
    process = Child(*words)
    wait_for(process, tmp_path / "run" / "splits.json", 1)
    assert_in_order(interrupt(process, signal.SIGTERM, signal.SIGTERM), tmp_path / "run")
    result = foveate(*words)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
def test_an_evaluation_that_was_killed_gives_the_same_table(
    labelled: Path, picture_run: Path, undisturbed: Path, tmp_path: Path, foveate: Command
) -> None:
    words = ("evaluate", picture_run, labelled, "--out", tmp_path / "out")
    process = Child(*words)
    wait_for(process, tmp_path / "out" / "answers.jsonl", N_IMAGES // 2)
    process.kill()
    process.communicate()
    for _ in range(2):  # the third time, everything is answered
        assert foveate(*words).returncode == 0
        assert scores(tmp_path / "out") == scores(undisturbed)
    assert not list((tmp_path / "out").rglob("*.part"))


@pytest.mark.parametrize(("limit", "name"), [(9000, "answers.jsonl"), (40, "")])
def test_a_full_disk_during_an_evaluation_loses_nothing(
    labelled: Path,
    picture_run: Path,
    undisturbed: Path,
    tmp_path: Path,
    foveate: Command,
    limit: int,
    name: str,
) -> None:
    out = tmp_path / "out"
    words = ("evaluate", picture_run, labelled, "--out", out, "--heatmaps", "0")
    message = read_refusal(run_child(*words, limit=(resource.RLIMIT_FSIZE, limit)))
    assert f"{out / name}" in message
    assert "the disk is full" in message
    assert not (out / "metrics.json").exists()
    assert not list(out.rglob("*.part"))
    n_answered = 0
    if name:
        lines = (out / "answers.jsonl").read_text().splitlines()
        n_answered = sum("key" in json.loads(line) for line in lines)
        assert 0 < n_answered < N_IMAGES
    result = foveate(*words)
    assert result.returncode == 0, result.stderr
    if name:
        assert f"{n_answered} of {N_IMAGES} images are answered already" in result.stderr
    assert scores(out) == scores(undisturbed)
