"""Fixtures and helpers that all tests share: slides, pictures, runs and the command line."""

from __future__ import annotations

import csv
import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from check_axes import PACKAGES

if not jaxtyping.config.jaxtyping_disable:  # JAXTYPING_DISABLE=1 runs the tests without checks
    for package in PACKAGES:
        jaxtyping.install_import_hook(f"foveate.{package}", "check_axes.check_tensors")

from foveate.geometry import Box, Frame
from foveate.loading.loader import CaseLoader
from foveate.messages import warn
from foveate.methods.base import Penalty, Prediction
from foveate.parts import add_plugin_folder
from foveate.synthetic import CohortSpec, SlideSpec, write_cohort
from helpers.commands import Completed, run_child

TINY = SlideSpec(
    shape_px0=(2048, 3072),
    tissue_area_px0=(1.0e6, 1.3e6),
    n_islands=(1, 2),
    n_nodules=(4, 6),
    n_deciding=(2, 3),
)

SMALL_RUN = (
    *("--encoder", "small", "--encoder.width", "8", "--encoder.dim", "16"),
    *("--view.patch-px", "64", "--view.spacing-um", "0.5", "--view.glimpse-spacing-um", "16"),
    *("--heatmaps", "1"),
)
"""Flags of a training that takes seconds on the slides of `tiny_cohort`."""

PICTURE_RUN = (
    *("--method", "mil_mean", "--encoder", "small", "--encoder.width", "8", "--encoder.dim", "16"),
    *("--epochs", "1", "--heatmaps", "2", "--view.patch-px", "32"),
)
"""Flags of a training that takes seconds on the pictures of `picture_table`."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--plugins",
        dest="plugin_folders",
        action="append",
        default=[],
        help="folder of plug-ins; the contract tests find its parts as they find foveate's own",
    )


def pytest_xdist_auto_num_workers() -> int:
    """Return one worker per core, at most four so that memory suffices."""
    return min(os.cpu_count() or 1, 4)


def pytest_xdist_setupnodes() -> None:
    """Give each worker one thread. OpenMP reads the variable when PyTorch is first imported."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    for folder in config.getoption("plugin_folders"):
        add_plugin_folder(Path(folder))


def pytest_collection_finish() -> None:
    """Spare collections of garbage what the modules and the tests hold until the end."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _reset_warnings() -> None:
    """Forget which warnings were printed, so that each test sees its own."""
    warn.reset_warnings()


@pytest.fixture
def foveate(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Completed]:
    """Run ``foveate`` in this process; returns exit code, output and errors."""
    from foveate import parts
    from foveate.cli import main

    monkeypatch.setattr(parts, "_folders", list(parts._folders))  # plug-ins of one test only
    return command(main, capfd, monkeypatch)


def command(
    main: Callable[[], None], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Completed]:
    """Return a function that runs a command line in this process."""

    def run(*words: object) -> Completed:
        arguments = [str(word) for word in words]
        monkeypatch.setattr(sys, "argv", ["foveate", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main()
        out, err = capfd.readouterr()
        code = exit_info.value.code
        return Completed(arguments, code if isinstance(code, int) else 0, out, err)

    return run


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real images; skip the test if it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real images are not here: {folder}")
    return folder


@pytest.fixture(scope="session")
def tiny_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 24 small slides of 20 patients and return the path of their table."""
    folder = tmp_path_factory.mktemp("cohort")
    return write_cohort(
        folder, CohortSpec(n_slides=24, n_patients=20, spec=TINY, seed=5), workers=2
    )


@pytest.fixture(scope="session")
def pool() -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of two threads that read crops."""
    with ThreadPoolExecutor(2) as threads:
        yield threads


@pytest.fixture(scope="module")
def loader(request: pytest.FixtureRequest) -> Iterator[CaseLoader]:
    """Open a loader of cases with the ``VIEW`` of the test module."""
    loader = CaseLoader(request.module.VIEW)
    yield loader
    loader.close()


def box_around(centre: Sequence[float], size: Sequence[float]) -> Box:
    """Return the box of this size in micrometres around a centre."""
    origin = tuple(c - s / 2 for c, s in zip(centre, size, strict=True))
    return Box(origin, tuple(size), Frame.UM)


def penalties(prediction: Prediction) -> dict[str, Tensor]:
    """Return the losses of a prediction that need no label, by name."""
    return {k: loss.value for k, loss in prediction.further.items() if isinstance(loss, Penalty)}


def picture(path: Path, seed: int, *, shape: tuple[int, ...] = (96, 96, 3)) -> Path:
    """Write a picture in colour or grey; odd seeds get a dark square."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(150, 200, shape, dtype=np.uint8)
    if seed % 2:
        pixels[32:64, 32:64] //= 4
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="session")
def picture_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 24 pictures and return the path of their table."""
    folder = tmp_path_factory.mktemp("pictures")
    table = folder / "labels.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        for i in range(24):
            picture(folder / "in" / f"P{i:02d}.png", i)
            writer.writerow([f"in/P{i:02d}.png", "dark" if i % 2 else "plain"])
    return table


@pytest.fixture(scope="session")
def picture_run(picture_table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train for a few seconds on the pictures of `picture_table`; returns the run folder."""
    run = tmp_path_factory.mktemp("trained") / "run"
    result = run_child("train", picture_table, "--out", run, *PICTURE_RUN)
    assert result.returncode == 0, result.stderr
    return run
