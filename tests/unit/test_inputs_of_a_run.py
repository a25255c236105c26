"""Changed files of a run, unlike images and impossible options are named, never used in silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from foveate.batch import View
from foveate.errors import CheckpointError, OptionError, UnreadableImage, converting
from foveate.images.likeness import TrainedOn, describe_unlikeness
from foveate.runs.card import ModelCard
from foveate.runs.checkpoint import build_model
from foveate.runs.fingerprint import check_unchanged, list_files, note_inputs
from foveate.table import read_cases
from helpers.images import PyramidImage

VIEW = View(spacing_um=1.0, patch_px=64, glimpse_spacing_um=16.0)


def test_a_row_that_names_the_table_s_own_folder_has_an_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image without an id would end the run when its plan is read back."""
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "b.png").write_bytes(b"y")
    (tmp_path / "t.csv").write_text("path,label\na.png,tumor\n.,normal\nb.png,normal\n")
    monkeypatch.chdir(tmp_path)
    read = read_cases(Path("t.csv"))
    assert [case.image_id for case in read.cases] == ["a", "b"]
    assert [row.image_id for row in read.set_aside] == ["row_3"]


def refuse_changed_files(options: dict[str, str], changed: Path) -> str:
    before = note_inputs([], list_files(options))
    changed.write_text(changed.read_text() + "\n# another line\n")
    with pytest.raises(CheckpointError) as caught:
        check_unchanged(before, note_inputs([], list_files(options), before), Path("run"))
    return str(caught.value)


def test_a_changed_plug_in_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = tmp_path / "methods" / "mine.py"
    part.parent.mkdir()
    part.write_text("SIZE = 1\n")
    monkeypatch.setattr("foveate.parts._folders", [tmp_path])
    assert "plug-in methods/mine.py" in refuse_changed_files({}, part)


def test_a_changed_config_beside_the_weights_is_refused(tmp_path: Path) -> None:
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    weights.write_bytes(b"weights")
    config.write_text("{}")
    assert "config.json beside the weights" in refuse_changed_files(
        {"weights": str(weights)}, config
    )


@pytest.mark.parametrize(("spacing_um", "unlike"), [(0.5, False), (1.9, False), (2.1, True)])
def test_pixels_of_another_size_are_unlike_the_training_from_a_factor_of_four(
    spacing_um: float, unlike: bool
) -> None:
    training = TrainedOn(
        n=9, kinds=("slide",), channels=(3,), unit="um", spacing_um=(0.5, 0.5), side_um=(1.0, 1e6)
    )
    pixels = np.zeros((64, 64, 3), np.uint8)
    image = PyramidImage(pixels, spacing_um=(spacing_um, spacing_um))
    image.kind = "slide"
    words = [text for text in training.differences(image, pixels) if text.startswith("pixels of ")]
    assert bool(words) is unlike


@pytest.mark.parametrize(("shape", "tiny"), [((1, 256), True), ((16, 256), False)])
def test_a_picture_of_a_few_rows_is_tiny(shape: tuple[int, int], tiny: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)
    words = describe_unlikeness(PyramidImage(pixels), pixels, None)
    assert words == (f"tiny ({shape[0]} x {shape[1]} pixels)" if tiny else "")


@pytest.mark.parametrize(
    "error", [np.linalg.LinAlgError("Singular matrix"), ZeroDivisionError(), AttributeError("x")]
)
def test_errors_of_libraries_are_one_line_without_their_names(error: Exception) -> None:
    with pytest.raises(UnreadableImage) as caught, converting(Path("a.tif")):
        raise error
    text = str(caught.value)
    assert text.startswith("a.tif: ")
    assert type(error).__name__ not in text
    assert "Singular" not in text
    assert "\n" not in text


@pytest.mark.parametrize("options", [{"patches": -1}, {"eval_patches": -3}, {"survey": -1}])
def test_a_stored_model_with_a_negative_number_of_patches_is_refused(
    options: dict[str, int],
) -> None:
    settled = {"classes": ["a", "b"]}
    card = ModelCard("glimpse", options, "small", {}, "binary", {}, settled, VIEW)
    with pytest.raises(OptionError, match=next(iter(options))):
        build_model(card, pretrained=False)
