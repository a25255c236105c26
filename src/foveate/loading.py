"""From rows of the table to open images: spacing rules, the view, glimpses, reading ahead."""

from __future__ import annotations

import logging
import math
import statistics
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from foveate.batch import LoadedImage, View
from foveate.bit_depth import Stretched, has_depth, used_bits
from foveate.cache import ByteCache
from foveate.cases import Case, for_axes, spacing_factor
from foveate.errors import (
    FoveateError,
    ImageTooLarge,
    MissingSpacing,
    OptionError,
    UnreadableImage,
    UnsupportedFormat,
)
from foveate.evidence import Floats
from foveate.foreground import contrast, slide_prior
from foveate.image import AbstractImage, Respaced, fitted
from foveate.readers import open_image
from foveate.readers.base import AGAIN

log = logging.getLogger("foveate")

READER_THREADS = 4

Group = TypeVar("Group")
_MAX_OPEN = 64
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
    patch_px: int | None = None
    glimpse_spacing_um: float | None = None
    glimpse_px: int | None = None
    fit: tuple[int, ...] | None = None
    assume_spacing_um: float | None = None

    def __post_init__(self) -> None:
        for key in ("spacing_um", "glimpse_spacing_um", "assume_spacing_um"):
            value = getattr(self, key)
            if value is not None and not 0 < value < 1e5:
                raise OptionError(f"view.{key}: got {value}, expected a positive number")
        if min(self.patch_px or 16, self.glimpse_px or 16) < 16:
            raise OptionError("view.patch_px and view.glimpse_px need at least 16 pixels")
        if self.fit is not None and (len(self.fit) < 2 or min(self.fit) < 16):
            raise OptionError(f"view.fit: got {self.fit}, expected two sides such as 1024x1024")


@dataclass(frozen=True)
class ImageFacts:
    """What one open file says about itself; `bits` are those that it uses of 16, else None."""

    shape: tuple[int, ...]
    spacing_um: tuple[float, ...]
    unit: str
    kind: str
    reader: str
    bits: int | None = None
    factor: float | None = None
    """How many times the file's spacing the table's is, where they differ."""


@dataclass
class Scan:
    """The facts of all images that open, and the reasons of those that do not."""

    facts: dict[str, ImageFacts] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def open_case(
    case: Case, *, fit: tuple[int, ...] | None = None, assume_spacing_um: float | None = None
) -> AbstractImage:
    """Open a case's image with its spacing settled: the table's, else the file's, else assumed.

    Pictures without spacing work in pixels.

    Raises:
        MissingSpacing: a slide or volume without spacing.
        TableError: the table gives a spacing for another number of axes.
        ImageNotFound, UnreadableImage, UnsupportedFormat: as the reader says.
    """
    image = open_image(case.path)
    try:
        if case.spacing_um is not None:
            return Respaced(image, for_axes(case.spacing_um, image.ndim, case.path), unit="um")
        if fit is not None and image.kind == "picture":
            return fitted(image, fit)
        if image.spacing_um is not None:
            return image
        if assume_spacing_um is not None:
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
            except FoveateError as error:
                scan.failed[case.image_id] = str(error)
            except (OSError, ValueError, MemoryError) as error:
                scan.failed[case.image_id] = str(_in_words(case, error))
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
        bits=max((f.bits for f in known if f.bits is not None), default=None),
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
        assume_spacing_um: for slides that state none.
        keep_bytes: how much memory glimpses may occupy.

    Attributes:
        factors: image id to how many times the file's spacing the table's is, where they differ.
    """

    def __init__(
        self, view: View, *, assume_spacing_um: float | None = None, keep_bytes: int = 1 << 29
    ) -> None:
        self.view = view
        self._assume = assume_spacing_um
        self._glimpses: ByteCache[LoadedImage] = ByteCache(keep_bytes)
        self._open: OrderedDict[str, AbstractImage] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = self._taken = (0, 0)
        self.factors: dict[str, float] = {}
        self._ahead = ThreadPoolExecutor(2, thread_name_prefix="glimpse")
        self.crops = ThreadPoolExecutor(READER_THREADS, thread_name_prefix="crops")

    def load(self, case: Case) -> LoadedImage:
        """The open image with its glimpse.

        Raises:
            FoveateError: the image cannot be opened or read.
        """
        kept = self._glimpses.get(case.image_id)
        image = self._image(case)
        if kept is not None:
            return replace(kept, image=image)
        glimpse = image.glimpse(self.view.glimpse_spacing_um)
        if image.kind == "slide":
            distance = slide_prior(case.path, glimpse, image.background)
        elif image.kind == "sparse":
            distance = contrast(glimpse, image.background)
        else:
            distance = np.full(glimpse.shape[:-1], 255, np.uint8)
        if not distance.any():
            distance[:] = 255
        loaded = LoadedImage(case.image_id, image, glimpse, distance, _places_um(case, image))
        self._glimpses.put(case.image_id, loaded, glimpse.nbytes + distance.nbytes)
        return loaded

    def take_counts(self) -> tuple[int, int]:
        """Pixels decoded and asked for since the last call, over all images."""
        with self._lock:
            counts = [image.count for image in self._open.values()]
            decoded = self._closed[0] + sum(c.decoded_px for c in counts)
            asked = self._closed[1] + sum(c.asked_px for c in counts)
            taken, self._taken = self._taken, (decoded, asked)
        return decoded - taken[0], asked - taken[1]

    def ahead(
        self, groups: Iterable[Sequence[Case]], *, depth: int = 2
    ) -> Iterator[list[LoadedImage | FoveateError]]:
        """Load groups of cases in order, `depth` groups ahead; what fails comes as its error."""
        waiting: deque[list[Future[LoadedImage | FoveateError]]] = deque()
        try:
            for group in groups:
                waiting.append([self._ahead.submit(self._try, case) for case in group])
                if len(waiting) > depth:
                    yield [job.result() for job in waiting.popleft()]
            while waiting:
                yield [job.result() for job in waiting.popleft()]
        finally:
            for group_jobs in waiting:
                for job in group_jobs:
                    job.cancel()

    def close(self) -> None:
        """Stop the threads and close the images."""
        self._ahead.shutdown(cancel_futures=True)
        self.crops.shutdown(cancel_futures=True)
        for image in self._open.values():
            image.close()
        self._open.clear()

    def _try(self, case: Case) -> LoadedImage | FoveateError:
        try:
            return self.load(case)
        except FoveateError as error:
            return error
        except (OSError, ValueError, MemoryError) as error:
            return _in_words(case, error)

    def _image(self, case: Case) -> AbstractImage:
        with self._lock:
            image = self._open.get(case.image_id)
            if image is not None:
                self._open.move_to_end(case.image_id)
                return image
        image = open_case(case, fit=self.view.fit, assume_spacing_um=self._assume)
        if image.ndim != self.view.axes:
            image.close()
            raise UnsupportedFormat(
                f"{case.path}: has {image.ndim} axes, but the model reads images of "
                f"{self.view.axes}"
            )
        if image.unit != self.view.unit:
            image.close()
            raise MissingSpacing(_other_unit(case, self.view))
        factor = _factor(case, image)
        if has_depth(image):
            image = Stretched(image, self.view.bits or used_bits(image) or 16)
        with self._lock:
            if factor is not None:
                self.factors[case.image_id] = factor
            self._open[case.image_id] = image
            while len(self._open) > _MAX_OPEN:
                oldest = self._open.popitem(last=False)[1]
                count = oldest.count
                self._closed = (
                    self._closed[0] + count.decoded_px,
                    self._closed[1] + count.asked_px,
                )
                oldest.close()
        return image


def _places_um(case: Case, image: AbstractImage) -> Floats | None:
    """The places that a case gives, in micrometres."""
    if case.places is None:
        return None
    try:
        with case.places.open("rb") as file:
            places = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UnreadableImage(
            f"{case.places}: not a .npy file of places; write it with numpy.save(path, places)"
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
        factor, bits = _factor(case, image), used_bits(image)
        return ImageFacts(
            image.shape, spacing, image.unit, image.kind, image.reader, bits, factor
        )


def _factor(case: Case, image: AbstractImage) -> float | None:
    """How many times the file's spacing the table's is, where they differ."""
    if case.spacing_um is None or not isinstance(image, Respaced) or image.stated_um is None:
        return None
    return spacing_factor(image.known_spacing_um, image.stated_um)


def _in_words(case: Case, error: OSError | ValueError | MemoryError) -> UnreadableImage:
    """What readers do not foresee, plug-ins above all, without the exception's own text."""
    log.debug("%s", case.path, exc_info=error)
    if isinstance(error, MemoryError):
        return ImageTooLarge(f"{case.path}: needs more memory than there is; free some, or cut it")
    if isinstance(error, OSError) and error.strerror:
        return UnreadableImage(f"{case.path}: cannot be read; the system says: {error.strerror}")
    return UnreadableImage(f"{case.path}: its pixels or header make no sense{AGAIN}")
