"""The heatmap picture: overview, enlargement, colour bar and the heaviest patches, on one sheet."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from foveate.heatmaps.fields import Camera, Field, Shown, aim, overview
from foveate.heatmaps.glass import on_foreground, painted
from foveate.heatmaps.panels import (
    DPI,
    GREY,
    PAPER,
    SHELF_PX,
    Rect,
    add_axes,
    blended,
    draw_colour_bar,
    draw_gallery,
    draw_markers,
    draw_outlines,
    draw_scale_bar,
    say,
    show_field,
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


@dataclass(frozen=True)
class _Sheet:
    """Where everything goes, in pixels; parts that are not shown are None."""

    width: int
    height: int
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
    """Draw where a model looked, as the bytes of a PNG, readable for slides of any size.

    The overview is paled and the boxes are laid over it, coloured by how far their weight is
    above an even share; the heaviest are numbered and shown beside it in full. Boxes on the glass
    of a slide are not drawn, but counted with their weight. Where all weights are about alike,
    the picture says so. A canvas that is mostly empty is cropped to its tissue and boxes, and
    said to be. Of a volume, the slice through the peak is drawn.

    Args:
        image: the pixels.
        evidence: where the model looked; may be empty.
        max_side_px: longer side of the overview.
        title: above the picture.
        caption: below the title; may have several lines.
        patches: how many of the heaviest boxes are shown in full.

    Raises:
        BoxError: image and evidence differ in their axes.
        MissingSpacing: the image states no pixel size.
        UnreadableImage: pixels cannot be decoded.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    camera, scale = aim(image, evidence), scale_of(evidence)
    kept = on_foreground(image, evidence)
    shown = kept if camera.z_um is None else at_slice(kept, camera.z_um)
    field, share = overview(camera, shown, max_side_px)
    chosen = ranked(shown)[:patches]
    lines = [line for line in caption.splitlines() if line.strip()] + _warnings(scale)
    header = _EDGE + (28 if title else 0) + _LINE * len(lines) + (8 if title or lines else 0)
    zooming = _worth_zooming(field, shown)
    sheet = _lay_out(field, header, len(chosen), zooming, max_side_px)
    figure = Figure(figsize=(sheet.width / DPI, sheet.height / DPI), dpi=DPI, facecolor=PAPER)
    FigureCanvasAgg(figure)
    _write_header(figure, title, lines, sheet.width)
    overlaid = blended(field, shown, scale, painted(camera, field))
    _draw_overview(figure, sheet, field, overlaid, shown, chosen, image.unit)
    zoom = _draw_zoom(figure, sheet, camera, shown, scale, image.unit)
    if zoom is not None:
        _draw_frame(figure, field, zoom)
    if sheet.gallery is not None:
        draw_gallery(figure, sheet.gallery, camera, shown, scale, chosen, sheet.tile, _COLUMNS)
    if scale.even > 0:
        draw_colour_bar(figure, sheet.bar, scale)
    notes = _notes(camera, evidence, shown, share, zoom) + _on_glass(evidence, kept)
    for k, note in enumerate(notes):
        say(figure, sheet.notes.x, sheet.notes.y + k * _LINE, note, px=12, colour=GREY)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the font lacks shows boxes; that is no news for the terminal.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()


def _worth_zooming(field: Field, evidence: Evidence) -> bool:
    if not len(evidence):
        return False
    side = _ZOOM_BOXES * max(evidence.peak_um().size[-2:])
    return side < _ZOOM_BELOW * max(field.extent_um)


def _lay_out(field: Field, header: int, n_patches: int, zooming: bool, max_side_px: int) -> _Sheet:
    """Tall overviews have the rest at their right, wide ones below."""
    rows, columns = field.shape
    tile = max(96, round(_TILE_SHARE * max_side_px))
    panel = _COLUMNS * tile + (_COLUMNS - 1) * 12
    shelves = (n_patches + _COLUMNS - 1) // _COLUMNS
    below = shelves * (tile + SHELF_PX)
    notes = 4 * _LINE
    main = Rect(_EDGE, header, columns, rows)
    if rows >= 0.75 * columns or columns <= panel:
        x, y = _EDGE + columns + _GAP, header
        zoom_height = max(300, rows - below - _BAR_HEIGHT - notes - _GAP) if zooming else 0
        zoom = Rect(x, y, panel, zoom_height) if zooming else None
        y += zoom_height + (_GAP if zooming else 0)
        gallery = Rect(x, y, panel, below) if n_patches else None
        bar = Rect(x, y + below, panel, _BAR_HEIGHT)
        text = Rect(x, y + below + _BAR_HEIGHT, panel, notes)
        bottom = max(header + rows, text.y + notes)
        return _Sheet(
            x + panel + _EDGE, round(bottom) + _EDGE, main, bar, text, zoom, gallery, tile
        )
    x, y = _EDGE, header + rows + _GAP
    left = max(400, columns - panel - _GAP)
    zoom_height = max(200, below - _BAR_HEIGHT - notes - 24) if zooming else 0
    zoom = Rect(x, y, left, zoom_height) if zooming else None
    bar = Rect(x, y + zoom_height + (12 if zooming else 0), left, _BAR_HEIGHT)
    text = Rect(x, bar.y + _BAR_HEIGHT, left, notes)
    gallery = Rect(x + left + _GAP, y, panel, below) if n_patches else None
    width = _EDGE + max(columns, left + (_GAP + panel if n_patches else 0)) + _EDGE
    bottom = max(text.y + notes, y + below)
    return _Sheet(width, round(bottom) + _EDGE, main, bar, text, zoom, gallery, tile)


def _write_header(figure: Figure, title: str | None, lines: list[str], width: int) -> None:
    y = _EDGE - 6
    if title:
        say(figure, _EDGE, y, _shortened(title, (width - 2 * _EDGE) / 11), px=19, bold=True)
        y += 28
    for line in lines:
        say(figure, _EDGE, y, _shortened(line, (width - 2 * _EDGE) / 8), px=14)
        y += _LINE


def _shortened(text: str, most: float) -> str:
    keep = max(8, int(most))
    return text if len(text) <= keep else f"{text[: keep // 2 - 1]} … {text[-keep // 2 + 2 :]}"


def _draw_overview(
    figure: Figure, sheet: _Sheet, field: Field, overlaid: Shown, evidence: Evidence,
    chosen: NDArray[np.intp], unit: str,
) -> None:  # fmt: skip
    axes = add_axes(figure, sheet.overview)
    show_field(axes, field, overlaid)
    draw_outlines(axes, field, evidence)
    draw_scale_bar(axes, field, unit)
    # The middle of what the picture shows of a box: the box's own may lie beyond its edge.
    begin = evidence.origin_um[chosen, -2:]
    end, corner = begin + evidence.size_um[chosen, -2:], np.asarray(field.origin_um)
    far = corner + np.asarray(field.extent_um)
    centres = (np.clip(begin, corner, far) + np.clip(end, corner, far)) / 2
    draw_markers(axes, field, field.px_from_um(centres))


def _draw_zoom(
    figure: Figure, sheet: _Sheet, camera: Camera, evidence: Evidence, scale: Scale, unit: str
) -> Field | None:
    """The surroundings of the peak, in full colour, boxes outlined only."""
    if sheet.zoom is None:
        return None
    peak, rect = evidence.peak_um(), sheet.zoom
    step_um = _ZOOM_BOXES * max(peak.size[-2:]) / max(rect.width, rect.height)
    shape = (round(rect.height), round(rect.width))
    whole = camera.image.box_um.size[-2:]
    corner = [
        _inside(c - n * step_um / 2, n * step_um, w)
        for c, n, w in zip(peak.centre[-2:], shape, whole, strict=True)
    ]
    origin = (corner[0], corner[1])
    pixels = camera.window.show(camera.read(origin, (step_um, step_um), shape))
    field = Field(origin, step_um, pixels)
    axes = add_axes(figure, rect)
    show_field(axes, field, field.pixels)
    draw_outlines(axes, field, evidence, scale)
    draw_scale_bar(axes, field, unit)
    return field


def _inside(start: float, size: float, whole: float) -> float:
    """Moved so that a window does not hang over the edge, or centred where it is the larger."""
    return min(max(start, 0.0), whole - size) if size <= whole else (whole - size) / 2


def _draw_frame(figure: Figure, field: Field, zoom: Field) -> None:
    """Where the enlargement lies on the overview."""
    from matplotlib.patches import Rectangle

    (y, x), (height, width) = (
        field.px_from_um(np.asarray([zoom.origin_um]))[0],
        np.asarray(zoom.extent_um) / field.spacing_um,
    )
    figure.axes[0].add_patch(
        Rectangle((x, y), width, height, fill=False, edgecolor="#0a58ca", linewidth=1.2)
    )


def _notes(
    camera: Camera, evidence: Evidence, shown: Evidence, share: float, zoom: Field | None
) -> list[str]:
    if not len(evidence):
        return ["the method gave no regions for this image"]
    regions = _counted(len(evidence))
    notes = [f"{regions}; colour and opacity: how far the weight is above an even share"]
    if camera.z_um is not None:
        index = int(camera.z_um / camera.image.known_spacing_um[0] + 1e-6)
        notes = [f"slice {index}, through the peak: {len(shown)} of {regions}"]
    if share < 0.99:
        notes.append(f"cropped to tissue and regions: {share:.0%} of the canvas")
    if zoom is not None:
        notes.append("blue frame: the enlarged part")
    return notes


def _counted(n: int) -> str:
    return "1 region" if n == 1 else f"{n} regions"


def _warnings(scale: Scale) -> list[str]:
    """Said in the header, where the picture could be taken for more than it is."""
    if not scale.indifferent:
        return []
    times = scale.heaviest / scale.even if scale.even > 0 else 1.0
    return [
        f"This map is indifferent: the heaviest region has {times:.2f} times an even share, so "
        "the model preferred no place."
    ]


def _on_glass(evidence: Evidence, kept: Evidence) -> list[str]:
    """How much evidence lies on background and is not drawn."""
    n, total = len(evidence) - len(kept), float(evidence.weight.sum())
    if not n:
        return []
    share = 1 - float(kept.weight.sum()) / total if total > 0 else 0.0
    return [f"{_counted(n)} on background not drawn, with {share:.0%} of the weight"]
