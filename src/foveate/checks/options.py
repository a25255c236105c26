"""Options of ``check``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from foveate import defaults
from foveate.parts.fields import option
from foveate.parts.options import NameOf, Within
from foveate.runs.options import TableOptions


@dataclass(frozen=True, kw_only=True)
class CheckOptions(TableOptions):
    """How a table and its images are checked; the options of the table are those of ``train``.

    Attributes:
        task: name of the task; ``auto`` follows the labels.
        assume_spacing_um: spacing of images that state none, in micrometres per pixel, as you will
            give it to ``train``.
        seconds: time that the opening of one image may take.
        memory_gib: memory that the opening of one image may take.
        workers: number of processes that open images; by default one for each of up to four cores.
        reader_options: options of readers, by the name of the reader, as you will give them to
            ``train``.

    Example:
        >>> foveate.CheckOptions(seconds=120).memory_gib
        4.0
    """

    task: Annotated[str, NameOf("tasks")] = defaults.TASK
    assume_spacing_um: Annotated[float, Within(0, 1e6)] | None = option(
        None, flags=("--spacing-um", "--view.assume-spacing-um")
    )
    seconds: Annotated[int, Within(1, 86_400)] = 60
    memory_gib: Annotated[float, Within(0, 4096)] = 4.0
    workers: Annotated[int, Within(1, 256)] | None = option(None, shown="up to 4")
    reader_options: Mapping[str, Mapping[str, Any]] | None = None
