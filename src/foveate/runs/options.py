"""Options of ``train`` that need no section: one field, one flag, one key of the config each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from foveate import defaults
from foveate.parts.fields import option
from foveate.parts.options import NameOf


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """How a table of images and labels is read, by ``train`` and ``check``.

    Attributes:
        column: column of the images' paths, where it is not recognised.
        label: column of labels, where it is not recognised; TIME,EVENT or A,B,C for columns that
            hold the label together.
        patient: column that groups the images of one patient.
        files: second table with one row per image, where the table has one row per patient.
        images: folder that paths are relative to.
        classes: keep only images with these labels, comma-separated.
        renamed: new name by label of the table, stored with the models; with an empty name, the
            label is missing. Labels in a list and words of several columns are renamed as well.
    """

    column: str | None = option(None, flags=("--path",), keys=("table.image",))
    label: str | None = option(None, keys=("table.label",))
    patient: str | None = option(None, keys=("table.patient",))
    files: Path | str | None = option(None, keys=("table.files",))
    images: Path | str | None = option(None, keys=("table.images",))
    classes: str | None = option(None, keys=("table.classes",))
    renamed: Mapping[str, str] | None = option(None, flags=("--map",), keys=("table.renamed",))


@dataclass(frozen=True, kw_only=True)
class RunOptions(TableOptions):
    """What is trained on which images; an option that is None follows the config.

    Attributes:
        method: name of the method; ``foveate methods`` describes them.
        encoder: name of the encoder, or of a network of timm; ``auto`` is lite0 for pictures and
            slides and slices for volumes, with the ImageNet weights of the installation.
        task: name of the task; ``auto`` follows the labels.
        bag: what is answered: each ``image``, or each ``patient`` from all its images together.
        folds: number of folds of cross-validation; 1 is a single hold-out.
        epochs: largest number of epochs end to end.
        seed: seed of the split and of training.
        device: device that computes; ``auto`` takes a GPU when there is one.
        devices: number of processes that train together, each on its own GPU where there are
            several.
        heatmaps: number of test images that get pictures.
        export: kinds of pictures.
        refit: at the end, train one model on all images as well; it replaces the folds' models in
            ``predict`` and ``evaluate``.
        permute_labels: shuffle the labels over patients, as a self-test; the scores must then be at
            chance.
        max_failed: largest number of images (``5``), or share of them (``0.1``, ``10%``), that may
            be set aside; with more, the command ends with exit code 1, before training where that
            is known by then.

    Example:
        >>> foveate.RunOptions(method="abmil", folds=5).folds
        5
    """

    method: Annotated[str, NameOf("methods")] | None = option(None, shown=defaults.METHOD)
    encoder: Annotated[str, NameOf("encoders")] | None = option(None, shown=defaults.ENCODER)
    task: Annotated[str, NameOf("tasks")] | None = option(None, shown=defaults.TASK)
    bag: defaults.Bag | None = option(None, shown=defaults.BAG)
    folds: int | None = option(None, keys=("split.folds",), shown=defaults.FOLDS)
    epochs: int | None = option(None, keys=("train.epochs",), shown="follows the number of images")
    seed: int | None = option(None, keys=("train.seed", "split.seed"), shown=defaults.SEED)
    device: defaults.Device | None = option(None, keys=("train.device",), shown=defaults.DEVICE)
    devices: int | None = option(None, keys=("train.devices",), shown=defaults.TRAINING_PROCESSES)
    heatmaps: int | None = option(None, shown=defaults.TRAIN_HEATMAPS)
    export: Annotated[Sequence[str], NameOf("exports")] | None = option(None, shown=defaults.EXPORT)
    refit: bool | None = None
    permute_labels: bool | None = None
    max_failed: str | None = None
