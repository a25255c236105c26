"""Augmentation of images in training: each is turned, moved a little, and tinted.

The same change is applied to an image's glimpse, its patches and their layout, so that parts keep
their places relative to each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor

from foveate.batch.types import Augment, channels_last
from foveate.images.evidence import Floats
from foveate.nn.generators import Generators
from foveate.nn.warp import resample_affine


@dataclass(frozen=True)
class Turn:
    """One of eight ways to lay an image: mirror columns (1), mirror rows (2), then transpose (4).

    In volumes every slice is laid so.

    Attributes:
        bits: sum of the numbers of the steps that are taken.
    """

    bits: int

    def shape(self, space: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the turned image from that of the stored image, or the reverse."""
        return (*space[:-2], space[-1], space[-2]) if self.bits & 4 else tuple(space)

    def origin(
        self, region: Sequence[tuple[Any, Any]], space: Sequence[int]
    ) -> tuple[tuple[Any, Any], ...]:
        """Return the region of the stored image that shows a region of the turned image.

        Args:
            region: begin and end along each axis, as numbers, or as arrays for many regions.
            space: shape of the stored image.
        """
        spans = list(region)
        if self.bits & 4:
            spans[-2:] = spans[-1], spans[-2]
        for axis, bit in ((-1, 1), (-2, 2)):
            if self.bits & bit:
                low, high = spans[axis]
                spans[axis] = (space[axis] - high, space[axis] - low)
        return tuple(spans)

    def apply(self, x: Shaped[Tensor, "*b _h _w"]) -> Shaped[Tensor, "*b _h _w"]:
        """Turn a stored image ``(…, h, w)``."""
        if self.bits & 1:
            x = x.flip(-1)
        if self.bits & 2:
            x = x.flip(-2)
        return x.transpose(-1, -2) if self.bits & 4 else x

    def linear(self, axes: int) -> Floats:
        """Return the matrix ``(d, d)`` by which `apply` changes directions."""
        matrix = np.eye(axes)
        for axis, bit in ((-1, 1), (-2, 2)):
            if self.bits & bit:
                matrix[axis, axis] = -1
        if self.bits & 4:
            matrix[[-1, -2]] = matrix[[-2, -1]]
        return matrix


@dataclass(frozen=True)
class Motion:
    """The placement of an image in a training step: turned, then moved about its middle.

    Attributes:
        turn: mirroring and turn by right angles.
        small: matrix ``(d, d)`` of a small turn and scaling.
        shift: shift ``(d,)`` in shares of the turned image's sides.
        away_patch: further shift ``(d,)`` of the layout, in sides of the finest patch.
    """

    turn: Turn
    small: Floats
    shift: Floats
    away_patch: Floats

    def show(
        self,
        glimpse: Float[Tensor, " c *space"],
        outside: Float[Tensor, " c"] | None = None,
        *,
        mirrored: bool = False,
    ) -> Float[Tensor, " c *shown"]:
        """Resample a glimpse as the encoder is shown it in this step.

        Args:
            glimpse: stored glimpse ``(c, *space)``.
            outside: colour ``(c,)`` beyond the glimpse's edges; 0 by default.
            mirrored: mirror the glimpse at its edges instead. No picture has a frame of one
                colour, which would change all features of a frozen encoder.
        """
        turned = self.turn.apply(glimpse)
        ground = 0.0 if outside is None else outside.view(-1, *(1,) * (glimpse.ndim - 1))
        back = np.linalg.inv(self.small)
        middle = np.asarray(turned.shape[1:]) / 2
        shift = middle - back @ (middle * (1 + 2 * self.shift))
        moved = resample_affine(
            (turned - ground)[None],
            torch.from_numpy(back)[None],
            torch.from_numpy(shift)[None],
            turned.shape[1:],
            outside="reflection" if mirrored else "zeros",
        )
        return moved[0] + ground

    def register(
        self,
        map_: Float[Tensor, "1 c *cells"],
        space: Sequence[int],
        *,
        stride_px: float,
        centre_px: float,
    ) -> Float[Tensor, "1 c *space"]:
        """Resample a map of the shown glimpse so that its cells lie over the stored glimpse.

        Cells that were outside of the shown glimpse take their nearest neighbour.

        Args:
            map_: map ``(1, c, *cells)`` of the shown glimpse.
            space: shape of the stored glimpse.
            stride_px: side of a cell in pixels.
            centre_px: centre of cell 0 in pixels from the corner.
        """
        middle = np.asarray(space) / 2
        turned = np.asarray(self.turn.shape(space)) / 2
        linear = self.linear
        shift = turned * (1 + 2 * self.shift) - linear @ middle
        return resample_affine(
            map_,
            torch.from_numpy(linear)[None],
            torch.from_numpy(shift)[None],
            self.turn.shape(map_.shape[2:]),
            stride_px=stride_px,
            centre_px=centre_px,
        )

    def shifted_into_view(self, mask: NDArray[np.bool_]) -> Motion:
        """Return the motion with its shift limited, so that a part of the glimpse stays in view.

        A part that is too large for that is shown about its middle.

        Args:
            mask: ``(*space)``, True on the part of the stored glimpse.
        """
        if not mask.any():
            return self
        along = [
            np.nonzero(mask.any(tuple({*range(mask.ndim)} - {k})))[0] for k in range(mask.ndim)
        ]
        ends = np.asarray([[places[0], places[-1] + 1] for places in along]).T
        corners = np.stack(np.meshgrid(*ends.T, indexing="ij"), -1).reshape(-1, mask.ndim)
        placed = (corners - np.asarray(mask.shape) / 2) @ self.linear.T
        placed = placed / np.asarray(self.turn.shape(mask.shape))
        low, high = -0.5 - placed.min(0), 0.5 - placed.max(0)
        shift = np.where(low < high, np.clip(self.shift, low, high), (low + high) / 2)
        return replace(self, shift=shift)

    def place(self, centre_patch: Floats, size_patch: Floats) -> Floats:
        """Move places ``(n, d)``, which count from the middle of an image of a size ``(d,)``.

        Args:
            centre_patch: places ``(n, d)``, in sides of a patch from the image's middle.
            size_patch: size of the image ``(d,)``, in sides of a patch.
        """
        sides = np.asarray(self.turn.shape(list(size_patch)))
        placed: Floats = centre_patch @ self.linear.T + self.shift * sides + self.away_patch
        return placed

    @property
    def linear(self) -> Floats:
        """Return the matrix ``(d, d)`` from directions as stored to directions as shown."""
        matrix: Floats = self.small @ self.turn.linear(len(self.small))
        return matrix


@dataclass(frozen=True)
class AugmentRange:
    """The bounds of random changes for one kind of image.

    Attributes:
        turns: bits of `Turn` that may be drawn.
        degrees: largest further turn, on the last two axes.
        scale: largest change of size, as a share.
        shift: largest shift, in shares of a side.
        away_patch: standard deviation of a layout's shift, in sides of the finest patch.
        keep_foreground: whether shifts keep the foreground in view.
        channels: largest change of each channel's gain, as a share.
        stain: largest change of the absorption of the channels, of each and of all together.
        contrast: largest change of the gain of all channels.
        brightness: largest change of the value at `pivot`.
        pivot: value that a change of contrast leaves as it is.
    """

    turns: int
    degrees: float = 0.0
    scale: float = 0.1
    shift: float = 0.05
    away_patch: float = 0.0
    keep_foreground: bool = False
    channels: float = 0.0
    stain: float = 0.0
    contrast: float = 0.0
    brightness: float = 0.0
    pivot: float = 0.5


AUGMENT_RANGES: dict[Augment, AugmentRange] = {
    # Tissue lies on the glass at any angle and place. Stains differ between laboratories.
    "slide": AugmentRange(
        7, away_patch=8.0, keep_foreground=True, channels=0.03, stain=0.1, contrast=0.05, pivot=0.0
    ),
    # Pictures stand upright. Left and right are swapped, also in radiographs: the decisive part
    # seldom lies on one side alone, and twice as many images are worth more than the heart's side.
    "picture": AugmentRange(1, degrees=7.0, contrast=0.2, brightness=0.1),
    # A body is symmetrical only between left and right. Black stays nearly black.
    "volume": AugmentRange(1, contrast=0.2, brightness=0.05, pivot=0.0),
}


def draw_motions(
    ranges: AugmentRange, foreground: Sequence[NDArray[np.bool_]], generators: Generators
) -> list[Motion]:
    """Draw how each image is turned and moved.

    Args:
        ranges: bounds of the draws.
        foreground: foreground ``(*space)`` of each glimpse.
        generators: random generator of each image.
    """
    drawn = [
        _draw_motion(ranges, mask.ndim, generator)
        for mask, generator in zip(foreground, generators, strict=True)
    ]
    if not ranges.keep_foreground:
        return drawn
    pairs = zip(drawn, foreground, strict=True)
    return [motion.shifted_into_view(mask) for motion, mask in pairs]


def _draw_motion(ranges: AugmentRange, axes: int, generator: torch.Generator) -> Motion:
    turn = Turn(int(torch.randint(8, (), generator=generator)) & ranges.turns)
    numbers = 2 * torch.rand(1, 2 + axes, dtype=torch.float64, generator=generator) - 1
    away_patch = (
        ranges.away_patch * torch.randn(axes, dtype=torch.float64, generator=generator).numpy()
    )
    small = _small_moves(ranges, numbers[:, :2], axes)[0]
    return Motion(turn, small, ranges.shift * numbers[0, 2:].numpy(), away_patch)


def move_patches(
    pixels: Float[Tensor, "m c *patch"],
    ranges: AugmentRange,
    motions: Sequence[Motion],
    draws: Float[Tensor, "m 2"],
) -> Float[Tensor, "m c *patch"]:
    """Turn each patch like its image, then turn and scale it a little by itself.

    Args:
        pixels: pixels ``(m, c, *patch)`` of square or cubic patches; they are mirrored at edges.
        ranges: bounds of the draws.
        motions: motion of the image of each of the m patches.
        draws: ``(m, 2)`` from -1 to 1, for size and turn.
    """
    axes = pixels.ndim - 2
    small = torch.from_numpy(_small_moves(ranges, draws, axes))
    turns = [motion.turn.linear(axes) for motion in motions]
    back = torch.linalg.inv(small @ torch.from_numpy(np.reshape(turns, (-1, axes, axes))))
    middle = torch.full((axes,), pixels.shape[-1] / 2, dtype=torch.float64)
    shift = middle - back @ middle
    # Resampled relative to its first pixel, a patch of one colour stays exactly of one colour.
    ground = pixels.flatten(2)[:, :, 0].view(*pixels.shape[:2], *(1,) * axes)
    return (
        resample_affine(pixels - ground, back, shift, pixels.shape[2:], outside="reflection")
        + ground
    )


def _small_moves(ranges: AugmentRange, draws: Float[Tensor, "n 2"], axes: int) -> Floats:
    """Compute matrices ``(n, d, d)`` that turn and scale a little, of draws ``(n, 2)``, -1 to 1."""
    numbers = draws.numpy()
    size = np.exp(numbers[:, 0] * math.log1p(ranges.scale))
    angle = numbers[:, 1] * math.radians(ranges.degrees)
    matrix = np.tile(np.eye(axes), (len(numbers), 1, 1))
    matrix[:, -1, -1] = matrix[:, -2, -2] = np.cos(angle)
    matrix[:, -2, -1], matrix[:, -1, -2] = np.sin(angle), -np.sin(angle)
    scaled: Floats = matrix * size[:, None, None]
    return scaled


# -- colour ----------------------------------------------------------------------------------------


class Tints:
    """An affine map of RGB for each image of a batch; values stay in [0, 1].

    Args:
        matrix: linear part ``(n, 3, 3)`` for n images.
        bias: constant part ``(n, 3)``.
        device: device of the pixels.
    """

    def __init__(
        self, matrix: Float[Tensor, "n 3 3"], bias: Float[Tensor, "n 3"], device: torch.device
    ) -> None:
        self.matrix, self.bias = matrix.to(device), bias.to(device)

    def apply(
        self, pixels: Float[Tensor, "m 3 *space"], owner: Sequence[int]
    ) -> Float[Tensor, "m 3 *space"]:
        """Tint pixels.

        Args:
            pixels: RGB ``(m, 3, *space)`` in [0, 1].
            owner: index of the image of each of the m entries.
        """
        matrix, bias = self.matrix[list(owner)], self.bias[list(owner)].unsqueeze(1)
        last = pixels.movedim(1, -1)
        with torch.autocast(pixels.device.type, enabled=False):
            mixed = torch.baddbmm(bias, last.flatten(1, -2), matrix.transpose(1, 2))
        return channels_last(mixed.clamp_(0, 1).view(last.shape).movedim(-1, 1))


def draw_tints(augment: Augment, generators: Generators, device: torch.device) -> Tints:
    """Draw the tint of each image.

    Args:
        augment: kind of change.
        generators: random generator of each image.
        device: device of the pixels.
    """
    draws = [torch.rand(9, generator=generator) for generator in generators]
    numbers = 2 * torch.stack(draws) - 1
    if augment not in AUGMENT_RANGES:
        return Tints(torch.diag_embed(1 + 0.1 * numbers[:, :3]), 0 * numbers[:, :3], device)
    ranges = AUGMENT_RANGES[augment]
    gain = 1 + ranges.channels * numbers[:, :3]
    gain = gain * (1 + ranges.contrast * numbers[:, 3:4])
    # Stain absorbs, so glass stays white. `grey` changes how far channels lie from their mean.
    absorbed = torch.diag_embed(1 + ranges.stain * numbers[:, 4:7])
    grey = ranges.stain * numbers[:, 7, None, None]
    absorbed = absorbed @ ((1 - grey) * torch.eye(3) + grey / 3)
    matrix = gain.unsqueeze(-1) * absorbed
    brightness = ranges.brightness * numbers[:, 8:]
    if ranges.stain == 0:
        return Tints(matrix, ranges.pivot * (1 - gain) + brightness, device)
    return Tints(matrix, gain * (1 - absorbed.sum(-1)) + brightness, device)
