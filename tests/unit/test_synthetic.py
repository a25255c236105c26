from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
from sklearn.metrics import roc_auc_score

from foveate.errors import ImageNotFound, OptionError
from foveate.synthetic import CohortSpec, Nodule, SlideSpec, read_truth, write_cohort, write_slide
from foveate.synthetic.render import Renderer

SPEC = SlideSpec(
    shape_px0=(2048, 3072),
    spacing_um=(0.5, 0.25),
    tissue_area_px0=(1.7e6, 2e6),
    n_islands=(1, 1),
    n_nodules=(6, 8),
    n_deciding=(2, 3),
)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Nodule]]:
    path = tmp_path_factory.mktemp("slide") / "a.tif"
    return path, write_slide(path, positive=True, seed=5, spec=SPEC)


def averaged(pixels: np.ndarray, factor: int) -> np.ndarray:
    y, x = (n // factor for n in pixels.shape[:2])
    cut = pixels[: y * factor, : x * factor].astype(np.float32)
    return cut.reshape(y, factor, x, factor, -1).mean((1, 3))


def inner(pixels: np.ndarray, nodule: Nodule, factor: int) -> np.ndarray:
    """Return the pixels ``(n, 3)`` of a coarse level that lie fully inside a nodule."""
    y, x = (
        (np.arange(n) + 0.5) * factor - c
        for n, c in zip(pixels.shape, nodule.centre_px0, strict=False)
    )
    return pixels[np.hypot(y[:, None], x[None]) < nodule.radius_px0 - 0.4 * factor]


def nucleus_radius_px0(pixels: np.ndarray, nodule: Nodule) -> float:
    """Estimate the radius from the mean horizontal chord of dark discs, pi r / 2."""
    y, x = map(int, nodule.centre_px0)
    red = pixels[y - 72 : y + 72, x - 72 : x + 72, 0].astype(float)
    dark = red < (np.percentile(red, 5) + np.percentile(red, 90)) / 2
    starts = (dark[:, 1:] & ~dark[:, :-1]).sum()
    return float(dark.sum() / starts * 2 / np.pi)


def test_openslide_reads_levels_and_spacing(slide: tuple[Path, list[Nodule]]) -> None:
    with openslide.OpenSlide(slide[0]) as image:
        assert image.level_dimensions == ((3072, 2048), (768, 512), (192, 128))
        assert image.level_downsamples == (1, 4, 16)
        assert float(image.properties["openslide.mpp-x"]) == pytest.approx(0.25, rel=1e-4)
        assert float(image.properties["openslide.mpp-y"]) == pytest.approx(0.5, rel=1e-4)
        for level, size in enumerate(image.level_dimensions):
            seen = np.asarray(image.read_region((0, 0), level, size))[..., :3].astype(int)
            stored = tifffile.imread(slide[0], key=level).astype(int)
            # The two upsample halved colour differently, so only level 0 may differ.
            assert abs(seen - stored).mean() < (0.7 if level == 0 else 0.05)


def test_tifffile_reads_tiles(slide: tuple[Path, list[Nodule]]) -> None:
    with tifffile.TiffFile(slide[0]) as file:
        assert file.is_bigtiff
        assert [p.shape[:2] for p in file.pages] == [(2048, 3072), (512, 768), (128, 192)]
        assert all(p.tile == (256, 256) for p in file.pages)
        assert [p.subfiletype for p in file.pages] == [0, 1, 1]


@pytest.mark.parametrize(("quality", "mean", "most"), [(100, 0.5, 2.5), (85, 2.0, 16.0)])
def test_levels_are_averages_of_level_0(
    tmp_path: Path, quality: int, mean: float, most: float
) -> None:
    path = tmp_path / "a.tif"
    write_slide(path, positive=True, seed=5, spec=replace(SPEC, quality=quality))
    finest = tifffile.imread(path, key=0)
    for level in (1, 2):
        seen = tifffile.imread(path, key=level).astype(np.float32)
        wrong = seen - averaged(finest, 4**level)
        assert abs(wrong).mean() < mean
        assert abs(wrong.mean((0, 1))).max() < 0.1
        assert np.percentile(abs(wrong), 99) < most


@pytest.mark.parametrize("shape", [(1100, 1290), (1024, 2049)])
def test_slides_of_any_shape_are_written(tmp_path: Path, shape: tuple[int, int]) -> None:
    few: dict[str, Any] = {"n_nodules": (1, 1), "n_deciding": (1, 1), "tile_px": 128}
    few["quality"] = 100
    spec = replace(SPEC, shape_px0=shape, tissue_area_px0=(3e5, 3e5), **few)
    write_slide(tmp_path / "a.tif", positive=True, seed=1, spec=spec)
    finest = tifffile.imread(tmp_path / "a.tif", key=0)
    assert finest.shape == (*shape, 3)
    seen = tifffile.imread(tmp_path / "a.tif", key=1).astype(np.float32)
    assert abs(seen - averaged(finest, 4)).mean() < 0.5


def test_equal_arguments_give_equal_bytes(tmp_path: Path) -> None:
    names = ["a.tif", "b.tif"]
    for name in names:
        write_slide(tmp_path / name, positive=True, seed=7, spec=SPEC)
    write_slide(tmp_path / "c.tif", positive=True, seed=8, spec=SPEC)
    for suffix in (".tif", ".truth.png", ".truth.json"):
        a, b, c = ((tmp_path / f"{s}{suffix}").read_bytes() for s in "abc")
        assert a == b != c


def test_the_truth_file_matches_the_slide(slide: tuple[Path, list[Nodule]]) -> None:
    path, nodules = slide
    assert read_truth(path) == nodules
    assert 6 <= len(nodules) <= 8
    assert 2 <= sum(n.deciding for n in nodules) <= 3
    mask = tifffile.imread(path).shape[:2], _read_png(path.with_suffix(".truth.png"))
    assert mask[1].shape == tuple(n // 64 for n in mask[0])
    area = sum(np.pi * (n.radius_px0 / 64) ** 2 for n in nodules if n.deciding)
    assert (mask[1] == 255).sum() == pytest.approx(area, rel=0.25)
    for n in nodules:
        y, x = (int(c / 64) for c in n.centre_px0)
        assert (mask[1][y, x] == 255) == n.deciding


def test_truth_matches_the_pixels(slide: tuple[Path, list[Nodule]]) -> None:
    pixels = tifffile.imread(slide[0], key=0)
    for nodule in slide[1]:
        expected = 7.5 if nodule.deciding else 5.0
        assert nucleus_radius_px0(pixels, nodule) == pytest.approx(expected, rel=0.12)


def test_nodules_stand_out_from_stroma_at_one_in_64(slide: tuple[Path, list[Nodule]]) -> None:
    coarse = averaged(tifffile.imread(slide[0], key=0), 64)
    inside = np.concatenate([inner(coarse, n, 64) for n in slide[1]])
    tissue = coarse[(coarse[..., 1] < 190) & (coarse[..., 0] > 195)]
    assert len(inside) >= 20
    assert tissue[:, 0].mean() - inside[:, 0].mean() > 40


def test_negative_slides_differ_in_nothing_but_the_nuclei(
    slide: tuple[Path, list[Nodule]], tmp_path: Path
) -> None:
    twin = tmp_path / "twin.tif"
    nodules = write_slide(twin, positive=False, seed=5, spec=SPEC)
    assert nodules == [replace(n, deciding=False) for n in slide[1]]
    a, b = (tifffile.imread(p, key=0) for p in (slide[0], twin))
    deciding = [n for n in slide[1] if n.deciding]
    for factor, most in ((1, None), (16, 1.5), (32, 0.8), (64, 0.5)):
        wrong = averaged(a, factor) - averaged(b, factor)
        seen = abs(np.concatenate([inner(wrong, n, factor) for n in deciding])).mean()
        assert seen > 25 if most is None else seen < most


@pytest.mark.slow
def test_low_resolution_is_at_chance_and_full_resolution_is_not(tmp_path: Path) -> None:
    deciding: list[bool] = []
    radii: list[float] = []
    features: list[list[float]] = []
    slides: list[list[float]] = []
    for seed in range(60):
        path = tmp_path / "a.tif"
        nodules = write_slide(path, positive=seed % 2 == 0, seed=seed, spec=SPEC)
        pixels = tifffile.imread(path, key=0)
        quarter = tifffile.imread(path, key=1)
        coarse = {f: averaged(quarter, f // 4) for f in (32, 64)}
        rows = [_simple_features(coarse, n) for n in nodules]
        slides.append(list(np.mean(rows, 0)))
        features += rows
        radii += [nucleus_radius_px0(pixels, n) for n in nodules]
        deciding += [n.deciding for n in nodules]
    assert roc_auc_score(deciding, radii) == 1.0
    _assert_chance(deciding, features)
    _assert_chance([seed % 2 == 0 for seed in range(60)], slides)


def _simple_features(coarse: dict[int, np.ndarray], nodule: Nodule) -> list[float]:
    features: list[float] = []
    for factor, pixels in coarse.items():
        inside = inner(pixels, nodule, factor)
        features += [
            *inside.mean(0),
            *inside.std(0),
            *np.percentile(inside[:, 0], [0, 25, 75, 100]),
        ]
    return features


def _assert_chance(label: list[bool], features: list[list[float]]) -> None:
    positive, n = sum(label), len(label)
    # Standard deviation of the area for a feature that tells nothing; four of them for 20 looks.
    sigma = np.sqrt((n + 1) / (12 * positive * (n - positive)))
    for column in zip(*features, strict=True):
        assert abs(roc_auc_score(label, column) - 0.5) < 4 * sigma


def test_the_cohort_table_lists_every_slide(tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    giga = replace(SPEC, shape_px0=(4096, 4096))
    table = write_cohort(
        tmp_path,
        CohortSpec(n_slides=7, n_patients=5, spec=SPEC, giga_spec=giga, seed=1),
        on_progress=lambda i, n: progress.append((i, n)),
    )
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "patient_id", "label", "note"]
    assert [r["file"] for r in rows] == [f"slides/S{i:03d}.tif" for i in range(1, 8)] + [
        "slides/S_GIGA.tif"
    ]
    assert progress == [(i, 8) for i in range(1, 9)]
    assert rows[-1]["note"] == "gigapixel"
    label_of: dict[str, set[str]] = {}
    for row in rows:
        label_of.setdefault(row["patient_id"], set()).add(row["label"])
        any_deciding = any(n.deciding for n in read_truth(tmp_path / row["file"]))
        assert any_deciding == (row["label"] == "tumour")
    assert len(label_of) == 6
    assert all(len(labels) == 1 for labels in label_of.values())


def test_a_stopped_cohort_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = CohortSpec(n_slides=4, n_patients=4, spec=SPEC, seed=3)
    rows = Renderer.row
    drawn = []

    def fail_late(self: Renderer, row: int) -> Any:
        drawn.append(row)
        if len(drawn) > 20:
            raise KeyboardInterrupt
        return rows(self, row)

    monkeypatch.setattr(Renderer, "row", fail_late)
    with pytest.raises(KeyboardInterrupt):
        write_cohort(tmp_path, cohort, workers=1)
    names = {p.name for p in (tmp_path / "slides").iterdir()}
    assert {n for n in names if n.endswith(".tif")} == {"S001.tif", "S002.tif"}
    assert not [n for n in names if n.endswith(".part")]
    assert not (tmp_path / "labels.csv").exists()

    monkeypatch.setattr(Renderer, "row", rows)
    before = (tmp_path / "slides" / "S001.tif").stat().st_mtime_ns
    write_cohort(tmp_path, cohort)
    assert (tmp_path / "slides" / "S001.tif").stat().st_mtime_ns == before
    write_cohort(tmp_path / "other", cohort)
    a, b = (_digests(f / "slides") for f in (tmp_path, tmp_path / "other"))
    assert a == b
    assert len(a) == 12


def test_damaged_or_changed_slides_are_rewritten(tmp_path: Path) -> None:
    cohort = CohortSpec(n_slides=2, n_patients=2, spec=SPEC, seed=3)
    write_cohort(tmp_path, cohort)
    first = _digests(tmp_path / "slides")
    path = tmp_path / "slides" / "S001.tif"
    path.write_bytes(path.read_bytes()[:1000])
    write_cohort(tmp_path, cohort)
    assert _digests(tmp_path / "slides") == first
    write_cohort(tmp_path, replace(cohort, spec=replace(SPEC, quality=60)))
    assert _digests(tmp_path / "slides")["S002.tif"] != first["S002.tif"]
    known = json.loads((tmp_path / "slides" / "S002.truth.json").read_text())
    assert known["parameters"]["spec"]["quality"] == 60


def test_impossible_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="n_patients"):
        write_cohort(tmp_path, CohortSpec(n_slides=5, n_patients=2, spec=SPEC))
    crowded = replace(SPEC, n_nodules=(400, 400))
    with pytest.raises(OptionError, match="do not fit"):
        write_slide(tmp_path / "a.tif", positive=True, seed=0, spec=crowded)
    for wrong in (
        {"tile_px": 100},
        {"n_deciding": (3, 9)},
        {"tissue_area_px0": (2, 1)},
        {"quality": 0},
    ):
        with pytest.raises(OptionError):
            replace(SPEC, **wrong)
    with pytest.raises(ImageNotFound):
        read_truth(tmp_path / "none.tif")


@pytest.mark.slow
def test_four_gigapixels_in_bounded_memory(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from foveate.synthetic import SlideSpec, write_slide\n"
        "area = (2e8, 2e8)\n"
        "spec = SlideSpec(shape_px0=(65536, 65536), tissue_area_px0=area, n_islands=(12, 12))\n"
        "write_slide(Path(sys.argv[1]), positive=True, seed=0, spec=spec)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    path = tmp_path / "a.tif"
    child = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert int(child.stdout) < 400
    with openslide.OpenSlide(path) as image:
        assert image.dimensions == (65536, 65536)
        assert image.level_downsamples == (1, 4, 16, 64, 256)


def _digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def _read_png(path: Path) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(path))
