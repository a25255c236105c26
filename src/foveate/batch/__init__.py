"""What a method sees: images with their glimpses, and a way to read crops from them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from foveate.batch.augment import Turn
from foveate.batch.changes import Changes
from foveate.batch.chunks import Chunks, run_by_shape
from foveate.batch.colours import N_COLOURS, describe_colours
from foveate.batch.features import FeatureStore
from foveate.batch.frozen_features import FrozenFeatures
from foveate.batch.types import (
    Augment,
    CropError,
    LoadedImage,
    Look,
    Patches,
    Reads,
    View,
    augment_for,
    build_evidence,
    channels_last,
    crop_error,
    join_same_kind,
    lay_kernels,
    to_rgb,
)
from foveate.batch.whole import WholeImage
from foveate.encoders.base import AbstractEncoder
from foveate.errors import OptionError
from foveate.geometry import Box, Frame
from foveate.images.evidence import EvidenceList, Floats
from foveate.images.resample import Pixels
from foveate.nn.generators import Generators, seeded

__all__ = [
    "N_COLOURS",
    "Augment",
    "Batch",
    "Chunks",
    "CropError",
    "LoadedImage",
    "Look",
    "Patches",
    "Reads",
    "View",
    "WholeImage",
    "augment_for",
    "channels_last",
    "lay_kernels",
    "run_by_shape",
    "to_rgb",
]

_PATCHES_PER_JOB = 16


class Batch:
    """Images of one step, on one device.

    Args:
        items: the images.
        view: the geometry of reading.
        normalise: ``(mean, std)`` of the encoder, for RGB in [0, 1].
        device: where tensors go.
        pool: threads that read crops.
        augment: what images are changed by; everything drawn for an image holds for its glimpse,
            its patches and its layout alike. ``slide``: turned by right angles and mirrored, tinted
            as stains differ; layouts shifted. ``picture``: left and right mirrored, turned by up to
            7 degrees, brightness and contrast. ``volume``: left and right mirrored, brightness and
            contrast. All three shift glimpses by up to a twentieth of a side, and scale them and,
            apart from them, each patch by up to a tenth. ``warp``: tints, and a small turn and
            scaling of each patch.
            Drawn when it is first needed.
        generators: one per image, for all that is drawn of it in this step, by the method too; the
            same seeds replay the step, whatever images are beside it. By default they are seeded
            by torch's global one, when they are first needed.
        shuffle_layout: audit: give every patch the place of another one of its image.
        tell: is told, by methods whose step may take minutes, which share of it is done.
        store: features that a frozen encoder gave; with it the batch is `frozen`: nothing is
            augmented, patches lie in the middle of their cells, and no gradient reaches the
            encoder.
        part: ``(n,)`` int, with which part of the images each was left out of the fits of linear
            answers; -1 for images that no fit has seen. None where none has been seen.
    """

    def __init__(
        self,
        items: Sequence[LoadedImage],
        *,
        view: View,
        normalise: tuple[Sequence[float], Sequence[float]],
        device: torch.device,
        pool: ThreadPoolExecutor,
        augment: Augment = "none",
        generators: Generators | None = None,
        shuffle_layout: bool = False,
        tell: Callable[[float], None] | None = None,
        store: FeatureStore | None = None,
        part: Tensor | None = None,
    ) -> None:
        if augment == "warp" and view.axes == 3:
            raise OptionError(
                "train.augment: 'warp' is for pictures, volumes take auto, slide, picture, volume "
                "or none"
            )
        self.items = list(items)
        self.tell = tell
        self.part = part
        self.frozen_features = None if store is None else FrozenFeatures(self, store)
        self.view = view
        self.device = device
        self.seconds_reading = 0.0
        self._pool = pool
        flat = (1, -1, *(1,) * view.axes)
        self._mean, self._std = (torch.tensor(x, device=device).view(flat) for x in normalise)
        self._shuffle_layout = shuffle_layout
        self._generators = generators
        self.changes = Changes(
            augment if store is None else "none",
            seen=lambda: [item.contrast > 0 for item in self.items],
            generators=lambda: self.generators,
            device=device,
        )

    def __len__(self) -> int:
        return len(self.items)

    @property
    def generators(self) -> Generators:
        """One per image, for what is drawn of it."""
        if self._generators is None:
            self._generators = seeded(torch.randint(1 << 62, (len(self),)).tolist())
        return self._generators

    def glimpses(self) -> list[Tensor]:
        """Normalised glimpses as they lie in the files, each ``(3, *space)``; nothing is padded."""
        return [
            self._normalised(to_rgb(item.glimpse[None], self.device), [i])[0]
            for i, item in enumerate(self.items)
        ]

    @property
    def frozen(self) -> bool:
        """Whether features come from a frozen encoder and are kept."""
        return self.frozen_features is not None

    def look(self, encoder: AbstractEncoder) -> list[Look]:
        """Every glimpse through the encoder, with gradient where there is one.

        Equal sizes are computed together, nothing is padded. Training turns and moves glimpses
        first, and lays the maps back.
        """
        if self.frozen_features is not None:
            return [self.frozen_features.look(encoder, i) for i in range(len(self))]
        shown = self._shown()
        cells = list(zip(encoder.strides, encoder.map_centres, strict=True))
        looks = []
        for i, maps in enumerate(run_by_shape(encoder.maps, shown)):
            seen = self._foreground(i)
            laid = self._registered(i, maps, cells)
            looks.append(Look(laid, encoder.features(maps, seen), self._colours(shown[i], seen)))
        return looks

    def pixel_maps(self, network: Callable[[Tensor], list[Tensor]]) -> list[list[Tensor]]:
        """Every glimpse through a network whose maps have a cell per pixel, as `look` does.

        Returns:
            per image, maps ``(1, c, *space)`` in register with the glimpse as it lies in the file.
        """
        every = run_by_shape(network, self._shown())
        return [self._registered(i, maps, [(1, 0.5)] * len(maps)) for i, maps in enumerate(every)]

    def _shown(self) -> list[Tensor]:
        """Glimpses as they are shown in this step.

        Beyond them lies background; pictures and volumes are mirrored there.
        """
        glimpses = self.glimpses()
        if self.changes.motions is None:
            return glimpses
        shown = []
        for i, (glimpse, motion) in enumerate(zip(glimpses, self.changes.motions, strict=True)):
            colour = self.items[i].image.background.reshape(1, *(1,) * self.view.axes, -1)
            outside = self._normalised(to_rgb(colour, self.device), [i]).flatten()
            shown.append(
                motion.show(glimpse, outside, mirrored=self.items[i].image.kind != "slide")
            )
        return shown

    def _registered(
        self, i: int, maps: list[Tensor], cells: Sequence[tuple[int, float]]
    ) -> list[Tensor]:
        """Maps of the glimpse of image i, with `cells` of ``(stride, centre)``, laid back."""
        if self.changes.motions is None:
            return maps
        motion, space = self.changes.motions[i], self.items[i].contrast.shape
        return [
            motion.register(each, space, stride=stride, centre=centre)
            for each, (stride, centre) in zip(maps, cells, strict=True)
        ]

    def _colours(self, shown: Tensor, seen: Tensor | None) -> Tensor:
        return describe_colours(shown * self._std[0] + self._mean[0], seen)

    def _foreground(self, i: int) -> Tensor | None:
        """``(1, *space)``, 1 where the glimpse of image i as shown is no background; of slides."""
        item = self.items[i]
        if item.image.kind != "slide":
            return None
        weight = torch.from_numpy(item.contrast > 0)[None].float().to(self.device)
        return weight if self.changes.motions is None else self.changes.motions[i].show(weight)

    def place(self, i: int, centre_um: Floats, *, scale: float = 1.0) -> Patches:
        """Patches around centres, moved to whole pixels where reading is then exact.

        At the spacing of a stored level a shift of less than half a pixel saves resampling. The
        boxes returned are the boxes read.

        Args:
            i: which image.
            centre_um: ``(n, d)``.
            scale: side of the patches, in sides of the finest; they are read that much coarser.
        """
        image, side = self.items[i].image, self.view.patch_um * scale
        spacing = self.view.spacing_um * scale
        origin = centre_um - side / 2
        level = image.levels[image.level_for((spacing,) * image.ndim)]
        pixel = np.asarray(image.known_spacing_um) * np.asarray(level.downsample)
        if np.allclose(pixel, spacing, rtol=1e-9):
            origin = np.round(origin / pixel) * pixel
        return Patches(origin, np.full(len(origin), side))

    def cover(self, i: int, offset_um: Sequence[float]) -> Patches:
        """The lattice patches of image i with foreground.

        Args:
            i: which image.
            offset_um: shift of the lattice, per axis.
        """
        return self.place(i, self.items[i].cover_um(self.view, offset_um))

    def crops(self, patches: Sequence[Patches], *, augment: bool = True) -> Tensor:
        """Read patches of all images and put them on the device.

        Args:
            patches: per image.
            augment: False leaves out this batch's augmentation (for features that are kept).

        Returns:
            ``(sum n_i, 3, patch_px, patch_px)`` (of volumes ``(…, 3, patch_px, patch_px,
            patch_px)``) normalised, in the order given.

        Raises:
            CropError: an image could not be read.
        """
        draws = self.changes.draw_patches([len(part) for part in patches]) if augment else None
        return self._on_device(self._wait(self._start(patches)), patches, draws, augment)

    def chunks(self, patches: Sequence[Patches], size: int, *, augment: bool = True) -> Chunks:
        """The same in groups of at most `size` patches, read ahead of use."""
        return Chunks(self, patches, size, augment=augment)

    def whole(self, i: int, *, skip_background: bool) -> WholeImage:
        """Image i at the spacing of patches, region by region, for networks that see all of it.

        Training lays and tints it as it does crops.

        Args:
            i: which image.
            skip_background: regions without foreground are not read; the colour of the background
                stands for them.
        """
        turn = Turn(0) if self.changes.motions is None else self.changes.motions[i].turn
        return WholeImage(
            self.items[i],
            self.view,
            normalise=lambda pixels: self._normalised(to_rgb(pixels, self.device), [i]),
            device=self.device,
            pool=self._pool,
            turn=turn,
            skip_background=skip_background,
            waited=self._waited,
        )

    def layout(self, patches: Sequence[Patches], n: int) -> tuple[Tensor, Tensor]:
        """Where patches lie: what every method that relates patches goes by.

        They lie as glimpses are shown: in training turned, and moved a little. Those of slides are
        also shifted by several patches: where tissue lies on the glass does not count.

        Returns:
            centres ``(b, n, d)`` relative to the middle of the image and extents ``(b, n)``, both
            in sides of the finest patch; 0 and 1 for padding.
        """
        ndim, side = self.view.axes, self.view.patch_um
        centre = np.zeros((len(patches), n, ndim))
        extent = np.ones((len(patches), n))
        for i, part in enumerate(patches):
            order = np.arange(len(part))
            if self._shuffle_layout:
                order = torch.randperm(len(part), generator=self.generators[i]).numpy()
            whole = np.asarray(self.items[i].image.box_um.size)
            placed = (part.centre_um - whole / 2) / side
            if self.changes.motions is not None:
                placed = self.changes.motions[i].place(placed, whole / side)
            centre[i, : len(part)] = placed[order]
            extent[i, : len(part)] = part.side_um / side
        tensors = (torch.from_numpy(each).float().to(self.device) for each in (centre, extent))
        return next(tensors), next(tensors)

    def evidence(
        self,
        patches: Sequence[Patches],
        weight: Tensor,
        *,
        by_output: Tensor | None = None,
        remainder: Tensor | None = None,
    ) -> EvidenceList:
        """Return the evidence of each image; the first ``n_i`` of padded weights are of patches.

        Args:
            patches: of each image.
            weight: ``(b, n)``.
            by_output: ``(b, k, n)``, of methods that look once for each output.
            remainder: ``(b,)``, the share of the prediction that rests on no patch.
        """
        return EvidenceList(build_evidence(self.items, patches, weight, by_output, remainder))

    # -- reading ------------------------------------------------------------------------------

    def _waited(self, seconds: float) -> None:
        self.seconds_reading += seconds

    def _start(self, patches: Sequence[Patches]) -> list[Future[Pixels]]:
        return [
            self._pool.submit(self._read_some, i, part[slice(at, at + _PATCHES_PER_JOB)])
            for i, part in enumerate(patches)
            for at in range(0, len(part), _PATCHES_PER_JOB)
        ]

    def _wait(self, jobs: list[Future[Pixels]]) -> list[Pixels]:
        begun = time.perf_counter()
        try:
            return join_same_kind([job.result() for job in jobs])
        finally:
            for job in jobs:
                job.cancel()
            self.seconds_reading += time.perf_counter() - begun

    def _on_device(
        self,
        pixels: Sequence[Pixels],
        patches: Sequence[Patches],
        draws: Tensor | None,
        augment: bool,
    ) -> Tensor:
        parts = [to_rgb(part, self.device) for part in pixels]
        if not parts:
            parts = [torch.empty(0, 3, *self._patch_shape, device=self.device)]
        rgb = torch.cat(parts) if len(parts) > 1 else parts[0]
        if not augment:
            return self._scaled(rgb)
        owner = [i for i, part in enumerate(patches) for _ in range(len(part))]
        normalised = self._normalised(rgb, owner)
        return normalised if draws is None else self.changes.move_patches(normalised, owner, draws)

    def _read_some(self, i: int, patches: Patches) -> Pixels:
        item = self.items[i]
        boxes = [
            Box(tuple(origin), (float(side),) * len(origin), Frame.UM)
            for origin, side in zip(patches.origin_um, patches.side_um, strict=True)
        ]
        try:
            return np.stack([item.image.read_at(box, self._patch_shape) for box in boxes])
        except Exception as error:
            raise crop_error(item, error) from error

    @property
    def _patch_shape(self) -> tuple[int, ...]:
        return (self.view.patch_px,) * self.view.axes

    def _normalised(self, pixels: Tensor, owner: Sequence[int]) -> Tensor:
        if self.changes.tints is not None:
            pixels = self.changes.tints.apply(pixels, owner)
        return self._scaled(pixels)

    def _scaled(self, pixels: Tensor) -> Tensor:
        return channels_last((pixels - self._mean) / self._std)
