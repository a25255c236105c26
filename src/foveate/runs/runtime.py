"""The device that computes, and in what precision."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from foveate.errors import OptionError
from foveate.memory import computes_in_bf16
from foveate.runs.schedule import TrainOptions

if TYPE_CHECKING:
    from lightning.fabric import Fabric


def build_fabric(options: TrainOptions, *, pretrained: bool = False) -> Fabric:
    """Fabric on one device; ``auto`` precision is bf16 where the device computes in it."""
    from lightning.fabric import Fabric

    # Importing it sets their levels, so that it says its precision on the terminal.
    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    precision = options.precision
    if precision == "auto":
        cuda = options.device in ("auto", "cuda") and torch.cuda.is_available()
        fast = torch.cuda.is_bf16_supported() if cuda else computes_in_bf16()
        precision = "bf16-mixed" if fast and (cuda or pretrained) else "32-true"
    try:
        return Fabric(accelerator=options.device, devices=1, precision=precision)
    except RuntimeError as error:
        raise OptionError(
            f"train.device: '{options.device}' is not on this machine; take auto or cpu"
        ) from error
