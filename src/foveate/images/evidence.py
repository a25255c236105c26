"""Evidence: the boxes of an image that a prediction comes from, their weights, and the remainder.

Heatmaps, GeoJSON, reports and the viewer know a method through `Evidence` alone.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.errors import ArrayError, NotFinite
from foveate.files.atomic import write_bytes
from foveate.geometry import Box, Frame

Floats = NDArray[np.float64]

_OPTIONAL = ("extent_um", "by_output", "even")
_NUMBERS = ("remainder", "even")

_PEAK_REACH = 2.0
"""Distance in sides of a box up to which boxes count together for the peak."""
_PEAK_BOXES = 1024
"""Number of the heaviest boxes that the peak is searched among."""


@dataclass(frozen=True)
class Evidence:
    """Boxes of one image and how much each of them counted for the prediction.

    Attributes:
        origin_um: corners of the boxes, ``(n, d)``, micrometres, axes ``(z,) y, x``.
        size_um: sizes of the boxes, ``(n, d)``.
        weight: weights of the boxes, ``(n,)``, at least 0; comparable within an image. Methods
            with attention give weights that sum to 1.
        extent_um: extent of the image, ``(d,)``; None where the boxes are of no image.
        by_output: weights for each output of the model, ``(n, k)``, for methods that look at the
            image once per output; else None.
        remainder: share of the prediction that rests on the whole image and on no box, 0 to 1.
        even: the even share of the boxes of all images of an answer, where these are the boxes of
            one of them; else None.

    Raises:
        ArrayError: shapes disagree, a weight is negative, or the remainder is no share.
        NotFinite: a weight is not finite.
    """

    origin_um: Floats
    size_um: Floats
    weight: Floats
    extent_um: Floats | None = None
    by_output: Floats | None = None
    remainder: float = 0.0
    even: float | None = None

    def __post_init__(self) -> None:
        if self.extent_um is not None and self.extent_um.shape != self.origin_um.shape[1:]:
            raise ArrayError(
                f"boxes of {self.origin_um.shape}, expected the axes of {self.extent_um}"
            )
        if self.by_output is not None and len(self.by_output) != len(self.origin_um):
            raise ArrayError(
                f"{len(self.by_output)} rows of weights for {len(self.origin_um)} boxes, expected "
                "one for each"
            )
        if not 0 <= self.remainder <= 1:
            raise ArrayError(f"a remainder of {self.remainder}, expected 0 to 1")
        if self.origin_um.shape != self.size_um.shape or self.origin_um.ndim != 2:
            raise ArrayError(
                f"origins of {self.origin_um.shape} and sizes of {self.size_um.shape}, expected "
                "(n, axes) for both"
            )
        if self.weight.shape != self.origin_um.shape[:1]:
            raise ArrayError(
                f"{self.weight.shape} weights for {len(self.origin_um)} boxes, expected one of each"
            )
        if not np.isfinite(self.weight).all():
            raise NotFinite(
                "evidence weights must be finite and at least 0: check the method's logits"
            )
        if (self.weight < 0).any():
            raise ArrayError("evidence weights must be at least 0: apply a softmax to scores")

    def __len__(self) -> int:
        return len(self.weight)

    def box_um(self, i: int) -> Box:
        """Return one box in micrometres, by its index."""
        return Box(tuple(self.origin_um[i]), tuple(self.size_um[i]), Frame.UM)

    def heaviest_um(self) -> Box:
        """Return the box with the largest weight, in micrometres."""
        return self.box_um(int(np.argmax(self.weight)))

    def peak_um(self) -> Box:
        """Return the box with the most weight in and around it, in micrometres.

        A neighbour counts less the farther away its centre is, down to nothing at `_PEAK_REACH`
        sides of the smallest box along an axis. Which of several boxes of one lesion is the
        heaviest is chance; where most of the weight lies is not.
        """
        heavy = np.argsort(-self.weight, kind="stable")[:_PEAK_BOXES]
        reach_um = _PEAK_REACH * self.size_um.min(0)
        centre_um = self.origin_um[heavy] + self.size_um[heavy] / 2
        nearness = np.ones((len(heavy), len(heavy)))
        for x_um, far_um in zip(centre_um.T, reach_um, strict=True):
            nearness *= np.clip(1 - np.abs(x_um[:, None] - x_um) / far_um, 0, None)
        return self.box_um(int(heavy[np.argmax(nearness @ self.weight[heavy])]))

    def pick(self, mask: NDArray[np.bool_]) -> Evidence:
        """Return the evidence of the boxes where `mask`, ``(n,)``, is True."""
        return replace(
            self,
            origin_um=self.origin_um[mask],
            size_um=self.size_um[mask],
            weight=self.weight[mask],
            by_output=None if self.by_output is None else self.by_output[mask],
        )

    def to_bytes(self) -> bytes:
        """Return the evidence as the bytes of an ``.npz`` file."""
        arrays: dict[str, Any] = {
            name: getattr(self, name) for name in ("origin_um", "size_um", "weight", "remainder")
        }
        for name in _OPTIONAL:
            if getattr(self, name) is not None:
                arrays[name] = getattr(self, name)
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)
        return file.getvalue()

    def save(self, path: Path) -> None:
        """Write the evidence to an ``.npz`` file (arrays only: loading one never runs code)."""
        write_bytes(path, self.to_bytes())

    @staticmethod
    def load(path: Path) -> Evidence:
        """Read the evidence from a file that `save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            more = {name: stored[name] for name in (*_OPTIONAL, "remainder") if name in stored}
            more |= {name: float(more[name]) for name in _NUMBERS if name in more}
            return Evidence(stored["origin_um"], stored["size_um"], stored["weight"], **more)


class EvidenceList:
    """The evidence of a batch, one per image; no sequence, so that no wrapper walks into it.

    Args:
        items: one per image.
    """

    def __init__(self, items: Iterable[Evidence] = ()) -> None:
        self._items = tuple(items)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, i: int) -> Evidence:
        return self._items[i]

    def __iter__(self) -> Iterator[Evidence]:
        return iter(self._items)


def mean_evidence(members: Sequence[Evidence]) -> Evidence:
    """Average the evidence of several models about one image.

    The result holds the boxes of all models, with weights divided by the number of models, so that
    weights which sum to 1 for each model sum to 1 again. A box that several models looked at (the
    same corner and size to a thousandth of a micrometre) becomes one, with its mean weight. Weights
    for each output are kept where all models have them.

    Args:
        members: the evidence of each model, at least one; all with the same axes.
    """
    if len(members) == 1:
        return members[0]
    origin = np.concatenate([member.origin_um for member in members])
    size = np.concatenate([member.size_um for member in members])
    weight = np.concatenate([member.weight for member in members]) / len(members)
    boxes = np.round(np.concatenate([origin, size], 1), 3)
    _, first, number = np.unique(boxes, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)  # in the order of the first model that looked there

    def sum_same_boxes(values: Floats) -> Floats:
        total = np.zeros((len(first), *values.shape[1:]))
        np.add.at(total, number.reshape(-1), values)
        return total[order]

    several = [member.by_output for member in members if member.by_output is not None]
    in_all = len(several) == len(members)
    return Evidence(
        origin[first][order],
        size[first][order],
        sum_same_boxes(weight),
        extent_um=members[0].extent_um,
        by_output=sum_same_boxes(np.concatenate(several) / len(members)) if in_all else None,
        remainder=sum(member.remainder for member in members) / len(members),
    )
