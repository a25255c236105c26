"""A method, a reader and a task, each in one file of a plug-in folder, work in every command."""

from __future__ import annotations

import csv
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from foveate.runs.folder import read_json, read_rows
from helpers.commands import Completed, one_thread_environment, run_child

ROOT = Path(__file__).resolve().parents[2]

METHOD = '''
"""The middle of the image, and nothing else."""
import numpy as np
from torch import nn

from foveate.batch import Batch
from foveate.methods.base import AbstractMethod, Prediction


class CentreCrop(AbstractMethod):
    """Encode one patch in the middle of each image.

    Args:
        dropout: before the linear layer.
    """

    reads = frozenset({"crops"})
    summary = "one patch in the middle"

    def __init__(self, *, encoder, heads, dropout: float = 0.1):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(encoder.dim, heads[0].size))

    def forward(self, batch: Batch) -> Prediction:
        """Look once."""
        centres = [np.asarray(item.image.box_um.centre)[None] for item in batch.items]
        places = [batch.place(i, centre) for i, centre in enumerate(centres)]
        vectors = self.encoder.pool(self.encoder.maps(batch.read_patches(places)))
        share = vectors.new_ones(len(batch), 1)
        if self.training:
            return Prediction(self.head(vectors))
        return Prediction(self.head(vectors), batch.evidence(places, share))
'''

SILENT = METHOD.replace("CentreCrop", "Silent").replace(
    "batch.evidence(places, share)", "None if self.training else []"
)

READER = '''
"""RAWIMG1: a mark, height, width, nanometres per pixel, and the pixels."""
import struct

import numpy as np

from foveate.errors import UnreadableImage
from foveate.images.level import Level
from foveate.readers.base import AbstractReader

MARK = b"RAWIMG1"


class RawReader(AbstractReader):
    """Plain RGB bytes behind a header of 19 bytes."""

    def __init__(self, path):
        super().__init__(path)
        content = path.read_bytes()
        try:
            height, width, nanometres = struct.unpack_from("<3I", content, len(MARK))
            pixels = np.frombuffer(content, np.uint8, height * width * 3, len(MARK) + 12)
        except (struct.error, ValueError) as error:
            raise UnreadableImage(f"{path}: shorter than its header says") from error
        self.pixels = pixels.reshape(height, width, 3)
        self.kind, self.channels, self.dtype = "slide", 3, np.dtype(np.uint8)
        self.levels = (Level((height, width), (1.0, 1.0)),)
        self.spacing_um = (nanometres / 1000,) * 2
        self.reader = "raw 1"

    @classmethod
    def recognises(cls, path, head):
        """By the mark."""
        return head.startswith(MARK)

    def _read_level(self, level, origin_px, size_px):
        if self.pixels is None:
            raise UnreadableImage(f"{self.path}: the image is closed")
        (y, x), (height, width) = origin_px, size_px
        self.count.add(decoded_px=height * width)
        return self.pixels[y : y + height, x : x + width].copy()

    def close(self):
        """Forget the pixels."""
        self.pixels = None
'''

TASK = '''
"""Several classes, with labels that are doubted."""
from torch.nn import functional

from foveate.nn.heads import Head
from foveate.tasks.classes import ClassTask


class DoubtedTask(ClassTask):
    """Softmax with smoothed labels.

    Args:
        classes: the labels.
        doubt: the share of the label that is spread over all classes.
    """

    preference = -1

    def __init__(self, *, classes, doubt: float = 0.1):
        super().__init__(classes=classes)
        self.doubt, self.heads = doubt, (Head("class", len(self.classes), True, "sum"),)

    @classmethod
    def fits(cls, labels, column):
        """Two labels or more."""
        return len(labels) >= 2

    def loss(self, logits, target):
        """Cross-entropy."""
        return functional.cross_entropy(
            logits.float(), target.long(), label_smoothing=self.doubt
        )

    def probabilities(self, logits):
        """Softmax."""
        return logits.double().softmax(-1)
'''

CONTRACT = '''
"""The reader contract, tested on a sample of the new format."""
import pathlib

import pytest

from contracts import test_readers
from foveate.readers import open_image

SAMPLE = pathlib.Path(__file__).parent / "images" / "i00.raw"
globals().update(
    (name, test)
    for name, test in vars(test_readers).items()
    if name.startswith("test_") and test.__code__.co_varnames[:1] == ("image",)
)


@pytest.fixture
def image():
    with open_image(SAMPLE) as opened:
        assert opened.reader == "raw 1"
        yield opened
'''

N_IMAGES = 18


def write_raw(path: Path, pixels: np.ndarray, nanometres: int = 500) -> None:
    head = b"RAWIMG1" + struct.pack("<3I", *pixels.shape[:2], nanometres)
    path.write_bytes(head + pixels.astype(np.uint8).tobytes())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a folder with plug-ins, images of the new format, and their table."""
    folder = tmp_path_factory.mktemp("place")
    for name, code in (
        ("methods/centre_crop.py", METHOD),
        ("methods/silent.py", SILENT),
        ("readers/raw.py", READER),
        ("tasks/doubted.py", TASK),
    ):
        path = folder / "plug-ins" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code, encoding="utf-8")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for i in range(N_IMAGES):
        pixels = np.full((300, 400, 3), 240.0)
        pixels[80:220, 100:300] = [(180, 90, 140), (140, 90, 180), (110, 140, 110)][i % 3]
        write_raw(folder / "images" / f"i{i:02d}.raw", pixels + rng.integers(-15, 15, pixels.shape))
        rows.append({"path": f"images/i{i:02d}.raw", "label": ("pink", "blue", "green")[i % 3]})
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["path", "label"])
        writer.writeheader()
        writer.writerows(rows)
    return folder


def run_foveate(place: Path, *words: object) -> Completed:
    return run_child(*words, "--plugins", place / "plug-ins")


SMALL = (
    *("--encoder", "small", "--encoder.width", "8", "--encoder.dim", "16"),
    *("--view.patch-px", "64", "--view.glimpse-px", "64"),
)


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    """Train a run with only the three files added."""
    folder = place / "run"
    result = run_foveate(
        place,
        *("train", place / "labels.csv", "--out", folder, "--method", "centre_crop"),
        *("--method.dropout", "0", "--task", "doubted", "--task.doubt", "0.2"),
        *SMALL,
        *("--epochs", "2"),
    )
    assert result.returncode == 0, result.stderr
    assert "task: doubted, classes blue, green, pink" in result.stderr
    return folder


@pytest.mark.slow
def test_a_method_without_evidence_trains_and_reports(place: Path) -> None:
    """This once failed with an IndexError at the end of the training."""
    folder = place / "silent"
    result = run_foveate(
        place,
        *("train", place / "labels.csv", "--out", folder, "--method", "silent", "--heatmaps", "1"),
        *SMALL,
        *("--epochs", "1"),
    )
    assert result.returncode == 0, result.stderr
    assert "gives no evidence" in result.stderr
    assert (folder / "report.html").is_file()
    assert len(list((folder / "heatmaps").glob("*.png"))) == 1


def test_plug_ins_are_listed(place: Path) -> None:
    result = run_foveate(place, "methods")
    assert result.returncode == 0, result.stderr
    assert "centre_crop          one patch in the middle" in result.stdout
    description = run_foveate(place, "methods", "centre_crop").stdout
    assert "--method.dropout" in description
    assert "default 0.1" in description


@pytest.mark.slow
def test_a_run_with_plug_ins_is_complete(run: Path) -> None:
    card = read_json(run / "fold_0" / "model" / "model.json")
    assert (card["method"], card["task"]) == ("centre_crop", "doubted")
    assert card["method_options"] == {"dropout": 0.0}
    assert card["task_options"] == {"doubt": "0.2"} or card["task_options"] == {"doubt": 0.2}
    assert (run / "report.html").is_file()
    rows = read_rows(run / "predictions_oof.csv")
    assert rows
    assert all(row["spacing"] == "0.5 um" for row in rows)
    assert all(int(row["decoded_px"]) > 0 for row in rows)


def test_a_run_with_plug_ins_predicts_and_draws(place: Path, run: Path) -> None:
    out = place / "predicted"
    result = run_foveate(place, "predict", run, place / "images" / "i03.raw", "--out", out)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("i03.raw: ")
    (entry,) = read_json(out / "heatmaps" / "index.json")
    assert (out / "heatmaps" / entry["png"]).read_bytes().startswith(b"\x89PNG")
    drawn = read_json(out / "heatmaps" / entry["geojson"])
    assert len(drawn["features"]) >= 1
    (row,) = read_rows(out / "predictions.csv")
    shares = [float(row[f"prob_{name}"]) for name in ("blue", "green", "pink")]
    assert sum(shares) == pytest.approx(1, abs=1e-5)


def test_a_model_without_its_plug_ins_names_them(place: Path, run: Path) -> None:
    words = ("predict", run, place / "images" / "i03.raw", "--out", place / "nothing")
    result = run_child(*words)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {run / 'fold_0' / 'model' / 'model.json'}: no task")
    assert "no task 'doubted'." in result.stderr
    assert "A part of your own needs --plugins" in result.stderr


def run_pytest(place: Path, *words: str) -> str:
    """Run tests with the plug-ins, check that all passed, and return the last line."""
    folders = os.pathsep.join((str(ROOT / "tests"), str(ROOT)))
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", *words],
        capture_output=True,
        text=True,
        env=one_thread_environment() | {"PYTHONPATH": folders},
        timeout=300,
        check=False,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.strip().splitlines()[-1]


def count_passed(line: str) -> int:
    match = re.search(r"(\d+) passed", line)
    assert match, line
    return int(match[1])


@pytest.mark.slow
def test_the_method_passes_the_contract_tests(place: Path) -> None:
    plugins = str(place / "plug-ins")
    words = ("tests/contracts/test_methods.py", "--plugins", plugins, "-k", "centre_crop")
    assert count_passed(run_pytest(place, *words)) >= 5


@pytest.mark.slow
def test_the_reader_passes_the_contract_tests(place: Path) -> None:
    plugins = str(place / "plug-ins")
    words = ("tests/contracts/test_readers.py", "--plugins", plugins, "-k", "raw")
    assert count_passed(run_pytest(place, *words)) >= 2
    contract = place / "test_raw_contract.py"
    contract.write_text(CONTRACT, encoding="utf-8")
    words = (
        str(contract),
        "-p",
        "conftest",
        "--plugins",
        plugins,
        "-c",
        str(ROOT / "pyproject.toml"),
    )
    assert count_passed(run_pytest(place, *words)) >= 8
