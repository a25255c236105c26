"""``python -m benchmarks streaming``: rows, image files, comparison and refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from foveate.runs.folder import read_rows
from helpers.commands import Completed

pytestmark = pytest.mark.slow

Command = Callable[..., Completed]


def test_streamed_and_plain_steps_agree_and_rows_are_reused(tmp_path: Path, bench: Command) -> None:
    words = ("streaming", "--out", tmp_path, "--encoder", "small")
    result = bench(*words, "--sides", "161,320", "--budget-mib", "5", "--plain")
    assert result.returncode == 0, result.stderr
    assert "row 2 of 2: streaming small, side 320" in result.stderr
    assert "% of one step, side 320: 100/100" in result.stderr
    rows = read_rows(tmp_path / "results.csv")
    assert [row["shape"] for row in rows] == ["161x161", "320x320"]
    for row in rows:
        assert float(row["output_error"]) < 1e-5
        assert float(row["gradient_error"]) < 1e-3
        assert float(row["to_plain"]) >= 0, (
            "a ratio of times, rounded: what it is depends on the machine"
        )
        assert float(row["bound_seconds"]) > 0
        assert f"{row['to_bound']} × the bound" in result.stdout
    assert int(rows[1]["tiles_forward"]) > 1, "320 pixels do not fit at once"
    before = (tmp_path / "results.csv").read_bytes()
    again = bench(*words, "--sides", "161,320", "--budget-mib", "5", "--plain")
    assert again.returncode == 0
    assert (tmp_path / "results.csv").read_bytes() == before


def test_background_of_a_file_is_skipped(tmp_path: Path, bench: Command) -> None:
    pixels = np.full((1500, 2200, 3), 255, np.uint8)
    pixels[100:300, 100:400] = np.random.default_rng(0).integers(0, 200, (200, 300, 3))
    path = tmp_path / "slide.tif"
    tifffile.imwrite(
        path, pixels, tile=(256, 256), resolution=(20000, 20000), resolutionunit="CENTIMETER"
    )
    words = ("streaming", "--encoder", "small", "--image", path, "--budget-mib", "64")
    for name, flags in (("all", ()), ("tissue", ("--skip-background",))):
        result = bench(*words, "--out", tmp_path / name, *flags)
        assert result.returncode == 0, result.stderr
    (everything,), (tissue,) = (
        read_rows(tmp_path / name / "results.csv") for name in ("all", "tissue")
    )
    assert everything["shape"] == tissue["shape"] == "1500x2200"
    assert float(tissue["live_share"]) < 0.5
    assert float(everything["live_share"]) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--encoder", "resnet18_3d"), "no encoder 'resnet18_3d'"),
        (("--tile", "-1"), "expected at least 32, 1, 1 and 0"),
        (("--encoder", "seresnet18", "--sides", "64"), "squeeze-excite"),
        (("--encoder", "resnet18", "--sides", "512", "--budget-mib", "1"), "one output cell"),
    ],
)
def test_unstreamable_requests_are_refused(
    tmp_path: Path, bench: Command, flags: tuple[str, ...], message: str
) -> None:
    result = bench("streaming", "--out", tmp_path, *flags)
    assert result.returncode == 1
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
