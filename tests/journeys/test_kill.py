"""A training run killed at any moment and resumed ends with the numbers of an undisturbed run.

Child processes are killed with SIGKILL at random moments of each stage, told by what the run has
left in its folder.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from conftest import SMALL_RUN
from foveate.runs.folder import read_json, read_rows
from helpers.commands import Child

SECONDS = 120.0
OPTIONS = (
    *SMALL_RUN,
    *("--method", "glimpse", "--method.patches", "4", "--method.eval-patches", "4"),
    *("--epochs", "4", "--train.batch-size", "2", "--train.checkpoint-seconds", "0.05"),
)

Stage = tuple[str, Callable[[Path], bool]]
"""The name of a stage, and a function that tells whether a run folder has reached it."""


def count_rows(fold: Path) -> int:
    path = fold / "metrics.csv"
    return len(read_rows(path)) if path.is_file() else 0


def exists(name: str) -> Callable[[Path], bool]:
    return lambda run: (run / name).exists()


def epochs(n: int) -> Callable[[Path], bool]:
    return lambda run: count_rows(run / "fold_0") >= n


LATEST = "fold_0/checkpoints/latest.safetensors"
STAGES: tuple[tuple[Stage, float], ...] = (
    (("start-up", lambda _: True), 2.0),
    (("the folder is claimed", exists("config.yaml")), 0.3),
    (("the split is written", exists("splits.json")), 0.1),
    (("first checkpoint", exists(LATEST)), 0.2),
    (("in the first epoch", exists(LATEST)), 0.8),
    (("one epoch is done", epochs(1)), 0.1),
    (("in the second epoch", epochs(1)), 0.8),
    (("two epochs are done", epochs(2)), 0.5),
    (("training is done", epochs(4)), 0.1),
    (("the model is written", exists("fold_0/model/model.json")), 0.5),
)
"""Ten stages in the order of a run, each with the longest delay of its kill in seconds."""


def start(table: Path, run: Path) -> Child:
    return Child("train", table, "--out", run, *OPTIONS)


def finish(table: Path, run: Path) -> None:
    child = start(table, run)
    _, err = child.communicate(timeout=SECONDS)
    assert child.returncode == 0, err


def wait_for_stage(child: Child, run: Path, stage: Stage) -> bool:
    """Wait until a run reaches a stage; returns False if it ended earlier."""
    until = time.monotonic() + SECONDS
    while not stage[1](run):
        assert time.monotonic() < until, f"never reached: {stage[0]}"
        if child.poll() is not None:
            return False
        time.sleep(0.005)
    return True


def stop(child: Child, how: int) -> tuple[int, str]:
    child.send_signal(how)
    _, err = child.communicate(timeout=SECONDS)
    return child.returncode, err


@pytest.fixture(scope="module")
def undisturbed(tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(tiny_cohort, run)
    return run


def kill_and_resume(
    table: Path, run: Path, stages: tuple[tuple[Stage, float], ...], seed: int
) -> list[str]:
    """Kill a run once in each stage; returns the stages that were hit."""
    rng, in_training = random.Random(seed), []
    for stage, longest in stages:
        child = start(table, run)
        if wait_for_stage(child, run, stage):
            time.sleep(rng.uniform(0, longest))
        code, err = stop(child, signal.SIGKILL)
        assert code in (-signal.SIGKILL, 0), err
        if code != 0 and (run / LATEST).is_file():
            in_training.append(stage[0])
    finish(table, run)
    return in_training


def assert_same_end(run: Path, other: Path) -> None:
    model = "fold_0/model/model.safetensors"
    weights, expected = load_file(run / model), load_file(other / model)
    assert weights.keys() == expected.keys()
    for name in expected:
        assert weights[name].equal(expected[name]), f"{name} differs"
    card, card_wanted = (read_json(r / "fold_0/model/model.json") for r in (run, other))
    for key in ("split_hash", "best_epoch", "best_val_score", "temperature", "threshold"):
        assert card["provenance"][key] == card_wanted["provenance"][key]
    assert read_json(run / "splits.json") == read_json(other / "splits.json")
    assert read_json(run / "metrics.json") == read_json(other / "metrics.json")
    for name in ("predictions_oof.csv", "fold_0/predictions.csv"):
        assert read_predictions(run / name) == read_predictions(other / name)
    learnt = ("epoch", "train_loss", "val_loss", "val_auroc", "lr")
    curves = [
        [{key: row[key] for key in learnt} for row in read_rows(r / "fold_0" / "metrics.csv")]
        for r in (run, other)
    ]
    assert curves[0] == curves[1]
    assert not list(run.rglob("*.part")), "what killed runs left aside is swept up"


def read_predictions(path: Path) -> list[dict[str, str]]:
    columns = ("image_id", "label", "predicted", "prob_normal", "prob_tumour")
    return [{key: row[key] for key in columns} for row in read_rows(path)]


@pytest.mark.slow
def test_ten_kills_change_nothing(tiny_cohort: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    in_training = kill_and_resume(tiny_cohort, run, STAGES, seed=1)
    assert len(in_training) >= 5, in_training
    assert_same_end(run, undisturbed)


@pytest.mark.slow
def test_an_interruption_and_two_kills_change_nothing(
    tiny_cohort: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    child = start(tiny_cohort, run)
    assert wait_for_stage(child, run, STAGES[3][0])
    code, err = stop(child, signal.SIGINT)
    assert code == 130, err
    assert "Traceback" not in err
    assert err.strip().splitlines()[-1].startswith("interrupted. The same command continues")
    assert not (run / "fold_0" / "model").exists()
    in_training = kill_and_resume(tiny_cohort, run, (STAGES[6], STAGES[9]), seed=2)
    assert in_training
    assert_same_end(run, undisturbed)
