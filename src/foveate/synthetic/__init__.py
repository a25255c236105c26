"""Write synthetic slides: an H&E-like cohort whose labels show only at full resolution.

All slides have glass, islands of stroma, and round purple nodules that cannot be told apart at low
resolution. The nuclei of a benign nodule are small, those of a deciding nodule large, with the same
covered area and the same colours; a positive slide has a few deciding nodules. Their places are
written beside each slide, for scores of localisation only: training must not read them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np

from foveate.errors import ImageNotFound, OptionError
from foveate.files.atomic import (
    remove_partial_files,
    write_aside,
    write_bytes,
    write_json,
    write_text,
)
from foveate.files.csvtext import csv_text
from foveate.messages.display import OnProgress
from foveate.synthetic.layout import draw_layout
from foveate.synthetic.pyramid import write_pyramid
from foveate.synthetic.render import Renderer
from foveate.synthetic.spec import CohortSpec, Nodule, SlideSpec
from foveate.synthetic.texture import make_bank, stain

__all__ = ["CohortSpec", "Nodule", "SlideSpec", "read_truth", "write_cohort", "write_slide"]

POSITIVE, NEGATIVE = "tumour", "normal"
MASK_DOWNSAMPLE = 64

_VERSION = 1


def write_slide(path: Path, *, positive: bool, seed: int, spec: SlideSpec) -> list[Nodule]:
    """Write one slide, and its truth beside it; the same arguments give the same bytes.

    ``<stem>.truth.json`` lists all nodules and the parameters; ``<stem>.truth.png`` is a mask of
    the deciding ones, 255 on 0, at 1/64 of the resolution. Both are for scores of localisation
    only. The JSON file is written last: if it exists, the slide is complete.

    Args:
        path: the slide's file.
        positive: whether the slide has deciding nodules.
        seed: seed of all that is drawn.
        spec: the appearance of the slide.

    Returns:
        all nodules, deciding or not.

    Raises:
        OptionError: tissue or nodules do not fit.
    """
    _truth_path(path).unlink(missing_ok=True)
    looks, places = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    layout = draw_layout(spec, places, positive=positive)
    paint = stain(make_bank(), looks)
    renderer = Renderer(spec, layout, paint)
    write_aside(path, lambda aside: write_pyramid(aside, spec, paint.glass, renderer.row))
    mask = bytes(imagecodecs.png_encode(_mask(spec, layout.nodules)))
    write_bytes(path.with_suffix(".truth.png"), mask)
    truth = {
        "parameters": _parameters(positive, seed, spec),
        "bytes": path.stat().st_size,
        "nodules": [asdict(n) for n in layout.nodules],
    }
    write_json(_truth_path(path), truth)
    return list(layout.nodules)


def read_truth(slide_path: Path) -> list[Nodule]:
    """Read the nodules of a slide that `write_slide` wrote, for scores of localisation only.

    Raises:
        ImageNotFound: there is no file of the truth beside this path.
    """
    path = _truth_path(slide_path)
    if not path.exists():
        raise ImageNotFound(
            f"{path}: no such file; only synthetic slides come with the truth: give one of these"
        )
    truth = json.loads(path.read_text(encoding="utf-8"))
    return [
        Nodule((float(y), float(x)), float(n["radius_px0"]), bool(n["deciding"]))
        for n in truth["nodules"]
        for y, x in [n["centre_px0"]]
    ]


def write_cohort(
    folder: Path,
    cohort: CohortSpec,
    *,
    workers: int = 2,
    on_progress: OnProgress | None = None,
) -> Path:
    """Write a cohort, about half of it positive; slides that are complete are not written again.

    Patients have one or two slides, with the same label. Slides are ``slides/S001.tif`` and so on;
    the slide of `giga_spec`, if any, is ``slides/S_GIGA.tif`` of a further, positive patient.

    Args:
        folder: the folder of the cohort; made if it does not exist.
        cohort: slides and patients.
        workers: number of slides written at the same time.
        on_progress: called with the number of slides done and the number of all slides.

    Returns:
        path of ``labels.csv`` with columns ``file,patient_id,label,note``; files are relative to
        the folder.

    Raises:
        OptionError: the number of patients does not suit the slides, or tissue does not fit.
    """
    rows = _rows(cohort)
    make_bank()
    (folder / "slides").mkdir(parents=True, exist_ok=True)
    remove_partial_files(folder)
    # The largest slide comes first, so that no worker writes it alone at the end.
    order = sorted(range(len(rows)), key=lambda i: (rows[i]["note"] != "gigapixel", i))
    with ThreadPoolExecutor(workers) as pool:
        written = [pool.submit(_write_once, folder, rows[i], cohort, i) for i in order]
        try:
            for done, future in enumerate(as_completed(written), start=1):
                future.result()
                if on_progress:
                    on_progress(done, len(rows))
        finally:
            pool.shutdown(cancel_futures=True)
    write_text(folder / "labels.csv", csv_text(rows, ["file", "patient_id", "label", "note"]))
    return folder / "labels.csv"


def _rows(cohort: CohortSpec) -> list[dict[str, str]]:
    """Draw patients and labels of slides; return the rows of ``labels.csv``."""
    n_slides, n_patients = cohort.n_slides, cohort.n_patients
    if not 0 < n_patients <= n_slides <= 2 * n_patients:
        raise OptionError(
            f"n_patients: got {n_patients} for {n_slides} slides, expected one or two slides each"
        )
    rng = np.random.default_rng((cohort.seed, n_slides))
    n_slides_of = [2] * (n_slides - n_patients) + [1] * (2 * n_patients - n_slides)
    names = [f"P{p + 1:03d}" for p in rng.permutation(n_patients)]
    slides = [
        (names[p], NEGATIVE if p % 2 else POSITIVE)
        for p, n in enumerate(n_slides_of)
        for _ in range(n)
    ]
    order = rng.permutation(n_slides)
    rows = [
        {"file": f"slides/S{i:03d}.tif", "patient_id": patient, "label": label, "note": ""}
        for i, (patient, label) in enumerate((slides[o] for o in order), start=1)
    ]
    if cohort.giga_spec:
        file = "slides/S_GIGA.tif"
        rows.append({"file": file, "patient_id": "P_GIGA", "label": POSITIVE, "note": "gigapixel"})
    return rows


def _write_once(folder: Path, row: Mapping[str, str], cohort: CohortSpec, index: int) -> None:
    """Write the slide of a row unless it is complete and has the same parameters."""
    path, positive = folder / row["file"], row["label"] == POSITIVE
    seed = _slide_seed(cohort.seed, index)
    spec = cohort.giga_spec if row["note"] == "gigapixel" else cohort.spec
    assert spec is not None  # there is such a row only with its appearance
    truth = _truth_path(path)
    if truth.exists() and path.exists():
        known = json.loads(truth.read_text(encoding="utf-8"))
        same = known.get("parameters") == _parameters(positive, seed, spec)
        if same and known.get("bytes") == path.stat().st_size:
            return
    write_slide(path, positive=positive, seed=seed, spec=spec)


def _slide_seed(seed: int, index: int) -> int:
    """Return the seed of a slide, from the seed of the cohort and the slide's index."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0])


def _parameters(positive: bool, seed: int, spec: SlideSpec) -> Any:
    """Return the arguments that a slide was made from, as they are read back from JSON."""
    known = {"version": _VERSION, "positive": positive, "seed": seed, "spec": asdict(spec)}
    return json.loads(json.dumps(known))


def _truth_path(slide_path: Path) -> Path:
    """Return the path of the file that lists a slide's nodules."""
    return slide_path.with_suffix(".truth.json")


def _mask(spec: SlideSpec, nodules: tuple[Nodule, ...]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Draw the mask of deciding nodules, 255 on 0, at 1/`MASK_DOWNSAMPLE` of the resolution."""
    shape = tuple(-(-n // MASK_DOWNSAMPLE) for n in spec.shape_px0)
    y, x = ((np.arange(n) + 0.5) * MASK_DOWNSAMPLE for n in shape)
    mask = np.zeros(shape, np.uint8)
    for nodule in nodules:
        if nodule.deciding:
            dy, dx = y[:, None] - nodule.centre_px0[0], x[None] - nodule.centre_px0[1]
            mask[np.hypot(dy, dx) <= nodule.radius_px0] = 255
    return mask
