"""The figures of each epoch of a training, under the names that other programs show."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from foveate.files.run_layout import FoldLayout
from foveate.presentation import read_number
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
"""Names of figures by column of ``metrics.csv``."""


@dataclass(frozen=True)
class Epoch:
    """The figures of one epoch.

    Attributes:
        number: number of the epoch, from 1.
        end_s: the time when it ended, in seconds since 1970.
        figures: the figures by name.
    """

    number: int
    end_s: float
    figures: dict[str, float]


def read_epochs(fold: Path) -> list[Epoch]:
    """Read ``metrics.csv`` of a fold; the last row was written when the file was changed last.

    Args:
        fold: folder of the fold.
    """
    path = FoldLayout(fold).epochs
    rows = read_rows(path) if path.is_file() else []
    end_s = path.stat().st_mtime if rows else 0.0
    epochs: list[Epoch] = []
    for row in reversed(rows):
        numbers = {key: read_number(row, key) for key in row if key != "epoch"}
        known = {_name_figure(key): value for key, value in numbers.items() if value is not None}
        epochs.append(Epoch(int(read_number(row, "epoch") or 0), end_s, known))
        end_s -= numbers.get("seconds") or 0.0
    return epochs[::-1]


def _name_figure(column: str) -> str:
    """Return the name of a figure: that of the column, grouped as users of TensorBoard expect."""
    if column.startswith("val_"):
        return column.replace("val_", "val/", 1)
    return _NAMES.get(column, f"method/{column}")
