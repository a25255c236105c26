"""What a method sees: images with their glimpses, and a way to read crops from them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.errors import FoveateError
from foveate.evidence import Evidence, Floats
from foveate.geometry import Box, Frame
from foveate.image import AbstractImage
from foveate.resample import Pixels, brightest

Reads = Literal["glimpse", "crops", "bag"]


@dataclass(frozen=True)
class View:
    """The geometry in which a model reads images; stored with the model.

    Attributes:
        spacing_um: of patches (``unit`` px: in pixels of the picture as fitted).
        patch_px: side of a patch.
        glimpse_spacing_um: of the glimpse.
        unit: what spacings count in.
        fit: shape that every picture is brought to, or None.
    """

    spacing_um: float
    patch_px: int
    glimpse_spacing_um: float
    unit: Literal["um", "px"] = "um"
    fit: tuple[int, ...] | None = None

    @property
    def patch_um(self) -> float:
        """Side of a patch."""
        return self.spacing_um * self.patch_px


@dataclass(frozen=True)
class LoadedImage:
    """An open image with its glimpse.

    Attributes:
        image_id: from the table.
        image: open; crops are read from it.
        glimpse: ``(h, w, c)`` as read.
        contrast: ``(h, w)`` difference from the background, 1 to 255 on foreground, else 0.
    """

    image_id: str
    image: AbstractImage
    glimpse: Pixels
    contrast: NDArray[np.uint8]


class Prediction:
    """What a method returns. No dataclass: Fabric would walk into it and try to change it.

    Attributes:
        logits: ``(b, n_outputs)``.
        evidence: one per image.
        losses: scalars added to the task's loss in training.
        auxiliary: further logits ``(b, n_outputs)`` with the weight that the task's loss on them
            has in training.
    """

    def __init__(
        self,
        logits: Tensor,
        evidence: Sequence[Evidence],
        losses: Mapping[str, Tensor] | None = None,
        auxiliary: Mapping[str, tuple[float, Tensor]] | None = None,
    ) -> None:
        self.logits = logits
        self.evidence = list(evidence)
        self.losses = dict(losses or {})
        self.auxiliary = dict(auxiliary or {})


class CropError(FoveateError, OSError):
    """Reading crops of one image failed; `image_id` says of which."""

    def __init__(self, image_id: str, cause: Exception) -> None:
        super().__init__(str(cause))
        self.image_id = image_id


class Batch:
    """Images of one step, on one device.

    Args:
        items: the images.
        view: the geometry of reading.
        normalise: ``(mean, std)`` of the encoder, for RGB in [0, 1].
        device: where tensors go.
        pool: threads that read crops.
        augment: dihedral turns (``slide``), brightness only (``picture``) or nothing; draws come
            from torch's global generator, so a seed replays them.
    """

    def __init__(
        self,
        items: Sequence[LoadedImage],
        *,
        view: View,
        normalise: tuple[Sequence[float], Sequence[float]],
        device: torch.device,
        pool: ThreadPoolExecutor,
        augment: Literal["slide", "picture", "none"] = "none",
    ) -> None:
        self.items = list(items)
        self.view = view
        self.device = device
        self.seconds_reading = 0.0
        self._pool = pool
        self._mean = torch.tensor(normalise[0], device=device).view(1, -1, 1, 1)
        self._std = torch.tensor(normalise[1], device=device).view(1, -1, 1, 1)
        self._augment = augment
        n = len(self.items)
        changed = augment != "none"
        self._gain = 1 + 0.1 * (2 * torch.rand(n, 3) - 1) if changed else torch.ones(n, 3)

    def __len__(self) -> int:
        return len(self.items)

    def glimpses(self) -> list[Tensor]:
        """Normalised glimpses, each ``(3, h, w)``; sizes differ, nothing is padded."""
        return [
            self._normalised(to_rgb(item.glimpse[None], self.device), i)[0]
            for i, item in enumerate(self.items)
        ]

    def place(self, i: int, centre_um: Floats) -> Floats:
        """Corners of patches around centres, moved to whole pixels where reading is then exact.

        At the spacing of a stored level a shift of less than half a pixel saves resampling. The
        boxes returned are the boxes read.
        """
        image, side = self.items[i].image, self.view.patch_um
        origin = centre_um - side / 2
        level = image.levels[image.level_for((self.view.spacing_um,) * image.ndim)]
        pixel = np.asarray(image.known_spacing_um) * np.asarray(level.downsample)
        if np.allclose(pixel, self.view.spacing_um, rtol=1e-9):
            origin = np.round(origin / pixel) * pixel
        return origin

    def crops(self, origins_um: Sequence[Floats], *, augment: bool = True) -> Tensor:
        """Read patches of all images and put them on the device.

        Args:
            origins_um: per image, corners ``(n_i, d)``.
            augment: False leaves out this batch's augmentation (for features that are kept).

        Returns:
            ``(sum n_i, 3, patch_px, patch_px)`` normalised, in the order given.

        Raises:
            CropError: an image could not be read.
        """
        begun = time.perf_counter()
        jobs = [
            self._pool.submit(self._read_some, i, part)
            for i, origin in enumerate(origins_um)
            for part in _shares(origin)
        ]
        try:
            parts = [job.result() for job in jobs]
        finally:
            for job in jobs:
                job.cancel()
        self.seconds_reading += time.perf_counter() - begun
        owner = [i for i, origin in enumerate(origins_um) for _ in range(len(origin))]
        pixels = np.concatenate(parts)
        rgb = to_rgb(pixels, self.device)
        return self._turned(self._normalised(rgb, owner)) if augment else self._scaled(rgb)

    def evidence(self, i: int, origin_um: Floats, weight: Tensor) -> Evidence:
        """Evidence of patches of image i; `weight` is ``(n,)``."""
        size = np.full_like(origin_um, self.view.patch_um)
        return Evidence(origin_um, size, weight.detach().double().cpu().numpy())

    def _read_some(self, i: int, origin_um: Floats) -> Pixels:
        item, view = self.items[i], self.view
        shape = (view.patch_px,) * item.image.ndim
        size = (view.patch_um,) * item.image.ndim
        try:
            return np.stack(
                [item.image.read_at(Box(tuple(o), size, Frame.UM), shape) for o in origin_um]
            )
        except (FoveateError, OSError, ValueError) as error:
            raise CropError(item.image_id, error) from error

    def _normalised(self, pixels: Tensor, owner: int | list[int]) -> Tensor:
        if self._augment != "none":
            gain = self._gain[owner].view(-1, 3, 1, 1).to(self.device)
            pixels = (pixels * gain).clamp(0, 1)
        return self._scaled(pixels)

    def _scaled(self, pixels: Tensor) -> Tensor:
        normed = (pixels - self._mean) / self._std
        return normed.contiguous(memory_format=torch.channels_last)

    def _turned(self, pixels: Tensor) -> Tensor:
        if self._augment != "slide":
            return pixels
        turn = int(torch.randint(8, ()))
        if turn & 1:
            pixels = pixels.flip(-1)
        if turn & 2:
            pixels = pixels.flip(-2)
        return pixels.transpose(-1, -2) if turn & 4 else pixels


def to_rgb(pixels: Pixels, device: torch.device) -> Tensor:
    """``(n, h, w, c)`` of 1 or 3 channels, 8 or 16 bit, as ``(n, 3, h, w)`` float in [0, 1]."""
    top = brightest(pixels.dtype)
    if pixels.dtype == np.uint16:
        pixels = pixels.astype(np.int32)
    tensor = torch.from_numpy(np.array(pixels, order="C")).to(device).permute(0, 3, 1, 2)
    tensor = tensor.to(torch.float32) / top
    return tensor.expand(-1, 3, -1, -1) if tensor.shape[1] == 1 else tensor[:, :3]


def run_by_shape(
    function: Callable[[Tensor], list[Tensor]], images: list[Tensor]
) -> list[list[Tensor]]:
    """Apply a network to images of several sizes: equal sizes together, none padded.

    Returns:
        per image, the maps ``(1, c, h, w)``.
    """
    groups: dict[torch.Size, list[int]] = {}
    for i, image in enumerate(images):
        groups.setdefault(image.shape, []).append(i)
    found: dict[int, list[Tensor]] = {}
    for members in groups.values():
        stacked = torch.stack([images[i] for i in members])
        maps = function(stacked.contiguous(memory_format=torch.channels_last))
        for row, i in enumerate(members):
            found[i] = [m[row : row + 1] for m in maps]
    return [found[i] for i in range(len(images))]


def _shares(origin: Floats, n: int = 2) -> list[Floats]:
    return [part for part in np.array_split(origin, n) if len(part)]
