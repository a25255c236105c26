"""The base class of readers, which adds to the image contract how a reader knows its files."""

from __future__ import annotations

import abc
from pathlib import Path
from typing import ClassVar

from foveate.images.image import AbstractImage

HEAD_BYTES = 4096
"""How many bytes of a file `AbstractReader.recognises` receives."""


class AbstractReader(AbstractImage):
    """The reader of a file family; a reader's module has its name and holds this one class.

    Attributes:
        priority: readers are asked in falling order; the first that recognises a file opens it.
    """

    priority: ClassVar[int] = 0

    @abc.abstractmethod
    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            FoveateError: the file cannot be opened; the message names it.
        """
        super().__init__()
        self.path = path

    @classmethod
    @abc.abstractmethod
    def recognises(cls, path: Path, head: bytes) -> bool:
        """Return whether this reader reads a file.

        Args:
            path: the file, for libraries that detect formats themselves.
            head: its first `HEAD_BYTES` bytes.
        """


BASE = AbstractReader
