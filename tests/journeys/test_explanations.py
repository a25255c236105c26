"""An explanation writes its evidence by every export, also by one that was dropped in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import foveate as fv
from conftest import picture
from foveate.errors import UnknownName

EXPORT = '''
"""The evidence in one line of text."""
from foveate.exports.base import AbstractExport


class LineExport(AbstractExport):
    """The number of boxes, the size of the image and the answer."""

    title, suffix = "line", ".line"

    def render(self, image, evidence, about):
        """Write the line."""
        return f"{len(evidence)} of {image.shape}: {about.texts['predicted']}".encode()
'''


def test_an_export_that_was_dropped_in_is_written(
    picture_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foveate.parts._folders", [])
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports" / "line.py").write_text(EXPORT, encoding="utf-8")
    image = picture(tmp_path / "new.png", 3)
    explanation = fv.Classifier.from_run(picture_run).explain(image)
    with pytest.raises(UnknownName, match="no export 'line'"):
        explanation.export("line")

    fv.add_plugin_folder(tmp_path)
    content = explanation.export("line", tmp_path / "new.line")
    assert content == (tmp_path / "new.line").read_bytes()
    n_boxes = len(explanation.evidence)
    assert content.decode() == f"{n_boxes} of (96, 96): {explanation.predicted}"

    assert explanation.export("png") == explanation.to_png()
    assert json.loads(explanation.export("geojson")) == explanation.to_geojson()

    image.unlink()
    with pytest.raises(fv.FoveateError, match=r"new\.png"):
        explanation.export("line")
