"""Options of ``audit``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from foveate import defaults
from foveate.parts.options import Within


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """What an audit of a run looks at.

    Attributes:
        images: number of test images whose boxes are deleted and inserted, and that all models of
            the run answer; 0 for none. Each is predicted about twenty times, and once by each
            model.
        masks: folder of masks, named as the images; by default those of the column ``mask`` of the
            table.
        device: device that computes; ``auto`` takes a GPU when there is one.

    Example:
        >>> foveate.AuditOptions(images=30).images
        30
    """

    images: Annotated[int, Within(0, 1e6)] = 12
    masks: Path | str | None = None
    device: defaults.Device = defaults.DEVICE
