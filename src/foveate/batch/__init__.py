"""The batch that a method is given: images with their glimpses, and ways to read patches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from foveate.batch.augment import Turn
from foveate.batch.changes import Changes
from foveate.batch.chunks import Chunks, run_by_shape
from foveate.batch.colours import N_COLOURS, describe_colours
from foveate.batch.features import FeatureStore
from foveate.batch.frozen_features import FrozenFeatures
from foveate.batch.reading import PatchReader
from foveate.batch.types import (
    Augment,
    LoadedImage,
    Look,
    Patches,
    ReadingFailed,
    Reads,
    View,
    augment_for,
    build_evidence,
    channels_last,
    foreground_weight,
    lay_kernels,
    list_stored_patches,
    to_rgb,
)
from foveate.batch.whole_image import WholeImage
from foveate.encoders.base import AbstractEncoder
from foveate.errors import OptionError
from foveate.geometry import length_patch_from_um
from foveate.images.evidence import EvidenceList, Floats
from foveate.messages.display import OnProgress
from foveate.nn.generators import Generators, seeded

__all__ = [
    "N_COLOURS",
    "Augment",
    "Batch",
    "Chunks",
    "LoadedImage",
    "Look",
    "Patches",
    "ReadingFailed",
    "Reads",
    "View",
    "WholeImage",
    "augment_for",
    "channels_last",
    "lay_kernels",
    "run_by_shape",
    "to_rgb",
]


class Batch:
    """The images of one step, on one device.

    Args:
        items: the images.
        view: the geometry of reading.
        normalise: ``(mean, std)`` of the encoder, for RGB in [0, 1].
        device: device of all tensors.
        pool: threads that read patches.
        augment: changes of images, drawn when first needed; the same for glimpse and patches.
        generators: random generator of each image, for all draws of this step that concern it, also
            those of the method; the same seeds replay the step. By default torch's global generator
            seeds them when first needed.
        shuffle_layout: for the audit: give every patch the place of another one of its image.
        on_progress: called with the share of the step that is done, by methods of long steps.
        store: features of a frozen encoder; with it the batch is `frozen`: nothing is augmented,
            patches lie in the middle of their cells, and no gradient reaches the encoder. A batch
            of files of features, whose view has a recipe, is always frozen.
        left_out_fold: ``(n,)`` int, the group of images with which each was left out of the fits of
            linear answers; -1 for images that no fit has seen. None where no image has been seen.

    Raises:
        OptionError: `augment` is for pictures only, and the images are volumes.
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
        on_progress: OnProgress | None = None,
        store: FeatureStore | None = None,
        left_out_fold: Int[Tensor, " n"] | None = None,
    ) -> None:
        if augment == "warp" and view.axes == 3:
            raise OptionError(
                "train.augment: 'warp' is for pictures, volumes take auto, slide, picture, volume "
                "or none"
            )
        self.items = list(items)
        self.on_progress = on_progress
        self.left_out_fold = left_out_fold
        self.view = view
        self.device = device
        self._shuffle_layout = shuffle_layout
        self._generators = generators
        stored = view.recipe is not None
        self.changes = Changes(
            augment if store is None and not stored else "none",
            foreground=lambda: [item.contrast > 0 for item in self.items],
            generators=lambda: self.generators,
            device=device,
        )
        self._reader = PatchReader(
            self.items, view, normalise=normalise, device=device, pool=pool, changes=self.changes
        )
        self.frozen_features: FrozenFeatures | None = None
        if store is not None or stored:
            self.frozen_features = FrozenFeatures(self._reader, store or FeatureStore(None))

    def __len__(self) -> int:
        return len(self.items)

    @property
    def seconds_reading(self) -> float:
        """Return the seconds that the device has waited for pixels."""
        return self._reader.seconds_waited

    @property
    def generators(self) -> Generators:
        """Return the random generator of each image."""
        if self._generators is None:
            self._generators = seeded(torch.randint(1 << 62, (len(self),)).tolist())
        return self._generators

    def glimpses(self) -> list[Float[Tensor, " 3 *_space"]]:
        """Return normalised glimpses ``(3, *space)`` as they lie in the files, without padding."""
        return [
            self._reader.tint(to_rgb(item.glimpse[None], self.device), [i])[0]
            for i, item in enumerate(self.items)
        ]

    @property
    def frozen(self) -> bool:
        """Return whether features come from a frozen encoder and are stored."""
        return self.frozen_features is not None

    def look(self, encoder: AbstractEncoder) -> list[Look]:
        """Encode every glimpse, with gradient where it is enabled.

        Glimpses of equal size are computed together, nothing is padded. In training, glimpses are
        turned and moved first, and the maps are resampled back to the glimpses as stored.

        Args:
            encoder: the encoder of the glimpses.
        """
        if self.frozen_features is not None:
            return [self.frozen_features.look(encoder, i) for i in range(len(self))]
        shown = self._shown()
        cells = list(zip(encoder.strides, encoder.map_centres_px, strict=True))
        looks = []
        for i, maps in enumerate(run_by_shape(encoder.maps, shown)):
            mask = self._foreground(i)
            rgb = shown[i] * self._reader.std[0] + self._reader.mean[0]
            features = encoder.features(maps, mask)
            maps = self._register(i, maps, cells)
            looks.append(Look(maps, features, describe_colours(rgb, mask)))
        return looks

    def pixel_maps(
        self, network: Callable[[Float[Tensor, "n 3 *space"]], list[Float[Tensor, "n c *space"]]]
    ) -> list[list[Float[Tensor, "1 _c *_space"]]]:
        """Apply a network whose maps have a cell per pixel to every glimpse, as `look` does.

        The maps ``(1, c, *space)`` of each image are in register with its glimpse as stored.

        Args:
            network: from glimpses ``(n, 3, *space)`` to maps ``(n, c, *space)``.
        """
        image_maps = run_by_shape(network, self._shown())
        return [self._register(i, m, [(1, 0.5)] * len(m)) for i, m in enumerate(image_maps)]

    def _shown(self) -> list[Float[Tensor, " 3 *_space"]]:
        """Return glimpses as they are turned and moved in this step.

        Outside of them lies background; pictures and volumes are mirrored there.
        """
        glimpses = self.glimpses()
        if self.changes.motions is None:
            return glimpses
        shown = []
        for i, (glimpse, motion) in enumerate(zip(glimpses, self.changes.motions, strict=True)):
            colour = self.items[i].image.background.reshape(1, *(1,) * self.view.axes, -1)
            outside = self._reader.tint(to_rgb(colour, self.device), [i]).flatten()
            mirrored = self.items[i].image.kind != "slide"
            shown.append(motion.show(glimpse, outside, mirrored=mirrored))
        return shown

    def _register(
        self, i: int, maps: list[Float[Tensor, "1 _c *_cells"]], cells: Sequence[tuple[int, float]]
    ) -> list[Float[Tensor, "1 _c *_space"]]:
        """Resample maps of image i, with `cells` of ``(stride, centre)``, to its stored glimpse."""
        if self.changes.motions is None:
            return maps
        motion, space = self.changes.motions[i], self.items[i].contrast.shape
        return [
            motion.register(map_, space, stride_px=stride, centre_px=centre)
            for map_, (stride, centre) in zip(maps, cells, strict=True)
        ]

    def _foreground(self, i: int) -> Float[Tensor, " 1 *space"] | None:
        """Return ``(1, *space)``, 1 on the foreground of image i's shown glimpse, or None."""
        weight = foreground_weight(self.items[i], self.device)
        motions = self.changes.motions
        return weight if weight is None or motions is None else motions[i].show(weight)

    def place(self, i: int, centre_um: Floats, *, scale: float = 1.0) -> Patches:
        """Place patches around centres; those of pictures begin at whole pixels of their level.

        A shift of less than half a stored pixel saves resampling, or lets patches share its
        weights. Volumes, whose voxels may be long, are shifted only at the spacing of a level. The
        boxes returned are the boxes read.

        Args:
            i: index of the image.
            centre_um: centres ``(n, d)``.
            scale: side of the patches, in sides of the finest; they are read that much coarser.
        """
        image, side_um = self.items[i].image, self.view.patch_um * scale
        spacing_um = self.view.spacing_um * scale
        origin_um = image.align_um(centre_um - side_um / 2, spacing_um)
        return Patches(origin_um, np.full(len(origin_um), side_um))

    def cover(self, i: int, offset_um: Sequence[float]) -> Patches:
        """Return the lattice patches of image i that show foreground.

        Of a file of features these are its stored patches, wherever the lattice lies.

        Args:
            i: index of the image.
            offset_um: shift of the lattice along each axis.
        """
        image = self.items[i].image
        if image.stored is not None:
            return list_stored_patches(image.stored, image.known_spacing_um)
        return self.place(i, self.items[i].cover_um(self.view, offset_um))

    def read_patches(
        self, patches: Sequence[Patches], *, augment: bool = True
    ) -> Float[Tensor, "n 3 *patch"]:
        """Read patches of all images, `patch_px` pixels a side, and put them on the device.

        Args:
            patches: patches of each image.
            augment: False leaves out this batch's augmentation, for features that are stored.

        Returns:
            normalised pixels ``(sum n_i, 3, *patch)``, in the order of `patches`.

        Raises:
            ReadingFailed: an image could not be read.
        """
        draws = self.changes.draw_patches([len(x) for x in patches]) if augment else None
        pixels = self._reader.wait(self._reader.start(patches))
        return self._reader.put_on_device(pixels, patches, draws, augment=augment)

    def chunks(self, patches: Sequence[Patches], n_at_once: int, *, augment: bool = True) -> Chunks:
        """Return a reader of patches in groups, read ahead; see `read_patches`.

        Args:
            patches: patches of each image.
            n_at_once: largest number of patches in a group.
            augment: as in `read_patches`.
        """
        return Chunks(self._reader, patches, n_at_once, augment=augment)

    def whole(self, i: int, *, skip_background: bool) -> WholeImage:
        """Return a reader of all of image i, region by region, at the spacing of patches.

        In training the image is turned and tinted like its patches.

        Args:
            i: index of the image.
            skip_background: do not read regions without foreground; fill them with the colour of
                the background.
        """
        motions = self.changes.motions
        return WholeImage(
            self.items[i],
            self.view,
            normalise=lambda pixels: self._reader.tint(to_rgb(pixels, self.device), [i]),
            device=self.device,
            pool=self._reader.pool,
            turn=Turn(0) if motions is None else motions[i].turn,
            skip_background=skip_background,
            waited=self._reader.add_waited,
        )

    def layout(
        self, patches: Sequence[Patches], n: int
    ) -> tuple[Float[Tensor, "b n ndim"], Float[Tensor, "b n"]]:
        """Compute the places of patches, for methods that relate patches to each other.

        In training places are turned and moved with the glimpses. Those of slides are also shifted
        by several patches, because it does not matter where tissue lies on the glass.

        Args:
            patches: patches of each image.
            n: length to which rows are padded.

        Returns:
            centres ``(b, n, ndim)`` relative to the middle of the image and sides ``(b, n)``, both
            in sides of the finest patch; 0 and 1 for padding.
        """
        ndim, patch_um = self.view.axes, self.view.patch_um
        centre = np.zeros((len(patches), n, ndim))
        extent = np.ones((len(patches), n))
        for i, of_image in enumerate(patches):
            order = np.arange(len(of_image))
            if self._shuffle_layout:
                order = torch.randperm(len(of_image), generator=self.generators[i]).numpy()
            size_um = np.asarray(self.items[i].image.box_um.size)
            placed = length_patch_from_um(of_image.centre_um - size_um / 2, patch_um)
            if self.changes.motions is not None:
                size_patch = length_patch_from_um(size_um, patch_um)
                placed = self.changes.motions[i].place(placed, size_patch)
            centre[i, : len(of_image)] = placed[order]
            extent[i, : len(of_image)] = length_patch_from_um(of_image.side_um, patch_um)
        centres, extents = torch.from_numpy(centre).float(), torch.from_numpy(extent).float()
        return centres.to(self.device), extents.to(self.device)

    def evidence(
        self,
        patches: Sequence[Patches],
        weight: Float[Tensor, "b n"],
        *,
        by_output: Float[Tensor, "b k n"] | None = None,
        remainder: Float[Tensor, " b"] | None = None,
    ) -> EvidenceList:
        """Return the evidence of each image.

        Args:
            patches: ``n_i`` patches of each image.
            weight: weights ``(b, n)``, of which the first ``n_i`` of row i count.
            by_output: weights for each output ``(b, k, n)``, of methods that have them.
            remainder: ``(b,)``, the share of the prediction that rests on no patch.
        """
        return EvidenceList(build_evidence(self.items, patches, weight, by_output, remainder))
