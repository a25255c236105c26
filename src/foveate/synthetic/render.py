"""Draw the level-0 pixels of a slide, tile by tile, from its layout and its textures."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np

from foveate.synthetic.spec import (
    STROMA_PX0,
    TEXTURE_PX0,
    Bytes,
    Floats,
    Island,
    Layout,
    Nodule,
    Paint,
    SlideSpec,
    SlideTile,
)

_COARSE_PX0 = 16
_WOBBLE_PX0 = 32
_EDGE_PX0 = 2.5


class Renderer:
    """Draws the tiles of one slide; tiles that it does not draw are glass.

    Args:
        spec: the appearance of the slide.
        layout: the places of tissue and nodules.
        paint: the textures of the slide.
    """

    def __init__(self, spec: SlideSpec, layout: Layout, paint: Paint) -> None:
        self.tile_px = spec.tile_px
        self.n_columns = -(-spec.shape_px0[1] // spec.tile_px)
        self.paint = paint
        self._islands = layout.islands
        self._glass = np.empty((spec.tile_px, spec.tile_px, 3), np.uint8)
        self._glass[:] = paint.glass
        self._nodules: dict[tuple[int, int], list[int]] = defaultdict(list)
        self._layout = layout
        side = self.tile_px
        for i, nodule in enumerate(layout.nodules):
            reach = nodule.radius_px0 + _WOBBLE_PX0
            (top, bottom), (left, right) = (
                (int((c - reach) // side), int((c + reach) // side)) for c in nodule.centre_px0
            )
            for row in range(top, bottom + 1):
                for column in range(left, right + 1):
                    self._nodules[row, column].append(i)

    def row(self, row: int) -> dict[int, SlideTile]:
        """Draw the tiles of a row that are not pure glass, by column."""
        parts: dict[int, list[tuple[Island, Floats | None]]] = defaultdict(list)
        for island in self._islands:
            for column, depth in self._coarse_depths(island, row):
                if depth.min() > _WOBBLE_PX0:
                    parts[column].append((island, None))
                elif depth.max() > -_WOBBLE_PX0:
                    parts[column].append((island, depth))
        return {column: self._draw(row, column, parts[column]) for column in sorted(parts)}

    def _coarse_depths(self, island: Island, row: int) -> list[tuple[int, Floats]]:
        """Compute depths in an island on a coarse lattice, for tiles of a row that may touch it.

        Returns the column of each tile and its depths, ``(n + 1, n + 1)``, at the corners of cells.
        """
        side = self.tile_px
        (top, bottom), (left, right) = island.ends_px0
        if not (row * side - _WOBBLE_PX0 < bottom and top < (row + 1) * side + _WOBBLE_PX0):
            return []
        first = max(0, int((left - _WOBBLE_PX0) // side))
        last = min(self.n_columns - 1, int((right + _WOBBLE_PX0) // side))
        per_tile = side // _COARSE_PX0
        ys = row * side + np.arange(0, side + 1, _COARSE_PX0)
        xs = np.arange(first * side, (last + 1) * side + 1, _COARSE_PX0)
        depth = island.depth_px0(ys[:, None].astype(np.float32), xs[None].astype(np.float32))
        return [
            (first + i, depth[:, i * per_tile : (i + 1) * per_tile + 1])
            for i in range(last - first + 1)
        ]

    def _draw(self, row: int, column: int, parts: list[tuple[Island, Floats | None]]) -> SlideTile:
        """Draw one tile from the islands that it touches; depths are None inside of an island."""
        side = self.tile_px
        nodules = self._nodules.get((row, column), [])
        island, depth = parts[0]
        stroma, key = self._stroma(island, row, column)
        if depth is None and not nodules:
            return SlideTile(stroma, key)
        pixels = self._glass.copy()
        wobble = self._wobble(row * side, column * side, side, side)
        for island, depth in parts:
            stroma, _ = self._stroma(island, row, column)
            if depth is None:
                pixels[:] = stroma
            else:
                _blend(pixels, stroma, _enlarge(depth) + wobble)
        for i in nodules:
            self._draw_nodule(pixels, row, column, self._layout.nodules[i], i)
        return SlideTile(pixels, None)

    def _stroma(self, island: Island, row: int, column: int) -> tuple[Bytes, tuple[int, int]]:
        """Return the stroma of a tile, ``(side, side, 3)``, and its place in the texture."""
        side = self.tile_px
        y = (row * side + island.phase_px0[0]) % STROMA_PX0
        x = (column * side + island.phase_px0[1]) % STROMA_PX0
        return self.paint.stroma[y : y + side, x : x + side], (y, x)

    def _wobble(self, y: int, x: int, height: int, width: int) -> Floats:
        """Return the displacement of outlines in a rectangle of level 0, ``(height, width)``."""
        y, x = y % STROMA_PX0, x % STROMA_PX0
        return self.paint.wobble[y : y + height, x : x + width]

    def _draw_nodule(
        self, pixels: Bytes, row: int, column: int, nodule: Nodule, index: int
    ) -> None:
        """Draw the part of a nodule that lies in a tile ``(side, side, 3)``, in place."""
        side = self.tile_px
        reach = nodule.radius_px0 + _WOBBLE_PX0
        low = [
            max(o * side, math.floor(c - reach))
            for o, c in zip((row, column), nodule.centre_px0, strict=True)
        ]
        high = [
            min((o + 1) * side, math.ceil(c + reach))
            for o, c in zip((row, column), nodule.centre_px0, strict=True)
        ]
        height, width = high[0] - low[0], high[1] - low[1]
        if min(height, width) <= 0:
            return
        variant, *shift = self._layout.textures[index]
        y, x = ((a + s) % TEXTURE_PX0 for a, s in zip(low, shift, strict=True))
        texture = self.paint.nodules[variant][nodule.deciding][y : y + height, x : x + width]
        dy = np.arange(low[0], high[0], dtype=np.float32)[:, None] + (0.5 - nodule.centre_px0[0])
        dx = np.arange(low[1], high[1], dtype=np.float32)[None] + (0.5 - nodule.centre_px0[1])
        depth = nodule.radius_px0 - np.sqrt(dy * dy + dx * dx)
        depth += self._wobble(low[0], low[1], height, width)
        part = pixels[low[0] - row * side :, low[1] - column * side :][:height, :width]
        _blend(part, texture, depth)


def _enlarge(depth: Floats) -> Floats:
    """Interpolate bilinearly from the knots of a coarse lattice ``(m, n)`` to pixel centres.

    Without a matrix product, whose threads would compete with those that write other slides.
    """
    share = (np.arange(_COARSE_PX0, dtype=np.float32) + 0.5) / _COARSE_PX0
    for axis in (0, 1):
        step = np.diff(depth, axis=axis).repeat(_COARSE_PX0, axis)
        shares = np.tile(share, step.shape[axis] // _COARSE_PX0)
        start = np.delete(depth, -1, axis).repeat(_COARSE_PX0, axis)
        depth = start + step * np.expand_dims(shares, 1 - axis)
    return depth


def _blend(below: Bytes, above: Bytes, depth: Floats) -> None:
    """Blend `above` over `below`, ``(h, w, 3)``, where `depth` ``(h, w)`` is positive, in place.

    The edge is soft.
    """
    share = np.clip(depth * (256 / _EDGE_PX0) + 128, 0, 256).astype(np.uint16)
    # With one long last axis, since broadcasting over an axis of three is several times slower.
    shares = share.repeat(3, axis=1)
    height, width = depth.shape
    mixed = above.reshape(height, 3 * width) * shares
    mixed += below.reshape(height, 3 * width) * (256 - shares)
    mixed += 128
    below[:] = (mixed >> 8).astype(np.uint8).reshape(height, width, 3)
