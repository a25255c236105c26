"""Images in use are never closed, and the number of open files stays within the limit."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.batch import View
from foveate.errors import (
    FoveateError,
    TooManyOpen,
    UnreadableImage,
    as_foveate_error,
    out_of_files,
)
from foveate.geometry import Box, Frame
from foveate.loading.loader import CaseLoader
from foveate.loading.open_images import OpenImages
from foveate.messages.display import ProgressUpdate
from foveate.readers import open_image
from foveate.runs.card import ModelCard
from foveate.runs.checkpoint import build_model
from foveate.runs.schedule import TrainOptions
from foveate.table import Case
from foveate.training.loop import Trainer
from helpers.commands import Completed, one_thread_environment
from helpers.progress import Recorder

Command = Callable[..., Completed]
VIEW = View(1.0, 32, 4.0, unit="px")


def pictures(folder: Path, n: int) -> list[Case]:
    """Write tiny pictures; every second one has a dark square."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, cases = np.random.default_rng(0), []
    for i in range(n):
        pixels = rng.integers(150, 200, (48, 48), dtype=np.uint8)
        if i % 2:
            pixels[16:32, 16:32] //= 4
        path = folder / f"{i:03d}.png"
        Image.fromarray(pixels).save(path)
        cases.append(Case(path.stem, path.stem, path, "dark" if i % 2 else "plain"))
    return cases


def table_of(cases: list[Case], path: Path) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        writer.writerows([case.path, case.label] for case in cases)
    return path


@pytest.mark.slow
def test_a_batch_of_64_loses_no_image(tmp_path: Path, foveate: Command) -> None:
    table = table_of(pictures(tmp_path / "in", 200), tmp_path / "labels.csv")
    result = foveate(
        *("train", table, "--out", tmp_path / "run", "--method", "mil_mean", "--encoder", "small"),
        *("--encoder.width", "8", "--encoder.dim", "16", "--epochs", "2", "--heatmaps", "0"),
        *("--train.batch-size", "64", "--view.patch-px", "32", "--view.glimpse-spacing-um", "4"),
    )
    assert result.returncode == 0, result.stderr
    assert "set aside" not in result.stderr
    assert not (tmp_path / "run" / "quarantine.csv").exists()


def test_pinned_images_stay_open_and_others_are_limited(tmp_path: Path) -> None:
    cases = pictures(tmp_path, 30)
    groups = [cases[at : at + 10] for at in range(0, 30, 10)]
    loader = CaseLoader(VIEW, keep_open=3)
    for items in loader.ahead(groups):
        for item in items:
            assert not isinstance(item, FoveateError), item
            item.image.read_at(Box((0, 0), (32, 32), Frame.UM), (32, 32))
    assert len(loader._images._images) == 3, "of those nobody uses, three stay open"
    assert not loader._images._pins
    expected = {"decoded_px": 30 * 48 * 48, "asked_px": 30 * (12 * 12 + 32 * 32)}
    assert loader.take_counts() == expected
    assert loader.take_counts() == {"decoded_px": 0, "asked_px": 0}
    loader.close()
    assert not loader._images._images


def test_leaving_a_loop_unpins_its_images(tmp_path: Path) -> None:
    cases = pictures(tmp_path, 12)
    loader = CaseLoader(VIEW, keep_open=0)
    for _ in loader.ahead([case] for case in cases):
        break
    loader.close()
    assert not loader._images._pins


def test_two_threads_share_one_open_image(tmp_path: Path) -> None:
    (case,) = pictures(tmp_path, 1)
    images = OpenImages(4)

    def slow() -> object:
        images.take(case.image_id, lambda: open_image(case.path))
        return open_image(case.path)

    first = images.take(case.image_id, slow)  # type: ignore[arg-type]
    assert images.take(case.image_id, slow) is first  # type: ignore[arg-type]
    images.close()


LIMITED = """
import resource, sys
sys.path[:0] = [{tests!r}, {unit!r}]
from pathlib import Path
from test_open_images import VIEW, pictures
from foveate.errors import FoveateError
from foveate.loading.loader import CaseLoader
cases = pictures(Path({folder!r}), 90)
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
loader = CaseLoader(VIEW)
done = 0
for items in loader.ahead([cases[at : at + 5] for at in range(0, 90, 5)]):
    assert not any(isinstance(item, FoveateError) for item in items), items
    done += len(items)
print(done)
"""


def test_few_open_files_are_enough(tmp_path: Path) -> None:
    unit = Path(__file__).parent
    text = LIMITED.format(tests=str(unit.parent), unit=str(unit), folder=str(tmp_path))
    result = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, env=one_thread_environment()
    )
    assert result.stdout.strip() == "90", result.stderr


def test_the_open_file_limit_is_named_in_the_error() -> None:
    error = OSError(24, "Too many open files")
    assert isinstance(as_foveate_error(error, "a.tif"), TooManyOpen)
    unreadable = UnreadableImage("a.tif: cannot be opened")
    unreadable.__cause__ = error
    assert out_of_files(unreadable)
    assert not out_of_files(OSError(2, "No such file"))
    unreadable.__cause__ = unreadable  # which `raise error from error` makes
    assert not out_of_files(unreadable)
    with pytest.raises(TooManyOpen, match="ulimit -n 1024"):
        OpenImages(1).take("a", lambda: _raise(error))


def _raise(error: Exception) -> object:
    raise error


class Stopped(Exception):
    """Somebody stopped the run."""


def test_pixel_counts_continue_after_a_stop(tmp_path: Path) -> None:
    """Pixels read before the checkpoint stay in the sums of their epoch."""
    cases = pictures(tmp_path / "in", 12)
    options = TrainOptions(epochs=1, batch_size=2, checkpoint_seconds=0.0, precision="32-true")

    def epoch_of(folder: Path, stop_after: int | None) -> list[dict[str, float]]:
        def tick(update: ProgressUpdate) -> None:
            if stop_after is not None and update.done >= stop_after:
                raise Stopped

        card = ModelCard(
            *("mil_mean", {"chunk": 64}, "small", {"width": 8, "dim": 16}),
            *("binary", {"positive": "dark"}, {"classes": ["plain", "dark"]}, VIEW),
        )
        loader = CaseLoader(VIEW)
        torch.manual_seed(0)
        model = build_model(card, pretrained=False)
        try:
            trainer = Trainer(model, loader, folder, options, display=Recorder(tick))
            return trainer.fit(cases, []).history
        finally:
            loader.close()

    (undisturbed,) = epoch_of(tmp_path / "whole", None)
    for stop_after in (2, 4):
        with pytest.raises(Stopped):
            epoch_of(tmp_path / "run", stop_after)
    (row,) = epoch_of(tmp_path / "run", None)
    assert row["train_loss"] == undisturbed["train_loss"]
    # Images that were read ahead at the stop are read and counted again.
    assert undisturbed["decoded_px"] <= row["decoded_px"] <= 3 * undisturbed["decoded_px"]
    assert row["decoded_px"] >= 12 * 48 * 48
    assert row["asked_px"] >= undisturbed["asked_px"]
