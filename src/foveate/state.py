"""How a model is trained, where a run stands, and how both are written and read again."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from foveate.cases import Case
from foveate.checkpoint import optimizer_tensors, read_tensors, restore_optimizer, write_tensors
from foveate.errors import CheckpointError, OptionError


@dataclass(frozen=True)
class TrainOptions:
    """How a model is trained.

    Attributes:
        epochs: at most.
        batch_size: images per step.
        accumulate: steps per update of the weights.
        lr: learning rate at its peak (AdamW).
        weight_decay: of AdamW, on matrices only.
        warmup: share of all updates in which the learning rate rises.
        clip: largest norm of the gradient.
        patience: epochs without a better validation loss before stopping; 0 never stops early.
        min_epochs: epochs before early stopping may count.
        precision: of computation; ``auto`` is bf16 on GPUs that have it and float32 on CPUs.
        device: ``auto`` takes a GPU when there is one.
        seed: of everything random.
        augment: ``auto`` goes by the images. ``slide``: right angles, mirrors, stain. ``picture``:
            left and right mirrored (take ``warp`` or ``none`` where sides count), turned by up to 7
            degrees, brightness and contrast. ``volume``: left and right mirrored, brightness and
            contrast. All three also shift and scale a little. ``warp``: brightness, and small turns
            and scalings of patches alone. Or ``none``.
        checkpoint_seconds: how often the state is written within an epoch.
    """

    epochs: int = 30
    batch_size: int = 4
    accumulate: int = 1
    lr: float = 5e-4
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
        for key in ("epochs", "batch_size", "accumulate", "lr", "clip"):
            if getattr(self, key) <= 0:
                raise OptionError(f"train.{key}: got {getattr(self, key)}, expected more than 0")
        if not 0 <= self.warmup < 1:
            raise OptionError(f"train.warmup: got {self.warmup}, expected a share from 0 to 1")


@dataclass
class Progress:
    """Where a run stands; all of it is written with the weights.

    Attributes:
        epoch, step: of the next step to do.
        sums: of the present epoch so far.
        history: one row per finished epoch.
        best_loss, best_epoch: of validation.
        quarantined: image ids set aside in training, with reasons.
        excluded: those of them that were known when the present epoch began; they are not drawn.
        done: training has ended.
    """

    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    best_loss: float = 1e30
    best_epoch: int = -1
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
        """Whether the training loss has just lain within 3 % of chance for four epochs running.

        True once per plateau: at its fourth epoch, and at every tenth after that.
        """
        length = next(
            (i for i, at in enumerate(reversed(self._at(chance))) if not at), len(self.history)
        )
        return length >= 4 and (length - 4) % 10 == 0

    def finished(self, options: TrainOptions, chance: float) -> bool:
        """Whether the epochs are used up or validation has stopped improving.

        Epochs in which the training loss lies at chance do not wear out patience: attention often
        finds what decides only after many of them, and validation cannot improve before.
        """
        left = max((i for i, at in enumerate(self._at(chance), 1) if at), default=0)
        waited = self.epoch - max(self.best_epoch, left)
        stale = options.patience > 0 and waited >= options.patience
        return self.epoch >= options.epochs or (stale and self.epoch >= options.min_epochs)

    def _at(self, chance: float) -> list[bool]:
        """Of each epoch, whether its training loss lay within 3 % of chance."""
        return [abs(row["train_loss"] - chance) <= 0.03 * chance for row in self.history]


def learning_rate(options: TrainOptions, epoch: float) -> float:
    """Linear warm-up, then a cosine to nearly zero; `epoch` may be a fraction."""
    done = epoch / options.epochs
    if done < options.warmup:
        scale = done / options.warmup
    else:
        scale = 0.5 * (1 + math.cos(math.pi * (done - options.warmup) / (1 - options.warmup)))
    return options.lr * max(scale, 1e-3)


def save_state(
    path: Path, method: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Weights, optimiser and progress in one file, whole or not at all."""
    tensors = {f"method.{k}": v for k, v in method.state_dict().items()}
    write_tensors(path, tensors | optimizer_tensors(optimizer), asdict(progress))


def load_state(path: Path, method: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Put back what `save_state` wrote.

    Raises:
        CheckpointError: the file is damaged or belongs to another model.
    """
    tensors, note = read_tensors(path)
    weights = {k.removeprefix("method."): v for k, v in tensors.items() if k.startswith("method.")}
    try:
        method.load_state_dict(weights)
        restore_optimizer(optimizer, tensors)
        return Progress(**note)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path} does not fit this run: {reason}") from error


def parameter_groups(method: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices and kernels, none on biases, norms and scales."""
    learnt = [p for p in method.parameters() if p.requires_grad]
    return [
        {"params": [p for p in learnt if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in learnt if p.ndim < 2], "weight_decay": 0.0},
    ]


def epoch_groups(cases: Sequence[Case], options: TrainOptions, epoch: int) -> list[list[Case]]:
    """The batches of an epoch, in an order that depends on seed and epoch alone."""
    order = np.random.default_rng((options.seed, epoch)).permutation(len(cases))
    size = options.batch_size
    shuffled = [cases[i] for i in order]
    return [list(itertools.islice(shuffled, a, a + size)) for a in range(0, len(shuffled), size)]


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
