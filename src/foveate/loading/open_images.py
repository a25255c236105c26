"""Hold images open: those in use are never closed, and a few of the others stay open."""

from __future__ import annotations

import contextlib
import resource
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path

from foveate.errors import FoveateError, TooManyOpen, out_of_files
from foveate.images.image import AbstractImage

_OTHER_FILES = 16
"""Files that may be opened beside the images: tables, weights, libraries, pictures."""


class OpenImages:
    """Open images by id, safe to use from several threads.

    All pinned images stay open: those of the batches that are computed or read ahead. Of the other
    images, the `keep` that were used last stay open.

    Args:
        keep: number of images that stay open without being pinned; fewer where the system allows
            few open files.
    """

    def __init__(self, keep: int) -> None:
        self._limit = count_open_files_left()
        self._keep = min(keep, self._limit // 2)
        self._images: OrderedDict[str, AbstractImage] = OrderedDict()
        self._pins: Counter[str] = Counter()
        self._closed = [0, 0]
        self._lock = threading.Lock()

    def groups_ahead(self, n_images: int, depth: int) -> int:
        """Compute how many groups of n images may be read ahead, `depth` at most.

        Args:
            n_images: images per group.
            depth: largest number of groups.
        """
        return max(0, min(depth, self._limit // max(n_images, 1) - 2))

    def pin(self, image_ids: Iterable[str]) -> None:
        """Keep images open, once opened, until they are unpinned as often as they were pinned."""
        with self._lock:
            self._pins.update(image_ids)

    def unpin(self, image_ids: Iterable[str]) -> None:
        """Undo one `pin` of each image, and close images that are in excess."""
        with self._lock:
            self._pins.subtract(image_ids)
            self._pins = +self._pins
            self._close_idle(self._keep)

    def take(self, image_id: str, open_it: Callable[[], AbstractImage]) -> AbstractImage:
        """Return an open image, opened by `open_it` if it is not open yet.

        Args:
            image_id: id of the image.
            open_it: opens the image.

        Raises:
            TooManyOpen: the system allows no more open files, though all idle images were closed.
            FoveateError: any error of `open_it`.
        """
        with self._lock:
            image = self._images.get(image_id)
            if image is not None:
                self._images.move_to_end(image_id)
                return image
        try:
            image = open_it()
        except (FoveateError, OSError) as error:
            if not out_of_files(error):
                raise
            image = self._reopen(open_it)
        with self._lock:
            known = self._images.get(image_id)
            if known is not None:  # another thread was faster
                image.close()
                return known
            self._images[image_id] = image
            self._close_idle(self._keep)
        return image

    def counts(self) -> tuple[int, int]:
        """Return the numbers of pixels decoded and asked for so far, over all images."""
        with self._lock:
            counts = [image.count for image in self._images.values()]
            decoded = self._closed[0] + sum(c.decoded_px for c in counts)
            return decoded, self._closed[1] + sum(c.asked_px for c in counts)

    def close(self) -> None:
        """Close all images, pinned ones too."""
        with self._lock:
            self._pins.clear()
            self._close_idle(0)

    def _reopen(self, open_it: Callable[[], AbstractImage]) -> AbstractImage:
        with self._lock:
            self._close_idle(0)
        try:
            return open_it()
        except (FoveateError, OSError) as error:
            if not out_of_files(error):
                raise
            raise TooManyOpen() from error

    def _close_idle(self, keep: int) -> None:
        idle = [image_id for image_id in self._images if not self._pins[image_id]]
        for image_id in idle[: max(len(idle) - keep, 0)]:
            image = self._images.pop(image_id)
            self._closed[0] += image.count.decoded_px
            self._closed[1] += image.count.asked_px
            image.close()


def count_open_files_left() -> int:
    """Count the files that this process may still open for images under the system's limit."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return 1 << 20
    n_open = 0
    with contextlib.suppress(OSError):
        n_open = sum(1 for _ in Path("/proc/self/fd").iterdir())
    return max(4, limit - n_open - _OTHER_FILES)
