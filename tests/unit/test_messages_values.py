"""Messages about values that callers give: each names the value and what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import foveate
from foveate.attention_maps.tree_cells import Cut
from foveate.encoders import build_encoder
from foveate.encoders.base import AbstractEncoder
from foveate.errors import BoxError, CheckpointError, FoveateError, NotFinite, OptionError
from foveate.exports.geojson import build_geojson
from foveate.files.fields import Fields, read_fields
from foveate.geometry import Box, Frame, px0_from_um, um_from_px0
from foveate.heatmaps.fields import aim
from foveate.images.evidence import Evidence
from foveate.images.likeness import ImageFacts
from foveate.loading.scan import ViewOptions, choose_view
from foveate.metrics.types import check_inputs, number_names
from foveate.nn.additive import AdditiveHead
from foveate.nn.base import Head
from foveate.nn.generators import seeded, uniform
from foveate.nn.reinforce import leave_one_out
from foveate.nn.selection import rank_patches, select_with_exploration
from foveate.nn.top_k import perturbed_top_k
from foveate.parts import find
from foveate.readers import open_image
from foveate.runs.config import build_config, load_yaml
from foveate.synthetic import CohortSpec, write_cohort
from foveate.synthetic.spec import SlideSpec
from foveate.tasks.base import restore
from foveate.tasks.binary import BinaryTask
from foveate.tasks.regression import RegressionTask
from foveate.yamltext import parse_yaml

Call = Callable[[], object]
NOWHERE = np.zeros((0, 2))
ONE_PX = Box((0, 0), (1, 1), Frame.UM)


def refused(kind: type[Exception], words: str, call: Call) -> None:
    """Check that a call is refused with these words in the message."""
    with pytest.raises(kind) as caught:
        call()
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("and size (1.0,) need the same axes", lambda: Box((0, 0), (1,), Frame.UM)),
        ("a box needs finite numbers, got", lambda: Box((0, np.nan), (1, 1), Frame.UM)),
        ("a box needs a positive size on every axis, got", lambda: Box((0,), (0,), Frame.UM)),
        ("with level 0: give a level with PX", lambda: Box((0,), (1,), Frame.UM, 0)),
        ("expected a box in frame", lambda: um_from_px0(ONE_PX, (1.0, 1.0))),
        ("expected a box with 3 axes, got 2", lambda: px0_from_um(ONE_PX, (1.0, 1.0, 1.0))),
    ],
)
def test_boxes(words: str, call: Call) -> None:
    refused(BoxError, words, call)


def test_reading_by_pixels_needs_whole_pixels_of_a_level(tmp_path: Path) -> None:
    with open_image(_picture(tmp_path)) as image:
        refused(BoxError, "read needs a box in level pixels, got", lambda: image.read(ONE_PX))
        half = Box((0.5, 0), (1, 1), Frame.PX, 0)
        refused(BoxError, "read needs whole pixels, got (0.5", lambda: image.read(half))


def _picture(folder: Path) -> Path:
    from PIL import Image

    Image.new("RGB", (40, 30), (200, 10, 10)).save(folder / "a.png")
    return folder / "a.png"


def test_evidence_of_a_volume_does_not_fit_a_picture(tmp_path: Path) -> None:
    boxes = np.zeros((1, 3)), np.ones((1, 3)), np.ones(1)
    with open_image(_picture(tmp_path)) as image:
        words = "evidence with 3 axes, image 2"
        refused(BoxError, words, lambda: aim(image, Evidence(*boxes)))
        refused(BoxError, words, lambda: build_geojson(image, Evidence(*boxes)))


@pytest.mark.parametrize(
    ("kind", "words", "call"),
    [
        (ValueError, "a remainder of 1.5, expected 0 to 1", lambda: _evidence(remainder=1.5)),
        (
            ValueError,
            "origins of (2, 2) and sizes of (1, 2)",
            lambda: _evidence(size_um=np.ones((1, 2))),
        ),
        (ValueError, "(3,) weights for 2 boxes", lambda: _evidence(weight=np.ones(3))),
        (ValueError, "3 rows of weights for 2", lambda: _evidence(by_output=np.ones((3, 2)))),
        (
            NotFinite,
            "evidence weights must be finite and at least 0",
            lambda: _evidence(weight=np.array([1.0, np.nan])),
        ),
    ],
)
def test_evidence(kind: type[Exception], words: str, call: Call) -> None:
    refused(kind, words, call)


def _evidence(**changes: object) -> Evidence:
    values = {"origin_um": np.zeros((2, 2)), "size_um": np.ones((2, 2)), "weight": np.ones(2)}
    return Evidence(**{**values, **changes})  # type: ignore[arg-type]


CONTENT = {"word": "x", "n": 7, "flag": True, "list": ["a"], "part": {"deep": {}}}


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("f: got 3, expected keys and values", lambda f: Fields(3, "f")),
        ("f: unknown key 'n'", lambda f: f.only(["word"])),
        ("'none' is missing. ", lambda f: f.text("none")),
        ("'n' is 7, expected a text", lambda f: f.text("n")),
        ("'word' is 'x', expected one of a, b", lambda f: f.text("word", ["a", "b"])),
        ("'word' is 'x', expected a whole number from 0 to 5", lambda f: f.integer("word", 0, 5)),
        ("'n' is 7, expected a number from 0 to 0.5", lambda f: f.number("n", 0, 0.5)),
        ("'n' is 7, expected true or false", lambda f: f.flag("n")),
        ("expected a list of at least 2 different names", lambda f: f.texts("list", 2)),
        ("expected 3 numbers from 0 to 1", lambda f: f.numbers("list", 0, 1, 3)),
        ("'n' is 7, expected a list", lambda f: f.items("n")),
        ("part.deep is keys and values, expected a plain value", lambda f: f.options("part")),
    ],
)
def test_fields_of_json(words: str, call: Callable[[Fields], object]) -> None:
    refused(CheckpointError, words, lambda: call(Fields(CONTENT, "f")))


def test_json_files(tmp_path: Path) -> None:
    (tmp_path / "torn.json").write_text('{"a": ')
    refused(
        CheckpointError,
        f"{tmp_path / 'torn.json'} is damaged: it is no JSON",
        lambda: read_fields(tmp_path / "torn.json"),
    )
    refused(CheckpointError, "cannot be read: ", lambda: read_fields(tmp_path / "none.json"))
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(1 << 30)
    words = f"{tmp_path / 'huge.json'} is larger than any such file"
    refused(CheckpointError, words, lambda: read_fields(tmp_path / "huge.json"))


def test_yaml_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    refused(ValueError, "300000 letters", lambda: parse_yaml("a" * 300_000))
    monkeypatch.setattr("foveate.yamltext._MAX_VALUES", 100)
    refused(ValueError, "too many values", lambda: parse_yaml("[" + "0," * 101 + "]"))
    refused(yaml.YAMLError, "too many keys", lambda: parse_yaml("{" + "a," * 101 + "}"))


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ("n_islands: need 0 < lowest <= highest, got (3, 1)", {"n_islands": (3, 1)}),
        ("tile_px: got 100, allowed: 128, 256, 512", {"tile_px": 100}),
        ("quality: got 0, allowed: 1 to 100", {"quality": 0}),
        ("needs at least four tiles per side", {"shape_px0": (512, 512)}),
        ("n_deciding: got (3, 40), expected at most", {"n_deciding": (3, 40)}),
        ("nodule_diameter_px0: expected at most", {"nodule_diameter_px0": (224.0, 1e6)}),
    ],
)
def test_synthetic_slides(words: str, changes: dict[str, object]) -> None:
    refused(OptionError, words, lambda: SlideSpec(**changes))  # type: ignore[arg-type]


def test_synthetic_cohorts(tmp_path: Path) -> None:
    refused(
        OptionError,
        "n_patients: got 9 for 4 slides, expected one or two slides each",
        lambda: write_cohort(tmp_path, CohortSpec(n_slides=4, n_patients=9, spec=SlideSpec())),
    )


def _config(**values: object) -> Call:
    return lambda: build_config({"table": {"path": "t.csv"}, **values})


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("table.path: missing, expected the table of labels", lambda: build_config({})),
        ("table.path: got '3', expected a path", lambda: build_config({"table": {"path": 3}})),
        ("method: got '3', expected a name", _config(method=3)),
        ("reader.tiff: got '3', expected a reader's options", _config(reader_options={"tiff": 3})),
        (
            "encoder: its options need a name, such as --encoder lite0",
            _config(encoder_options={"dim": 64}),
        ),
        (
            "split.test_fraction: got 1.5, expected more than 0 and less than 1",
            _config(split={"test_fraction": "1.5"}),
        ),
        ("refit: got 'perhaps', expected true or false", _config(refit="perhaps")),
        ("split.seed: got 'one', expected a whole number", _config(split={"seed": "one"})),
        ("split.seed: got 1.5, expected a whole number", _config(split={"seed": 1.5})),
        ("table.label: got '['a']', expected text", _config(table={"path": "t", "label": ["a"]})),
        ("view.fit: got '3', expected a list such as 1,2", _config(view={"fit": 3})),
    ],
)
def test_options_of_a_run(words: str, call: Call) -> None:
    refused(OptionError, words, call)


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("method.grid: got 1, expected 2 or more", lambda: Cut(1, 0.0)),
        ("view.spacing_um: got -1, expected", lambda: ViewOptions(spacing_um=-1)),
        (
            "need 0 <= explore, uniform <= 1 and temperature > 0",
            lambda: select_with_exploration(torch.zeros(3), 2, explore=2.0),
        ),
        (
            "need sigma >= 0 and samples >= 2",
            lambda: perturbed_top_k(torch.zeros(1, 3), 2, sigma=0.1, samples=1),
        ),
        (
            "classes: got ('a',), expected two different names or more",
            lambda: BinaryTask(classes=["a"]),
        ),
        ("and spread 0, expected numbers", lambda: RegressionTask(mean=1.0, spread=0)),
        ("settled: got nothing, the task needs classes", lambda: restore(BinaryTask, {})),
        (
            "encoder.enlarge: got 3, expected 1, 2, 4 or 8",
            lambda: build_encoder("slices", {"enlarge": 3}, {}, pretrained=False),
        ),
        (
            "encoder.picture: 'small3d' reads volumes, take lite0",
            lambda: build_encoder("slices", {"picture": "small3d"}, {}, pretrained=False),
        ),
    ],
)
def test_options_of_parts(words: str, call: Call) -> None:
    refused(FoveateError, words, call)


@pytest.mark.parametrize(
    ("words", "prob", "target"),
    [
        ("of shape (2,), expected (n, k) with n >= 1, k >= 2", [0.5, 0.5], [0]),
        ("(2,) targets for 1 rows of probabilities", [[0.5, 0.5]], [0, 1]),
        ("probabilities must be finite and at least 0", [[1.5, -0.5]], [0]),
        ("rows of probabilities must sum to 1", [[0.5, 0.1]], [0]),
        ("targets must be whole numbers from 0 to 1", [[0.5, 0.5]], [2]),
    ],
)
def test_inputs_of_metrics(words: str, prob: list[object], target: list[int]) -> None:
    refused(ValueError, words, lambda: check_inputs(np.array(prob), np.array(target)))


def _volume_facts() -> ImageFacts:
    return ImageFacts((9, 9, 9), (1.0, 1.0, 1.0), "um", "volume", "r")


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (
            "zoom: got (1.0,), expected falling numbers above 1",
            lambda: find("methods", "glimpse_zoom")(encoder=_encoder(), heads=_HEADS, zoom=(1.0,)),
        ),
        (
            "scales: got (0.0,), expected different positive numbers",
            lambda: find("methods", "joint_sampling")(
                encoder=_encoder(), heads=_HEADS, scales=(0.0,)
            ),
        ),
        ("k_min: got 0, allowed: above 0", lambda: AdditiveHead(8, _HEADS[0], k_min=0)),
        (
            "a patch's score is nan or inf: the network diverged",
            lambda: rank_patches(torch.tensor([torch.nan, 1.0])),
        ),
        (
            "view.fit: is for pictures; leave it out, volumes have a size",
            lambda: choose_view([_volume_facts()], ViewOptions(fit=(64, 64))),
        ),
        (
            "pictures and volumes are mixed: a model reads one or the other",
            lambda: choose_view(
                [_volume_facts(), replace(_volume_facts(), shape=(9, 9))], ViewOptions()
            ),
        ),
        (
            "task.positive: no label 'z'",
            lambda: BinaryTask(classes=["a", "b"], positive="z"),
        ),
    ],
)
def test_options_of_methods(words: str, call: Call) -> None:
    refused(FoveateError, words, call)


_HEADS = (Head("x", 2, True, "max"),)


def _encoder() -> AbstractEncoder:
    return build_encoder("small", {}, {}, pretrained=False)


def test_configs_in_files(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for text, words in {
        "{": "not YAML; compare it with the config.yaml of a run",
        "[1]": "expected sections such as 'train:'",
        "train: 3": "'train' is '3', expected a section of keys and values",
    }.items():
        path.write_text(text)
        refused(OptionError, words, lambda: load_yaml(path))


def test_names_of_the_package() -> None:
    words = "module 'foveate' has no attribute 'nothing'"
    refused(AttributeError, words, lambda: foveate.nothing)


def test_numbers_of_rows() -> None:
    refused(ValueError, "1 patients for 2 images", lambda: number_names(["a"], 2))
    refused(ValueError, "1 generators for 2 rows", lambda: uniform((2, 3), seeded([0])))
    words = "leaving one out needs at least two draws"
    refused(ValueError, words, lambda: leave_one_out(torch.zeros(2, 1)))


def test_long_values_are_shortened() -> None:
    with pytest.raises(CheckpointError, match=r"\.\.\., expected") as caught:
        Fields({"a": "x" * 900}, "f").integer("a", 0, 1)
    assert len(str(caught.value)) < 300
