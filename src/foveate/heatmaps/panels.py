"""Draw the parts of a heatmap picture, each into a rectangle of exact pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from foveate.geometry import length_mm_from_um, length_px_from_um
from foveate.heatmaps.fields import Camera, ScreenImage, ScreenPixels
from foveate.heatmaps.raster import Scale, nice_length, ranked, splat, weight_colours
from foveate.images.evidence import Evidence, Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 100
SHELF_PX = 30
INK, PAPER, GREY = "#1a1a1a", "#ffffff", "#666666"

_DENSE = 0.25
_MIN_OUTLINE_PX = 3.0


@dataclass(frozen=True)
class Rect:
    """A rectangle of the picture, in pixels.

    Attributes:
        x_px: distance of its left side from that of the picture.
        y_px: distance of its upper side from that of the picture.
        width_px: width of the rectangle.
        height_px: height of the rectangle.
    """

    x_px: float
    y_px: float
    width_px: float
    height_px: float


@dataclass(frozen=True)
class ShownEvidence:
    """The evidence that a picture shows.

    Attributes:
        camera: reads the image.
        evidence: the boxes that are drawn.
        scale: scale of the weights of all boxes of the image.
        chosen: indices of the heaviest boxes, which are numbered, ``(n,)``.
    """

    camera: Camera
    evidence: Evidence
    scale: Scale
    chosen: NDArray[np.intp]


def points(length_px: float) -> float:
    """Convert a length from pixels to Matplotlib's points."""
    return length_px * 72 / DPI


def add_axes(figure: Figure, rect: Rect) -> Axes:
    """Add axes without ticks and frame at exact pixels.

    Args:
        figure: the figure.
        rect: place of the axes, in pixels of the figure from its upper left corner.
    """
    width, height = figure.get_size_inches() * DPI
    bottom = height - rect.y_px - rect.height_px
    place = (rect.x_px / width, bottom / height, rect.width_px / width, rect.height_px / height)
    axes = figure.add_axes(place)
    axes.set_axis_off()
    return axes


def plot_text(
    figure: Figure,
    x_px: float,
    y_px: float,
    text: str,
    *,
    height_px: float = 13,
    bold: bool = False,
    colour: str = INK,
) -> None:
    """Draw a line of text with its upper left corner at a place, without parsing mathematics.

    Args:
        figure: the figure.
        x_px: pixels from the left side.
        y_px: pixels from the upper side.
        text: the text.
        height_px: height of the letters.
        bold: whether the letters are bold.
        colour: colour of the letters.
    """
    width, height = figure.get_size_inches() * DPI
    at = (x_px / width, 1 - y_px / height)
    label = figure.text(*at, text, fontsize=points(height_px), color=colour, va="top", ha="left")
    label.set(fontweight="bold" if bold else "normal", parse_math=False)


def show_screen(axes: Axes, screen: ScreenImage, pixels: ScreenPixels) -> None:
    """Show pixels one to one, in coordinates from the outer corner of the first pixel.

    Args:
        axes: axes of as many pixels as the screen.
        screen: the part of the image that is shown.
        pixels: its colours ``(h, w, 3)``.
    """
    rows, columns = screen.shape
    axes.imshow(pixels, interpolation="nearest", extent=(0, columns, rows, 0), aspect="auto")
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)


def plot_outlines(
    axes: Axes, screen: ScreenImage, evidence: Evidence, scale: Scale | None = None
) -> None:
    """Draw the outlines of the boxes, or the outline of their union if they are too dense.

    With a scale, outlines have the colours of the weights.

    Args:
        axes: axes that show the screen.
        screen: the part of the image that is shown.
        evidence: boxes of the image.
        scale: colours of weights; None for one colour.
    """
    low = screen.locate(evidence.origin_um[:, -2:])
    high = screen.locate(evidence.origin_um[:, -2:] + evidence.size_um[:, -2:])
    side = high - low
    if not len(low):
        return
    dense = 2 * side.sum() > _DENSE * math.prod(screen.shape)
    if dense or float(np.median(side)) < _MIN_OUTLINE_PX:
        _draw_border(axes, screen, evidence)
        return
    order = ranked(evidence)[::-1]
    (top, left), (bottom, right) = low[order].T, high[order].T
    corners = np.stack([left, top, right, top, right, bottom, left, bottom], -1).reshape(-1, 4, 2)
    if scale is None:
        _add_boxes(axes, corners, _ink_on(screen), 0.9)
        return
    _add_boxes(axes, corners, INK, 4.0)
    _add_boxes(axes, corners, weight_colours(scale.strength(evidence.weight)[order]), 2.2)


def _add_boxes(axes: Axes, corners: Floats, edges: Floats | str, width_px: float) -> None:
    """Draw outlines of boxes with corners ``(n, 4, 2)``, ``x, y``."""
    from matplotlib.collections import PolyCollection

    axes.add_collection(
        PolyCollection(
            list(corners), facecolors="none", edgecolors=edges, linewidths=points(width_px)
        )
    )


def _draw_border(axes: Axes, screen: ScreenImage, evidence: Evidence) -> None:
    """Draw the outline of the union of all boxes."""
    _, covered = splat(evidence, screen.origin_um, screen.extent_um, screen.shape)
    padded = np.pad(covered, 1)
    if padded.max() <= 0.5 or min(padded.shape) < 2:
        return
    rows, columns = np.arange(padded.shape[0]) - 0.5, np.arange(padded.shape[1]) - 0.5
    axes.contour(columns, rows, padded, [0.5], colors=[_ink_on(screen)], linewidths=points(1.0))


def _ink_on(screen: ScreenImage) -> str:
    """Return a colour of lines that contrasts with a picture: black or white."""
    return "#000000b0" if float(np.median(screen.pixels)) > 110 else "#ffffffb0"


def plot_markers(axes: Axes, screen: ScreenImage, centres_px: Floats) -> None:
    """Draw numbered discs that do not overlap beside points ``(n, 2)``, with lines to them.

    Args:
        axes: axes that show the screen.
        screen: the part of the image that is shown.
        centres_px: points ``(n, 2)``, rows and columns of the screen.
    """
    from matplotlib.patheffects import withStroke

    rim = [withStroke(linewidth=points(3), foreground=PAPER)]
    taken: list[NDArray[np.float64]] = list(centres_px)
    for number, centre in enumerate(centres_px, 1):
        place = _free_place(centre, taken, screen.shape)
        taken.append(place)
        (y, x), (v, u) = centre, place
        axes.plot([x, u], [y, v], color=INK, linewidth=points(1.4), path_effects=rim)
        label = axes.text(u, v, str(number), fontsize=points(13), fontweight="bold", color=PAPER)
        label.set(ha="center", va="center_baseline")
        label.set_bbox({"boxstyle": "circle,pad=0.25", "fc": INK, "ec": PAPER, "lw": points(1.2)})


def _free_place(
    centre: NDArray[np.float64], taken: list[NDArray[np.float64]], shape: tuple[int, int]
) -> NDArray[np.float64]:
    """Find the nearest place around a point that is inside the picture and away from others."""
    inside = np.asarray(shape, np.float64)
    best, best_room = centre, -math.inf
    for radius in (32, 48, 70, 100):
        for turn in range(12):
            angle = math.pi * (2 * turn / 12 - 0.25)
            place = centre + radius * np.array([math.sin(angle), math.cos(angle)])
            if (place < 14).any() or (place > inside - 14).any():
                continue
            room = min(float(np.hypot(*(place - other))) for other in taken)
            if room >= 27:
                return np.asarray(place)
            if room > best_room:
                best, best_room = np.asarray(place), room
    return best


def plot_scale_bar(axes: Axes, screen: ScreenImage, unit: str) -> None:
    """Draw a scale bar of a round length at the lower right, dark on a pale plate.

    Args:
        axes: axes that show the screen.
        screen: the part of the image that is shown.
        unit: unit of its spacing, ``um`` or ``px``.
    """
    rows, columns = screen.shape
    length_um = nice_length(max(screen.extent_um[1] * 0.3, screen.spacing_um))
    length_px = length_px_from_um(length_um, screen.spacing_um)
    right, y = columns - 14, rows - 14
    from matplotlib.patches import Rectangle

    middle, reach = right - length_px / 2, max(length_px, 52) / 2 + 6
    middle = min(middle, columns - reach - 4)
    axes.add_patch(
        Rectangle((middle - reach, y - 24), 2 * reach, 32, fc=PAPER, ec="none", alpha=0.8)
    )
    ends, text = [middle - length_px / 2, middle + length_px / 2], format_length(length_um, unit)
    axes.plot(ends, [y, y], color=INK, linewidth=points(4), solid_capstyle="butt")
    axes.text(middle, y - 5, text, fontsize=points(12), color=INK, ha="center", va="bottom")


def format_length(length_um: float, unit: str) -> str:
    """Write a length as ``2 mm`` or ``500 µm``, or with `unit` px (no physical size) ``100 px``.

    Args:
        length_um: the length, in the unit of the image's spacing.
        unit: this unit, ``um`` or ``px``.
    """
    if unit == "um" and length_um >= 1000:
        return f"{length_mm_from_um(length_um):g} mm"
    return f"{length_um:g} {'µm' if unit == 'um' else unit}"


def plot_colour_bar(figure: Figure, rect: Rect, scale: Scale) -> None:
    """Draw the colour bar from an even share to full colour, with weights and multiples.

    Args:
        figure: the figure.
        rect: place of the bar, in pixels of the figure.
        scale: colours of weights.
    """
    heading = "weight of a region (times an even share)"
    plot_text(figure, rect.x_px, rect.y_px, heading, height_px=12, colour=GREY)
    axes = add_axes(figure, Rect(rect.x_px, rect.y_px + 18, rect.width_px, 12))
    axes.imshow(weight_colours(np.linspace(0, 1, 256))[None], aspect="auto", extent=(0, 1, 0, 1))
    for place, side in ((0.0, "left"), (0.5, "center"), (1.0, "right")):
        weight = scale.even + place * (scale.top - scale.even)
        text = f"{weight:.3g} ({weight / scale.even:.3g}×)"
        if place == 0:
            text = f"up to {text}"
        axes.text(place, -0.35, text, fontsize=points(12), color=INK, ha=side, va="top")


def plot_gallery(
    figure: Figure, rect: Rect, shown: ShownEvidence, side_px: int, columns: int
) -> None:
    """Draw the heaviest boxes at full resolution, numbered as on the overview, with weights.

    Args:
        figure: the figure.
        rect: place of the gallery, in pixels of the figure.
        shown: boxes of the image, and those that are drawn.
        side_px: side of a drawn box.
        columns: boxes side by side.
    """
    from matplotlib.patches import Rectangle
    from matplotlib.transforms import IdentityTransform

    weight = shown.evidence.weight
    strength, times = shown.scale.strength(weight), shown.scale.times_even(weight)
    step_x = (rect.width_px - side_px) / max(columns - 1, 1)
    bottom_px = round(figure.get_figheight() * DPI)
    for k, i in enumerate(shown.chosen):
        patch = shown.camera.patch(shown.evidence, int(i), side_px - 6)
        height, width = patch.shape[:2]
        x = round(rect.x_px + (k % columns) * step_x)
        y = round(rect.y_px + (k // columns) * (side_px + SHELF_PX))
        corner = x, bottom_px - y - height - 6
        # Not on axes of its own: making axes takes longer than drawing all that is on them.
        figure.figimage(patch, corner[0] + 3, corner[1] + 3)
        frame = Rectangle(corner, width + 6, height + 6, fill=False, transform=IdentityTransform())
        frame.set(edgecolor=weight_colours(strength[i]), linewidth=points(6))
        figure.add_artist(frame)
        plot_text(figure, x + 2, y + height + 13, f"{k + 1}", bold=True)
        plot_text(figure, x + 18, y + height + 13, f"weight {weight[i]:.3g} ({times[i]:.3g}×)")
