"""Names of all files and sub-folders of runs, models and predictions.

[formats.md](../../../docs/formats.md) says what each holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload


class _Entry:
    """A file or sub-folder: its path, read from a layout; its bare name, read from the class."""

    def __init__(self, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, layout: None, kind: type) -> str: ...
    @overload
    def __get__(self, layout: AbstractLayout, kind: type) -> Path: ...
    def __get__(self, layout: AbstractLayout | None, kind: type) -> str | Path:
        return self.name if layout is None else layout.folder / self.name


@dataclass(frozen=True)
class AbstractLayout:
    """The layout of one folder.

    Attributes:
        folder: the folder.
    """

    folder: Path


class ModelLayout(AbstractLayout):
    """The folder of one model: its card and its weights."""

    card = _Entry("model.json")
    weights = _Entry("model.safetensors")

    @property
    def is_complete(self) -> bool:
        """Whether the folder holds a model: both files, of which the card is written last."""
        return self.card.is_file() and self.weights.is_file()


class HeatmapLayout(AbstractLayout):
    """The folder of evidence and pictures, with an index of the pictures."""

    index = _Entry("index.json")


def name_case(entry: Mapping[str, Any]) -> str:
    """Return the id of the case that an entry of the index of pictures belongs to."""
    return str(entry.get("case") or entry.get("image_id", ""))


class PredictionLayout(AbstractLayout):
    """The folder of predictions, as ``predict`` and ``evaluate`` write it.

    Attributes:
        journal: answers, written one by one.
        parts: a folder with a journal for each part of a job array.
        predictions, metrics, cost: the answers, their scores and their cost.
        models: which models answered.
        quarantine: images and rows that were set aside.
        heatmaps_folder: evidence and pictures.
        page: the page of the answers.
        figures: figures of the page.
    """

    journal = _Entry("answers.jsonl")
    parts = _Entry("parts")
    predictions = _Entry("predictions.csv")
    models = _Entry("answer.json")
    metrics = _Entry("metrics.json")
    cost = _Entry("cost.json")
    quarantine = _Entry("quarantine.csv")
    heatmaps_folder = _Entry("heatmaps")
    page = _Entry("predictions.html")
    figures = _Entry("figures")

    @property
    def heatmaps(self) -> HeatmapLayout:
        """Layout of the folder of evidence and pictures."""
        return HeatmapLayout(self.heatmaps_folder)

    def part(self, name: str) -> PredictionLayout:
        """Return the layout of the part of a job array with this name."""
        return PredictionLayout(self.parts / name)


class CheckLayout(AbstractLayout):
    """The folder of ``check``.

    Attributes:
        journal: facts about images, written one by one.
        images: a row per image: its facts and findings.
        findings: the findings, worst first, and what they rest on.
        page: the page.
    """

    journal = _Entry("check.jsonl")
    images = _Entry("check.csv")
    findings = _Entry("check.json")
    page = _Entry("check.html")


class CheckpointLayout(AbstractLayout):
    """The folder of weights of a training that is going on.

    Attributes:
        latest: the full state, which a training continues from.
        best: the best weights.
        frozen: the weights at the end of the frozen start.
    """

    latest = _Entry("latest.safetensors")
    best = _Entry("best.safetensors")
    frozen = _Entry("frozen.safetensors")


class FoldLayout(PredictionLayout):
    """The folder of one training: of a fold, of its frozen start, or of the refit.

    Predictions in it are those of the fold's test part.

    Attributes:
        epochs: a row of figures per epoch.
        curves: these figures, drawn.
        events: these figures for TensorBoard, where it is installed.
        failed: images of the test part that could not be predicted.
        features: stored features of a training that has no run.
    """

    epochs = _Entry("metrics.csv")
    curves = _Entry("progress.png")
    events = _Entry("events.out.tfevents.foveate")
    failed = _Entry("failed.json")
    features = _Entry("features")
    model_folder = _Entry("model")
    frozen_folder = _Entry("frozen")
    checkpoints_folder = _Entry("checkpoints")

    @property
    def model(self) -> ModelLayout:
        """Layout of the trained model."""
        return ModelLayout(self.model_folder)

    @property
    def frozen(self) -> FoldLayout:
        """Layout of the frozen start of this training."""
        return FoldLayout(self.frozen_folder)

    @property
    def checkpoints(self) -> CheckpointLayout:
        """Layout of the weights that a training continues from."""
        return CheckpointLayout(self.checkpoints_folder)


class ClamSplitsLayout(AbstractLayout):
    """The folder of the folds' parts as CLAM writes them, for other programs."""

    def fold(self, k: int) -> Path:
        """Return the file of fold k, counted from 0."""
        return self.folder / f"splits_{k}.csv"


_FOLD = "fold_"


class RunLayout(AbstractLayout):
    """The folder of ``train``.

    Attributes:
        config: the resolved options.
        environment: versions of libraries.
        plan, inputs, splits: the plan, what it rests on, and the parts of the folds.
        clam_splits: the parts of the folds, as CLAM writes them.
        log: the log.
        quarantine: images and rows that were set aside.
        check: findings of a check of the table, if there was one.
        predictions: test predictions of all folds.
        frozen_predictions: those of the frozen starts.
        metrics, cost: scores and costs.
        localisation, baseline: further results of the demo.
        audit: result of ``audit``.
        report: the page.
        features: stored features, while the run goes on.
        mlflow: figures of the epochs for MLflow, where it is installed.
    """

    config = _Entry("config.yaml")
    environment = _Entry("env.json")
    plan = _Entry("plan.json")
    inputs = _Entry("inputs.json")
    splits = _Entry("splits.json")
    clam_splits = _Entry("splits")
    log = _Entry("log.txt")
    quarantine = _Entry("quarantine.csv")
    check = _Entry("check.json")
    predictions = _Entry("predictions_oof.csv")
    frozen_predictions = _Entry("predictions_frozen.csv")
    metrics = _Entry("metrics.json")
    cost = _Entry("cost.json")
    localisation = _Entry("localisation.json")
    baseline = _Entry("baseline.json")
    audit = _Entry("audit.json")
    report = _Entry("report.html")
    heatmaps_folder = _Entry("heatmaps")
    figures = _Entry("figures")
    features = _Entry("features")
    mlflow = _Entry("mlruns")
    refit_folder = _Entry("refit")

    @property
    def refit(self) -> FoldLayout:
        """Layout of the training on all images."""
        return FoldLayout(self.refit_folder)

    @property
    def heatmaps(self) -> HeatmapLayout:
        """Layout of the folder of evidence and pictures of the test parts."""
        return HeatmapLayout(self.heatmaps_folder)

    def fold(self, k: int) -> FoldLayout:
        """Return the layout of fold k, counted from 0."""
        return FoldLayout(self.folder / fold_name(k))

    def folds(self) -> Iterator[FoldLayout]:
        """Yield the layouts of the folds that have a folder, in order."""
        folders = [p for p in self.folder.glob(f"{_FOLD}*") if p.is_dir()]
        yield from map(FoldLayout, sorted(folders, key=lambda p: (len(p.name), p.name)))


class FeaturesLayout(AbstractLayout):
    """The folder of ``features``.

    Attributes:
        journal: which files are complete, and the settings that they were made with.
        files: one file of features for each image.
        table: a row for each file.
        quarantine: images and rows that were set aside.
    """

    journal = _Entry("features.jsonl")
    files = _Entry("features")
    table = _Entry("features.csv")
    quarantine = _Entry("quarantine.csv")


class ComparisonLayout(AbstractLayout):
    """The folder of ``compare``.

    Attributes:
        result: rows, and differences between them.
        table: the rows, as a table.
        page: the page.
        figures: its figures.
    """

    result = _Entry("comparison.json")
    table = _Entry("comparison.csv")
    page = _Entry("comparison.html")
    figures = _Entry("figures")

    def run(self, name: str) -> RunLayout:
        """Return the layout of the run of a method that ``compare`` trains."""
        return RunLayout(self.folder / name)


def fold_name(k: int) -> str:
    """Return the name of the folder of fold k, counted from 0."""
    return f"{_FOLD}{k}"


def is_fold_name(name: str) -> bool:
    """Return whether a name is one of a fold's folder."""
    return name.startswith(_FOLD)


def fold_number(name: str) -> str:
    """Return the number, from 0, in the name of a fold's folder."""
    return name.removeprefix(_FOLD)
