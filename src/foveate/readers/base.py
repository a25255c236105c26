"""The base class of readers, which recognise the files of a family and may have options."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from foveate.images.image import AbstractImage

HEAD_BYTES = 4096
"""How many bytes of a file `AbstractReader.recognises` receives."""


class AbstractReader(AbstractImage):
    """The reader of a file family; a reader's module has its name and holds this one class.

    Keywords of its constructor that have a default are its options. In training the user sets them
    by ``--reader.NAME.option value``, and the model stores them.

    Attributes:
        families: the file families that it reads, in words, for messages about other files; where
            it is empty, messages show the name of the reader.
        priority: readers are asked in falling order; the first that recognises a file opens it.
        takes_folders: whether the reader reads folders, such as a series of slices, as images.
    """

    families: ClassVar[str] = ""
    priority: ClassVar[int] = 0
    takes_folders: ClassVar[bool] = False

    @abc.abstractmethod
    def __init__(self, path: Path) -> None:
        """Open a file or a folder.

        Raises:
            FoveateError: the file cannot be opened; the message names it.
        """
        super().__init__()
        self.path = path

    @classmethod
    @abc.abstractmethod
    def recognises(cls, path: Path, head: bytes) -> bool:
        """Return whether this reader reads a file or folder.

        Folders, whose `head` is empty, are shown only to readers that take folders.

        Args:
            path: the file or folder, for libraries that detect formats themselves.
            head: the first `HEAD_BYTES` bytes of a file.
        """

    @classmethod
    def joins_folders(cls, options: Mapping[str, Any]) -> bool:
        """Return whether a folder that it recognises is one image where images are listed.

        Otherwise the files of the folder are listed. By default it is, if the reader takes folders.

        Args:
            options: options of the reader that the user set, by name.
        """
        del options
        return cls.takes_folders


BASE = AbstractReader
