"""How a model is trained: options, the schedule they settle to, learning rates, order of images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import nn

from foveate import defaults
from foveate.errors import OptionError
from foveate.methods.base import AbstractMethod
from foveate.table import Case

_FROZEN_BATCH, _FROZEN_STEPS, _FROZEN_LR = 8, 240, 1e-3
_SEEN_END_TO_END = 240
_TIER_DECAY = 0.75


@dataclass(frozen=True)
class TrainOptions:
    """Options of training; those that are None follow the number of images and the encoder.

    Attributes:
        epochs: largest number of epochs end to end; 0 for none.
        frozen_epochs: number of epochs before that, on stored features of a pretrained encoder; 0
            for none.
        batch_size: images per step end to end.
        accumulate: steps per update of the weights.
        lr: learning rate at its peak (AdamW).
        encoder_lr: share of the learning rate for the last layers of a pretrained encoder; each
            earlier tier has three quarters of the share of the next.
        average: share of a stage's updates over which weights are averaged; 0 for none.
        weight_decay: weight decay of AdamW, on matrices only.
        warmup: share of a stage's updates in which the learning rate rises.
        clip: largest norm of the gradient.
        patience: epochs without a better validation score before stopping; 0 never stops early.
        min_epochs: epochs before early stopping may count.
        precision: number format of computation; ``auto`` is bf16 on GPUs and CPUs that compute in
            it, else float32.
        device: device that computes; ``auto`` takes a GPU when there is one.
        devices: number of processes that train together, each on its own device; a batch is divided
            among them, so that they learn what one process would.
        seed: seed of all random choices.
        augment: kind of augmentation; ``auto`` follows the images. ``slide``: right angles,
            mirrors, stain. ``picture``: left and right mirrored (take ``warp`` or ``none`` where
            sides count), turned by up to 7 degrees, brightness and contrast. ``volume``: left and
            right mirrored, brightness and contrast. All three also shift and scale a little.
            ``warp``: brightness, and small turns and scalings of patches alone. ``none``: none.
        checkpoint_seconds: seconds between two stored states within an epoch.
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
    device: defaults.Device = defaults.DEVICE
    devices: int = defaults.TRAINING_PROCESSES
    seed: int = defaults.SEED
    augment: Literal["auto", "slide", "picture", "volume", "warp", "none"] = "auto"
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        for key in ("batch_size", "accumulate", "lr", "clip", "devices"):
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
        frozen_epochs, epochs: number of epochs on stored features, then end to end.
        frozen_batch, batch_size: images per step in the two stages.
        frozen_lr, lr: peak learning rate in the two stages.
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
        """Number of epochs of both stages together."""
        return self.frozen_epochs + self.epochs

    def is_frozen(self, epoch: float) -> bool:
        """Return whether an epoch, counted from 0, belongs to the frozen start."""
        return epoch < self.frozen_epochs

    def stage(self, epoch: float) -> str:
        """Return the name of the stage of this epoch."""
        return "frozen start" if self.is_frozen(epoch) else "end to end"

    def span(self, epoch: float) -> tuple[int, int]:
        """Return the first epoch of the stage of this epoch, and the number of its epochs."""
        if self.is_frozen(epoch):
            return 0, self.frozen_epochs
        return self.frozen_epochs, self.epochs

    def batch(self, epoch: float) -> int:
        """Return the number of images per step in this epoch."""
        return self.frozen_batch if self.is_frozen(epoch) else self.batch_size

    def done(self, epoch: float) -> float:
        """Return the share of its stage that is done at this epoch, which may be a fraction."""
        begin, epochs = self.span(epoch)
        return (epoch - begin) / max(epochs, 1)

    def horizon(self, epoch: float, n_images: int, accumulate: int) -> float:
        """Return the number of updates over which weights are averaged in the stage of this epoch.

        Args:
            epoch: epoch, counted from 0.
            n_images: number of images that are drawn in an epoch.
            accumulate: number of steps per update.
        """
        if self.is_frozen(epoch):
            return self.average * self.frozen_epochs * n_images / self.frozen_batch
        return self.average * (self.epochs * n_images / self.batch_size / accumulate)

    def may_keep(self, epoch: int) -> bool:
        """Return whether weights after `epoch` epochs may be kept: never inside the warm-up.

        With averaged weights, only those of the second half of the stage may be kept.
        """
        if self.is_frozen(epoch - 0.5):
            return epoch == self.frozen_epochs
        least = 0.5 if self.average > 0 else self.warmup
        return epoch == self.total_epochs or self.done(epoch) > least


def settle_schedule(
    options: TrainOptions,
    n_images: int,
    *,
    pretrained: bool,
    learns_frozen: bool = True,
    learns_pixels: bool = True,
) -> Schedule:
    """Settle the schedule: fill in what the options leave open.

    A network from scratch gets many epochs at one rate. A pretrained one gets a fixed number of
    updates on stored features, then few passes end to end at a smaller rate.

    Args:
        options: options of the user.
        n_images: number of images of the training part.
        pretrained: whether the encoder is pretrained.
        learns_frozen: whether the method has anything to learn while the encoder is frozen.
        learns_pixels: whether the encoder sees pixels, so that it can be trained end to end.

    Raises:
        OptionError: a network from scratch would learn nothing.
    """
    if options.epochs == 0 and not pretrained:
        raise OptionError(
            "train.epochs: 0 leaves nothing to learn, because this encoder is not pretrained; give "
            "at least 1, and another --out"
        )
    frozen_batch = max(1, min(_FROZEN_BATCH, n_images // 4))
    steps = max(1, math.ceil(n_images / frozen_batch))
    frozen = options.frozen_epochs
    if not pretrained or not learns_frozen:
        frozen = 0
    elif frozen is None:
        frozen = min(max(_FROZEN_STEPS // steps, 8), 40)
    least = 2 if n_images < 2 * _SEEN_END_TO_END else 1
    passes = min(max(_SEEN_END_TO_END // max(n_images, 1), least), 6) if pretrained else 30
    if not learns_pixels:
        passes = 0  # the frozen start learns all there is
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


def learning_rate(schedule: Schedule, epoch: float) -> float:
    """Compute the learning rate at an epoch, which may be a fraction.

    In each stage it rises linearly in the warm-up, then falls as a cosine to nearly zero.

    Args:
        schedule: epochs and rates of the stages.
        epoch: the epoch; may be a fraction.
    """
    done = schedule.done(epoch)
    if done < schedule.warmup:
        scale = done / schedule.warmup
    else:
        scale = 0.5 * (1 + math.cos(math.pi * (done - schedule.warmup) / (1 - schedule.warmup)))
    return (schedule.frozen_lr if schedule.is_frozen(epoch) else schedule.lr) * max(scale, 1e-3)


def parameter_groups(method: AbstractMethod, options: TrainOptions) -> list[dict[str, Any]]:
    """Return the parameter groups of the optimiser, each with its ``scale`` of the learning rate.

    Weight decay on matrices and kernels, none on biases, norms and scales. Tiers of a pretrained
    encoder have smaller rates, the smaller the earlier.

    Args:
        method: the method, with its encoder.
        options: learning rates and weight decay.
    """
    scale = {id(p): 1.0 for p in method.parameters() if p.requires_grad}
    for back, tier in enumerate(reversed(method.encoder.tiers())):
        scale |= {id(p): options.encoder_lr * _TIER_DECAY**back for p in tier if id(p) in scale}
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
    """Divide the images into the batches of an epoch; the order depends on seed and epoch alone.

    Args:
        cases: images of the training part.
        batch_size: images per batch.
        seed: seed of the run.
        epoch: number of the epoch.
    """
    order = np.random.default_rng((seed, epoch)).permutation(len(cases))
    shuffled = [cases[i] for i in order]
    return [
        list(itertools.islice(shuffled, a, a + batch_size))
        for a in range(0, len(shuffled), batch_size)
    ]
