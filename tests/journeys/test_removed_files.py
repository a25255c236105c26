"""Files of a finished run that somebody has removed: every advice leads back to a whole run."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import PICTURE_RUN
from helpers.commands import Completed, assert_refused, read_refusal, run_child

Command = Callable[..., Completed]

RECORDS = ("config.yaml", "plan.json", "inputs.json", "splits.json")
"""What a run rests on: without it, the run cannot go on."""
NO_RESULTS = ("log.txt", "answers.jsonl", "checkpoints", "fold_0/frozen/heatmaps")
"""What only a training that is going on needs."""
FROZEN_RUN = (
    *("--method", "mil_mean", "--encoder", "lite0", "--epochs", "1", "--refit"),
    *("--heatmaps", "1", "--view.patch-px", "32"),
)
"""A run with frozen starts and a refitted model."""


def list_results(run: Path) -> list[str]:
    """Return the names of all results in the folder of a run, one of the pictures of each kind."""
    names = [path.relative_to(run).as_posix() for path in sorted(run.rglob("*")) if path.is_file()]
    by_kind = {re.sub(r"P\d+", "P", name): name for name in names}
    return [name for name in by_kind.values() if not any(no in name for no in NO_RESULTS)]


@pytest.fixture(scope="module")
def frozen_run(picture_table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("frozen") / "run"
    result = run_child("train", picture_table, "--out", run, *FROZEN_RUN)
    assert result.returncode == 0, result.stderr
    return run


@pytest.fixture
def predict(picture_table: Path, tmp_path: Path, foveate: Command) -> Callable[[Path], Completed]:
    """Return a function that predicts an image with a run, each time into a new folder."""
    folders = iter(tmp_path / f"out{i}" for i in range(99))

    def run(folder: Path) -> Completed:
        image = picture_table.parent / "in" / "P00.png"
        return foveate("predict", folder, image, "--out", next(folders), "--heatmaps", "0")

    return run


def assert_leads_out(predict: Callable[[Path], Completed], run: Path) -> None:
    """Check that a run answers, or that its refusal advises what the test does next."""
    result = predict(run)
    if result.returncode == 0:
        return
    message = read_refusal(result)
    folder = re.search(r"give the folder of one fold, such as (\S+)", message)
    if folder is not None:
        assert predict(Path(folder[1])).returncode == 0
    else:
        assert "repeat the `foveate train` command" in message


@pytest.mark.parametrize("name", RECORDS)
def test_a_run_without_a_record_says_what_still_works(
    picture_run: Path,
    picture_table: Path,
    tmp_path: Path,
    foveate: Command,
    predict: Callable[[Path], Completed],
    name: str,
) -> None:
    run = tmp_path / "run"
    shutil.copytree(picture_run, run)
    (run / name).unlink()
    assert_leads_out(predict, run)
    words = ("train", picture_table, "--out", run, *PICTURE_RUN)
    assert "another --out for a new run" in read_refusal(foveate(*words, "--seed", "1"))
    result = foveate(*words)
    assert_refused(result, f"{run / name} is missing", "give another --out for a new run")
    assert not (run / name).exists()
    command = re.search(r"foveate predict (\S+) IMAGES", result.stderr)
    assert command
    assert predict(Path(command[1])).returncode == 0


def walk(
    run: Path,
    words: tuple[object, ...],
    names: list[str],
    foveate: Command,
    predict: Callable[[Path], Completed],
) -> None:
    """Remove one file after the other, ask for an answer, and repeat the training."""
    for name in names:
        before = (run / name).read_bytes()
        (run / name).unlink()
        assert_leads_out(predict, run)
        result = foveate(*words)
        assert result.returncode == 0, f"{name}: {result.stderr}"
        assert (run / name).is_file(), f"{name}: {result.stderr}"
        if name.endswith(("model.json", "model.safetensors", "predictions.csv", "metrics.json")):
            assert (run / name).read_bytes() == before, name
    assert predict(run).returncode == 0


@pytest.mark.slow
def test_a_training_makes_results_again(
    picture_run: Path,
    picture_table: Path,
    tmp_path: Path,
    foveate: Command,
    predict: Callable[[Path], Completed],
) -> None:
    run = tmp_path / "run"
    shutil.copytree(picture_run, run)
    names = [name for name in list_results(run) if name not in RECORDS]
    assert {"metrics.json", "fold_0/model/model.safetensors", "heatmaps/index.json"} < {*names}
    walk(run, ("train", picture_table, "--out", run, *PICTURE_RUN), names, foveate, predict)


@pytest.mark.slow
def test_a_training_makes_frozen_start_and_refit_again(
    frozen_run: Path, picture_table: Path, foveate: Command, predict: Callable[[Path], Completed]
) -> None:
    names = [name for name in list_results(frozen_run) if "frozen" in name or "refit" in name]
    assert len(names) > 5, names
    words = ("train", picture_table, "--out", frozen_run, *FROZEN_RUN)
    walk(frozen_run, words, names, foveate, predict)
    # Without the weights that they are made from, the advice is to train anew.
    frozen = frozen_run / "fold_0" / "checkpoints" / "frozen.safetensors"
    frozen.unlink()
    (frozen_run / "fold_0" / "frozen" / "model" / "model.json").unlink()
    assert_refused(foveate(*words), f"{frozen} is missing", f"delete {frozen_run / 'fold_0'}")
    shutil.rmtree(frozen_run / "fold_0")
    assert foveate(*words).returncode == 0
    assert frozen.is_file()


@pytest.mark.slow
def test_a_training_without_its_best_weights_says_what_to_delete(
    picture_run: Path, picture_table: Path, tmp_path: Path, foveate: Command
) -> None:
    run = tmp_path / "run"
    shutil.copytree(picture_run, run)
    words = ("train", picture_table, "--out", run, *PICTURE_RUN)
    best, model = (run / "fold_0" / name for name in ("checkpoints/best.safetensors", "model"))
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:-4] + b"\0\0\1\0")
    message = read_refusal(foveate(*words))
    assert f"delete {model} and repeat the `foveate train` command" in message
    shutil.rmtree(model)
    best.unlink()
    advice = f"delete {best.parent} to train this fold anew"
    assert_refused(foveate(*words), f"{best} is missing", advice)
    shutil.rmtree(best.parent)
    assert foveate(*words).returncode == 0
    assert (model / "model.safetensors").read_bytes() == weights


def test_pictures_that_were_removed_are_drawn_again(
    picture_run: Path, picture_table: Path, tmp_path: Path, foveate: Command
) -> None:
    out = tmp_path / "out"
    words = ("evaluate", picture_run, picture_table, "--out", out, "--heatmaps", "1")
    assert foveate(*words).returncode == 0
    for name in ("heatmaps/P00.png", "heatmaps/P01.npz", "predictions.csv", "metrics.json"):
        (out / name).unlink()
        result = foveate(*words)
        assert result.returncode == 0, result.stderr
        n = 23 if "heatmaps" in name else 24
        assert f"{n} of 24 images are answered already" in result.stderr
        assert (out / name).is_file()
