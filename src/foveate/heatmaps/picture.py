"""Draw the heatmap picture: overview, enlargement, colour bar and heaviest patches on one page."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from foveate.geometry import (
    index_px_from_um,
    length_px_from_um,
    size_um_from_shape,
    spacing_um_from_shape,
)
from foveate.heatmaps.fields import Camera, ScreenImage, aim, overview
from foveate.heatmaps.glass import on_foreground, paintable_mask
from foveate.heatmaps.overlay import blend_evidence
from foveate.heatmaps.panels import (
    DPI,
    GREY,
    PAPER,
    SHELF_PX,
    Rect,
    ShownEvidence,
    add_axes,
    plot_colour_bar,
    plot_gallery,
    plot_markers,
    plot_outlines,
    plot_scale_bar,
    plot_text,
    show_screen,
)
from foveate.heatmaps.raster import Scale, at_slice, ranked, scale_of
from foveate.images.evidence import Evidence
from foveate.images.image import AbstractImage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_EDGE, _GAP, _LINE = 24, 20, 18
_COLUMNS, _TILE_SHARE = 3, 0.1875
_ZOOM_BOXES = 10.0
_ZOOM_BELOW = 0.6
_BAR_HEIGHT = 58
_HARDLY_REGIONS = 0.9
"""Share of an answer that rests on no region, from which on the picture warns."""


@dataclass(frozen=True)
class _PageLayout:
    """The places of the parts of the picture, in pixels.

    Attributes:
        width_px: width of the picture.
        height_px: height of the picture.
        overview: place of the overview.
        bar: place of the colour bar.
        notes: place of the notes.
        zoom: place of the enlargement, or None.
        gallery: place of the heaviest patches, or None.
        tile: side of a patch in the gallery.
    """

    width_px: int
    height_px: int
    overview: Rect
    bar: Rect
    notes: Rect
    zoom: Rect | None
    gallery: Rect | None
    tile: int


def render_heatmap(
    image: AbstractImage,
    evidence: Evidence,
    *,
    max_side_px: int = 1024,
    title: str | None = None,
    caption: str = "",
    patches: int = 6,
) -> bytes:
    """Draw evidence over an image, as the bytes of a PNG, readable for slides of any size.

    The boxes are drawn over a pale overview, coloured by how far their weight is above an even
    share; the heaviest are numbered, and shown beside it at full resolution. Boxes on the glass of
    a slide are not drawn, but a note counts them with their weight. A line says so where all
    weights are nearly equal. An image that is mostly empty is cropped to its tissue and boxes, with
    a note. Of a volume, the slice through the peak is drawn.

    Args:
        image: the image.
        evidence: the evidence; may be empty.
        max_side_px: longer side of the overview.
        title: the line above the picture.
        caption: text below the title; may have several lines.
        patches: number of the heaviest boxes that are shown beside the overview.

    Raises:
        BoxError: image and evidence differ in their axes.
        MissingSpacing: the image states no pixel size.
        UnreadableImage: pixels cannot be decoded.
    """
    camera, drawable = aim(image, evidence), on_foreground(image, evidence)
    boxes = drawable if camera.z_um is None else at_slice(drawable, camera.z_um)
    shown = ShownEvidence(camera, boxes, scale_of(evidence), ranked(boxes)[:patches])
    screen, share = overview(camera, boxes, max_side_px)
    lines = [*filter(str.strip, caption.splitlines()), *_warnings(shown.scale, evidence)]
    header = _EDGE + (28 if title else 0) + _LINE * len(lines) + (8 if title or lines else 0)
    sheet = _lay_out(screen, header, shown, max_side_px)
    figure = _new_figure(sheet)
    _write_header(figure, title, lines, sheet.width_px)
    zoom = _draw_evidence(figure, sheet, screen, shown)
    notes = _notes(camera, evidence, boxes, share, zoom) + _on_glass(evidence, drawable)
    for k, note in enumerate(notes):
        y_px = sheet.notes.y_px + k * _LINE
        plot_text(figure, sheet.notes.x_px, y_px, note, height_px=12, colour=GREY)
    return _png(figure)


def _new_figure(sheet: _PageLayout) -> Figure:
    """Make an empty figure of the size of the page."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(sheet.width_px / DPI, sheet.height_px / DPI), dpi=DPI, facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def _draw_evidence(
    figure: Figure, sheet: _PageLayout, screen: ScreenImage, shown: ShownEvidence
) -> ScreenImage | None:
    """Draw overview, enlargement, gallery and colour bar; return the enlarged part, or None."""
    _draw_overview(figure, sheet, screen, shown)
    zoom = _draw_zoom(figure, sheet, shown)
    if zoom is not None:
        _draw_frame(figure, screen, zoom)
    if sheet.gallery is not None:
        plot_gallery(figure, sheet.gallery, shown, sheet.tile, _COLUMNS)
    if shown.scale.even > 0:
        plot_colour_bar(figure, sheet.bar, shown.scale)
    return zoom


def _png(figure: Figure) -> bytes:
    """Write a figure as the bytes of a PNG."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # Letters that the font lacks are drawn as boxes; the warning would reach the terminal.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        # Level 1 takes less than half the time of the default, for a file 6 % larger.
        figure.savefig(file, format="png", dpi=DPI, pil_kwargs={"compress_level": 1})
    return file.getvalue()


def _worth_zooming(screen: ScreenImage, evidence: Evidence) -> bool:
    """Return whether an enlargement of the peak would show much less than the overview."""
    if not len(evidence):
        return False
    side = _ZOOM_BOXES * max(evidence.peak_um().size[-2:])
    return side < _ZOOM_BELOW * max(screen.extent_um)


def _lay_out(
    screen: ScreenImage, header: int, shown: ShownEvidence, max_side_px: int
) -> _PageLayout:
    """Lay out the picture: the other parts stand beside a tall overview, and below a wide one.

    Args:
        screen: the overview.
        header: height of the title and the lines below it, in pixels.
        shown: the evidence.
        max_side_px: longer side of the overview.
    """
    n_patches, zooming = len(shown.chosen), _worth_zooming(screen, shown.evidence)
    rows, columns = screen.shape
    tile = max(96, round(_TILE_SHARE * max_side_px))
    panel = _COLUMNS * tile + (_COLUMNS - 1) * 12
    shelves = (n_patches + _COLUMNS - 1) // _COLUMNS
    below = shelves * (tile + SHELF_PX)
    notes = 5 * _LINE
    main = Rect(_EDGE, header, columns, rows)
    if rows >= 0.75 * columns or columns <= panel:
        x, y = _EDGE + columns + _GAP, header
        zoom_height = max(300, rows - below - _BAR_HEIGHT - notes - _GAP) if zooming else 0
        zoom = Rect(x, y, panel, zoom_height) if zooming else None
        y += zoom_height + (_GAP if zooming else 0)
        gallery = Rect(x, y, panel, below) if n_patches else None
        bar = Rect(x, y + below, panel, _BAR_HEIGHT)
        text = Rect(x, y + below + _BAR_HEIGHT, panel, notes)
        bottom = max(header + rows, text.y_px + notes)
        return _PageLayout(
            x + panel + _EDGE, round(bottom) + _EDGE, main, bar, text, zoom, gallery, tile
        )
    x, y = _EDGE, header + rows + _GAP
    left = max(400, columns - panel - _GAP)
    zoom_height = max(200, below - _BAR_HEIGHT - notes - 24) if zooming else 0
    zoom = Rect(x, y, left, zoom_height) if zooming else None
    bar = Rect(x, y + zoom_height + (12 if zooming else 0), left, _BAR_HEIGHT)
    text = Rect(x, bar.y_px + _BAR_HEIGHT, left, notes)
    gallery = Rect(x + left + _GAP, y, panel, below) if n_patches else None
    width = _EDGE + max(columns, left + (_GAP + panel if n_patches else 0)) + _EDGE
    bottom = max(text.y_px + notes, y + below)
    return _PageLayout(width, round(bottom) + _EDGE, main, bar, text, zoom, gallery, tile)


def _write_header(figure: Figure, title: str | None, lines: list[str], width: int) -> None:
    """Write the title and the lines below it."""
    y = _EDGE - 6
    if title:
        plot_text(
            figure, _EDGE, y, _shorten(title, (width - 2 * _EDGE) / 11), height_px=19, bold=True
        )
        y += 28
    for line in lines:
        plot_text(figure, _EDGE, y, _shorten(line, (width - 2 * _EDGE) / 8), height_px=14)
        y += _LINE


def _shorten(text: str, most: float) -> str:
    """Cut the middle out of a text of more than `most` letters."""
    n = max(8, int(most))
    return text if len(text) <= n else f"{text[: n // 2 - 1]} … {text[-n // 2 + 2 :]}"


def _draw_overview(
    figure: Figure, sheet: _PageLayout, screen: ScreenImage, shown: ShownEvidence
) -> None:
    """Draw the overview with outlines, scale bar and the numbers of the heaviest boxes."""
    axes, evidence, chosen = add_axes(figure, sheet.overview), shown.evidence, shown.chosen
    paintable = paintable_mask(shown.camera, screen)
    show_screen(axes, screen, blend_evidence(screen, evidence, shown.scale, paintable))
    plot_outlines(axes, screen, evidence)
    plot_scale_bar(axes, screen, shown.camera.image.unit)
    # Markers are centred on the visible part of a box, whose middle may lie beyond the picture.
    begin = evidence.origin_um[chosen, -2:]
    end, corner = begin + evidence.size_um[chosen, -2:], np.asarray(screen.origin_um)
    far = corner + np.asarray(screen.extent_um)
    centres = (np.clip(begin, corner, far) + np.clip(end, corner, far)) / 2
    plot_markers(axes, screen, screen.locate(centres))


def _draw_zoom(figure: Figure, sheet: _PageLayout, shown: ShownEvidence) -> ScreenImage | None:
    """Draw the surroundings of the peak, with outlined boxes; return its pixels, or None."""
    if sheet.zoom is None:
        return None
    camera, rect, peak = shown.camera, sheet.zoom, shown.evidence.peak_um()
    wide_um, wide_px = _ZOOM_BOXES * max(peak.size[-2:]), max(rect.width_px, rect.height_px)
    (spacing_um,) = spacing_um_from_shape([wide_um], [wide_px])
    shape = (round(rect.height_px), round(rect.width_px))
    size_um = size_um_from_shape(shape, (spacing_um, spacing_um))
    y_um, x_um = (
        _move_inside(centre_um - side_um / 2, side_um, extent_um)
        for centre_um, side_um, extent_um in zip(
            peak.centre[-2:], size_um, camera.image.box_um.size[-2:], strict=True
        )
    )
    pixels = camera.window.show(camera.read((y_um, x_um), (spacing_um, spacing_um), shape))
    screen = ScreenImage((y_um, x_um), spacing_um, pixels)
    axes = add_axes(figure, rect)
    show_screen(axes, screen, screen.pixels)
    plot_outlines(axes, screen, shown.evidence, shown.scale)
    plot_scale_bar(axes, screen, camera.image.unit)
    return screen


def _move_inside(start: float, size: float, extent: float) -> float:
    """Move an interval inside an extent that begins at 0, or centre it if it is larger."""
    return min(max(start, 0.0), extent - size) if size <= extent else (extent - size) / 2


def _draw_frame(figure: Figure, screen: ScreenImage, zoom: ScreenImage) -> None:
    """Draw the frame of the enlargement on the overview."""
    from matplotlib.patches import Rectangle

    (y, x), (height, width) = (
        screen.locate(np.asarray([zoom.origin_um]))[0],
        length_px_from_um(np.asarray(zoom.extent_um), screen.spacing_um),
    )
    figure.axes[0].add_patch(
        Rectangle((x, y), width, height, fill=False, edgecolor="#0a58ca", linewidth=1.2)
    )


def _notes(
    camera: Camera, evidence: Evidence, shown: Evidence, share: float, zoom: ScreenImage | None
) -> list[str]:
    if not len(evidence):
        return ["the method gave no regions for this image"]
    regions = _count_regions(len(evidence))
    notes = [f"{regions}; colour and opacity: how far the weight is above an even share"]
    if camera.z_um is not None:
        index = index_px_from_um(camera.z_um, camera.image.known_spacing_um[0])
        notes = [f"slice {index}, through the peak: {len(shown)} of {regions}"]
    if evidence.remainder >= 0.01:
        notes.append(f"{evidence.remainder:.0%} of the answer rests on the image as a whole")
    if share < 0.99:
        notes.append(f"cropped to tissue and regions: {share:.0%} of the canvas")
    if zoom is not None:
        notes.append("blue frame: the enlarged part")
    return notes


def _count_regions(n: int) -> str:
    """Write a number of regions."""
    return "1 region" if n == 1 else f"{n} regions"


def _warnings(scale: Scale, evidence: Evidence) -> list[str]:
    """Return warnings for the header: nearly equal weights, regions that hardly count."""
    lines = []
    if scale.indifferent:
        times = scale.heaviest / scale.even if scale.even > 0 else 1.0
        lines.append(
            f"This map is indifferent: the heaviest region has {times:.2f} times an even share, so "
            "the model preferred no place."
        )
    if len(evidence) and evidence.remainder >= _HARDLY_REGIONS:
        lines.append(
            f"{evidence.remainder:.0%} of this answer rests on the image as a whole: the regions "
            "hardly count."
        )
    return lines


def _on_glass(evidence: Evidence, drawable: Evidence) -> list[str]:
    """Return the note that counts the boxes on background, which are not drawn."""
    n, total = len(evidence) - len(drawable), float(evidence.weight.sum())
    if not n:
        return []
    share = 1 - float(drawable.weight.sum()) / total if total > 0 else 0.0
    return [f"{_count_regions(n)} on background not drawn, with {share:.0%} of the weight"]
