"""Options of ``features``; imports nothing heavy, because ``--help`` shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from foveate import defaults
from foveate.parts.fields import option
from foveate.parts.options import NameOf, Within


@dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """Which encoder embeds the patches of images, and how their files are laid out.

    Attributes:
        encoder: name of the pretrained encoder, or of a network of timm; ``auto`` is lite0.
        layout: whose names and frames the files have.
        number: number format of the vectors.
        spacing_um: spacing of patches; by default the median full resolution of the images.
        patch_px: side of a patch; by default 224, half a side of smaller pictures.
        assume_spacing_um: spacing of images that state none, in micrometres per pixel.
        images: folder that paths in the table are relative to.
        chunk: number of patches embedded at a time.
        device: device that computes; ``auto`` takes a GPU when there is one.
        encoder_options: options of the encoder by name, such as ``weights``.
        reader_options: options of readers, by the name of the reader.

    Example:
        >>> foveate.FeatureOptions(encoder="lite0", patch_px=256).layout
        'trident'
    """

    encoder: Annotated[str, NameOf("encoders")] = defaults.ENCODER
    layout: Literal["trident", "clam", "stamp"] = "trident"
    number: Literal["float16", "float32"] = "float16"
    spacing_um: Annotated[float, Within(0, 1e6)] | None = option(
        None, flags=("--view.spacing-um",), shown="follows the images"
    )
    patch_px: Annotated[int, Within(16, 4096)] | None = option(
        None, flags=("--view.patch-px",), shown="follows the images"
    )
    assume_spacing_um: Annotated[float, Within(0, math.inf)] | None = option(
        None, flags=("--spacing-um", "--view.assume-spacing-um")
    )
    images: Path | str | None = None
    chunk: Annotated[int, Within(1, 100_000)] = 64
    device: defaults.Device = defaults.DEVICE
    encoder_options: Mapping[str, Any] | None = None
    reader_options: Mapping[str, Mapping[str, Any]] | None = None
