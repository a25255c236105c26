"""The estimate of costs counts patches as the methods do, and says what it rests on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from foveate.checks.cost import estimate_cost
from foveate.checks.records import ImageRecord
from foveate.messages.display import Silent
from foveate.table import Case

SLIDE = ImageRecord(
    file_bytes=10**6, date="2026-01-01", kind="slide", reader="r", shape=(2240, 4480), channels=3,
    bits=None, levels=((2240, 4480),), spacing_um=(0.5, 0.5), device="",
    objective=None, low=0, high=1, mean=0.5,
    border=0.9, foreground=0.25, blank=False, unknown=0, glimpse_s=0.5, region_s=0.01, warnings=(),
    thumbnail="", print="",
)  # fmt: skip
CASES = [Case(f"S{i}", f"P{i}", Path(f"S{i}.svs"), "ab"[i % 2]) for i in range(20)]


def test_methods_that_read_everything_cost_more_and_the_basis_is_stated() -> None:
    cost = estimate_cost(CASES, {case.image_id: SLIDE for case in CASES}, None, Silent())
    patches = {row.method: row.patches for row in cost.rows}
    assert patches["mil_mean"] == "50"  # 10 x 20 patches of 224 pixels, a quarter of them tissue
    assert patches["downsampled"] == "none"
    assert patches["attention_sampling"] == "10"
    assert "streaming_cnn" not in patches
    assert all(row.end_to_end.startswith("about ") for row in cost.rows)
    assert (
        "encoder lite0, patches of 224 pixels, 12 of 20 images in the training part" in cost.basis
    )
    assert "0.5 s to read a glimpse, 8 ms a patch" in cost.basis
    assert "Memory of a step is not estimated" in cost.basis


def test_images_that_cannot_be_planned_have_no_estimate() -> None:
    lacking = dataclasses.replace(SLIDE, spacing_um=None)
    cost = estimate_cost(CASES, {case.image_id: lacking for case in CASES}, None, Silent())
    assert cost.rows == ()
    assert cost.basis == "No estimate: no image can be used."
    volume = dataclasses.replace(SLIDE, kind="volume", shape=(20, 20, 20), spacing_um=(1e3,) * 3)
    mixed = {case.image_id: volume if i else SLIDE for i, case in enumerate(CASES)}
    assert "pictures and volumes are mixed" in estimate_cost(CASES, mixed, None, Silent()).basis
