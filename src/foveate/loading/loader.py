"""Open images and read their glimpses in groups, ahead of use."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import numpy as np

from foveate.batch import LoadedImage, View
from foveate.cache import ByteCache
from foveate.errors import (
    FoveateError,
    MissingSpacing,
    TooManyOpen,
    UnsupportedFormat,
    converting,
)
from foveate.images.bit_depth import StretchedImage, has_depth, used_bits
from foveate.images.composed import ComposedImage
from foveate.images.foreground import measure_slide_contrast
from foveate.images.image import AbstractImage
from foveate.images.likeness import judge_colours
from foveate.loading.open_images import OpenImages
from foveate.loading.scan import open_case, stated_factor
from foveate.loading.stored_view import refuse_misfit
from foveate.loading.together import open_together, read_together
from foveate.memory import count_cores
from foveate.readers import ReaderOptions
from foveate.table import Case

MIN_READER_THREADS = 2

Group = TypeVar("Group")


def read_glimpse(case: Case, image: AbstractImage, view: View) -> LoadedImage:
    """Read the glimpse of an open image and find its foreground.

    All of a picture or volume is foreground.

    Args:
        case: the row of the image.
        image: the open image.
        view: the geometry of reading.
    """
    glimpse = image.glimpse(view.glimpse_spacing_um)
    contrast = np.full(glimpse.shape[:-1], 255, np.uint8)
    if image.kind == "slide":
        tissue = measure_slide_contrast(case.path, glimpse, image.background)
        contrast = tissue if tissue.any() else contrast
    return LoadedImage(case.image_id, image, glimpse, contrast)


class CaseLoader:
    """Opens images and reads glimpses, ahead of use; keeps glimpses in bounded memory.

    Args:
        view: the geometry of reading.
        assume_spacing_um: spacing of images that state none.
        assume_for: kinds of images that this spacing is assumed for; None for all.
        readers: options of readers.
        read: reads the glimpse of an open image and finds its foreground.
        keep_bytes: memory that glimpses may occupy.
        keep_open: number of images that stay open though no batch needs them; images of batches
            under way and ahead are never closed.

    Attributes:
        factors: by image id, the table's spacing divided by the file's, where they differ.
        colours: by image id, the kind of colours of the glimpses read so far
            (`images.likeness.COLOURS`); None for a blank one.
    """

    def __init__(
        self,
        view: View,
        *,
        assume_spacing_um: float | None = None,
        assume_for: Sequence[str] | None = None,
        readers: ReaderOptions | None = None,
        read: Callable[[Case, AbstractImage, View], LoadedImage] = read_glimpse,
        keep_bytes: int = 1 << 29,
        keep_open: int = 64,
    ) -> None:
        self.view = view
        self._assumed_um, self._assume_for = assume_spacing_um, assume_for
        self._options, self._read = readers, read
        self._glimpses: ByteCache[LoadedImage] = ByteCache(keep_bytes)
        self._images = OpenImages(keep_open)
        self._taken = (0, 0)
        self.factors: dict[str, float] = {}
        self.colours: dict[str, str | None] = {}
        self._ahead = ThreadPoolExecutor(2, thread_name_prefix="glimpse")
        n_threads = max(MIN_READER_THREADS, count_cores())
        self.threads = ThreadPoolExecutor(n_threads, thread_name_prefix="patches")

    def load(self, case: Case) -> LoadedImage:
        """Return the open image of a case with its glimpse; several images lie on one canvas.

        Raises:
            UnreadableMember: one of several images cannot be opened or read.
            FoveateError: the image cannot be opened or read.
        """
        cached = self._glimpses.get(case.image_id)
        image = self._images.take(case.image_id, lambda: open_together(case, self.view, self._open))
        if cached is not None:
            return replace(cached, image=image)
        loaded = self._read_glimpses(case, image)
        self._glimpses.put(case.image_id, loaded, loaded.glimpse.nbytes + loaded.contrast.nbytes)
        return loaded

    def copy(self) -> CaseLoader:
        """Return a loader with the same settings, which keeps no images and glimpses."""
        return CaseLoader(
            self.view,
            assume_spacing_um=self._assumed_um,
            assume_for=self._assume_for,
            readers=self._options,
            read=self._read,
            keep_bytes=0,
            keep_open=0,
        )

    def take_counts(self) -> dict[str, int]:
        """Return the pixels decoded and asked for since the last call, over all images.

        Returns:
            counts under the names ``decoded_px`` and ``asked_px``.
        """
        decoded, asked = self._images.counts()
        taken, self._taken = self._taken, (decoded, asked)
        return {"decoded_px": decoded - taken[0], "asked_px": asked - taken[1]}

    def ahead(
        self, groups: Iterable[Sequence[Case]], *, depth: int = 2
    ) -> Iterator[list[LoadedImage | FoveateError]]:
        """Load groups of cases in order, `depth` groups ahead.

        The images of a group stay open until the next group is asked for. Where the system allows
        too few open files for so many groups, fewer are read ahead.

        Args:
            groups: cases of each group.
            depth: number of groups that are read ahead.

        Yields:
            images of a group; in the place of an image that failed, its error.

        Raises:
            TooManyOpen: even one group needs more open files than the system allows.
        """
        waiting: deque[tuple[Sequence[Case], list[Future[LoadedImage | FoveateError]]]] = deque()
        in_use: Sequence[Case] = ()
        try:
            for group in groups:
                self._images.pin(case.image_id for case in group)
                waiting.append((group, [self._ahead.submit(self._try, case) for case in group]))
                if len(waiting) > self._images.groups_ahead(len(group), depth):
                    in_use, jobs = waiting.popleft()
                    yield _collect(jobs)
                    self._images.unpin(case.image_id for case in in_use)
                    in_use = ()
            while waiting:
                in_use, jobs = waiting.popleft()
                yield _collect(jobs)
                self._images.unpin(case.image_id for case in in_use)
                in_use = ()
        finally:
            for group, jobs in [(in_use, []), *waiting]:
                for job in jobs:
                    job.cancel()
                self._images.unpin(case.image_id for case in group)

    def close(self) -> None:
        """Stop the threads and close the images."""
        self._ahead.shutdown(cancel_futures=True)
        self.threads.shutdown(cancel_futures=True)
        self._images.close()

    def _try(self, case: Case) -> LoadedImage | FoveateError:
        try:
            with converting(case.path):
                return self.load(case)
        except FoveateError as error:
            return error

    def _read_glimpses(self, case: Case, image: AbstractImage) -> LoadedImage:
        """Read the glimpses of the images of a case, and note their colours."""

        def read(member: Case, image: AbstractImage, view: View) -> LoadedImage:
            loaded = self._read(member, image, view)
            if member.image_id not in self.colours:
                self.colours[member.image_id] = judge_colours(loaded.glimpse)
            return loaded

        if isinstance(image, ComposedImage):
            return read_together(case, image, self.view, read)
        (member,) = case.list_images()
        return replace(read(member, image, self.view), image_id=case.image_id)

    def _open(self, case: Case) -> AbstractImage:
        """Open one image, and check that the view fits it."""
        image = open_case(
            case,
            fit=self.view.fit,
            assume_spacing_um=self._assumed_um,
            assume_for=self._assume_for,
            readers=self._options,
        )
        if image.ndim != self.view.axes:
            image.close()
            raise UnsupportedFormat(
                f"{case.path}: has {image.ndim} axes, but the model reads images of "
                f"{self.view.axes}: leave it out, or take a model that was trained on such"
            )
        try:
            refuse_misfit(image, self.view)
        except UnsupportedFormat:
            image.close()
            raise
        if image.unit != self.view.unit:
            image.close()
            raise MissingSpacing(_describe_wrong_unit(case, self.view))
        factor = stated_factor(case, image)
        if factor is not None:
            self.factors[case.image_id] = factor
        if has_depth(image):
            image = StretchedImage(image, self.view.bits or used_bits(image) or 16)
        return image


def _collect(
    jobs: Sequence[Future[LoadedImage | FoveateError]],
) -> list[LoadedImage | FoveateError]:
    items = [job.result() for job in jobs]
    for item in items:
        if isinstance(item, TooManyOpen):
            raise item
    return items


def timed(groups: Iterator[Group], waited: Callable[[float], None]) -> Iterator[Group]:
    """Yield groups, and call `waited` with the seconds that each was waited for.

    Args:
        groups: groups of images, read ahead.
        waited: function that takes seconds.
    """
    while True:
        begun = time.perf_counter()
        try:
            group = next(groups)
        except StopIteration:
            return
        waited(time.perf_counter() - begun)
        yield group


def _describe_wrong_unit(case: Case, view: View) -> str:
    if view.unit == "um":
        return (
            f"{case.path}: states no pixel size, but the model reads in micrometres. Give it in a "
            "column 'mpp' of a table (micrometres per pixel), or with --spacing-um"
        )
    return (
        f"{case.path}: has a pixel size, but the model was trained on pictures without one, which "
        "it reads in pixels. Save it without (as PNG, say), or train on images with a pixel size, "
        "given in a column 'mpp' or with --view.assume-spacing-um"
    )
