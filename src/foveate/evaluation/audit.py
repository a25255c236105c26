"""Does a model use where patches lie? Let them trade places and see what becomes of its score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from foveate.errors import TrainingError
from foveate.loading.loader import CaseLoader
from foveate.prediction.predict import Answer, predict_cases
from foveate.runs.models import Ensemble
from foveate.table import Case

_UNCHANGED = 1e-6


@dataclass(frozen=True)
class LayoutAudit:
    """What shuffling the places of each image's patches among themselves does to predictions.

    Attributes:
        scores: of the task, as the patches lie; of several models, those of their mean.
        shuffled: the same scores, means over the shuffles.
        largest_change: of any logit of any image and model.
        n_images: how many.
        reads_patches: whether the method reads patches at all.
    """

    scores: dict[str, float]
    shuffled: dict[str, float]
    largest_change: float
    n_images: int
    reads_patches: bool = True

    @property
    def uses_layout(self) -> bool:
        """Whether any prediction moved at all."""
        return self.largest_change > _UNCHANGED

    def told(self) -> str:
        """The finding in a sentence."""
        if not self.reads_patches:
            return (
                "layout: this model looks at the shrunk image only; there are no patches to trade "
                "places, so nothing is found out"
            )
        if not self.uses_layout:
            return (
                "layout: not one prediction changed when patches traded places, so this model "
                "never used where they lie"
            )
        each = ", ".join(
            f"{name.removeprefix('val_')} {value:.3f} to {self.shuffled[name]:.3f}"
            for name, value in self.scores.items()
        )
        if not each:
            return (
                f"layout: when patches trade places logits move by up to "
                f"{self.largest_change:.3g}; with these labels there is no score to compare"
            )
        return f"layout: when patches trade places the score goes from {each}"


def audit_layout(
    models: Ensemble,
    cases: Sequence[Case],
    loader: CaseLoader,
    *,
    device: torch.device,
    n_shuffles: int = 3,
    seed: int = 0,
) -> LayoutAudit:
    """Predict as it is and with the patches' places shuffled, on the same labelled images.

    Everything else stays: the same patches, the same pixels. Only methods that relate patches by
    position can notice.

    Raises:
        TrainingError: an image could not be predicted, or none is given.
    """
    task = models.members[0].task
    target = task.targets([str(case.label) for case in cases])
    plain, answered = _answers(models, cases, loader, device, shuffle=False)
    scores = task.log_scores(answered, target)
    totals, change = dict.fromkeys(scores, 0.0), 0.0
    for i in range(n_shuffles):
        # Whoever asks for an audit goes on drawing as if there had been none.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed + i)
            mixed, answered = _answers(models, cases, loader, device, shuffle=True)
        change = max(change, float((mixed - plain).abs().max()))
        for name, value in task.log_scores(answered, target).items():
            totals[name] += value / n_shuffles
    patches = any(member.method.reads & {"crops", "bag"} for member in models.members)
    return LayoutAudit(scores, totals, change, len(cases), patches)


def _answers(
    models: Ensemble,
    cases: Sequence[Case],
    loader: CaseLoader,
    device: torch.device,
    *,
    shuffle: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of every model, ``(n, models, k)``, and the mean answers, ``(n, columns)``."""
    logits, values = [], []
    for report in predict_cases(models, cases, loader, device=device, shuffle_layout=shuffle):
        if not isinstance(report, Answer):
            raise TrainingError(f"{report.case.path} could not be predicted: {report.reason}")
        logits.append([answer.logits for answer in report.answers])
        values.append(report.values)
    if not logits:
        raise TrainingError("the layout audit needs images")
    return torch.tensor(logits), torch.tensor(values, dtype=torch.float64)
