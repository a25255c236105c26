"""Files of a run that somebody has removed: which are made again, and which cannot be."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from foveate.errors import CheckpointError
from foveate.files.run_layout import FoldLayout, HeatmapLayout, RunLayout, name_case
from foveate.prediction.pictures import list_files
from foveate.runs.folder import read_json


def check_records(folder: Path) -> None:
    """Refuse to continue a run that has trained, without one of the files that it rests on.

    A new one could differ from the one that the models were trained with.

    Args:
        folder: folder of a run, or any other.

    Raises:
        CheckpointError: a file is missing; the message names it, and what can be done.
    """
    run = RunLayout(folder)
    begun = [fold for fold in run.folds() if _has_begun(fold)]
    records = (run.config, run.plan, run.splits)  # `load_inputs` refuses the lack of the fourth
    path = next((path for path in records if not path.is_file()), None)
    if not begun or path is None:
        return
    answering = [fold.folder for fold in begun if fold.model.is_complete]
    example = f" (foveate predict {answering[0]} IMAGES --out OTHER)" if answering else ""
    raise CheckpointError(
        f"{path} is missing, so nobody knows whether labels, images or options were changed since "
        "this run was begun. Restore it from a copy, or give another --out for a new run; the "
        f"models of this one still answer{example}"
    )


def list_missing_results(run: RunLayout, k: int, test: Collection[str]) -> list[Path]:
    """Return the results of fold k that are missing.

    Args:
        run: layout of the run.
        k: number of the fold, from 0.
        test: ids of the images of its test part.
    """
    fold = run.fold(k)
    wanted = [fold.predictions, fold.cost, fold.failed]
    wanted += _list_pictures(run.heatmaps, test)
    if _has_frozen_start(fold):
        wanted.append(fold.frozen.predictions)
    return list_missing_of_training(fold) + [path for path in wanted if not path.is_file()]


def list_missing_of_training(fold: FoldLayout, *, refit: bool = False) -> list[Path]:
    """Return the results of a training that are missing, without those of its predictions.

    Args:
        fold: layout of the training.
        refit: whether it is the training on all images, whose frozen start is no model.
    """
    wanted = [fold.model.card, fold.model.weights]
    if fold.checkpoints.latest.is_file():  # without it, only a new training would make the rows
        wanted.append(fold.epochs)
    if _has_frozen_start(fold) and not refit:
        wanted += [fold.frozen.model.card, fold.frozen.model.weights]
    return [path for path in wanted if not path.is_file()]


def check_frozen_start(fold: FoldLayout) -> None:
    """Refuse a fold whose frozen start cannot be made again.

    Args:
        fold: layout of the fold, whose training has ended.

    Raises:
        CheckpointError: the model of the frozen start was removed, and so were the weights that it
            is made from.
    """
    if _has_frozen_start(fold) and not fold.frozen.model.is_complete:
        raise CheckpointError(
            f"{fold.frozen.model_folder} is incomplete, and {fold.checkpoints.frozen} is missing, "
            "from which it is made: restore one of them from a copy, or delete "
            f"{fold.folder} and repeat the same command, which trains this fold anew"
        )


def _has_begun(fold: FoldLayout) -> bool:
    """Return whether the training of a fold has left anything that depends on its images."""
    return any(
        path.is_file() for path in (fold.model.card, fold.checkpoints.latest, fold.predictions)
    )


def _has_frozen_start(fold: FoldLayout) -> bool:
    """Return whether a fold has, or had, a model of the frozen start."""
    return fold.frozen_folder.is_dir() or fold.checkpoints.frozen.is_file()


def _list_pictures(heatmaps: HeatmapLayout, image_ids: Collection[str]) -> Iterator[Path]:
    """Yield the index of pictures, and the files of these images that it names."""
    yield heatmaps.index
    for entry in read_json(heatmaps.index) if heatmaps.index.is_file() else ():
        if name_case(entry) in image_ids:
            yield from list_files(heatmaps.folder, entry)
