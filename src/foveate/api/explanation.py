"""The explanation of one answer: the prediction and the evidence for it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.errors import converting
from foveate.exports import DEFAULT, AbstractExport, build_exports
from foveate.files.atomic import write_bytes
from foveate.geometry import px0_from_um
from foveate.images.evidence import Evidence
from foveate.prediction.answer import Answer
from foveate.prediction.pictures import draw_file, list_shown
from foveate.prediction.predict import open_one
from foveate.runs.models import Ensemble

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class Explanation:
    """The answer for one image with the evidence for it; a notebook shows the heatmap.

    Attributes:
        path: path of the image.
        predicted: predicted class, or number in the unit of the labels.
        values: numbers of the answer, by column of ``predictions.csv``.
        evidence: boxes in micrometres, axes ``(z,) y, x``, and their weights.
        unlike: how the image differs from those of training, in words; empty if it does not.
        answer: the complete answer, with logits and costs.
        models: models that answered.
    """

    path: Path
    predicted: str
    values: dict[str, float]
    evidence: Evidence
    unlike: str
    answer: Answer
    models: Ensemble

    def export(self, name: str, path: Path | str | None = None) -> bytes:
        """Return the evidence as the content of a file of one kind.

        Kinds beside ``png`` and ``geojson`` open the image once more.

        Args:
            name: name of the kind, such as ``png``, or that of a plug-in.
            path: file to write the content to as well.

        Raises:
            UnknownName: there is no export of this name.
            FoveateError: the image cannot be read any more, or not be shown in this kind of file.

        Example:
            >>> explanation = foveate.Classifier.from_run("runs/first").explain("new/S1.svs")
            >>> explanation.export("png", "S1.png")[1:4]
            b'PNG'
        """
        (export,) = build_exports([name]).values()
        drawn = self._find_drawn(export.suffix) if name in DEFAULT else None
        content = self._draw(export) if drawn is None else drawn
        if path is not None:
            write_bytes(Path(path), content)
        return content

    def _draw(self, export: AbstractExport) -> bytes:
        """Open the image again, and draw the evidence.

        Raises:
            FoveateError: the image cannot be read any more, or not be shown in this kind of file.
        """
        with open_one(self.models, self.answer.case) as opened, converting(self.path):
            (shown,) = list_shown(self.answer.case, opened.item.image, self.evidence)
            return draw_file(self.models, self.answer, shown, export)

    def _find_drawn(self, suffix: str) -> bytes | None:
        """Return the picture of a suffix that was drawn with the answer; None without one."""
        (image,) = self.answer.images
        return self.answer.files.get((image.image_id, suffix))

    def to_geojson(self, path: Path | str | None = None) -> dict[str, Any]:
        """Return the boxes of largest weight as GeoJSON for QuPath, in level-0 pixels ``(x, y)``.

        Args:
            path: file to write them to as well.

        Example:
            >>> explanation = foveate.Classifier.from_run("runs/first").explain("new/S1.svs")
            >>> len(explanation.to_geojson("S1.geojson")["features"])
            9
        """
        collection: dict[str, Any] = json.loads(self.export("geojson", path))
        return collection

    def to_png(self, path: Path | str | None = None) -> bytes:
        """Return the heatmap as the bytes of a PNG.

        Args:
            path: file to write it to as well.
        """
        return self.export("png", path)

    def to_frame(self) -> pd.DataFrame:
        """Return all boxes, the heaviest first, as a data frame.

        Columns are the corner and the size in level-0 pixels, with axes ``(z,) y, x``, and the
        weight.
        """
        import pandas as pd

        spacing_um = self.answer.spacing_um
        axes = "zyx"[-len(spacing_um) :]
        rows = []
        for i, weight in enumerate(self.evidence.weight.tolist()):
            box = px0_from_um(self.evidence.box_um(i), spacing_um)
            corner = {f"{a}_px0": v for a, v in zip(axes, box.origin, strict=True)}
            size = {f"size_{a}_px0": v for a, v in zip(axes, box.size, strict=True)}
            rows.append({**corner, **size, "weight": weight})
        frame = pd.DataFrame(rows)
        return frame.sort_values("weight", ascending=False, kind="stable") if rows else frame

    def __repr__(self) -> str:
        numbers = ", ".join(f"{column} {v:.3f}" for column, v in self.values.items())
        doubt = f"; unlike the images of training: {self.unlike}" if self.unlike else ""
        return (
            f"{self.path.name}: {self.predicted} ({numbers}), evidence in {len(self.evidence)} "
            f"regions{doubt}"
        )

    def _repr_png_(self) -> bytes | None:
        return self._find_drawn(".png")
