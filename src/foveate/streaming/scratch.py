"""Maps larger than memory: tensors on the pages of a file that has no name and ends with them."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class Stored:
    """A map of zeros on disk, to be filled.

    Attributes:
        map: the tensor. What is written to it goes to the file when the system sees fit.
        gradient: the map's, once there is one.

    Args:
        folder: on the disk to use.
        shape, dtype, form: of the map.

    Raises:
        OSError: the disk is full.
    """

    def __init__(
        self, folder: Path, shape: Sequence[int], dtype: torch.dtype, form: torch.memory_format
    ) -> None:
        self.folder, self.form = folder, form
        self.gradient: Stored | None = None
        with tempfile.TemporaryFile(dir=folder) as file:
            _reserve(file.fileno(), math.prod(shape) * dtype.itemsize, folder)
            self._pages = mmap.mmap(file.fileno(), 0)
        # Else the system brings whole rows of the map to memory for a part of each.
        if hasattr(mmap, "MADV_RANDOM"):
            self._pages.madvise(mmap.MADV_RANDOM)
        flat = torch.frombuffer(self._pages, dtype=dtype)
        if form == torch.contiguous_format:
            self.map: Tensor = flat.view(*shape)
        else:
            n, c, *space = shape
            self.map = flat.view(n, *space, c).movedim(-1, 1)

    def add_gradient(self) -> Stored:
        """Zeros of its kind."""
        self.gradient = Stored(self.folder, self.map.shape, self.map.dtype, self.form)
        return self.gradient

    def expect(self, part: Tensor) -> None:
        """Begin to read a part of the map that will be used now: not page by page, at each's turn.

        Args:
            part: a view of `map`.
        """
        if not hasattr(mmap, "MADV_WILLNEED"):
            return
        run, begins = 1, np.asarray([part.storage_offset()])
        for stride, size in sorted(zip(part.stride(), part.shape, strict=True)):
            if stride == run:
                run *= size
            else:
                begins = np.add.outer(begins, stride * np.arange(size)).ravel()
        for begin in (begins * part.itemsize).tolist():
            page = begin - begin % mmap.PAGESIZE
            self._pages.madvise(mmap.MADV_WILLNEED, page, begin + run * part.itemsize - page)

    def let_go(self) -> None:
        """Keep no page in memory, neither of the map nor of its gradient; nothing is lost."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._pages.madvise(mmap.MADV_DONTNEED)
        if self.gradient is not None:
            self.gradient.let_go()


def _reserve(file: int, size: int, folder: Path) -> None:
    """A file that were to grow only when written would end the process where the disk is full."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)
        else:
            os.truncate(file, size)
    except OSError as error:
        raise OSError(error.errno, f"no room for a map of {size / 2**30:.1f} GiB", folder) from None
