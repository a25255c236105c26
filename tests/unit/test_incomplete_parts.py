"""A part that lacks what its contract requires is refused by name when it is found or built."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from foveate.batch import View
from foveate.encoders import build_encoder
from foveate.errors import OptionError
from foveate.parts import PartKind, add_plugin_folder, find
from foveate.readers import open_image
from foveate.runs.card import ModelCard
from foveate.runs.checkpoint import build_model

ENCODER = """
from foveate.encoders.base import AbstractEncoder


class Coarse(AbstractEncoder):
    strides, map_dims, map_centres = (8,), (3,), (4.0,)

    def __init__(self, *, dim: int = 32):
        super().__init__()
        self.dim = dim

    def maps(self, x):
        return [x]

    def pool(self, maps):
        return maps[0]
"""
METHOD = """
from foveate.methods.base import AbstractMethod


class Lost(AbstractMethod):
    reads, summary = frozenset({"glimpse"}), "keeps no encoder"

    def __init__(self, *, encoder, heads):
        super().__init__()

    def forward(self, batch):
        return None
"""
READER = """
from foveate.readers.base import AbstractReader


class Blank(AbstractReader):
    def __init__(self, path):
        super().__init__(path)
        self.kind, self.channels, self.spacing_um = "picture", 1, None

    @classmethod
    def recognises(cls, path, head):
        return head.startswith(b"BLANK")

    def _read_level(self, level, origin_px, size_px):
        return None

    def close(self):
        pass
"""
EXPORT = """
from foveate.exports.base import AbstractExport


class Note(AbstractExport):
    titel, suffix = "note", ".txt"

    def render(self, image, evidence, about):
        return b""
"""
AGGREGATOR = """
from foveate.aggregators.base import AbstractAggregator


class Nothing(AbstractAggregator):
    pass
"""


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write one incomplete part of each kind into a scratch folder of plug-ins."""
    monkeypatch.setattr("foveate.parts._folders", [])
    files = {
        "encoders/coarse.py": ENCODER,
        "methods/lost.py": METHOD,
        "readers/blank.py": READER,
        "exports/note.py": EXPORT,
        "aggregators/nothing.py": AGGREGATOR,
    }
    for name, text in files.items():
        path = tmp_path / "plug-ins" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    add_plugin_folder(tmp_path / "plug-ins")
    return (tmp_path / "plug-ins").resolve()


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        (
            "exports",
            "note",
            "Note does not set 'title', as every AbstractExport must; it has 'titel'",
        ),
        (
            "aggregators",
            "nothing",
            "Nothing does not define 'forward', as every AbstractAggregator",
        ),
    ],
)
def test_a_class_without_an_attribute_or_method_is_refused_when_it_is_looked_up(
    plugins: Path, kind: PartKind, name: str, message: str
) -> None:
    where = f"{plugins / kind / name}.py: "
    with pytest.raises(OptionError, match=re.escape(where + message)):
        find(kind, name)


def test_an_encoder_without_an_attribute_is_refused_when_it_is_built(plugins: Path) -> None:
    message = (
        f"{plugins / 'encoders' / 'coarse.py'}: Coarse does not set 'map_centres_px', as every "
        "AbstractEncoder must; it has 'map_centres'; see foveate.encoders.base"
    )
    with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
        build_encoder("coarse")


def test_a_method_without_its_encoder_is_refused_when_it_is_built(plugins: Path) -> None:
    settled = {"classes": ["normal", "tumour"]}
    options = {"width": 8, "dim": 16}
    card = ModelCard("lost", {}, "small", options, "binary", {}, settled, View(1.0, 32, 8.0))
    where = re.escape(f"{plugins / 'methods' / 'lost.py'}: Lost does not set 'encoder', as every")
    with pytest.raises(OptionError, match=where):
        build_model(card, pretrained=True)


def test_an_image_of_an_incomplete_reader_is_not_opened(plugins: Path, tmp_path: Path) -> None:
    path = tmp_path / "image.blank"
    path.write_bytes(b"BLANK")
    message = "Blank does not set 'dtype', 'levels', 'reader', as every AbstractReader must"
    with pytest.raises(
        OptionError, match=re.escape(f"{plugins / 'readers' / 'blank.py'}: {message}")
    ):
        open_image(path)
