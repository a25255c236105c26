"""Embed the patches of images one after the other, and write a file of features for each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from foveate.batch import Batch, LoadedImage
from foveate.encoders.base import AbstractEncoder
from foveate.errors import (
    CheckpointError,
    FoveateError,
    OptionError,
    concerns_all_images,
    converting,
    explain_shortage,
    running_part,
)
from foveate.files.identical import image_state
from foveate.files.journal import Journal
from foveate.files.run_layout import FeaturesLayout
from foveate.formats.feature_layouts import FeatureHead, write_feature_file
from foveate.geometry import length_px_from_um, mean_spacing, points_px_from_um
from foveate.images.stored import Recipe, Vectors
from foveate.loading.loader import CaseLoader
from foveate.messages.display import Display, OnProgress, SetAsideMessages, within
from foveate.prediction.pictures import safe_name
from foveate.table import Case
from foveate.workflows.feature_options import FeatureOptions


@dataclass(frozen=True)
class ExtractionJob:
    """An extraction, with everything but its images.

    Attributes:
        layout: folder of the results.
        options: options of the command.
        encoder: the frozen encoder, on its device.
        recipe: how vectors are made.
        loader: opens images and reads patches.
        device: device that computes.
        journal: notes which files are complete.
        display: shows messages and progress.
        failed: by image id, why there is no file.
    """

    layout: FeaturesLayout
    options: FeatureOptions
    encoder: AbstractEncoder
    recipe: Recipe
    loader: CaseLoader
    device: torch.device
    journal: Journal
    display: Display
    failed: dict[str, str] = field(default_factory=dict)


def embed_all(job: ExtractionJob, cases: Sequence[Case]) -> None:
    """Embed all images that have no complete file yet; set aside those that fail.

    Args:
        job: the extraction.
        cases: all images, also those that have a file.

    Raises:
        CheckpointError: the folder holds a file that this command did not write.
    """
    known, todo = job.journal.entries, []
    for case in cases:
        path = feature_path(job, case)
        if path.exists() and case.image_id not in known:
            raise CheckpointError(
                f"{path} was not written by this command: move it away, or give another --out"
            )
        if not _is_complete(known.get(case.image_id, {}), case, path):
            todo.append(case)
    messages, n_known = SetAsideMessages(job.display.say), len(cases) - len(todo)

    def show_done(done: float, _: int = 1) -> None:
        job.display.bar("embedding patches", n_known + done, len(cases))

    show_done(0)
    for done, (case, (item,)) in enumerate(
        zip(todo, job.loader.ahead([case] for case in todo), strict=True)
    ):
        reason = _try_image(job, case, item, within(show_done, done, len(todo)))
        if reason is not None:
            job.failed[case.image_id] = reason
            job.journal.add(case.image_id, {"failed": reason})
            messages.set_aside(case.image_id, str(case.path), reason)
        show_done(done + 1)
    messages.end()
    job.journal.finish()


def feature_path(job: ExtractionJob, case: Case) -> Path:
    """Return the path of the file of an image.

    Args:
        job: the extraction.
        case: the image.
    """
    return job.layout.files / f"{safe_name(case.image_id)}.h5"


def _is_complete(entry: Mapping[str, Any], case: Case, path: Path) -> bool:
    """Return whether the file of an image is complete, and the image has not changed since."""
    complete = "n_patches" in entry and entry.get("of") == _make_key(case)
    return complete and path.is_file() and path.stat().st_size == entry.get("bytes")


def _make_key(case: Case) -> dict[str, Any]:
    """Return what the file of an image depends on besides the options."""
    spacing_um = None if case.spacing_um is None else list(case.spacing_um)
    key: dict[str, Any] = {"path": str(case.path), "spacing_um": spacing_um}
    with contextlib.suppress(OSError):
        key["file"] = image_state(case.path)
    return key


def _try_image(
    job: ExtractionJob, case: Case, item: LoadedImage | FoveateError, on_progress: OnProgress | None
) -> str | None:
    """Embed the patches of an image and write its file; return why it failed, or None.

    Raises:
        FoveateError: an error that would meet the next images, too.
    """
    if isinstance(item, FoveateError):
        return str(item)
    path = feature_path(job, case)
    try:
        with converting(case.path, explain_shortage):
            job.journal.add(case.image_id, {"begun": True})
            n_patches = _write_image(job, item, path, on_progress)
    except FoveateError as error:
        if concerns_all_images(error) or isinstance(error, OptionError):
            raise
        return str(error)
    job.journal.add(
        case.image_id,
        {"of": _make_key(case), "n_patches": n_patches, "bytes": path.stat().st_size},
    )
    return None


def _write_image(
    job: ExtractionJob, item: LoadedImage, path: Path, on_progress: OnProgress | None
) -> int:
    """Write the file of an open image; return the number of its patches."""
    image, encoder, view = item.image, job.encoder, job.loader.view
    batch = Batch(
        [item],
        view=view,
        normalise=(encoder.mean, encoder.std),
        device=job.device,
        pool=job.loader.threads,
    )
    patches = batch.cover(0, (0.0, 0.0))
    spacing_um = image.known_spacing_um
    head = FeatureHead(
        name=item.image_id,
        folder=job.layout.files,
        recipe=job.recipe,
        corner_px0=points_px_from_um(patches.origin_um, spacing_um, (0.0, 0.0)),
        side_px0=length_px_from_um(view.patch_um, mean_spacing(spacing_um)),
        patch_px=view.patch_px,
        spacing_um=spacing_um if image.unit == "um" else None,
        shape_px0=image.shape,
        reader=image.reader,
    )

    def blocks() -> Iterator[Vectors]:
        with torch.inference_mode():
            chunks = batch.chunks([patches], job.options.chunk, augment=False)
            for c in range(len(chunks)):
                pixels = chunks(c)
                with running_part("encoder", encoder, image.path):
                    vectors = encoder.features(encoder.maps(pixels))
                yield vectors.float().cpu().numpy()
                if on_progress is not None:
                    on_progress(c + 1, len(chunks))

    write_feature_file(path, head, job.options.layout, job.options.number, blocks())
    return len(patches)
