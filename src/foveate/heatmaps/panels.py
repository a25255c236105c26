"""Draw the parts of a heatmap picture, each into a rectangle of exact pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from foveate.geometry import length_px_from_um
from foveate.heatmaps.fields import Camera, ScreenImage, ScreenPixels
from foveate.heatmaps.raster import COLOURS, Scale, nice_length, ranked, splat
from foveate.images.evidence import Evidence, Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 100
SHELF_PX = 30
INK, PAPER, GREY = "#1a1a1a", "#ffffff", "#666666"

_STRONGEST, _WEAKEST, _FAINT = 0.85, 0.35, 0.12
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


def draw_text(
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
    figure.text(
        x_px / width, 1 - y_px / height, text, fontsize=points(height_px), color=colour,
        fontweight="bold" if bold else "normal", va="top", ha="left", parse_math=False,
    )  # fmt: skip


def weight_colours(strength: Floats) -> Floats:
    """Convert strengths from 0 to 1, ``(…)``, to colours ``(…, 4)``.

    The ends of the colour map are left out, so that all colours differ from black and white.
    """
    import matplotlib

    return np.asarray(matplotlib.colormaps[COLOURS](0.15 + 0.8 * np.asarray(strength)))


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


def blend_evidence(
    screen: ScreenImage, evidence: Evidence, scale: Scale, shown: NDArray[np.bool_]
) -> ScreenPixels:
    """Blend evidence over a pale picture; opacity grows with weight and coverage.

    Args:
        screen: the picture.
        evidence: the boxes on it.
        scale: scale of the weights of all boxes of the image.
        shown: where evidence may be painted, ``(h, w)``.

    Returns:
        the pixels, ``(h, w, 3)``.
    """
    base = screen.pixels.astype(np.float64)
    base = 0.35 * base + 0.65 * base.mean(-1, keepdims=True)
    strength, covered = _pile_boxes(screen, evidence, scale)
    side_um = float(np.median(evidence.size_um[:, -2:])) if len(evidence) else 0.0
    side_px = length_px_from_um(side_um, screen.spacing_um)
    strong = _STRONGEST - (_STRONGEST - _WEAKEST) * min(max(side_px - 24, 0) / 232, 1.0)
    visible = np.minimum(covered, 1.0) * shown
    opacity = _FAINT + (1 - _FAINT) * strength
    # The more of the picture is coloured, the more transparent the colour, so that it still shows.
    strong *= 1 - 0.45 * float((visible * strength).mean())
    alpha = (strong * opacity * visible)[..., None]
    mixed = (1 - alpha) * base + alpha * 255 * weight_colours(strength)[..., :3]
    return np.asarray(np.rint(np.clip(mixed, 0, 255)), np.uint8)


def _pile_boxes(screen: ScreenImage, evidence: Evidence, scale: Scale) -> tuple[Floats, Floats]:
    """Compute strengths with the heaviest box on top, and covered areas, ``(h, w)`` each.

    An average of all boxes would pale the peak wherever weak ones overlap it.
    """
    total, covered = splat(evidence, screen.origin_um, screen.extent_um, screen.shape)
    mean = np.divide(total, covered, out=np.zeros_like(total), where=covered > 0)
    strength, box_strength = scale.strength(mean), scale.strength(evidence.weight)
    low = screen.locate(evidence.origin_um[:, -2:])
    high = low + length_px_from_um(evidence.size_um[:, -2:], screen.spacing_um)
    first = np.maximum(np.ceil(low - 0.5), 0).astype(np.int64)
    last = np.maximum(np.ceil(high - 0.5), 0).astype(np.int64)
    for i in ranked(evidence)[::-1]:
        strength[first[i, 0] : last[i, 0], first[i, 1] : last[i, 1]] = box_strength[i]
    return strength, covered


def draw_outlines(
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
    corners = np.stack([low, np.stack([low[:, 0], high[:, 1]], -1), high,
                        np.stack([high[:, 0], low[:, 1]], -1)], 1)[order, :, ::-1]  # fmt: skip
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


def draw_markers(axes: Axes, screen: ScreenImage, centres_px: Floats) -> None:
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
        axes.text(
            u, v, str(number), fontsize=points(13), fontweight="bold", color=PAPER,
            ha="center", va="center_baseline",
            bbox={"boxstyle": "circle,pad=0.25", "fc": INK, "ec": PAPER, "lw": points(1.2)},
        )  # fmt: skip


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


def draw_scale_bar(axes: Axes, screen: ScreenImage, unit: str) -> None:
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
    axes.plot([middle - length_px / 2, middle + length_px / 2], [y, y], color=INK,
              linewidth=points(4), solid_capstyle="butt")  # fmt: skip
    axes.text(middle, y - 5, format_length(length_um, unit), fontsize=points(12), color=INK,
              ha="center", va="bottom")  # fmt: skip


def format_length(length_um: float, unit: str) -> str:
    """Write a length as ``2 mm`` or ``500 µm``, or with `unit` px (no physical size) ``100 px``.

    Args:
        length_um: the length, in the unit of the image's spacing.
        unit: this unit, ``um`` or ``px``.
    """
    if unit == "um" and length_um >= 1000:
        return f"{length_um / 1000:g} mm"
    return f"{length_um:g} {'µm' if unit == 'um' else unit}"


def draw_colour_bar(figure: Figure, rect: Rect, scale: Scale) -> None:
    """Draw the colour bar from an even share to full colour, with weights and multiples.

    Args:
        figure: the figure.
        rect: place of the bar, in pixels of the figure.
        scale: colours of weights.
    """
    draw_text(
        figure,
        rect.x_px,
        rect.y_px,
        "weight of a region (times an even share)",
        height_px=12,
        colour=GREY,
    )
    axes = add_axes(figure, Rect(rect.x_px, rect.y_px + 18, rect.width_px, 12))
    axes.imshow(weight_colours(np.linspace(0, 1, 256))[None], aspect="auto", extent=(0, 1, 0, 1))
    for place, side in ((0.0, "left"), (0.5, "center"), (1.0, "right")):
        weight = scale.even + place * (scale.top - scale.even)
        text = f"{weight:.3g} ({weight / scale.even:.3g}×)"
        if place == 0:
            text = f"up to {text}"
        axes.text(place, -0.35, text, fontsize=points(12), color=INK, ha=side, va="top")


def draw_gallery(
    figure: Figure, rect: Rect, camera: Camera, evidence: Evidence, scale: Scale,
    chosen: NDArray[np.intp], side_px: int, columns: int,
) -> None:  # fmt: skip
    """Draw the heaviest boxes at full resolution, numbered as on the overview, with weights.

    Args:
        figure: the figure.
        rect: place of the gallery, in pixels of the figure.
        camera: camera of the image.
        evidence: boxes of the image.
        scale: colours of weights.
        chosen: indices of the boxes that are drawn.
        side_px: side of a drawn box.
        columns: boxes side by side.
    """
    strength, times = scale.strength(evidence.weight), scale.times_even(evidence.weight)
    step_x = (rect.width_px - side_px) / max(columns - 1, 1)
    for k, i in enumerate(chosen):
        patch = camera.patch(evidence, int(i), side_px - 6)
        height, width = patch.shape[:2]
        x = rect.x_px + (k % columns) * step_x
        y = rect.y_px + (k // columns) * (side_px + SHELF_PX)
        axes = add_axes(figure, Rect(x + 3, y + 3, width, height))
        axes.imshow(patch, interpolation="nearest", aspect="auto", extent=(0, 1, 0, 1))
        frame = add_axes(figure, Rect(x, y, width + 6, height + 6))
        frame.set_axis_on()
        frame.set(xticks=[], yticks=[], facecolor="none")
        for spine in frame.spines.values():
            spine.set(color=weight_colours(strength[i]), linewidth=points(6))
        draw_text(figure, x + 2, y + height + 13, f"{k + 1}", height_px=13, bold=True)
        draw_text(
            figure,
            x + 18,
            y + height + 13,
            f"weight {evidence.weight[i]:.3g} ({times[i]:.3g}×)",
            height_px=13,
        )
