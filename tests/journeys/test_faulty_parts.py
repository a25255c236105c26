"""A fault in the code of a part stops the command and names the part; no image is set aside."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import foveate as library
from conftest import picture
from foveate.errors import DiskFull, OutOfMemory, PartFault
from foveate.runs.folder import read_rows
from foveate.runs.models import find_models
from helpers.commands import Completed, read_refusal

Command = Callable[..., Completed]

METHOD = '''
"""The middle of the image; fails as the variable FAULT says."""
import os

import numpy as np
import torch
from torch import nn

from foveate.methods.base import AbstractMethod, Prediction


class Faulty(AbstractMethod):
    reads = frozenset({"crops"})
    summary = "one patch in the middle"

    def __init__(self, *, encoder, heads):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.dim, heads[0].size)

    def forward(self, batch):
        centres = [np.asarray(item.image.box_um.centre)[None] for item in batch.items]
        places = [batch.place(i, centre) for i, centre in enumerate(centres)]
        vectors = self.encoder.pool(self.encoder.maps(batch.read_patches(places)))
        stage, _, fault = os.environ.get("FAULT", "").partition(" ")
        if stage == ("train" if self.training else "predict"):
            self.fail(fault, batch)
        if fault == "shape":
            vectors = torch.cat([vectors, vectors])
        if fault == "nan" and batch.items[0].image_id == "N01":
            vectors = vectors * float("nan")
        share = vectors.new_ones(len(batch), 1) * (-1 if fault == "evidence" else 1)
        if self.training:
            return Prediction(self.head(vectors))
        return Prediction(self.head(vectors), batch.evidence(places, share))

    def fail(self, fault, batch):
        if fault == "bug":
            return len(3)  # the bug
        if fault == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB")
        if fault == "memory" and batch.items[0].image_id == "N01":
            raise MemoryError
        if fault == "gpu" and batch.items[0].image_id == "N01":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB")
        if fault == "files":
            raise OSError(24, "Too many open files")
        if fault == "disk":
            raise OSError(28, "No space left on device", "/scratch")
        if fault == "system":
            open("/nowhere/at/all")
'''

EXPORT = '''
"""A kind of picture that cannot be drawn."""
from foveate.exports.base import AbstractExport


class Broken(AbstractExport):
    title, suffix = "broken picture", ".broken"

    def render(self, image, evidence, about):
        return about.no_such_attribute
'''

BUG = METHOD[1:].splitlines().index("            return len(3)  # the bug") + 1


OPTIONS: dict[str, Any] = {
    "method": "faulty",
    "encoder": "small",
    "encoder__width": 8,
    "encoder__dim": 16,
    "view__patch_px": 32,
    "epochs": 1,
    "heatmaps": 0,
}


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plug-ins")
    for name, code in (("methods/faulty.py", METHOD[1:]), ("exports/broken.py", EXPORT)):
        (folder / name).parent.mkdir()
        (folder / name).write_text(code, encoding="utf-8")
    return folder


@pytest.fixture
def predict(
    run: Path, plugins: Path, tmp_path: Path, foveate: Command, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Completed]:
    """Return a function that predicts three pictures with a fault; traces lie in ``tmp_path``."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for i in range(3):
        picture(tmp_path / "in" / f"N{i:02d}.png", i)

    def call(fault: str, *words: object) -> Completed:
        monkeypatch.setenv("FAULT", f"predict {fault}")
        out = ("--out", tmp_path / "out", "--plugins", plugins)
        return foveate("predict", run, tmp_path / "in", *out, "--heatmaps", "0", *words)

    return call


@pytest.fixture(scope="module")
def run(plugins: Path, picture_table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train the method; it has no fault while the variable is not set."""
    folder = tmp_path_factory.mktemp("faulty") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("foveate.parts._folders", [])
        library.add_plugin_folder(plugins)
        library.train(picture_table, folder, **OPTIONS)
    return folder


def read_trace(message: str) -> str:
    """Read the file that a message names."""
    (path,) = re.findall(r"(\S+\.txt) shows where it happened", message)
    return Path(path).read_text(encoding="utf-8")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bug_in_a_method_stops_the_prediction(
    workers: int, predict: Callable[..., Completed], plugins: Path, tmp_path: Path
) -> None:
    message = read_refusal(predict("bug", "--workers", workers))
    place = f"line {BUG} of {plugins / 'methods' / 'faulty.py'}"
    expected = f"method 'faulty' failed in {place} (TypeError), no image is to blame: correct it"
    assert expected in message
    trace = read_trace(message)
    assert "TypeError: object of type 'int' has no len()" in trace
    assert "return len(3)  # the bug" in trace
    assert not (tmp_path / "out" / "predictions.csv").exists()
    assert predict("none").returncode == 0, "the same command goes on once the bug is corrected"
    assert len(read_rows(tmp_path / "out" / "predictions.csv")) == 3


def test_a_bug_in_a_method_is_named_to_python(
    run: Path, plugins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foveate.parts._folders", [plugins])
    monkeypatch.setenv("FAULT", "predict bug")
    image = picture(tmp_path / "N00.png", 0)
    classifier = library.Classifier.from_run(run)
    with pytest.raises(PartFault, match=r"method 'faulty' failed in line \d+ of"):
        classifier.predict([image])
    with pytest.raises(PartFault, match=r"method 'faulty' failed in line \d+ of"):
        library.predict_one(find_models(run), image)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("shape", "(it returns logits of shape (2, 1), expected (1, 1), one row for each image"),
        ("evidence", "(evidence weights must be at least 0: apply a softmax to scores)"),
        ("system", "(/nowhere/at/all: No such file or directory), no image is to blame: check"),
    ],
)
def test_a_broken_contract_names_the_method(
    fault: str, expected: str, predict: Callable[..., Completed]
) -> None:
    message = read_refusal(predict(fault))
    assert "method 'faulty' failed in " in message
    assert expected in message


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("files", "too many files are open for this system's limit"),
        ("disk", "the disk is full; make room, then give the same command again"),
    ],
)
def test_limits_of_the_system_stop_the_prediction(
    fault: str, expected: str, predict: Callable[..., Completed]
) -> None:
    assert expected in read_refusal(predict(fault))


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("memory", "memory does not suffice for this image; close other programs"),
        ("gpu", "memory of the GPU does not suffice for this image; use fewer --workers"),
        ("nan", "the prediction is not a finite number. If other images fare alike, train again"),
    ],
)
def test_an_image_without_an_answer_is_set_aside(
    fault: str, expected: str, predict: Callable[..., Completed], tmp_path: Path
) -> None:
    result = predict(fault)
    assert result.returncode == 2, result.stderr
    (row,) = read_rows(tmp_path / "out" / "quarantine.csv")
    assert row["image_id"] == "N01"
    assert expected in row["reason"]
    assert len(read_rows(tmp_path / "out" / "predictions.csv")) == 2


def test_a_bug_in_an_export_names_it(predict: Callable[..., Completed], plugins: Path) -> None:
    message = read_refusal(predict("none", "--export", "broken", "--heatmaps", "1"))
    assert "export 'broken' failed in line" in message
    assert f"{plugins / 'exports' / 'broken.py'} (AttributeError), no image is to" in message


@pytest.mark.parametrize(
    ("fault", "kind", "expected"),
    [
        ("train bug", PartFault, rf"method 'faulty' failed in line {BUG} of \S+ \(TypeError\)"),
        ("predict bug", PartFault, rf"method 'faulty' failed in line {BUG} of \S+ \(TypeError\)"),
        ("train shape", PartFault, r"it returns logits of shape \(8, 1\), expected \(4, 1\)"),
        ("train cuda", OutOfMemory, "memory of the GPU does not suffice: use a smaller --train"),
        ("train disk", DiskFull, "/scratch: the disk is full; make room"),
    ],
)
def test_a_bug_in_a_method_stops_the_training(
    fault: str,
    kind: type[Exception],
    expected: str,
    plugins: Path,
    picture_table: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("foveate.parts._folders", [plugins])
    monkeypatch.setenv("FAULT", fault)
    with pytest.raises(kind, match=expected):
        library.train(picture_table, tmp_path / "run", **OPTIONS)
    assert not list((tmp_path / "run").rglob("model.json"))
