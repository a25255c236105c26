"""Open every image once before training: note its spacing and facts, and choose the view."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated

from foveate.batch import View
from foveate.batch.types import PATCH_PX, SPACING
from foveate.errors import FoveateError, MissingSpacing, OptionError, TooManyOpen, converting
from foveate.geometry import (
    Box,
    Frame,
    length_px_from_um,
    long_side,
    mean_spacing,
    spacing_um_from_shape,
)
from foveate.images.bit_depth import used_bits
from foveate.images.image import AbstractImage
from foveate.images.likeness import ImageFacts
from foveate.images.respaced import RespacedImage, fit_to_shape
from foveate.loading.stored_view import choose_stored_view, note_patches, refuse_pixels
from foveate.messages.display import OnProgress
from foveate.parts.options import Within
from foveate.readers import ReaderOptions, open_image
from foveate.table import Case, spacing_factor, spacing_for_axes
from foveate.wording import one_line

_THREADS = 4
_SIDES_PX = {2: (224, 512), 3: (32, 96)}
"""Default side of a patch and long side of a glimpse, by the axes of the images."""
MAY_LACK_SPACING = ("picture", "features")
"""Kinds of images whose lengths count in pixels where they state no spacing."""


@dataclass(frozen=True)
class ViewOptions:
    """How images are read; options that are None are chosen from the training images.

    Attributes:
        spacing_um: spacing of patches; by default the median full resolution of the training
            images, or that of `fit`.
        patch_px: side of a patch; by default 224, half a side of smaller pictures, of volumes 32.
        glimpse_spacing_um: spacing of the glimpse; by default the one at which the median image's
            glimpse has a long side of `glimpse_px`.
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
            if value is not None and not SPACING[0] <= value <= SPACING[1]:
                raise OptionError(
                    f"view.{key}: got {value}, expected {SPACING[0]:g} to {SPACING[1]:g}"
                )
        if min(self.patch_px or 16, self.glimpse_px or 16) < 16:
            raise OptionError("view.patch_px and view.glimpse_px need at least 16 pixels")
        if self.fit is not None and (len(self.fit) != 2 or min(self.fit) < 16):
            raise OptionError(f"view.fit: got {self.fit}, expected two sides such as 1024x1024")


@dataclass
class Scan:
    """The facts of all images that open, and the reasons why others do not, by image id."""

    facts: dict[str, ImageFacts] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def open_case(
    case: Case,
    *,
    fit: tuple[int, ...] | None = None,
    assume_spacing_um: float | None = None,
    assume_for: Sequence[str] | None = None,
    readers: ReaderOptions | None = None,
) -> AbstractImage:
    """Open a case's image with the table's spacing, else the file's, else the assumed one.

    The unit of pictures and files of features without spacing is the pixel.

    Args:
        case: the row of the image.
        fit: shape that pictures are resampled to.
        assume_spacing_um: spacing of images that state none.
        assume_for: kinds of images that this spacing is assumed for; None for all.
        readers: options of readers.

    Raises:
        MissingSpacing: a slide or volume has no spacing.
        TableError: the table gives a spacing for another number of axes.
        ImageNotFound, UnreadableImage, UnsupportedFormat: errors of the reader.
    """
    with contextlib.ExitStack() as opened:
        image = opened.enter_context(open_image(case.path, readers))
        respaced = _choose_spacing(image, case, fit, assume_spacing_um, assume_for)
        opened.pop_all()
    return respaced


def _choose_spacing(
    image: AbstractImage,
    case: Case,
    fit: tuple[int, ...] | None,
    assume_spacing_um: float | None,
    assume_for: Sequence[str] | None,
) -> AbstractImage:
    moves = image.stored is None or not image.stored.in_um
    if case.spacing_um is not None and moves:
        return RespacedImage(
            image, spacing_for_axes(case.spacing_um, image.ndim, case.path), unit="um"
        )
    if fit is not None and image.kind == "picture":
        return fit_to_shape(image, fit)
    if image.spacing_um is not None:
        return image
    if assume_spacing_um is not None and (assume_for is None or image.kind in assume_for):
        return RespacedImage(image, (assume_spacing_um,) * image.ndim, unit="um")
    if image.kind in MAY_LACK_SPACING:
        return RespacedImage(image, (1.0,) * image.ndim, unit="px")
    raise MissingSpacing(
        f"{case.path}: a {image.kind} that states {image.disbelieved or 'no pixel size'}. Give it "
        "in a column 'mpp' of the table (micrometres per pixel), or for all such with "
        "--view.assume-spacing-um"
    )


def scan_cases(
    cases: Sequence[Case],
    options: ViewOptions,
    on_progress: OnProgress | None = None,
    readers: ReaderOptions | None = None,
) -> Scan:
    """Open every image once and note its facts, or why it does not open.

    Args:
        cases: rows of the images.
        options: options of the view.
        on_progress: called with the number of images that are done and the number of all.
        readers: options of readers.

    Raises:
        MissingSpacing: slides have no spacing; the message names the first and their number.
    """
    scan, missing = Scan(), []
    with ThreadPoolExecutor(_THREADS) as pool:
        jobs = [(case, pool.submit(_read_facts, case, options, readers)) for case in cases]
        for done, (case, job) in enumerate(jobs, 1):
            try:
                _add_facts(scan, case, job)
            except MissingSpacing as error:
                missing.append(str(error))
            if on_progress is not None:
                on_progress(done, len(cases))
    if missing:
        more = f" ({len(missing)} images of {len(cases)} lack it)" if len(missing) > 1 else ""
        raise MissingSpacing(missing[0] + more)
    return scan


def _add_facts(scan: Scan, case: Case, job: Future[ImageFacts]) -> None:
    """Add the facts of an image to a scan, or why it does not open.

    Raises:
        MissingSpacing: the image is a slide without a spacing.
        OptionError: an option of a reader does not fit.
        TooManyOpen: the system allows too few open files; no image is to blame.
    """
    try:
        with converting(case.path):
            scan.facts[case.image_id] = job.result()
    except (MissingSpacing, OptionError, TooManyOpen):
        raise
    except FoveateError as error:
        scan.failed[case.image_id] = one_line(str(error))


def choose_view(facts: Iterable[ImageFacts], options: ViewOptions) -> View:
    """Choose the view: the options where they are set, else from the images.

    Args:
        facts: facts of the training images.
        options: options of the view.

    Raises:
        OptionError: images with and without spacing are mixed, or pictures and volumes.
    """
    known = list(facts)
    axes = {len(f.shape) for f in known}
    if len(axes) > 1:
        raise OptionError(
            "pictures and volumes are mixed: a model reads one or the other; give a table of each"
        )
    if axes == {3} and options.fit is not None:
        raise OptionError("view.fit: is for pictures; leave it out, volumes have a size")
    stored = any(f.patches is not None for f in known)
    if stored:
        refuse_pixels(known)
    units = {f.unit for f in known}
    if len(units) > 1:
        raise OptionError(
            "some images state micrometres per pixel and some do not: give the missing ones in a "
            "column 'mpp', or bring all pictures to one size with --view.fit 1024x1024"
        )
    if stored:
        set_options = [key for key, value in vars(options).items() if value is not None]
        return choose_stored_view(known, [k for k in set_options if k != "assume_spacing_um"])
    finest = statistics.median(mean_spacing(f.spacing_um) for f in known)
    extent_um = statistics.median(long_side(f.shape, f.spacing_um) for f in known)
    # Pictures that are resampled to one size are read at that size, whatever their sizes were.
    native = 1.0 if options.fit is not None and units == {"px"} else float(f"{finest:.4g}")
    spacing_um = options.spacing_um or native
    patch_px, glimpse_px = _SIDES_PX[min(axes)]
    if axes == {2}:
        patch_px = _choose_patch_px(length_px_from_um(extent_um, spacing_um))
    (coarse_um,) = spacing_um_from_shape([extent_um], [options.glimpse_px or glimpse_px])
    coarse_um = max(spacing_um, coarse_um)
    return View(
        spacing_um=spacing_um,
        patch_px=options.patch_px or patch_px,
        glimpse_spacing_um=options.glimpse_spacing_um or float(f"{coarse_um:.4g}"),
        unit="px" if units == {"px"} else "um",
        fit=options.fit,
        axes=min(axes),
        bits=max((f.bits for f in known if f.bits is not None), default=None),
    )


def _choose_patch_px(side_px: float) -> int:
    """Choose the patch side of pictures: 224, or half a side of pictures below three patches."""
    if side_px >= 3 * _SIDES_PX[2][0]:
        return _SIDES_PX[2][0]
    return max(32, 32 * round(side_px / 64))


def _read_facts(case: Case, options: ViewOptions, readers: ReaderOptions | None) -> ImageFacts:
    if options.fit is not None and case.spacing_um is not None:
        raise OptionError(
            f"view.fit: brings pictures to one size in pixels, but the table gives {case.path} a "
            "pixel size in micrometres; leave one of the two out"
        )
    assumed_um = options.assume_spacing_um
    with open_case(case, fit=options.fit, assume_spacing_um=assumed_um, readers=readers) as image:
        spacing = image.known_spacing_um
        assumed = (
            case.spacing_um is None and image.unit == "um" and isinstance(image, RespacedImage)
        )
        return ImageFacts(
            image.shape,
            spacing,
            image.unit,
            image.kind,
            image.reader,
            image.channels,
            assumed,
            used_bits(image),
            stated_factor(case, image),
            _read_kind_of_values(image),
            note_patches(image),
        )


def _read_kind_of_values(image: AbstractImage) -> str | None:
    """Return the kind of a volume's values, for which its voxels are read; None for pictures."""
    if image.kind == "volume":
        image.read(Box((0.0,) * image.ndim, (1.0,) * image.ndim, Frame.PX, 0))
    return image.count.values


def stated_factor(case: Case, image: AbstractImage) -> float | None:
    """Return the table's spacing divided by the file's, or None where they do not differ.

    Args:
        case: row of the table, with its spacing if it states one.
        image: the image as it was opened.
    """
    if case.spacing_um is None or not isinstance(image, RespacedImage) or image.stated_um is None:
        return None
    return spacing_factor(image.known_spacing_um, image.stated_um)
