"""Maps larger than memory: tensors in an unnamed temporary file, which is deleted with them."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor


class DiskMap:
    """A map in a temporary file, zero at first.

    Args:
        folder: folder of the file.
        shape: shape of the map, ``(b, c, *space)``.
        dtype: dtype of the map.
        form: memory format of the map.

    Attributes:
        map: the tensor. The system writes its pages to the file when it needs the memory.
        gradient: gradient of the map, on disk as well; None before `add_gradient`.

    Raises:
        OSError: the disk is full.
    """

    def __init__(
        self, folder: Path, shape: Sequence[int], dtype: torch.dtype, form: torch.memory_format
    ) -> None:
        self.folder, self.form = folder, form
        self.gradient: DiskMap | None = None
        with tempfile.TemporaryFile(dir=folder) as file:
            _reserve(file.fileno(), math.prod(shape) * dtype.itemsize, folder)
            self._pages = mmap.mmap(file.fileno(), 0)
        # Otherwise the system would read ahead: whole rows of the map for a part of each.
        if hasattr(mmap, "MADV_RANDOM"):
            self._pages.madvise(mmap.MADV_RANDOM)
        flat = torch.frombuffer(self._pages, dtype=dtype)
        if form == torch.contiguous_format:
            self.map: Tensor = flat.view(*shape)
        else:
            n, c, *space = shape
            self.map = flat.view(n, *space, c).movedim(-1, 1)

    def add_gradient(self) -> DiskMap:
        """Make the gradient of the map, zero at first."""
        self.gradient = DiskMap(self.folder, self.map.shape, self.map.dtype, self.form)
        return self.gradient

    def prefetch(self, part: Shaped[Tensor, "1 c *size"]) -> None:
        """Begin to read the pages of a part of the map, which is used next.

        Otherwise the system would read them one by one, each when it is touched.

        Args:
            part: a view of `map`, ``(1, c, *size)``.
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

    def release_pages(self) -> None:
        """Release the memory of the map and of its gradient; their values stay in the file."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._pages.madvise(mmap.MADV_DONTNEED)
        if self.gradient is not None:
            self.gradient.release_pages()


def _reserve(file: int, size: int, folder: Path) -> None:
    """Reserve `size` bytes on disk for an open file.

    Without it, writing to a page where the disk is full would kill the process.
    """
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)
        else:
            os.truncate(file, size)
    except OSError as error:
        raise OSError(error.errno, f"no room for a map of {size / 2**30:.1f} GiB", folder) from None
