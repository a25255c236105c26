"""Images that are open: those in use are never closed, and of the others a few stay open."""

from __future__ import annotations

import contextlib
import resource
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path

from foveate.errors import TooManyOpen, out_of_files
from foveate.images.image import AbstractImage

_OWN_FILES = 16
"""Files that may be opened beside the images: tables, weights, libraries, pictures."""


class OpenImages:
    """Open images by id. Safe over threads.

    Images that are pinned stay open, however many they are; of the others only the `keep` used
    last. So the bound on open files is `keep` and what is pinned: the images of all batches that
    are under way or read ahead.

    Args:
        keep: how many images stay open that are not pinned; fewer where the system allows few.
    """

    def __init__(self, keep: int) -> None:
        self._limit = count_open_files_left()
        self._keep = min(keep, self._limit // 2)
        self._images: OrderedDict[str, AbstractImage] = OrderedDict()
        self._pins: Counter[str] = Counter()
        self._closed = [0, 0]
        self._lock = threading.Lock()

    def groups_ahead(self, size: int, depth: int) -> int:
        """How many groups of so many images may be read ahead, `depth` at most."""
        return max(0, min(depth, self._limit // max(size, 1) - 2))

    def pin(self, image_ids: Iterable[str]) -> None:
        """Keep these open, once they are, until they are unpinned as often as they were pinned."""
        with self._lock:
            self._pins.update(image_ids)

    def unpin(self, image_ids: Iterable[str]) -> None:
        """They are no longer in use by whoever pinned them."""
        with self._lock:
            self._pins.subtract(image_ids)
            self._pins = +self._pins
            self._close_idle(self._keep)

    def take(self, image_id: str, open_it: Callable[[], AbstractImage]) -> AbstractImage:
        """The image, opened by `open_it` where it is not open.

        Raises:
            TooManyOpen: the system allows no more open files, though nothing idle is open.
            FoveateError: as `open_it` says.
        """
        with self._lock:
            image = self._images.get(image_id)
            if image is not None:
                self._images.move_to_end(image_id)
                return image
        try:
            image = open_it()
        except Exception as error:
            if not out_of_files(error):
                raise
            image = self._once_more(open_it)
        with self._lock:
            known = self._images.get(image_id)
            if known is not None:  # another thread was faster
                image.close()
                return known
            self._images[image_id] = image
            self._close_idle(self._keep)
        return image

    def counts(self) -> tuple[int, int]:
        """Pixels decoded and asked for so far, over all images."""
        with self._lock:
            counts = [image.count for image in self._images.values()]
            decoded = self._closed[0] + sum(c.decoded_px for c in counts)
            return decoded, self._closed[1] + sum(c.asked_px for c in counts)

    def close(self) -> None:
        """Close all of them."""
        with self._lock:
            self._pins.clear()
            self._close_idle(0)

    def _once_more(self, open_it: Callable[[], AbstractImage]) -> AbstractImage:
        with self._lock:
            self._close_idle(0)
        try:
            return open_it()
        except Exception as error:
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
    """How many more files this process may open for images, as the system's limit says."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return 1 << 20
    held = 0
    with contextlib.suppress(OSError):
        held = sum(1 for _ in Path("/proc/self/fd").iterdir())
    return max(4, limit - held - _OWN_FILES)
