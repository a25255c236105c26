"""The base class of readers: how a reader knows its files, and options of its own."""

from __future__ import annotations

import abc
from pathlib import Path
from typing import ClassVar

from foveate.images.image import AbstractImage

HEAD_BYTES = 4096
"""How many bytes of a file `AbstractReader.recognises` receives."""


class AbstractReader(AbstractImage):
    """The reader of a file family; a reader's module has its name and holds this one class.

    Keywords of its constructor that have a default are its options. They are given as
    ``--reader.NAME.option value`` in training, and stored with the model.

    Attributes:
        priority: readers are asked in falling order; the first that recognises a file opens it.
        takes_folders: a folder may be one image, such as a series of slices.
    """

    priority: ClassVar[int] = 0
    takes_folders: ClassVar[bool] = False

    @abc.abstractmethod
    def __init__(self, path: Path) -> None:
        """Open a file or a folder.

        Raises:
            FoveateError: it cannot be opened; the message names it.
        """
        super().__init__()
        self.path = path

    @classmethod
    @abc.abstractmethod
    def recognises(cls, path: Path, head: bytes) -> bool:
        """Return whether this reader reads a file or folder.

        Folders, whose `head` is empty, are shown only to readers that take folders.

        Args:
            path: the file, for libraries that detect formats themselves.
            head: its first `HEAD_BYTES` bytes.
        """


BASE = AbstractReader
