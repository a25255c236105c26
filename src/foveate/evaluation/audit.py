"""An audit of whether a model uses the positions of patches: shuffle them and score again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from foveate.errors import TrainingError
from foveate.loading.loader import CaseLoader
from foveate.prediction.answer import Answer
from foveate.prediction.predict import predict_cases
from foveate.runs.models import Ensemble
from foveate.table import Case

_UNCHANGED = 1e-6


@dataclass(frozen=True)
class LayoutAudit:
    """The effect on predictions of shuffling the positions of the patches of each image.

    Attributes:
        scores: scores of the task with true positions; with several models, of their mean answer.
        shuffled: the same scores with shuffled positions, averaged over the shuffles.
        largest_change: largest change of any logit of any image and model.
        n_images: number of images.
        reads_patches: whether the method reads patches at all.
    """

    scores: dict[str, float]
    shuffled: dict[str, float]
    largest_change: float
    n_images: int
    reads_patches: bool = True

    @property
    def uses_layout(self) -> bool:
        """Whether any prediction changed at all."""
        return self.largest_change > _UNCHANGED

    def describe(self) -> str:
        """Describe the result in one sentence."""
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
        changes = ", ".join(
            f"{name.removeprefix('val_')} {value:.3f} to {self.shuffled[name]:.3f}"
            for name, value in self.scores.items()
        )
        if not changes:
            return (
                f"layout: when patches trade places logits move by up to "
                f"{self.largest_change:.3g}; with these labels there is no score to compare"
            )
        return f"layout: when patches trade places the score goes from {changes}"


def audit_layout(
    models: Ensemble,
    cases: Sequence[Case],
    loader: CaseLoader,
    *,
    device: torch.device,
    n_shuffles: int = 3,
    seed: int = 0,
) -> LayoutAudit:
    """Predict labelled images with true and with shuffled positions of patches, and compare.

    Everything else stays: the same patches, the same pixels. Only the answers of methods that
    relate patches by position can change.

    Args:
        models: models to audit.
        cases: labelled images.
        loader: opens the images.
        device: device that computes.
        n_shuffles: number of random shuffles to average over.
        seed: seed of the first shuffle; each further one adds 1.

    Raises:
        TrainingError: an image could not be predicted, or there is no image.
    """
    task = models.members[0].task
    target = task.targets([str(case.label) for case in cases])
    plain, answered = _predict_all(models, cases, loader, device, shuffle=False)
    scores = task.log_scores(answered, target)
    totals, change = dict.fromkeys(scores, 0.0), 0.0
    for i in range(n_shuffles):
        # The random state of the caller stays as if there had been no audit.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed + i)
            mixed, answered = _predict_all(models, cases, loader, device, shuffle=True)
        change = max(change, float((mixed - plain).abs().max()))
        for name, value in task.log_scores(answered, target).items():
            totals[name] += value / n_shuffles
    patches = any(member.method.reads & {"crops", "bag"} for member in models.members)
    return LayoutAudit(scores, totals, change, len(cases), patches)


def _predict_all(
    models: Ensemble,
    cases: Sequence[Case],
    loader: CaseLoader,
    device: torch.device,
    *,
    shuffle: bool,
) -> tuple[Float[Tensor, "n models k"], Float[Tensor, "n columns"]]:
    """Predict all images; return logits ``(n, models, k)`` and mean answers ``(n, columns)``."""
    logits, values = [], []
    for report in predict_cases(models, cases, loader, device=device, shuffle_layout=shuffle):
        if not isinstance(report, Answer):
            raise TrainingError(
                f"{report.case.path} could not be predicted: {report.reason}; leave it out of the "
                "table, or leave out --audit-layout"
            )
        logits.append([answer.logits for answer in report.answers])
        values.append(report.values)
    if not logits:
        raise TrainingError(
            "the layout audit needs images: give a table of which at least one can be read"
        )
    return torch.tensor(logits), torch.tensor(values, dtype=torch.float64)
