"""The figures of each epoch as a run of Weights & Biases, where it is installed."""

from __future__ import annotations

import hashlib
import logging
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from foveate.errors import FoveateError, converting
from foveate.messages.warn import warn_once
from foveate.reports.epochs import read_epochs

PROJECT = "foveate"
"""Name of the project, unless ``WANDB_PROJECT`` names another."""

_open: dict[Path, Any] = {}
"""The run that is open, by folder of its fold; W&B allows one at a time."""


def write_to_wandb(fold: Path) -> None:
    """Write the epochs of a fold that W&B does not have yet, if W&B is installed.

    They go into the folder ``wandb`` of the run, to be sent by ``wandb sync``; only where the
    environment sets ``WANDB_MODE=online``, they are sent. W&B's own reports of errors are switched
    off unless the environment sets them. What W&B cannot write is said once, and training goes on.

    Args:
        fold: folder of the fold.
    """
    if find_spec("wandb") is None:
        return
    try:
        with converting("Weights & Biases"):
            _write_epochs(fold.resolve())
    except FoveateError as error:
        text = f"W&B could not write the figures of the epochs ({error}); training goes on"
        warn_once(logging.WARNING, "wandb", fold, text)


def _write_epochs(fold: Path) -> None:
    """Write the epochs that the run of a fold lacks."""
    if fold not in _open:
        for run in _open.values():
            run.finish()
        _open.clear()
        _open[fold] = _begin(fold)
    run = _open[fold]
    for epoch in read_epochs(fold):
        if epoch.number >= run.step:
            run.log(epoch.figures, step=epoch.number)


def _begin(fold: Path) -> Any:
    """Begin the run of a fold; a training that is continued continues the run when it is sent."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        id=hashlib.sha256(os.fsencode(fold)).hexdigest()[:16],
        name=f"{fold.parent.name}/{fold.name}",
        dir=fold.parent,
        mode=os.environ.get("WANDB_MODE", "offline"),
        resume="allow",
        reinit="create_new",
        settings=wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True, save_code=False
        ),
    )
