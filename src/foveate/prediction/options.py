"""Options of ``predict`` and ``evaluate``, which are passed on as one object.

A further option is a field of `PredictOptions`, the same key of `PredictKeywords`, and a flag of
`foveate.cli.flags.predict_flags`; it is read where it is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from foveate import defaults


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """How a trained run predicts images; picklable.

    Attributes:
        assume_spacing_um: spacing of images that state none, in micrometres per pixel; None takes
            that of the training, for images of the kinds that needed it there.
        heatmaps: number of images, from the first on, that get pictures.
        export: kinds of pictures.
        workers: number of processes that predict, each with its own models; 0 takes this process,
            or all places of a cluster of Ray.
        ray: address of a cluster of Ray, ``auto`` or ``local``; None for no cluster.
        part: part of the images to predict, such as ``2/5``, or ``array`` in a job array; the same
            call without it collects the parts. None for all images.
        device: device that computes; ``auto`` takes a GPU when there is one.
    """

    assume_spacing_um: float | None = None
    heatmaps: int = defaults.PREDICT_HEATMAPS
    export: Sequence[str] = defaults.EXPORT
    workers: int = defaults.WORKERS
    ray: str | None = None
    part: str | None = None
    device: str = defaults.DEVICE


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(PredictOptions):
    """How a trained run predicts a labelled table, and how the table is read and scored.

    Attributes:
        label: column of labels, where it is not recognised.
        files: a second table with one row per image, where the table has one row per patient.
        images: folder that paths are relative to.
        renamed: class of the model, by label of the table; rows with other labels that the model
            does not know are set aside.
        audit_layout: whether to test as well if the model uses the positions of patches.
    """

    heatmaps: int = defaults.EVALUATE_HEATMAPS
    label: str | None = None
    files: Path | str | None = None
    images: Path | str | None = None
    renamed: Mapping[str, str] | None = None
    audit_layout: bool = False


class PredictKeywords(TypedDict, total=False):
    """The fields of `PredictOptions` as keywords of a function, for type checkers."""

    assume_spacing_um: float | None
    heatmaps: int
    export: Sequence[str]
    workers: int
    ray: str | None
    part: str | None
    device: str


class EvaluateKeywords(PredictKeywords, total=False):
    """The fields of `EvaluateOptions` as keywords of a function, for type checkers."""

    label: str | None
    files: Path | str | None
    images: Path | str | None
    renamed: Mapping[str, str] | None
    audit_layout: bool
