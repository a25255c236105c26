"""From rows of the table to open images: spacing rules, the view, glimpses, reading ahead."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Annotated, TypeVar

import numpy as np

from foveate.batch import LoadedImage, View
from foveate.cache import ByteCache
from foveate.card import PATCH_PX
from foveate.cases import Case
from foveate.errors import (
    FoveateError,
    MissingSpacing,
    OptionError,
    TooManyOpen,
    UnreadableImage,
    UnsupportedFormat,
    as_ours,
    out_of_files,
)
from foveate.evidence import Floats
from foveate.foreground import contrast, foreground
from foveate.image import AbstractImage, Respaced, fitted
from foveate.likeness import ImageFacts
from foveate.open_images import OpenImages
from foveate.plugins import Within
from foveate.readers import open_image

READER_THREADS = 4

Group = TypeVar("Group")
_SIDES_PX = {2: (224, 512), 3: (32, 96)}
"""By the axes of an image: of patches, and of the long side of a glimpse."""


@dataclass(frozen=True)
class ViewOptions:
    """How images are read; what is None is chosen from the training images.

    Attributes:
        spacing_um: of patches; by default the median full resolution of the training images, or
            that of `fit`.
        patch_px: side of a patch; by default 224, half a side of smaller pictures, of volumes 32.
        glimpse_spacing_um: of the glimpse; by default what gives the median image `glimpse_px`.
        glimpse_px: long side of the median image's glimpse; by default 512, of volumes 96.
        fit: bring every picture to exactly this many pixels (y,x), so that file size and shape
            cannot give the class away; for pictures without spacing.
        assume_spacing_um: spacing of images that state none and have none in the table.
    """

    spacing_um: float | None = None
    patch_px: Annotated[int, Within(*PATCH_PX)] | None = None
    glimpse_spacing_um: float | None = None
    glimpse_px: Annotated[int, Within(16, 16384)] | None = None
    fit: tuple[Annotated[int, Within(1, 65536)], ...] | None = None
    assume_spacing_um: float | None = None

    def __post_init__(self) -> None:
        for key in ("spacing_um", "glimpse_spacing_um", "assume_spacing_um"):
            value = getattr(self, key)
            if value is not None and not 0 < value < 1e5:
                raise OptionError(f"view.{key}: got {value}, expected a positive number")
        if min(self.patch_px or 16, self.glimpse_px or 16) < 16:
            raise OptionError("view.patch_px and view.glimpse_px need at least 16 pixels")
        if self.fit is not None and (len(self.fit) != 2 or min(self.fit) < 16):
            raise OptionError(f"view.fit: got {self.fit}, expected two sides such as 1024x1024")


@dataclass
class Scan:
    """The facts of all images that open, and the reasons of those that do not."""

    facts: dict[str, ImageFacts] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def open_case(
    case: Case,
    *,
    fit: tuple[int, ...] | None = None,
    assume_spacing_um: float | None = None,
    assume_for: Sequence[str] | None = None,
) -> AbstractImage:
    """Open a case's image with its spacing settled: the table's, else the file's, else assumed.

    Pictures without spacing work in pixels.

    Args:
        case: the row.
        fit: shape that pictures are brought to.
        assume_spacing_um: of images that state none.
        assume_for: only for images of these kinds; None for all.

    Raises:
        MissingSpacing: a slide or volume without spacing.
        ImageNotFound, UnreadableImage, UnsupportedFormat: as the reader says.
    """
    image = open_image(case.path)
    try:
        if case.spacing_um is not None:
            given = case.spacing_um
            spacing = given if len(given) == image.ndim else (given[0],) * image.ndim
            return Respaced(image, spacing, unit="um")
        if fit is not None and image.kind == "picture":
            return fitted(image, fit)
        if image.spacing_um is not None:
            return image
        if assume_spacing_um is not None and (assume_for is None or image.kind in assume_for):
            return Respaced(image, (assume_spacing_um,) * image.ndim, unit="um")
        if image.kind in ("picture", "sparse"):
            return Respaced(image, (1.0,) * image.ndim, unit="px")
        raise MissingSpacing(
            f"{case.path}: a {image.kind} that states no pixel size. Give it in a column 'mpp' of "
            "the table (micrometres per pixel), or for all such with --view.assume-spacing-um"
        )
    except BaseException:
        image.close()
        raise


def scan_cases(
    cases: Sequence[Case],
    options: ViewOptions,
    progress: Callable[[int, int], None] | None = None,
) -> Scan:
    """Open every image once and note its facts or why it does not open.

    Raises:
        MissingSpacing: slides without spacing; names the first and how many there are.
    """
    scan, missing = Scan(), []
    with ThreadPoolExecutor(READER_THREADS) as pool:
        jobs = [(case, pool.submit(_facts, case, options)) for case in cases]
        for done, (case, job) in enumerate(jobs, 1):
            try:
                scan.facts[case.image_id] = job.result()
            except MissingSpacing as error:
                missing.append(str(error))
            except TooManyOpen:
                raise
            except Exception as error:
                scan.failed[case.image_id] = _one_line(as_ours(error, case.path))
            if progress is not None:
                progress(done, len(cases))
    if missing:
        more = f" ({len(missing)} images of {len(cases)} lack it)" if len(missing) > 1 else ""
        raise MissingSpacing(missing[0] + more)
    return scan


def choose_view(facts: Iterable[ImageFacts], options: ViewOptions) -> View:
    """The view that the options ask for, gaps filled from the images.

    Raises:
        OptionError: images with and without spacing are mixed, or pictures and volumes.
    """
    known = list(facts)
    axes = {len(f.shape) for f in known}
    if len(axes) > 1:
        raise OptionError("pictures and volumes are mixed: a model reads one or the other")
    if axes == {3} and options.fit is not None:
        raise OptionError("view.fit: is for pictures; volumes are read at their physical size")
    units = {f.unit for f in known}
    if len(units) > 1:
        raise OptionError(
            "some images state micrometres per pixel and some do not: give the missing ones in a "
            "column 'mpp', or bring all pictures to one size with --view.fit 1024x1024"
        )
    finest = statistics.median(math.prod(f.spacing_um) ** (1 / len(f.spacing_um)) for f in known)
    extents = [max(n * s for n, s in zip(f.shape, f.spacing_um, strict=True)) for f in known]
    # Pictures brought to one size are read at that size, whatever sizes they came from.
    own = 1.0 if options.fit is not None and units == {"px"} else float(f"{finest:.4g}")
    spacing = options.spacing_um or own
    patch_px, glimpse_px = _SIDES_PX[min(axes)]
    if axes == {2}:
        patch_px = _patch_px(statistics.median(extents) / spacing)
    coarse = max(spacing, statistics.median(extents) / (options.glimpse_px or glimpse_px))
    return View(
        spacing_um=spacing,
        patch_px=options.patch_px or patch_px,
        glimpse_spacing_um=options.glimpse_spacing_um or float(f"{coarse:.4g}"),
        unit="px" if units == {"px"} else "um",
        fit=options.fit,
        axes=min(axes),
    )


def _patch_px(side_px: float) -> int:
    """Of pictures: 224, or half a side of those that are not several patches long."""
    if side_px >= 3 * _SIDES_PX[2][0]:
        return _SIDES_PX[2][0]
    return max(32, 32 * round(side_px / 64))


class CaseLoader:
    """Opens images and reads glimpses, ahead of use; keeps glimpses in bounded memory.

    Args:
        view: the geometry of reading.
        assume_spacing_um: for images that state none.
        assume_for: only for images of these kinds; None for all.
        keep_bytes: how much memory glimpses may occupy.
        keep_open: how many images stay open that nobody reads; those of the batches under way and
            ahead are never closed.
    """

    def __init__(
        self,
        view: View,
        *,
        assume_spacing_um: float | None = None,
        assume_for: Sequence[str] | None = None,
        keep_bytes: int = 1 << 29,
        keep_open: int = 64,
    ) -> None:
        self.view = view
        self.assumed_um, self._assume_for = assume_spacing_um, assume_for
        self._glimpses: ByteCache[LoadedImage] = ByteCache(keep_bytes)
        self._images = OpenImages(keep_open)
        self._taken = (0, 0)
        self._ahead = ThreadPoolExecutor(2, thread_name_prefix="glimpse")
        self.crops = ThreadPoolExecutor(READER_THREADS, thread_name_prefix="crops")

    def load(self, case: Case) -> LoadedImage:
        """The open image with its glimpse.

        Raises:
            FoveateError: the image cannot be opened or read.
        """
        kept = self._glimpses.get(case.image_id)
        image = self._images.take(case.image_id, lambda: self._opened(case))
        if kept is not None:
            return replace(kept, image=image)
        glimpse = image.glimpse(self.view.glimpse_spacing_um)
        if image.kind == "slide":
            distance = contrast(glimpse, image.background)
            distance[~foreground(glimpse, image.background)] = 0
        elif image.kind == "sparse":
            distance = contrast(glimpse, image.background)
        else:
            distance = np.full(glimpse.shape[:-1], 255, np.uint8)
        if not distance.any():
            distance[:] = 255
        loaded = LoadedImage(case.image_id, image, glimpse, distance, _places_um(case, image))
        self._glimpses.put(case.image_id, loaded, glimpse.nbytes + distance.nbytes)
        return loaded

    def take_counts(self) -> dict[str, int]:
        """``decoded_px`` and ``asked_px`` since the last call, over all images."""
        decoded, asked = self._images.counts()
        taken, self._taken = self._taken, (decoded, asked)
        return {"decoded_px": decoded - taken[0], "asked_px": asked - taken[1]}

    def ahead(
        self, groups: Iterable[Sequence[Case]], *, depth: int = 2
    ) -> Iterator[list[LoadedImage | FoveateError]]:
        """Load groups of cases in order, `depth` groups ahead; what fails comes as its error.

        The images of a group stay open until the next group is asked for. Where the system allows
        too few open files for so many groups, fewer are read ahead.

        Raises:
            TooManyOpen: even one group needs more open files than the system allows.
        """
        waiting: deque[tuple[Sequence[Case], list[Future[LoadedImage | FoveateError]]]] = deque()
        given: Sequence[Case] = ()
        try:
            for group in groups:
                self._images.pin(case.image_id for case in group)
                waiting.append((group, [self._ahead.submit(self._try, case) for case in group]))
                if len(waiting) > self._images.groups_ahead(len(group), depth):
                    given, jobs = waiting.popleft()
                    yield _loaded(jobs)
                    self._images.unpin(case.image_id for case in given)
                    given = ()
            while waiting:
                given, jobs = waiting.popleft()
                yield _loaded(jobs)
                self._images.unpin(case.image_id for case in given)
                given = ()
        finally:
            for group, jobs in [(given, []), *waiting]:
                for job in jobs:
                    job.cancel()
                self._images.unpin(case.image_id for case in group)

    def close(self) -> None:
        """Stop the threads and close the images."""
        self._ahead.shutdown(cancel_futures=True)
        self.crops.shutdown(cancel_futures=True)
        self._images.close()

    def _try(self, case: Case) -> LoadedImage | FoveateError:
        try:
            return self.load(case)
        except Exception as error:
            return TooManyOpen() if out_of_files(error) else as_ours(error, case.path)

    def _opened(self, case: Case) -> AbstractImage:
        image = open_case(
            case,
            fit=self.view.fit,
            assume_spacing_um=self.assumed_um,
            assume_for=self._assume_for,
        )
        if image.ndim != self.view.axes:
            image.close()
            raise UnsupportedFormat(
                f"{case.path}: has {image.ndim} axes, but the model reads images of "
                f"{self.view.axes}"
            )
        if image.unit != self.view.unit:
            image.close()
            raise MissingSpacing(_other_unit(case, self.view))
        return image


def _loaded(jobs: Sequence[Future[LoadedImage | FoveateError]]) -> list[LoadedImage | FoveateError]:
    found = [job.result() for job in jobs]
    for item in found:
        if isinstance(item, TooManyOpen):
            raise item
    return found


def _places_um(case: Case, image: AbstractImage) -> Floats | None:
    """The places that a case gives, in micrometres."""
    if case.places is None:
        return None
    try:
        with case.places.open("rb") as file:
            places = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UnreadableImage(
            f"{case.places}: not a .npy file of places: {_one_line(error)}"
        ) from error
    if places.ndim != 2 or places.shape[1] != image.ndim or not len(places):
        raise UnreadableImage(
            f"{case.places}: places of shape {places.shape}, expected (n, {image.ndim}), n > 0"
        )
    if places.dtype.kind not in "iuf" or not np.isfinite(places).all():
        raise UnreadableImage(f"{case.places}: places that are not all finite numbers")
    outside = (places < 0) | (places > np.asarray(image.shape))
    if outside.any():
        first = places[outside.any(1)][0].tolist()
        raise UnreadableImage(
            f"{case.places}: {first} lies outside the image of {image.shape} pixels; places are "
            "level-0 pixels in the order (z,) y, x"
        )
    found: Floats = places.astype(np.float64) * np.asarray(image.known_spacing_um)
    return found


def timed(groups: Iterator[Group], waited: Callable[[float], None]) -> Iterator[Group]:
    """Pass groups on, and tell for how many seconds each was waited for."""
    while True:
        begun = time.perf_counter()
        try:
            found = next(groups)
        except StopIteration:
            return
        waited(time.perf_counter() - begun)
        yield found


def _other_unit(case: Case, view: View) -> str:
    if view.unit == "um":
        return (
            f"{case.path}: states no pixel size, but the model reads in micrometres. Give it in a "
            "column 'mpp' of a table (micrometres per pixel), or with --spacing-um"
        )
    return f"{case.path}: has a pixel size, but the model reads pictures in pixels"


def _facts(case: Case, options: ViewOptions) -> ImageFacts:
    with open_case(case, fit=options.fit, assume_spacing_um=options.assume_spacing_um) as image:
        spacing = image.known_spacing_um
        assumed = case.spacing_um is None and image.unit == "um" and isinstance(image, Respaced)
        return ImageFacts(
            image.shape, spacing, image.unit, image.kind, image.reader, image.channels, assumed
        )


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:500]
