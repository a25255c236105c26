"""``python -m benchmarks streaming``: rows, images, what is compared, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from conftest import Ended
from foveate.runs.folder import read_rows

Command = Callable[..., Ended]


def test_streamed_and_plain_steps_agree_and_rows_are_kept(tmp_path: Path, bench: Command) -> None:
    words = ("streaming", "--out", tmp_path, "--encoder", "small")
    ended = bench(*words, "--sides", "161,320", "--budget-mib", "5", "--plain")
    assert ended.returncode == 0, ended.stderr
    assert "row 2 of 2: streaming small, side 320" in ended.stderr
    assert "% of one step, side 320: 100/100" in ended.stderr
    rows = read_rows(tmp_path / "results.csv")
    assert [row["shape"] for row in rows] == ["161x161", "320x320"]
    for row in rows:
        assert float(row["output_error"]) < 1e-5
        assert float(row["gradient_error"]) < 1e-3
        assert float(row["to_plain"]) >= 0, (
            "a ratio of times, rounded: what it is depends on the machine"
        )
        assert float(row["bound_seconds"]) > 0
        assert f"{row['to_bound']} × the bound" in ended.stdout
    assert int(rows[1]["tiles_forward"]) > 1, "320 pixels do not fit at once"
    before = (tmp_path / "results.csv").read_bytes()
    again = bench(*words, "--sides", "161,320", "--budget-mib", "5", "--plain")
    assert again.returncode == 0
    assert (tmp_path / "results.csv").read_bytes() == before


def test_a_file_is_read_and_its_background_left_out(tmp_path: Path, bench: Command) -> None:
    pixels = np.full((1500, 2200, 3), 255, np.uint8)
    pixels[100:300, 100:400] = np.random.default_rng(0).integers(0, 200, (200, 300, 3))
    path = tmp_path / "slide.tif"
    tifffile.imwrite(
        path, pixels, tile=(256, 256), resolution=(20000, 20000), resolutionunit="CENTIMETER"
    )
    words = ("streaming", "--encoder", "small", "--image", path, "--budget-mib", "64")
    for name, flags in (("all", ()), ("tissue", ("--skip-background",))):
        ended = bench(*words, "--out", tmp_path / name, *flags)
        assert ended.returncode == 0, ended.stderr
    (everything,), (tissue,) = (
        read_rows(tmp_path / name / "results.csv") for name in ("all", "tissue")
    )
    assert everything["shape"] == tissue["shape"] == "1500x2200"
    assert float(tissue["live_share"]) < 0.5
    assert float(everything["live_share"]) == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--encoder", "resnet18_3d"), "no encoder 'resnet18_3d'"),
        (("--tile", "-1"), "expected at least 32, 1, 1 and 0"),
        (("--encoder", "seresnet18", "--sides", "64"), "squeeze-excite"),
        (("--encoder", "resnet18", "--sides", "512", "--budget-mib", "1"), "one output cell"),
    ],
)
def test_what_cannot_be_streamed_is_said(
    tmp_path: Path, bench: Command, flags: tuple[str, ...], said: str
) -> None:
    ended = bench("streaming", "--out", tmp_path, *flags)
    assert ended.returncode == 1
    assert said in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr
