"""The figures of each epoch as events for TensorBoard, where it is installed."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from importlib.util import find_spec
from pathlib import Path

from foveate.files.atomic import write_bytes
from foveate.files.run_layout import FoldLayout
from foveate.presentation import read_number
from foveate.reports.run_files import Row
from foveate.runs.folder import read_rows

_NAMES = {
    "train_loss": "train/loss",
    "chance_loss": "train/chance_loss",
    "lr": "lr",
    "seconds": "time/epoch",
    "seconds_reading": "time/data",
    "seconds_computing": "time/computing",
    "peak_memory_mib": "memory/peak_mib",
    "decoded_px": "pixels/decoded",
    "asked_px": "pixels/asked",
}
"""Names of events by column of ``metrics.csv``."""


def write_events(fold: Path) -> None:
    """Write all rows of ``metrics.csv`` of a fold as one event file, if TensorBoard is installed.

    The file is written anew each time, with records of the same lengths, so that a TensorBoard that
    is open reads on where it was.

    Args:
        fold: folder of the fold.
    """
    layout = FoldLayout(fold)
    rows = read_rows(layout.epochs) if layout.epochs.is_file() else []
    if not rows or find_spec("tensorboard") is None:
        return
    with contextlib.suppress(ImportError):  # an installation that lacks something of its own
        write_bytes(layout.events, _encode_events(rows, layout.epochs.stat().st_mtime))


def _encode_events(rows: list[Row], end_s: float) -> bytes:
    """Return the content of an event file; the last row was written at the time `end_s`."""
    from torch.utils.tensorboard import SummaryWriter

    passed = list(itertools.accumulate(read_number(row, "seconds") or 0.0 for row in rows))
    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for row, seconds in zip(rows, passed, strict=True):
                step = int(read_number(row, "epoch") or 0)
                for key in row:
                    value = read_number(row, key)
                    if key != "epoch" and value is not None:
                        time_s = end_s - passed[-1] + seconds
                        writer.add_scalar(_name_event(key), value, step, walltime=time_s)
        (file,) = Path(folder).iterdir()
        return file.read_bytes()


def _name_event(column: str) -> str:
    """Return the name of an event: that of the column, grouped as users of TensorBoard expect."""
    if column.startswith("val_"):
        return column.replace("val_", "val/", 1)
    return _NAMES.get(column, f"method/{column}")
