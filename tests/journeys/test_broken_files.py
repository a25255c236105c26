"""Broken, odd and hostile files give a clear error or a picture, never a crash or a hang.

The files are opened in child processes with a time limit for each file and a memory limit. This
module is its own child program: ``python test_broken_files.py FILE…`` prints a JSON line a file.
"""

from __future__ import annotations

import csv
import json
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from foveate.errors import FoveateError, ImageTooLarge, UnreadableImage
from foveate.geometry import Box, Frame
from foveate.images.image import AbstractImage
from foveate.images.respaced import RespacedImage
from foveate.readers import open_image

BROKEN = Path(__file__).resolve().parents[2] / "../shared/data/broken"
SECONDS_PER_FILE = 20
MEMORY_BYTES = 3 << 30
CHILDREN = 2

pytestmark = pytest.mark.skipif(
    not (BROKEN / "expected.csv").is_file(), reason=f"no broken files at {BROKEN}"
)


# -- the child -----------------------------------------------------------------------------------


def visit(path: str) -> dict[str, object]:
    """Open a file, check its levels, and read a glimpse and two regions of each level."""
    try:
        with open_image(path) as image:
            placed: AbstractImage = image
            if image.spacing_um is None:
                placed = RespacedImage(image, (1.0,) * image.ndim, unit="px")
            extent_um = placed.box_um.size
            glimpse = placed.glimpse(max(extent_um) / 200)
            assert glimpse.dtype == image.dtype
            for level, facts in enumerate(image.levels):
                size = tuple(min(n, 100) for n in facts.shape)
                far = tuple(n - s for n, s in zip(facts.shape, size, strict=True))
                for origin in ((0,) * image.ndim, far):
                    pixels = image.read(Box(origin, size, Frame.PX, level))
                    assert pixels.shape == (*size, image.channels)
            return {"outcome": "decoded", "shape": image.shape, "mean": float(glimpse.mean())}
    except FoveateError as error:
        kind = type(error).__name__
        return {"outcome": "refused", "error": kind, "message": str(error)}
    except Exception as error:  # noqa: BLE001 (this is what the test looks for)
        return {"outcome": "other", "error": type(error).__name__, "message": str(error)}


def start_visitor(paths: list[str]) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    for path in paths:
        signal.alarm(SECONDS_PER_FILE)
        print(json.dumps({"path": path, **visit(path)}), flush=True)


# -- the parent ----------------------------------------------------------------------------------


def visit_in_children(paths: list[str]) -> dict[str, dict[str, object]]:
    """Return the outcome of each file; the death of a child counts for the file it was reading."""
    outcomes: dict[str, dict[str, object]] = {}
    remaining = list(paths)
    while remaining:
        run = subprocess.run(
            [sys.executable, __file__, *remaining], capture_output=True, text=True, check=False
        )
        assert "PICKLE WAS EXECUTED" not in run.stdout + run.stderr
        lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
        outcomes |= {str(line["path"]): line for line in lines}
        remaining = remaining[len(lines) :]
        if remaining:
            reason = {"outcome": f"child ended with {run.returncode}", "message": run.stderr[-500:]}
            outcomes[remaining.pop(0)] = reason
    return outcomes


def expected() -> list[str]:
    if not (BROKEN / "expected.csv").is_file():
        return []
    with (BROKEN / "expected.csv").open(encoding="utf-8", newline="") as file:
        return [row["path"] for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, object]]:
    paths = [str(BROKEN / path) for path in expected()]
    shares = [paths[i::CHILDREN] for i in range(CHILDREN)]
    by_name: dict[str, dict[str, object]] = {}
    with ThreadPoolExecutor(CHILDREN) as pool:
        for share in pool.map(visit_in_children, shares):
            by_name |= share
    return {str(Path(path).relative_to(BROKEN)): outcome for path, outcome in by_name.items()}


@pytest.mark.parametrize("path", expected())
def test_every_file_gives_a_picture_or_a_one_line_error(
    path: str, outcomes: dict[str, dict[str, object]]
) -> None:
    outcome = outcomes[str(Path(path))]
    assert outcome["outcome"] in ("decoded", "refused"), outcome
    if outcome["outcome"] == "refused":
        message = str(outcome["message"])
        assert "\n" not in message
        assert Path(path).name in message
        assert "more memory than there is" not in message


@pytest.mark.parametrize(
    ("path", "outcome"),
    [
        ("openslide_corpus/😐.svs", "decoded"),
        ("openslide_corpus/unreadable.svs", "refused"),
        ("histolab_corpus/broken.svs", "refused"),
        ("made/slides/truncated_40pct.svs", "refused"),
        ("made/slides/zero_bytes.svs", "refused"),
        ("made/slides/text.svs", "refused"),
        ("made/slides/svs_without_extension", "decoded"),
        ("made/tiff/sparse_70000x70000_4.9Gpx.tif", "decoded"),
        ("made/bombs/png_30000x30000_1bit.png", "refused"),
        ("made/bombs/pickle_in.npy", "refused"),
        ("made/images/smaller_than_patch.png", "decoded"),
        ("pillow_corpus/invalid-exif.jpg", "decoded"),
        ("pillow_corpus/truncated_image.png", "refused"),
        ("made/nifti/truncated.nii.gz", "refused"),
        ("made/nifti/gz_named.nii", "decoded"),
        ("made/nifti/nan_and_inf.nii.gz", "decoded"),
        ("made/nifti/two_dim.nii.gz", "refused"),
        ("made/dicom/missing_slice", "refused"),
        ("made/dicom/no_positions", "refused"),
        ("made/dicom/shuffled_file_order", "decoded"),
        ("pydicom_corpus/MR_truncated.dcm", "refused"),
        ("pydicom_corpus/reportsi.dcm", "refused"),
        ("pydicom_corpus/priv_SQ.dcm", "refused"),
        ("pydicom_corpus/CT_small.dcm", "decoded"),
        ("pydicom_corpus/JPGExtended.dcm", "decoded"),
        ("pydicom_corpus/image_dfl.dcm", "decoded"),
        ("pydicom_corpus/ExplVR_BigEnd.dcm", "decoded"),
        ("pydicom_corpus/SC_ybr_full_422_uncompressed.dcm", "decoded"),
    ],
)
def test_files_with_known_outcomes(
    path: str, outcome: str, outcomes: dict[str, dict[str, object]]
) -> None:
    assert outcomes[path]["outcome"] == outcome, outcomes[path]


def test_tables_are_not_read_as_pictures(outcomes: dict[str, dict[str, object]]) -> None:
    for path, outcome in outcomes.items():
        if path.startswith("made/tables"):
            assert outcome.get("error") == "UnsupportedFormat", (path, outcome)


# -- single files, by value ----------------------------------------------------------------------


def read_level_0(name: str) -> np.ndarray:
    with open_image(BROKEN / "made/images" / name) as image:
        return image.read(Box((0, 0), image.shape, Frame.PX, 0))


def test_sixteen_bit_pictures_equal_scaled_eight_bit_ones() -> None:
    sixteen, eight = read_level_0("sixteen_bit.png"), read_level_0("grey_alpha.png")
    assert sixteen.dtype == np.uint16
    assert np.abs(sixteen.astype(float) / 257 - eight).max() <= 1


def test_exif_orientation_is_turned_upright() -> None:
    upright, turned = (
        read_level_0("grey_alpha.png").astype(float),
        read_level_0("exif_rotated.jpg").astype(float),
    )
    assert np.abs(upright - turned).mean() < 3
    assert all(np.abs(np.rot90(upright, k) - turned).mean() > 10 for k in (1, 2, 3))


def test_a_picture_smaller_than_a_patch_is_padded_with_background() -> None:
    with open_image(BROKEN / "made/images/smaller_than_patch.png") as image:
        patch = image.read(Box((-10, -10), (224, 224), Frame.PX, 0))
        assert (patch[:10] == image.background).all()
        assert (patch[10 + image.shape[0] :] == image.background).all()


def test_absent_tiles_of_a_sparse_slide_are_background() -> None:
    with open_image(BROKEN / "made/tiff/sparse_70000x70000_4.9Gpx.tif") as image:
        assert image.n_pixels > 1 << 32
        before = image.count.decoded_px
        patch = image.read(Box((40_000, 30_000), (300, 300), Frame.PX, 0))
        assert (patch == image.background).all()
        assert image.background.min() > 200
        coarsest = image.levels[-1].tile
        assert coarsest is not None
        border_blocks_px = 9 * coarsest[0] * coarsest[1]
        assert image.count.decoded_px - before <= border_blocks_px


def test_a_cyclic_chain_of_directories_is_refused() -> None:
    with open_image(BROKEN / "made/tiff/cyclic_ifd.tif") as image:
        assert len(image.levels) == 1


def test_decompression_bombs_are_refused_with_the_limit() -> None:
    with pytest.raises(ImageTooLarge, match="limit of 178,956,970"):
        open_image(BROKEN / "made/bombs/png_30000x30000_1bit.png")


def test_an_unreadable_tile_error_names_the_file() -> None:
    with (
        open_image(BROKEN / "openslide_corpus/unreadable.svs") as image,
        pytest.raises(UnreadableImage, match=r"unreadable\.svs"),
    ):
        image.read(Box((0, 0), image.shape, Frame.PX, 0))


if __name__ == "__main__":
    start_visitor(sys.argv[1:])
