"""The values that a check collects: facts about one image, and findings about all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from foveate.geometry import length_um_from_px, mean_spacing
from foveate.images.likeness import ImageFacts, PatchFacts
from foveate.images.stored import Recipe

Severity = Literal["unusable", "problem", "note"]
SEVERITIES: tuple[Severity, ...] = ("unusable", "problem", "note")
"""From worst to least: training stops; training or its scores are spoilt; worth knowing."""

Vectors = tuple[str, int, str, str, float, int]
"""The fields of `Recipe`, then side of a patch in level-0 pixels and in pixels of the encoder."""


@dataclass(frozen=True)
class CheckFinding:
    """Something that would stop or spoil a training, or that is worth knowing.

    Attributes:
        severity: how bad it is.
        kind: what it is about, such as ``unreadable`` or ``confound``.
        subject: the images, the column or the fact that it is about, in a few words.
        text: what was seen, with numbers.
        remedy: what to do.
        images: text about each image concerned (may be empty), by image id.
        weight: findings of equal severity are shown by falling weight.
    """

    severity: Severity
    kind: str
    subject: str
    text: str
    remedy: str = ""
    images: Mapping[str, str] = field(default_factory=dict)
    weight: float = 0.0


@dataclass(frozen=True)
class ImageRecord:
    """The facts about one image that was opened and read.

    Attributes:
        file_bytes: size of the file; of a folder, of all its files.
        date: day when the file was last changed, as ISO text.
        kind, reader, shape, channels: the attributes of `AbstractImage` of the same names.
        bits: how many of its 16 bits the image uses; None for images of 8 bits.
        levels: pixels per axis of each level.
        spacing_um: the spacing that the file states; None where it states none.
        device: maker, model and program that the file states; may be empty.
        objective: magnification of the objective that the file states; None where it states none.
        low, high, mean: smallest, largest and mean value of the glimpse, as shares of white.
        border: mean value at the border of the glimpse, as a share of white.
        foreground: share of the glimpse that is tissue; None for pictures and volumes, of which
            all is foreground.
        blank: whether all pixels of the glimpse have nearly the same colour.
        unknown: share of the pixels that are no finite numbers.
        glimpse_s, region_s: seconds to read the glimpse, and a region of `probe.REGION_PX`.
        warnings: messages of the reader.
        thumbnail: a JPEG in base64.
        print: the small copy that images are compared by; empty if the image is flat.
        vectors: facts about the stored patches of a file of features; None for other images.
    """

    file_bytes: int
    date: str
    kind: str
    reader: str
    shape: tuple[int, ...]
    channels: int
    bits: int | None
    levels: tuple[tuple[int, ...], ...]
    spacing_um: tuple[float, ...] | None
    device: str
    objective: float | None
    low: float
    high: float
    mean: float
    border: float
    foreground: float | None
    blank: bool
    unknown: float
    glimpse_s: float
    region_s: float
    warnings: tuple[str, ...]
    thumbnail: str
    print: str
    vectors: Vectors | None = None

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> ImageRecord:
        """Build a record from plain values, as the journal stores them."""
        values = {f.name: _freeze(entry[f.name]) for f in fields(cls) if f.name in entry}
        return cls(**values)

    def as_facts(self, spacing_um: tuple[float, ...] | None) -> ImageFacts:
        """Return the facts that the plan of a training is made from.

        Args:
            spacing_um: spacing of the table, or an assumed one; None for that of the file.
        """
        spacing_um = spacing_um or self.spacing_um
        unit = "px" if spacing_um is None else "um"
        known_um = spacing_um or (1.0,) * len(self.shape)
        patches = None
        if self.vectors is not None:
            encoder, dim, revision, transform, side_px0, patch_px = self.vectors
            recipe = Recipe(encoder, dim, revision, transform)
            side_um = length_um_from_px(side_px0, mean_spacing(known_um))
            patches = PatchFacts(recipe, side_um, patch_px)
        return ImageFacts(
            self.shape,
            known_um,
            unit,
            self.kind,
            self.reader,
            self.channels,
            bits=self.bits,
            patches=patches,
        )


def _freeze(value: Any) -> Any:
    """Convert lists of a JSON value to tuples."""
    return tuple(map(_freeze, value)) if isinstance(value, list) else value
