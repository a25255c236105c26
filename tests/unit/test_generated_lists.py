"""Lists of parts in messages and help come from the parts, so that a new part appears in them."""

from __future__ import annotations

import typing
from pathlib import Path

import click
import pytest

import foveate as fv
from foveate import readers
from foveate.cli import cli
from foveate.errors import UnknownName, UnsupportedFormat
from foveate.parts import PartKind, find, list_kinds, names
from foveate.parts.options import options

READER = '''
"""Files of a made-up family."""
from foveate.readers.base import AbstractReader


class WavesReader(AbstractReader):
    """A reader that reads nothing."""

    families = "waves (.wv)"

    def __init__(self, path):
        super().__init__(path)

    @classmethod
    def recognises(cls, path, head):
        """Recognise nothing."""
        return False

    def _read_level(self, level, origin_px, size_px):
        raise AssertionError

    def close(self):
        """Close nothing."""
'''


def test_the_help_of_plugins_names_the_folder_of_every_kind() -> None:
    for name in ("train", "predict", "methods"):
        (flag,) = (p for p in cli.commands[name].params if p.name == "plugins")
        assert isinstance(flag, click.Option)
        for kind in typing.get_args(PartKind):
            assert f"{kind}/" in str(flag.help)
    assert list_kinds().count("/") == len(typing.get_args(PartKind))


def test_a_refusal_lists_the_families_of_all_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foveate.parts._folders", [tmp_path])
    (tmp_path / "readers").mkdir()
    (tmp_path / "readers" / "waves.py").write_text(READER, encoding="utf-8")
    (tmp_path / "odd.bin").write_bytes(b"nothing known")
    with pytest.raises(UnsupportedFormat, match=r"waves \(\.wv\)") as refused:
        readers.open_image(tmp_path / "odd.bin")
    for name in names("readers"):
        assert find("readers", name).families in str(refused.value)


def test_a_method_is_described_with_all_its_options() -> None:
    described = fv.describe_method("abmil")
    assert described.summary == fv.list_methods()["abmil"]
    known = options(find("methods", "abmil"))
    assert [(o.name, o.default) for o in described.options] == [
        (name, option.default) for name, option in known.items()
    ]
    assert all(option.meaning for option in described.options)
    assert {"Source", "Use when", "Cost"} <= set(described.paragraphs)
    with pytest.raises(UnknownName, match="Did you mean 'abmil'"):
        fv.describe_method("abmill")
