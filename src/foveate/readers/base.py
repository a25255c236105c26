"""What a reader adds to the image contract: recognising its files, and options of its own."""

from __future__ import annotations

import abc
from pathlib import Path
from typing import ClassVar

from foveate.images.image import AbstractImage

HEAD_BYTES = 4096
"""How much of a file `AbstractReader.recognises` is shown."""


class AbstractReader(AbstractImage):
    """A file family. The file of a reader is named after it and holds this one class.

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
        """Open a file or a folder. Raises an error of `foveate.errors` that names it."""
        super().__init__()
        self.path = path

    @classmethod
    @abc.abstractmethod
    def recognises(cls, path: Path, head: bytes) -> bool:
        """Whether this reader takes the file, judged by its first 4 KiB (or by the library).

        Folders, whose `head` is empty, are shown only to readers that take folders.
        """


BASE = AbstractReader
