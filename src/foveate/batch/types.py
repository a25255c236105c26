"""Types of a batch: the geometry of reading, images, patches, and pixels as tensors."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate.errors import FoveateError, TooManyOpen, converting
from foveate.files.identical import image_state
from foveate.geometry import length_um_from_px, mean_spacing, points_um_from_px
from foveate.images.composed import ComposedImage
from foveate.images.evidence import Evidence, Floats
from foveate.images.image import AbstractImage
from foveate.images.resample import Pixels, white_value
from foveate.images.stored import Recipe, StoredPatches
from foveate.images.tiling import tile_foreground

Reads = Literal["glimpse", "crops", "bag", "whole"]
Augment = Literal["slide", "picture", "volume", "warp", "none"]
"""How images are changed in training. ``slide``: turned by right angles and mirrored, tinted as
stains differ; layouts shifted. ``picture``: left and right mirrored, turned by up to 7 degrees,
brightness and contrast. ``volume``: left and right mirrored, brightness and contrast. All three
shift glimpses by up to a twentieth of a side and scale them by up to a tenth; each patch is scaled
once more, by itself, by up to a tenth. ``warp``: tints, and a small turn and scaling of each patch.
"""

PATCH_PX = (16, 4096)
"""Smallest and largest side of a patch that is accepted."""
SPACING = (1e-4, 1e6)
"""Smallest and largest spacing that is accepted, in micrometres (or pixels of the picture)."""


@dataclass(frozen=True)
class View:
    """The geometry in which a model reads images; stored with the model.

    Attributes:
        spacing_um: spacing of patches (with ``unit`` px: in pixels of the fitted picture).
        patch_px: side of a patch in pixels.
        glimpse_spacing_um: spacing of the glimpse.
        unit: unit of the spacings.
        fit: shape that every picture is resampled to, or None.
        axes: number of axes of the images: 2, or 3 for volumes.
        bits: number of bits that count in images of 16 bits (`foveate.images.bit_depth`); None
            where training saw no such image: each image then has its own.
        recipe: how the vectors of patches were made, for files of features; None for images with
            pixels.
    """

    spacing_um: float
    patch_px: int
    glimpse_spacing_um: float
    unit: Literal["um", "px"] = "um"
    fit: tuple[int, ...] | None = None
    axes: int = 2
    bits: int | None = None
    recipe: Recipe | None = None

    @property
    def patch_um(self) -> float:
        """Return the side of a patch in micrometres (or pixels of the picture)."""
        return length_um_from_px(float(self.patch_px), self.spacing_um)

    @property
    def patches_add_detail(self) -> bool:
        """Return whether patches are clearly finer than the glimpse: by a quarter or more."""
        return self.glimpse_spacing_um >= 1.25 * self.spacing_um


@dataclass(frozen=True)
class LoadedImage:
    """An open image with its glimpse.

    Attributes:
        image_id: id from the table.
        image: the open image that patches are read from.
        glimpse: pixels ``(*space, c)`` as read.
        contrast: ``(*space)``, difference from the background, 1 to 255 on foreground, else 0.
    """

    image_id: str
    image: AbstractImage
    glimpse: Pixels
    contrast: NDArray[np.uint8]

    def cover_um(self, view: View, offset_um: Sequence[float]) -> Floats:
        """Compute the centres ``(n, d)`` of the lattice patches with foreground.

        Args:
            view: the geometry in which the glimpse was read and patches will be.
            offset_um: shift of the lattice along each axis.
        """
        corners = tile_foreground(
            self.contrast > 0,
            mask_spacing_um=view.glimpse_spacing_um,
            extent_um=self.image.box_um.size,
            patch_um=view.patch_um,
            offset_um=tuple(offset_um),
        )
        return corners + view.patch_um / 2


@dataclass(frozen=True)
class Patches:
    """Squares (in volumes cubes) of one image, each read as ``patch_px`` pixels a side.

    Attributes:
        origin_um: corners ``(n, d)``.
        side_um: sides ``(n,)``.
        row: rows ``(n,)`` of the vectors of stored patches; None for patches that are read.
    """

    origin_um: Floats
    side_um: Floats
    row: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.origin_um)

    def __getitem__(self, part: slice | NDArray[np.int64]) -> Patches:
        row = None if self.row is None else self.row[part]
        return Patches(self.origin_um[part], self.side_um[part], row)

    @property
    def centre_um(self) -> Floats:
        """Return the centres ``(n, d)`` of the patches."""
        centre: Floats = self.origin_um + self.side_um[:, None] / 2
        return centre


def list_stored_patches(stored: StoredPatches, spacing_um: Sequence[float]) -> Patches:
    """Return all patches that an image stores as vectors, in the order of its file.

    Args:
        stored: the patches of the image.
        spacing_um: spacing of the image, per axis.
    """
    origin_um = points_um_from_px(stored.corner_px0, spacing_um, (0.0,) * len(spacing_um))
    side_um = length_um_from_px(stored.side_px0, mean_spacing(spacing_um))
    return Patches(origin_um, np.full(len(stored), side_um), np.arange(len(stored)))


@dataclass(frozen=True)
class Look:
    """Maps, features and colours of the glimpse of one image.

    Attributes:
        maps: maps ``(1, c, *cells)`` of the encoder, in register with the stored glimpse, however
            the glimpse was turned or shifted for training.
        features: the encoder's features ``(1, n_features)`` of the foreground.
        colours: colour statistics ``(1, N_COLOURS)`` of the foreground.
    """

    maps: list[Float[Tensor, "1 _c *_cells"]]
    features: Float[Tensor, "1 n_features"]
    colours: Float[Tensor, "1 colours"]

    @property
    def overview(self) -> Float[Tensor, "1 n"]:
        """Return features and colours of the image as a whole, ``(1, n_features + N_COLOURS)``."""
        return torch.cat([self.features.float(), self.colours], 1)


def image_key(item: LoadedImage, view: View) -> str:
    """Return a key that identifies an image in the present state of its file.

    Args:
        item: the image.
        view: geometry in which it is read.
    """
    if item.image not in _stamps:
        _stamps[item.image] = _stamp_files(item.image)
    return f"{item.image_id} {_stamps[item.image]} {view}"


_stamps: WeakKeyDictionary[AbstractImage, str] = WeakKeyDictionary()
"""What `_stamp_files` returned, by open image: a folder may hold hundreds of files, and a training
asks for the key of an image in every step."""


def _stamp_files(image: AbstractImage) -> str:
    """Return path, size and time of each file of an open image in one text."""
    stamps = []
    for path in image.files if isinstance(image, ComposedImage) else (image.path,):
        stamp = ""
        with contextlib.suppress(OSError):
            size, changed_ns = image_state(path)
            stamp = f"{size} {changed_ns}"
        stamps.append(f"{path} {stamp}")
    return " ".join(stamps)


def augment_for(items: Sequence[LoadedImage], view: View) -> Augment:
    """Choose the augmentation that suits the kind of the images.

    Args:
        items: the images of a batch.
        view: geometry in which they are read.
    """
    if view.axes == 3:
        return "volume"
    return "slide" if {item.image.kind for item in items} == {"slide"} else "picture"


class ReadingFailed(FoveateError, OSError):
    """Reading pixels of one image failed.

    Attributes:
        image_id: id of the image.
        path: file of the image.
    """

    def __init__(self, image_id: str, path: Path, cause: Exception) -> None:
        super().__init__(str(cause))
        self.image_id, self.path = image_id, path


@contextlib.contextmanager
def reading_pixels(item: LoadedImage) -> Iterator[None]:
    """Convert any error of reading pixels of an image inside to a `ReadingFailed`.

    Raises:
        ReadingFailed: reading failed.
        TooManyOpen: the limit of open files caused the error, so the image is not to blame.
    """
    try:
        with converting(item.image.path):
            yield
    except TooManyOpen:
        raise
    except FoveateError as error:
        raise ReadingFailed(item.image_id, item.image.path, error) from error


def to_rgb(pixels: Pixels, device: torch.device) -> Float[Tensor, "n 3 *space"]:
    """Convert pixels to RGB in [0, 1].

    Args:
        pixels: ``(n, *space, c)`` of 1 or 3 channels, 8 or 16 bit.
        device: device of the result.

    Returns:
        ``(n, 3, *space)`` in float32.
    """
    top = white_value(pixels.dtype)
    if pixels.dtype == np.uint16:
        pixels = pixels.astype(np.int32)
    tensor = torch.from_numpy(np.array(pixels, order="C")).to(device).movedim(-1, 1)
    tensor = tensor.to(torch.float32) / top
    wanted = (-1, 3, *(-1,) * (tensor.ndim - 2))
    return tensor.expand(wanted) if tensor.shape[1] == 1 else tensor[:, :3]


def join_same_kind(parts: Sequence[Pixels]) -> list[Pixels]:
    """Concatenate neighbouring arrays ``(n, *space, c)`` of one dtype and number of channels.

    A batch may have grey and RGB images, of 8 and 16 bit.
    """
    kinds = itertools.groupby(parts, lambda part: (part.dtype, part.shape[-1]))
    return [np.concatenate(list(group)) for _, group in kinds]


def foreground_weight(item: LoadedImage, device: torch.device) -> Float[Tensor, " 1 *space"] | None:
    """Return ``(1, *space)``, 1 on the foreground of a glimpse; None where all of it counts.

    That is so for pictures and volumes, but for gaps between several pictures on a canvas.

    Args:
        item: the image.
        device: device of the result.
    """
    foreground = item.contrast > 0
    has_gaps = isinstance(item.image, ComposedImage) and not foreground.all()
    if item.image.kind != "slide" and not has_gaps:
        return None
    return torch.from_numpy(foreground)[None].float().to(device)


def channels_last(x: Float[Tensor, "n c *space"]) -> Float[Tensor, "n c *space"]:
    """Lay ``(n, c, *space)`` out with the channels of a pixel side by side, fast to convolve."""
    form = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    return x.contiguous(memory_format=form)


def lay_kernels(network: nn.Module) -> None:
    """Lay out the kernels of a network's convolutions with channels last, in place."""
    for parameter in network.parameters():
        if parameter.ndim in (4, 5):
            parameter.data = channels_last(parameter.data)


def build_evidence(
    items: Sequence[LoadedImage],
    patches: Sequence[Patches],
    weight: Float[Tensor, "b n"],
    by_output: Float[Tensor, "b k n"] | None,
    remainder: Float[Tensor, " b"] | None,
) -> list[Evidence]:
    """Build the evidence of each image; see `Batch.evidence`.

    Args:
        items: the images.
        patches: ``n_i`` patches of each image.
        weight: weights ``(b, n)``, of which the first ``n_i`` of row i count.
        by_output: weights for each output ``(b, k, n)``; None without.
        remainder: share of the prediction that rests on no patch, ``(b,)``; None for 0.
    """
    shares = weight.detach().double().cpu().numpy()
    output_shares = None if by_output is None else by_output.detach().double().cpu().numpy()
    rest = None if remainder is None else remainder.detach().double().clamp(0, 1).tolist()
    return [
        Evidence(
            part.origin_um,
            np.repeat(part.side_um[:, None], part.origin_um.shape[1], 1),
            shares[i, : len(part)],
            extent_um=np.asarray(item.image.box_um.size),
            by_output=None if output_shares is None else output_shares[i, :, : len(part)].T,
            remainder=0.0 if rest is None else rest[i],
        )
        for i, (item, part) in enumerate(zip(items, patches, strict=True))
    ]
