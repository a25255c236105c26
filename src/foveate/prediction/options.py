"""Options of ``predict`` and ``evaluate``, which are passed on as one object.

A further option is a field here; its flag follows from it. It is read where it is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from foveate import defaults
from foveate.parts.fields import option
from foveate.parts.options import NameOf, Within
from foveate.runs.max_failed import count_allowed


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """How a trained run predicts images; picklable.

    Attributes:
        assume_spacing_um: spacing of images that state none, in micrometres per pixel; by default
            that of the training, for images of the kinds that needed it there.
        heatmaps: number of images, from the first on, that get pictures.
        export: kinds of pictures.
        workers: number of processes that predict, each with its own models; with 0, this process
            does, or all places of a cluster of Ray.
        ray: predict on a cluster of Ray: its address, ``auto``, or ``local`` (one on this machine).
        part: part of the images to predict, such as ``2/5``; ``array`` takes the part from a job
            array. The same call without it collects the parts.
        device: device that computes; ``auto`` takes a GPU when there is one.
        max_failed: largest number of images (``5``), or share of them (``0.1``, ``10%``), that may
            fail; with more, the command ends with exit code 1 after all results are written.

    Example:
        >>> foveate.PredictOptions(heatmaps=10, export=("png",)).export
        ('png',)
    """

    assume_spacing_um: Annotated[float, Within(0, math.inf)] | None = option(
        None, flags=("--spacing-um", "--view.assume-spacing-um")
    )
    heatmaps: int = defaults.PREDICT_HEATMAPS
    export: Annotated[Sequence[str], NameOf("exports")] = defaults.EXPORT
    workers: Annotated[int, Within(0, math.inf)] = defaults.WORKERS
    ray: str | None = None
    part: str | None = None
    device: defaults.Device = defaults.DEVICE
    max_failed: str | None = None

    def __post_init__(self) -> None:
        if self.max_failed is not None:
            count_allowed(self.max_failed, 0)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(PredictOptions):
    """How a trained run predicts a labelled table, and how the table is read and scored.

    Attributes:
        label: column of labels, where it is not recognised; TIME,EVENT or A,B,C for columns that
            hold the label together.
        files: second table with one row per image, where the table has one row per patient.
        images: folder that paths are relative to.
        renamed: class of the model, by label of the table; with an empty name, the label is
            missing. Where several columns hold the label, such as a time and an event, their words
            are renamed. Labels are renamed as in training as well. Rows with other labels that the
            model does not know are set aside.
        audit_layout: shuffle the positions of patches as well, to test whether the model uses them.
    """

    heatmaps: int = defaults.EVALUATE_HEATMAPS
    label: str | None = None
    files: Path | str | None = None
    images: Path | str | None = None
    renamed: Mapping[str, str] | None = option(None, flags=("--map",))
    audit_layout: bool = False
