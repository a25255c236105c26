"""What a reader adds to the image contract: recognising its files by their first bytes.

Also the judgements that every reader must make alike: which stated pixel sizes are believed, where
a pyramid level lies on level 0, and what shows through transparent pixels.
"""

from __future__ import annotations

import abc
import errno
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from foveate.geometry import Vector
from foveate.image import AbstractImage
from foveate.resample import Pixels

HEAD_BYTES = 4096
"""How much of a file `AbstractReader.recognises` is shown."""

AGAIN = "; the file is damaged or cut off: copy, download or export it again"
"""What to do about a file that does not hold what its header says."""

BELIEVED_UM = (0.05, 20.0)
"""Micrometres per pixel outside this range stand for "unknown" (72 dpi is 352.8, say)."""


class AbstractReader(AbstractImage):
    """A file family. The file of a reader is named after it and holds this one class.

    Attributes:
        priority: readers are asked in falling order; the first that recognises a file opens it.
    """

    priority: ClassVar[int] = 0

    @abc.abstractmethod
    def __init__(self, path: Path) -> None:
        """Open a file. Raises an error of `foveate.errors` that names it."""
        super().__init__()
        self.path = path

    @classmethod
    @abc.abstractmethod
    def recognises(cls, path: Path, head: bytes) -> bool:
        """Whether this reader takes the file, judged by its first 4 KiB (or by the library)."""


BASE = AbstractReader


def why(error: OSError | ValueError) -> str:
    """Why the system does not hand over a file, and what to do."""
    if isinstance(error, PermissionError):
        return "you may not read it: change its permissions"
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ELOOP:
        return "its link leads back to itself: remove the link"
    if number in (errno.EMFILE, errno.ENFILE):
        return "too many files are open: raise the limit, with ulimit -n 4096, say"
    if isinstance(error, OSError) and error.strerror:
        return f"the system says: {error.strerror}; is the disk or network well?"
    return "its name is none that the system takes: rename it"


def believed_spacing(stated_um: Sequence[float | None]) -> Vector | None:
    """A stated pixel size ``(y, x)`` in micrometres, or None where it cannot be a physical one."""
    low, high = BELIEVED_UM
    known = [float(v) for v in stated_um if v is not None and low <= v <= high]
    return tuple(known) if len(known) == len(stated_um) else None


def level_downsample(full: Sequence[int], shape: Sequence[int]) -> Vector:
    """Level-0 pixels per pixel of a level, per axis.

    Writers shrink by a whole number and round the size of the level up or down, so the quotient of
    the sizes is off by up to a pixel at the far edge. Where a whole number explains the size, it is
    taken (registering levels against level 0 finds it exact); otherwise the quotient.
    """
    return tuple(_axis_downsample(n, m) for n, m in zip(full, shape, strict=True))


def _axis_downsample(full: int, size: int) -> float:
    whole = max(1, round(full / size))
    return float(whole) if abs(full / whole - size) < 1 else full / size


def brightest(dtype: np.dtype[np.generic]) -> int:
    """The largest value of an unsigned dtype."""
    return (1 << 8 * dtype.itemsize) - 1


def flattened(pixels: Pixels, background: Pixels, *, premultiplied: bool = False) -> Pixels:
    """Colour or grey over an opaque background: ``(y, x, c + 1)`` with alpha last to ``(y, x, c)``.

    Args:
        pixels: ``uint8`` or ``uint16``; the dtype is kept.
        background: ``(c,)`` or one value for all.
        premultiplied: the colours are already multiplied by alpha.
    """
    top = brightest(pixels.dtype)
    colour, alpha = pixels[..., :-1], pixels[..., -1:]
    if bool((alpha == top).all()):
        return np.ascontiguousarray(colour)
    share = alpha.astype(np.float32) / np.float32(top)
    own = colour.astype(np.float32)
    mixed = (own if premultiplied else own * share) + background.astype(np.float32) * (1 - share)
    opaque: Pixels = np.rint(np.minimum(mixed, top)).astype(pixels.dtype)
    return opaque
