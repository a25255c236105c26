"""How a model is trained, where a run stands, and how both are written and read again."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from foveate.cases import Case
from foveate.checkpoint import optimizer_tensors, read_tensors, restore_optimizer, write_tensors
from foveate.errors import CheckpointError, OptionError
from foveate.methods.base import AbstractMethod
from foveate.nn.overview import OverviewHead

_FROZEN_BATCH, _FROZEN_STEPS, _FROZEN_LR = 8, 240, 1e-3
_SEEN_END_TO_END = 240
_TIER_DECAY = 0.75
_RANKED = 0.65
_GENTLE = 0.02
"""Share of the rate for linear answers that were fitted to the end before."""


@dataclass(frozen=True)
class TrainOptions:
    """How a model is trained; what is None follows the number of images and the encoder.

    Attributes:
        epochs: end to end, at most; 0 for none.
        frozen_epochs: before that, on kept features of a pretrained encoder; 0 for none.
        batch_size: images per step end to end.
        accumulate: steps per update of the weights.
        lr: learning rate at its peak (AdamW).
        encoder_lr: share of it for the last layers of a pretrained encoder; each earlier tier has
            three quarters of that of the next.
        average: share of a stage's updates over which weights are averaged; 0 for none.
        weight_decay: of AdamW, on matrices only.
        warmup: share of a stage's updates in which the learning rate rises.
        clip: largest norm of the gradient.
        patience: epochs without a better validation score before stopping; 0 never stops early.
        min_epochs: epochs before early stopping may count.
        precision: of computation; ``auto`` is bf16 on GPUs and CPUs that compute in it, else
            float32.
        device: ``auto`` takes a GPU when there is one.
        seed: of everything random.
        augment: ``auto`` goes by the images. ``slide``: right angles, mirrors, stain. ``picture``:
            left and right mirrored (take ``warp`` or ``none`` where sides count), turned by up to 7
            degrees, brightness and contrast. ``volume``: left and right mirrored, brightness and
            contrast. All three also shift and scale a little. ``warp``: brightness, and small turns
            and scalings of patches alone. Or ``none``.
        checkpoint_seconds: how often the state is written within an epoch.
    """

    epochs: int | None = None
    frozen_epochs: int | None = None
    batch_size: int | None = None
    accumulate: int = 1
    lr: float | None = None
    encoder_lr: float = 0.3
    average: float | None = None
    weight_decay: float = 0.01
    warmup: float = 0.1
    clip: float = 1.0
    patience: int = 10
    min_epochs: int = 5
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    seed: int = 0
    augment: Literal["auto", "slide", "picture", "volume", "warp", "none"] = "auto"
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        for key in ("batch_size", "accumulate", "lr", "clip"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise OptionError(f"train.{key}: got {value}, expected more than 0")
        for key in ("epochs", "frozen_epochs", "encoder_lr"):
            value = getattr(self, key)
            if value is not None and value < 0:
                raise OptionError(f"train.{key}: got {value}, expected 0 or more")
        for key in ("warmup", "average"):
            value = getattr(self, key)
            if value is not None and not 0 <= value < 1:
                raise OptionError(f"train.{key}: got {value}, expected a share from 0 to 1")


@dataclass(frozen=True)
class Schedule:
    """Epochs, batches and rates of one training, settled from its options and its images.

    Attributes:
        frozen_epochs, epochs: on kept features, then end to end.
        frozen_batch, batch_size: images per step.
        frozen_lr, lr: at the peak.
        average: share of a stage's updates over which weights are averaged.
        warmup: share of a stage in which rates rise.
    """

    frozen_epochs: int
    epochs: int
    frozen_batch: int
    batch_size: int
    frozen_lr: float
    lr: float
    average: float
    warmup: float

    @property
    def total_epochs(self) -> int:
        """Of both stages."""
        return self.frozen_epochs + self.epochs

    def is_frozen(self, epoch: float) -> bool:
        """Whether an epoch, counted from 0, belongs to the first stage."""
        return epoch < self.frozen_epochs

    def done(self, epoch: float) -> float:
        """Which share of its stage is done at this epoch, which may be a fraction."""
        if self.is_frozen(epoch):
            return epoch / self.frozen_epochs
        return (epoch - self.frozen_epochs) / max(self.epochs, 1)

    def may_keep(self, epoch: int) -> bool:
        """Whether weights after so many epochs may be kept: never inside the warm-up.

        Of a pretrained encoder those of the last half only, when weights have been averaged.
        """
        if self.is_frozen(epoch - 0.5):
            return epoch == self.frozen_epochs
        least = 0.5 if self.average > 0 else self.warmup
        return epoch == self.total_epochs or self.done(epoch) > least


def settle_schedule(
    options: TrainOptions, n_images: int, *, pretrained: bool, learns_frozen: bool = True
) -> Schedule:
    """Fill in what the options leave open.

    A network from scratch gets many epochs at one rate. A pretrained one gets a fixed number of
    updates on kept features, then few passes end to end at a smaller rate.

    Args:
        options: of the user.
        n_images: of the training part.
        pretrained: whether the encoder is.
        learns_frozen: whether the method has anything to learn while the encoder is frozen.
    """
    frozen_batch = max(1, min(_FROZEN_BATCH, n_images // 4))
    steps = math.ceil(n_images / frozen_batch)
    frozen = options.frozen_epochs
    if not pretrained or not learns_frozen:
        frozen = 0
    elif frozen is None:
        frozen = min(max(_FROZEN_STEPS // steps, 8), 40)
    passes = min(max(_SEEN_END_TO_END // max(n_images, 1), 2), 6) if pretrained else 30
    average = options.average
    return Schedule(
        frozen_epochs=frozen,
        epochs=passes if options.epochs is None else options.epochs,
        frozen_batch=frozen_batch,
        batch_size=options.batch_size or 4,
        frozen_lr=_FROZEN_LR,
        lr=options.lr or (1e-4 if pretrained else 5e-4),
        average=(0.2 if pretrained else 0.0) if average is None else average,
        warmup=options.warmup,
    )


@dataclass
class Progress:
    """Where a run stands; all of it is written with the weights.

    Attributes:
        epoch, step: of the next step to do.
        stage: the one that has been begun, empty before the first.
        sums: of the present epoch so far.
        history: one row per finished epoch.
        best_score, best_epoch: of validation; the lower, the better.
        corrections: by image, what makes logits of fitted linear answers those of fits that did
            not see its label.
        quarantined: image ids set aside in training, with reasons.
        excluded: those of them that were known when the present epoch began; they are not drawn.
        done: training has ended.
    """

    epoch: int = 0
    step: int = 0
    stage: str = ""
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    best_score: float = 1e30
    best_epoch: int = -1
    corrections: dict[str, list[float]] = field(default_factory=dict)
    quarantined: dict[str, str] = field(default_factory=dict)
    excluded: list[str] = field(default_factory=list)
    done: bool = False

    def add(self, **values: float) -> None:
        """Add to the sums of the present epoch."""
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + value

    def quarantine(self, image_id: str, reason: str) -> bool:
        """Set an image aside; False when it already was."""
        if image_id in self.quarantined:
            return False
        self.quarantined[image_id] = reason
        return True

    def running(self) -> dict[str, float]:
        """Figures of the present epoch so far."""
        seconds = self.sums.get("seconds", 0.0)
        reading = self.sums.get("seconds_reading", 0.0)
        return {
            "train_loss": self.sums.get("train_loss", 0.0) / max(self.sums.get("images", 0.0), 1.0),
            "seconds": seconds,
            "seconds_reading": reading,
            "seconds_computing": max(seconds - reading, 0.0),
            "decoded_px": self.sums.get("decoded_px", 0.0),
            "asked_px": self.sums.get("asked_px", 0.0),
        }

    def rests_at(self, chance: float) -> bool:
        """Whether nothing was learnt in the last four epochs.

        That is, the training loss lay within 3 % of chance and the validation part was not ranked.
        True once per plateau: at its fourth epoch, and at every tenth after that.
        """
        length = next(
            (i for i, at in enumerate(reversed(self._at(chance))) if not at), len(self.history)
        )
        ranked = [row["val_auroc"] for row in self.history[-4:] if "val_auroc" in row]
        if ranked and sum(ranked) / len(ranked) > _RANKED:
            return False
        return length >= 4 and (length - 4) % 10 == 0

    def finished(self, options: TrainOptions, schedule: Schedule, chance: float) -> bool:
        """Whether the epochs are used up or validation has stopped improving.

        Epochs in which the training loss lies at chance do not wear out patience: attention often
        finds what decides only after many of them, and validation cannot improve before. Averaged
        weights improve to the end of the schedule; they are never stopped early.
        """
        left = max((i for i, at in enumerate(self._at(chance), 1) if at), default=0)
        waited = self.epoch - max(self.best_epoch, left)
        stale = options.patience > 0 and waited >= options.patience and schedule.average == 0
        return self.epoch >= schedule.total_epochs or (stale and self.epoch >= options.min_epochs)

    def _at(self, chance: float) -> list[bool]:
        """Of each epoch, whether its training loss lay within 3 % of chance."""
        return [abs(row["train_loss"] - chance) <= 0.03 * chance for row in self.history]


class WeightAverage:
    """An exponential average of a method's weights, begun anew with each stage.

    Args:
        method: whose weights.
    """

    def __init__(self, method: nn.Module) -> None:
        self._method = method
        self.weights: dict[str, Tensor] = {}
        self.updates = 0

    def begin(self) -> None:
        """Begin at the present weights."""
        self.weights = {k: v.detach().clone() for k, v in self._method.state_dict().items()}
        self.updates = 0

    @torch.no_grad()
    def update(self, horizon: float) -> None:
        """Take the present weights in.

        Args:
            horizon: over how many updates they are averaged.
        """
        self.updates += 1
        keep = min(1 - 1 / max(horizon, 1.0), self.updates / (self.updates + 9))
        for name, value in self._method.state_dict().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value, 1 - keep)
            else:
                self.weights[name].copy_(value)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The averaged weights are the method's meanwhile; nothing changes where there is none."""
        if not self.weights:
            yield
            return
        own = {k: v.detach().clone() for k, v in self._method.state_dict().items()}
        self._method.load_state_dict(self.weights)
        try:
            yield
        finally:
            self._method.load_state_dict(own)


def learning_rate(schedule: Schedule, epoch: float) -> float:
    """In each stage a linear warm-up, then a cosine to nearly zero; `epoch` may be a fraction."""
    done = schedule.done(epoch)
    if done < schedule.warmup:
        scale = done / schedule.warmup
    else:
        scale = 0.5 * (1 + math.cos(math.pi * (done - schedule.warmup) / (1 - schedule.warmup)))
    return (schedule.frozen_lr if schedule.is_frozen(epoch) else schedule.lr) * max(scale, 1e-3)


def save_state(
    path: Path,
    method: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    average: WeightAverage,
) -> None:
    """Weights, their average, optimiser and progress in one file, whole or not at all."""
    tensors = {f"method.{k}": v for k, v in method.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.weights.items()}
    note = asdict(progress) | {"averaged_updates": average.updates}
    write_tensors(path, tensors | optimizer_tensors(optimizer), note)


def load_state(
    path: Path, method: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage
) -> Progress:
    """Put back what `save_state` wrote.

    Raises:
        CheckpointError: the file is damaged or belongs to another model.
    """
    tensors, note = read_tensors(path)
    try:
        method.load_state_dict(_under("method.", tensors))
        restore_optimizer(optimizer, tensors)
        average.weights = _under("average.", tensors)
        average.updates = int(note.pop("averaged_updates"))
        return Progress(**note)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path} does not fit this run: {reason}") from error


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def parameter_groups(method: AbstractMethod, options: TrainOptions) -> list[dict[str, Any]]:
    """Groups for the optimiser, each with its ``scale`` of the learning rate.

    Weight decay on matrices and kernels, none on biases, norms and scales. Tiers of a pretrained
    encoder have smaller rates, the smaller the earlier; linear answers that were fitted to the end
    are hardly moved.
    """
    scale = {id(p): 1.0 for p in method.parameters() if p.requires_grad}
    for back, tier in enumerate(reversed(method.encoder.tiers())):
        scale |= {id(p): options.encoder_lr * _TIER_DECAY**back for p in tier if id(p) in scale}
    for module in method.modules():
        if isinstance(module, OverviewHead):
            scale |= {id(p): _GENTLE for p in module.parameters() if id(p) in scale}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for p in method.parameters():
        if id(p) in scale:
            groups.setdefault((scale[id(p)], p.ndim >= 2), []).append(p)
    return [
        {
            "params": parameters,
            "weight_decay": options.weight_decay if decayed else 0.0,
            "scale": factor,
        }
        for (factor, decayed), parameters in groups.items()
    ]


def epoch_groups(
    cases: Sequence[Case], batch_size: int, *, seed: int, epoch: int
) -> list[list[Case]]:
    """The batches of an epoch, in an order that depends on seed and epoch alone."""
    order = np.random.default_rng((seed, epoch)).permutation(len(cases))
    shuffled = [cases[i] for i in order]
    return [
        list(itertools.islice(shuffled, a, a + batch_size))
        for a in range(0, len(shuffled), batch_size)
    ]


def step_seed(seed: int, epoch: int, step: int) -> int:
    """The seed of everything random in one step."""
    return int(np.random.SeedSequence((seed, epoch, step)).generate_state(1)[0])


def as_csv(rows: Sequence[dict[str, float]]) -> str:
    """Rows as CSV text; columns in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" for k, v in row.items()} for row in rows)
    return out.getvalue()
