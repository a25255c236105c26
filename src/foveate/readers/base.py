"""What a reader adds to the image contract: recognising its files by their first bytes."""

from __future__ import annotations

import abc
from pathlib import Path
from typing import ClassVar

from foveate.images.image import AbstractImage

HEAD_BYTES = 4096
"""How much of a file `AbstractReader.recognises` is shown."""


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
