"""A classifier with scikit-learn's interface: fit a table, predict paths, explain one image."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import NotFittedError

from foveate import defaults
from foveate.api.commands import train
from foveate.api.explanation import Explanation
from foveate.errors import FoveateError, OptionError, UnreadableImage
from foveate.files.run_layout import RunLayout
from foveate.loading.gather import gather_cases
from foveate.messages.display import OnUpdate
from foveate.prediction.answer import Answer, AnswerOrFailure
from foveate.prediction.options import PredictOptions
from foveate.prediction.predict import open_loader, predict_cases
from foveate.readers import ReaderOptions
from foveate.runs.folder import read_json
from foveate.runs.models import Ensemble, find_models
from foveate.runtime import find_device
from foveate.table import Case

if TYPE_CHECKING:
    import pandas as pd

    Paths = Path | str | Iterable[Path | str]

_TABLES = (".csv", ".tsv", ".xlsx")


class NotFitted(FoveateError, NotFittedError):  # type: ignore[misc]
    """A classifier was used before it was fitted."""


class Classifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Classify images of any size: one glimpse, patches where it matters, one answer per image.

    Parameters are checked by `fit`. `get_params`, `set_params` and `sklearn.base.clone` work as
    for all estimators of scikit-learn.

    Args:
        method: name of the method; see `list_methods`.
        encoder: name of the encoder, or of a network of timm; ``auto`` follows the images.
        task: name of the task; ``auto`` follows the labels.
        folds: number of folds of cross-validation, whose models answer together; with 1, a part of
            the patients is the test part.
        refit: whether one model is trained on all images at the end; it replaces the folds'
            models.
        epochs: largest number of epochs end to end; None follows the number of images.
        seed: seed of the split and of training.
        device: device that computes; ``auto`` takes a GPU when there is one.
        out: folder of the run, which the same parameters and table continue; None for a folder
            that is deleted with this object.
        on_progress: called with the progress of the work.
        options: options of the method (``patches=32``), and of sections and other parts with their
            name (``train__lr=1e-4``, ``view__patch_px=256``, ``encoder__width=8``).

    Attributes:
        classes_: labels, in the order of the probabilities.
        metrics_: scores on patients that training never saw, each with its interval.
        run_: folder of the run; its ``report.html`` shows everything.

    Example:
        >>> classifier = foveate.Classifier("glimpse", folds=5, patches=32).fit("labels.csv")
        >>> classifier.classes_
        array(['normal', 'tumour'], dtype='<U6')
        >>> classifier.predict(["new/S1.svs", "new/S2.svs"])
        array([…], dtype='<U6')
        >>> (classifier.run_ / "report.html").is_file()
        True
    """

    def __init__(
        self,
        method: str = defaults.METHOD,
        *,
        encoder: str = defaults.ENCODER,
        task: str = defaults.TASK,
        folds: int = defaults.FOLDS,
        refit: bool = False,
        epochs: int | None = None,
        seed: int = defaults.SEED,
        device: str = defaults.DEVICE,
        out: Path | str | None = None,
        on_progress: OnUpdate | None = None,
        **options: Any,
    ) -> None:
        self.method = method
        self.encoder = encoder
        self.task = task
        self.folds = folds
        self.refit = refit
        self.epochs = epochs
        self.seed = seed
        self.device = device
        self.out = out
        self.on_progress = on_progress
        self._options = dict(options)

    # -- parameters -------------------------------------------------------------------------------

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return all parameters, with the options of the method and of sections.

        Args:
            deep: ignored; no parameter has parameters of its own.
        """
        named: dict[str, Any] = super().get_params(deep=False)
        return named | self._options

    def set_params(self, **params: Any) -> Self:
        """Set parameters; names that the constructor does not list are options, as there."""
        known = self._get_param_names()
        for name, value in params.items():
            if name in known:
                setattr(self, name, value)
            else:
                self._options[name] = value
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "run_")

    def __getstate__(self) -> dict[str, Any]:
        # Models are read again from the folder of the run.
        state = dict(super().__getstate__())
        return {k: v for k, v in state.items() if k not in ("_models", "_folder")}

    # -- fitting ----------------------------------------------------------------------------------

    def fit(
        self,
        table: pd.DataFrame | Path | str | Sequence[Path | str],
        labels: Sequence[str] | None = None,
        *,
        patients: Sequence[str] | None = None,
    ) -> Self:
        """Train on a table of images and labels.

        Args:
            table: a CSV, TSV or XLSX file or a data frame, with a column of paths and one of
                labels; or paths of images, with their `labels`.
            labels: one label per image.
            patients: one patient per image; all images of a patient lie in the same part of a
                split.

        Raises:
            UnknownName: there is no such method, encoder or task; the message names the nearest.
            OptionError: there is no such option, or a value does not fit.
            TableError: the table cannot be used as it is.
        """
        if labels is not None:
            table = _as_frame(table, labels, patients)
        elif not isinstance(table, str | Path) and not hasattr(table, "to_csv"):
            raise OptionError("fit: paths without labels; give fit(paths, labels) or a table")
        if self.out is None:
            self._folder = tempfile.TemporaryDirectory(prefix="foveate-")
        out = Path(self._folder.name) / "run" if self.out is None else Path(self.out)
        named = super().get_params(deep=False)
        options = {k: v for k, v in named.items() if k not in ("out", "on_progress")}
        result = train(
            table,  # type: ignore[arg-type]
            out,
            on_progress=self.on_progress,
            **{**self._options, **options},
        )
        return self._fitted(out, result.metrics["metrics"])

    @classmethod
    def from_run(cls, run: Path | str, *, device: str = defaults.DEVICE) -> Self:
        """Return a fitted classifier for a run that was trained before.

        Args:
            run: the folder that `train` wrote, or the folder of one model.
            device: device that computes; ``auto`` takes a GPU when there is one.

        Raises:
            CheckpointError: the folder holds no trained model.
        """
        models, scores = find_models(run), RunLayout(Path(run)).metrics
        classifier = cls(models.card.method, encoder=models.card.encoder, task=models.card.task)
        classifier.set_params(out=run, device=device)
        metrics = read_json(scores)["metrics"] if scores.is_file() else {}
        return classifier._fitted(Path(run), metrics)

    def _fitted(self, run: Path, metrics: dict[str, Any]) -> Self:
        self._models: Ensemble | None = find_models(run)
        self.run_, self.metrics_ = run, metrics
        self.classes_ = np.array(self._models.task.known_labels, dtype=np.str_)
        return self

    # -- answers ----------------------------------------------------------------------------------

    def predict_proba(self, paths: Paths) -> NDArray[np.float64]:
        """Return the probabilities of the classes, ``(n, k)``; rows sum to 1.

        Args:
            paths: paths of images; or one folder or table, whose images are taken in order.

        Raises:
            NotFitted: `fit` was not called.
            UnreadableImage: an image cannot be read or predicted; the message names it.
        """
        models = self._loaded()
        if not len(self.classes_):
            raise OptionError(
                f"task {models.card.task} has no classes and no probabilities; call predict"
            )
        k = len(self.classes_)
        cases = _list_cases(paths, models.card.readers)
        rows = [answer.values[:k] for answer in self._answers(cases)]
        return np.array(rows, dtype=np.float64).reshape(-1, k)

    def predict(self, paths: Paths) -> NDArray[np.str_]:
        """Return the predicted labels, ``(n,)``; with two classes, by the model's threshold.

        Args:
            paths: paths of images; or one folder or table, whose images are taken in order.

        Raises:
            NotFitted: `fit` was not called.
            UnreadableImage: an image cannot be read or predicted; the message names it.
        """
        models = self._loaded()
        labels = [
            models.task.predict(answer.values, models.point)
            for answer in self._answers(_list_cases(paths, models.card.readers))
        ]
        return np.array(labels, dtype=np.str_)

    def explain(self, path: Path | str) -> Explanation:
        """Predict one image; return the answer with its evidence.

        Args:
            path: path of the image.

        Raises:
            NotFitted: `fit` was not called.
            UnreadableImage: the image cannot be read or predicted.

        Example:
            >>> classifier = foveate.Classifier.from_run("runs/first")
            >>> classifier.explain("new/S1.svs")
            S1.svs: … (prob_normal …, prob_tumour …), evidence in … regions…
        """
        models, name = self._loaded(), Path(path).stem
        (answer,) = self._answers([Case(name, name, Path(path))], pictured={name})
        return Explanation(
            path=Path(path),
            predicted=models.task.predict(answer.values, models.point),
            values=dict(zip(models.task.columns, answer.values, strict=True)),
            evidence=answer.evidence,
            unlike=answer.unlike,
            answer=answer,
            models=models,
        )

    def _answers(self, cases: list[Case], pictured: Collection[str] = ()) -> Iterator[Answer]:
        """Predict images; answers have files if some images get pictures."""
        models, device = self._loaded(), find_device(self.device)
        options = PredictOptions() if pictured else None
        with contextlib.closing(open_loader(models)) as loader:
            outcomes = predict_cases(
                models, cases, loader, device=device, options=options, pictured=pictured
            )
            yield from map(_require_answer, outcomes)

    def _loaded(self) -> Ensemble:
        if not hasattr(self, "run_"):
            raise NotFitted(
                "this Classifier is not fitted yet: call fit(table) first, or take "
                "Classifier.from_run(folder) for a run that was trained before"
            )
        if getattr(self, "_models", None) is None:
            self._models = find_models(self.run_)
        assert self._models is not None
        return self._models


def _require_answer(outcome: AnswerOrFailure) -> Answer:
    if not isinstance(outcome, Answer):
        raise UnreadableImage(f"{outcome.reason}; leave this image out, or mend it")
    return outcome


def _list_cases(paths: Paths, readers: ReaderOptions) -> list[Case]:
    """List the images at some paths, or of one folder or table, in order."""
    if isinstance(paths, str | Path):
        one = Path(paths)
        if one.is_dir() or one.suffix.lower() in _TABLES:
            return list(gather_cases([one], readers=readers).cases)
        paths = [one]
    names = ((f"{i}-{Path(path).stem}", Path(path)) for i, path in enumerate(paths))
    return [Case(name, name, path) for name, path in names]


def _as_frame(paths: Any, labels: Sequence[str], patients: Sequence[str] | None) -> pd.DataFrame:
    import pandas as pd

    columns = {"path": [str(path) for path in paths], "label": [str(label) for label in labels]}
    if patients is not None:
        columns["patient"] = [str(patient) for patient in patients]
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise OptionError(f"fit: {lengths}; give one label, and one patient, an image")
    return pd.DataFrame(columns)
