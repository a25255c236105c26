"""How images are changed for training: each is turned, moved a little, and tinted.

What is drawn for an image holds for its glimpse, its patches and the layout of them alike, so that
parts keep their places to each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.batch.types import Augment, channels_last
from foveate.images.evidence import Floats
from foveate.nn.generators import Generators
from foveate.nn.warp import resample


@dataclass(frozen=True)
class Turn:
    """One of eight ways to lay an image: mirror columns (1), rows (2), then transpose them (4).

    Of volumes it lays every slice.
    """

    bits: int

    def shape(self, space: Sequence[int]) -> tuple[int, ...]:
        """Shape of the turned image, or of the stored one if that of the turned one is given."""
        return (*space[:-2], space[-1], space[-2]) if self.bits & 4 else tuple(space)

    def origin(
        self, region: Sequence[tuple[Any, Any]], space: Sequence[int]
    ) -> tuple[tuple[Any, Any], ...]:
        """The region of the stored image for one of the turned image; or many regions."""
        spans = list(region)
        if self.bits & 4:
            spans[-2:] = spans[-1], spans[-2]
        for axis, bit in ((-1, 1), (-2, 2)):
            if self.bits & bit:
                low, high = spans[axis]
                spans[axis] = (space[axis] - high, space[axis] - low)
        return tuple(spans)

    def apply(self, x: Tensor) -> Tensor:
        """``(…, h, w)`` as stored, turned."""
        if self.bits & 1:
            x = x.flip(-1)
        if self.bits & 2:
            x = x.flip(-2)
        return x.transpose(-1, -2) if self.bits & 4 else x

    def linear(self, axes: int) -> Floats:
        """What `apply` does to directions, ``(d, d)``."""
        matrix = np.eye(axes)
        for axis, bit in ((-1, 1), (-2, 2)):
            if self.bits & bit:
                matrix[axis, axis] = -1
        if self.bits & 4:
            matrix[[-1, -2]] = matrix[[-2, -1]]
        return matrix


@dataclass(frozen=True)
class Motion:
    """How an image lies in a training step: turned, then moved about its middle.

    Attributes:
        turn: exact.
        small: ``(d, d)``, a small turn and scaling.
        shift: ``(d,)`` in shares of the turned image's sides.
        away: ``(d,)`` by which a layout is shifted besides, in sides of the finest patch.
    """

    turn: Turn
    small: Floats
    shift: Floats
    away: Floats

    def show(
        self, glimpse: Tensor, outside: Tensor | None = None, *, mirrored: bool = False
    ) -> Tensor:
        """The glimpse as the encoder sees it in this step.

        Args:
            glimpse: ``(c, *space)``.
            outside: ``(c,)`` what lies beyond its edges; 0 by default.
            mirrored: the glimpse is mirrored there instead: a frame of one colour, which no picture
                has, would change what a frozen encoder says of all of it.
        """
        turned = self.turn.apply(glimpse)
        ground = 0.0 if outside is None else outside.view(-1, *(1,) * (glimpse.ndim - 1))
        back = np.linalg.inv(self.small)
        middle = np.asarray(turned.shape[1:]) / 2
        shift = middle - back @ (middle * (1 + 2 * self.shift))
        moved = resample(
            (turned - ground)[None],
            torch.from_numpy(back)[None],
            torch.from_numpy(shift)[None],
            turned.shape[1:],
            outside="reflection" if mirrored else "zeros",
        )
        return moved[0] + ground

    def register(
        self, map_: Tensor, space: Sequence[int], *, stride: float, centre: float
    ) -> Tensor:
        """A map of the glimpse as shown, laid so that its cells lie over the glimpse as stored.

        Cells that were shown outside take their nearest neighbour.

        Args:
            map_: ``(1, c, *cells)``.
            space: of the glimpse as stored.
            stride: pixels per cell.
            centre: where the centre of cell 0 lies, in pixels from the corner.
        """
        middle = np.asarray(space) / 2
        turned = np.asarray(self.turn.shape(space)) / 2
        linear = self.linear
        shift = turned * (1 + 2 * self.shift) - linear @ middle
        return resample(
            map_,
            torch.from_numpy(linear)[None],
            torch.from_numpy(shift)[None],
            self.turn.shape(map_.shape[2:]),
            stride=stride,
            centre=centre,
        )

    def keeping(self, seen: NDArray[np.bool_]) -> Motion:
        """The motion shifted less, where else a part ``(*space)`` of the glimpse would be lost.

        A part that is too large to be shown whole is shown about its middle.
        """
        if not seen.any():
            return self
        along = [
            np.nonzero(seen.any(tuple({*range(seen.ndim)} - {k})))[0] for k in range(seen.ndim)
        ]
        ends = np.asarray([[places[0], places[-1] + 1] for places in along]).T
        corners = np.stack(np.meshgrid(*ends.T, indexing="ij"), -1).reshape(-1, seen.ndim)
        placed = (corners - np.asarray(seen.shape) / 2) @ self.linear.T
        placed = placed / np.asarray(self.turn.shape(seen.shape))
        low, high = -0.5 - placed.min(0), 0.5 - placed.max(0)
        shift = np.where(low < high, np.clip(self.shift, low, high), (low + high) / 2)
        return replace(self, shift=shift)

    def place(self, centre: Floats, size: Floats) -> Floats:
        """Where places ``(n, d)`` lie, from the middle of an image of this size ``(d,)``."""
        sides = np.asarray(self.turn.shape(list(size)))
        placed: Floats = centre @ self.linear.T + self.shift * sides + self.away
        return placed

    @property
    def linear(self) -> Floats:
        """Directions as stored to directions as shown, ``(d, d)``."""
        matrix: Floats = self.small @ self.turn.linear(len(self.small))
        return matrix


@dataclass(frozen=True)
class Kind:
    """What is drawn for one kind of image.

    Attributes:
        turns: bits of `Turn` that may be drawn.
        degrees: largest turn beside it, on the last two axes.
        scale: largest change of size, as a share.
        shift: largest shift, in shares of a side.
        away: standard deviation of a layout's shift, in sides of the finest patch.
        whole: whether shifts keep the foreground in sight.
        channels: largest change of each channel's gain, as a share.
        stain: largest change of what the channels absorb, each by itself and in common.
        contrast, brightness: largest change of gain, and of the value at `pivot`.
        pivot: brightness that contrast leaves alone.
    """

    turns: int
    degrees: float = 0.0
    scale: float = 0.1
    shift: float = 0.05
    away: float = 0.0
    whole: bool = False
    channels: float = 0.0
    stain: float = 0.0
    contrast: float = 0.0
    brightness: float = 0.0
    pivot: float = 0.5


KINDS: dict[Augment, Kind] = {
    # Tissue lies on the glass any way and anywhere. Stains differ between laboratories.
    "slide": Kind(7, away=8.0, whole=True, channels=0.03, stain=0.1, contrast=0.05, pivot=0.0),
    # Pictures stand upright. Left and right trade places, in radiographs too: what decides seldom
    # lies on one side alone, and twice as many images are worth more than the side of the heart.
    "picture": Kind(1, degrees=7.0, contrast=0.2, brightness=0.1),
    # Left and right alone are alike in a body. Black stays nearly black.
    "volume": Kind(1, contrast=0.2, brightness=0.05, pivot=0.0),
}


def draw_motions(
    kind: Kind, seen: Sequence[NDArray[np.bool_]], generators: Generators
) -> list[Motion]:
    """Draw how each image lies.

    Args:
        kind: bounds of the draws.
        seen: ``(*space)`` foreground of each glimpse.
        generators: one per image.
    """
    drawn = [
        _draw_motion(kind, shown.ndim, each) for shown, each in zip(seen, generators, strict=True)
    ]
    if not kind.whole:
        return drawn
    return [motion.keeping(each) for motion, each in zip(drawn, seen, strict=True)]


def _draw_motion(kind: Kind, axes: int, generator: torch.Generator) -> Motion:
    turn = Turn(int(torch.randint(8, (), generator=generator)) & kind.turns)
    numbers = 2 * torch.rand(1, 2 + axes, dtype=torch.float64, generator=generator) - 1
    away = kind.away * torch.randn(axes, dtype=torch.float64, generator=generator).numpy()
    small = _small_moves(kind, numbers[:, :2], axes)[0]
    return Motion(turn, small, kind.shift * numbers[0, 2:].numpy(), away)


def move_patches(pixels: Tensor, kind: Kind, motions: Sequence[Motion], draws: Tensor) -> Tensor:
    """Turn each patch as its image, then turn and scale it a little by itself.

    Args:
        pixels: ``(m, c, *patch)``, all sides alike; at edges they are mirrored outwards.
        kind: bounds of the draws.
        motions: of each patch's image, ``m``.
        draws: ``(m, 2)`` from -1 to 1, of size and turn.
    """
    axes = pixels.ndim - 2
    small = torch.from_numpy(_small_moves(kind, draws, axes))
    turns = [motion.turn.linear(axes) for motion in motions]
    back = torch.linalg.inv(small @ torch.from_numpy(np.reshape(turns, (-1, axes, axes))))
    middle = torch.full((axes,), pixels.shape[-1] / 2, dtype=torch.float64)
    shift = middle - back @ middle
    # Relative to a pixel of its own, a patch of one colour stays exactly of one colour.
    ground = pixels.flatten(2)[:, :, 0].view(*pixels.shape[:2], *(1,) * axes)
    return resample(pixels - ground, back, shift, pixels.shape[2:], outside="reflection") + ground


def _small_moves(kind: Kind, draws: Tensor, axes: int) -> Floats:
    """Small turns and scalings ``(n, d, d)``, of draws ``(n, 2)`` from -1 to 1."""
    numbers = draws.numpy()
    size = np.exp(numbers[:, 0] * math.log1p(kind.scale))
    angle = numbers[:, 1] * math.radians(kind.degrees)
    matrix = np.tile(np.eye(axes), (len(numbers), 1, 1))
    matrix[:, -1, -1] = matrix[:, -2, -2] = np.cos(angle)
    matrix[:, -2, -1], matrix[:, -1, -2] = np.sin(angle), -np.sin(angle)
    scaled: Floats = matrix * size[:, None, None]
    return scaled


# -- colour ----------------------------------------------------------------------------------------


class Tints:
    """An affine map of RGB for each image of a batch; values stay in [0, 1].

    Args:
        matrix: ``(n, 3, 3)``.
        bias: ``(n, 3)``.
        device: where pixels are.
    """

    def __init__(self, matrix: Tensor, bias: Tensor, device: torch.device) -> None:
        self.matrix, self.bias = matrix.to(device), bias.to(device)

    def apply(self, pixels: Tensor, owner: Sequence[int]) -> Tensor:
        """RGB ``(m, 3, *space)`` in [0, 1], of the images `owner`."""
        matrix, bias = self.matrix[list(owner)], self.bias[list(owner)].unsqueeze(1)
        last = pixels.movedim(1, -1)
        with torch.autocast(pixels.device.type, enabled=False):
            mixed = torch.baddbmm(bias, last.flatten(1, -2), matrix.transpose(1, 2))
        return channels_last(mixed.clamp_(0, 1).view(last.shape).movedim(-1, 1))


def draw_tints(augment: Augment, generators: Generators, device: torch.device) -> Tints:
    """Draw the tint of each image, from its generator."""
    numbers = 2 * torch.stack([torch.rand(9, generator=each) for each in generators]) - 1
    if augment not in KINDS:
        return Tints(torch.diag_embed(1 + 0.1 * numbers[:, :3]), 0 * numbers[:, :3], device)
    kind = KINDS[augment]
    gain = 1 + kind.channels * numbers[:, :3]
    gain = gain * (1 + kind.contrast * numbers[:, 3:4])
    # Stain absorbs: glass stays white. One draw changes how far channels lie from their mean.
    absorbed = torch.diag_embed(1 + kind.stain * numbers[:, 4:7])
    grey = kind.stain * numbers[:, 7, None, None]
    absorbed = absorbed @ ((1 - grey) * torch.eye(3) + grey / 3)
    matrix = gain.unsqueeze(-1) * absorbed
    lifted = kind.brightness * numbers[:, 8:]
    if kind.stain == 0:
        return Tints(matrix, kind.pivot * (1 - gain) + lifted, device)
    return Tints(matrix, gain * (1 - absorbed.sum(-1)) + lifted, device)
