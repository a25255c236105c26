"""The figures of each epoch as events for TensorBoard, where it is installed."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from foveate.files.atomic import write_bytes
from foveate.files.run_layout import FoldLayout
from foveate.reports.epochs import Epoch, read_epochs


def write_events(fold: Path) -> None:
    """Write all rows of ``metrics.csv`` of a fold as one event file, if TensorBoard is installed.

    The file is written anew each time, with records of the same lengths, so that a TensorBoard that
    is open reads on where it was.

    Args:
        fold: folder of the fold.
    """
    if find_spec("tensorboard") is None or not (epochs := read_epochs(fold)):
        return
    with contextlib.suppress(ImportError):  # an installation that lacks something of its own
        write_bytes(FoldLayout(fold).events, _encode_events(epochs))


def _encode_events(epochs: Sequence[Epoch]) -> bytes:
    """Return the content of an event file."""
    from torch.utils.tensorboard import SummaryWriter

    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for epoch in epochs:
                for name, value in epoch.figures.items():
                    writer.add_scalar(name, value, epoch.number, walltime=epoch.end_s)
        (file,) = Path(folder).iterdir()
        return file.read_bytes()
