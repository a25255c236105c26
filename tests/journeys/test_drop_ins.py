"""One file for each addition: a task, a reader of folders, an export, a method and an encoder.

They lie in a folder of plug-ins; no file of foveate is changed, and everything works with
them: the check before training, training, prediction, evaluation, heatmaps and the report.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from foveate.runs.folder import read_json, read_rows
from helpers.commands import Completed

Command = Callable[..., Completed]

TASK = '''
"""How many there are: the logarithm of a count, learnt by its absolute error."""
import math

import numpy as np
import torch

from foveate.errors import TableError
from foveate.metrics import Score
from foveate.nn.heads import Head
from foveate.presentation import Chart, ScoreWords
from foveate.tasks.base import AbstractTask


class SpotCountTask(AbstractTask):
    """A count, on the scale of its logarithm.

    Args:
        middle: mean logarithm of the training part.
        slack: of the error that costs nothing.
    """

    words = {"error": ScoreWords("error factor", "1 is exact", small_is_good=True, span=None)}
    tabled = ("error",)
    columns, deviation_columns = ("count",), ("count_sd",)

    def __init__(self, *, middle, slack: float = 0.0):
        self.middle, self.slack = middle, slack
        self.heads = (Head("count", 1, False, "sum"),)

    @classmethod
    def fits(cls, labels, column):
        """Never by itself."""
        return False

    @classmethod
    def settle(cls, labels, shared=None, options=None):
        """Take the mean logarithm."""
        known = [float(label) for label in labels if label.isdecimal()]
        if not known:
            raise TableError("holds no count")
        return {"middle": float(np.mean(np.log1p(known)))}

    @property
    def allowed(self):
        """Counts."""
        return "counts"

    def describe(self):
        """Say what is predicted."""
        return "counts"

    def parse(self, label):
        """Return the count."""
        if not label.isdecimal():
            raise TableError(f"'{label}' is no count")
        return float(label)

    def strata(self, labels, patients):
        """Few and many."""
        return ["many" if self.parse(label) > 8 else "few" for label in labels]

    def loss(self, logits, target):
        """Return the mean absolute error of the logarithm."""
        error = (logits[:, 0].float() + self.middle - torch.log1p(target.float())).abs()
        return (error - self.slack).clamp_min(0).mean()

    def log_scores(self, values, target):
        """Return minus the error."""
        return {"val_closeness": -float((values[:, 0] - target.double()).abs().mean())}

    def decode(self, logits, point):
        """Return the count."""
        return torch.expm1(logits.double() + self.middle)

    def predict(self, values, point):
        """Return the nearest count."""
        return str(max(0, round(values[0])))

    def score(self, rows):
        """Return the mean factor between answer and label."""
        pairs = [(float(row["count"]), self.parse(row["label"])) for row in rows]
        logs = [abs(math.log((1 + max(a, 0)) / (1 + b))) for a, b in pairs]
        value, half = float(np.mean(logs)), 2 * float(np.std(logs)) / len(logs) ** 0.5
        limits = (math.exp(v) for v in (value, value - half, value + half))
        return {"error": Score(*limits, "normal", len(rows))}

    def compare(self, rows, others):
        """Compare nothing."""
        return {}

    def sentence(self, scores, n_folds):
        """Say the factor."""
        return f"counts were off by a factor of {scores['error']['value']:.2f}." if scores else ""

    def charts(self, rows, metrics, points):
        """Draw counts as bars."""
        values = [float(row["count"]) for row in rows]
        draw = lambda figure: figure.subplots().hist(values)
        return [Chart("counts", "how many there are", "", "a histogram of counts", draw)]
'''

READER = '''
"""A folder of slices of numbers, one plain text file each, shown through a window."""
import numpy as np

from foveate.errors import UnreadableImage
from foveate.images.level import Level
from foveate.readers.base import AbstractReader


class TextSlicesReader(AbstractReader):
    """Grey pictures, the mean of their slices.

    Args:
        path: a folder of ``.slice`` files.
        window: the stored value that becomes white.
    """

    takes_folders = True

    def __init__(self, path, *, window: float = 1000.0):
        super().__init__(path)
        try:
            slices = [np.loadtxt(p) for p in sorted(path.glob("*.slice"))]
            values = np.mean(slices, 0)
        except ValueError as error:
            raise UnreadableImage(f"{path}: slices of one size are needed") from error
        self.pixels = np.clip(255 * values / window, 0, 255).astype(np.uint8)[..., None]
        self.kind, self.channels, self.dtype = "picture", 1, np.dtype(np.uint8)
        self.levels = (Level(self.pixels.shape[:2], (1.0, 1.0)),)
        self.spacing_um = None
        self.reader = f"text slices, window {window:g}"

    @classmethod
    def recognises(cls, path, head):
        """A folder with slices."""
        return path.is_dir() and any(path.glob("*.slice"))

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

EXPORT = '''
"""The heaviest box, in one line of text."""
from foveate.exports.base import AbstractExport


class PeakLineExport(AbstractExport):
    """Where the heaviest box lies."""

    title = "peak"
    suffix = ".peak.txt"

    def render(self, image, evidence, about):
        """Return the centre and the extent of the image."""
        centre = evidence.peak_um().centre
        extent = evidence.extent_um.tolist()
        line = f"{about.image_id} {about.texts['predicted']} {list(centre)} of {extent}"
        return f"{line} {image.reader}\\n".encode()
'''

METHOD = '''
"""The mean colour of the glimpse, and nothing else.

Source: none.

Use when: a test asks for it.

Cost: none.
"""
import numpy as np
import torch
from torch import nn

from foveate.batch import Batch
from foveate.methods.base import AbstractMethod, Prediction


class Glance(AbstractMethod):
    """A linear layer on the glimpse.

    Args:
        hidden: width of a layer between.
    """

    reads = frozenset({"crops"})
    summary = "a patch in the middle, and a layer"

    def __init__(self, *, encoder, heads, hidden: int = 8):
        super().__init__()
        self.encoder = encoder
        k = sum(head.size for head in heads)
        self.head = nn.Sequential(nn.Linear(encoder.dim, hidden), nn.ReLU(), nn.Linear(hidden, k))

    def forward(self, batch: Batch) -> Prediction:
        """Look once."""
        centres = [np.asarray(item.image.box_um.centre)[None] for item in batch.items]
        places = [batch.place(i, centre) for i, centre in enumerate(centres)]
        vectors = self.encoder.pool(self.encoder.maps(batch.read_patches(places)))
        evidence = [] if self.training else batch.evidence(places, vectors.new_ones(len(batch), 1))
        return Prediction(self.head(vectors), evidence)
'''

ENCODER = '''
"""Means over squares, and a layer."""
import torch
from torch import nn
from torch.nn import functional

from foveate.encoders.base import AbstractEncoder


class SpeckleEncoder(AbstractEncoder):
    """A layer on the mean colour and the brightest colour of squares of eight pixels.

    Args:
        dim: length of the vector.
    """

    strides, map_dims, map_centres_px = (8,), (3,), (4.0,)

    def __init__(self, *, dim: int = 32):
        super().__init__()
        self.dim = dim
        self.mix = nn.Linear(6, dim)

    def maps(self, x):
        """Average squares; a square at the border may be smaller."""
        return [functional.avg_pool2d(x, 8, ceil_mode=True)]

    def pool(self, maps):
        """Mix the mean and the maximum."""
        (map_,) = maps
        return self.mix(torch.cat([map_.mean((2, 3)), map_.amax((2, 3))], 1))
'''

PARTS = {
    "tasks/spot_count.py": TASK,
    "readers/text_slices.py": READER,
    "exports/peak_line.py": EXPORT,
    "methods/glance.py": METHOD,
    "encoders/speckle.py": ENCODER,
}

N_IMAGES = 32


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write plug-ins, image folders and a table; the label counts the bright spots."""
    folder = tmp_path_factory.mktemp("place")
    for name, code in PARTS.items():
        path = folder / "plug-ins" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code, encoding="utf-8")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(N_IMAGES):
        count = int(rng.integers(1, 17))
        values = rng.normal(500, 20, (64, 64))
        for cell in rng.permutation(64)[:count]:
            y, x = divmod(int(cell), 8)
            values[8 * y : 8 * y + 6, 8 * x : 8 * x + 6] = 1900
        series = folder / "series" / f"s{i:02d}"
        series.mkdir(parents=True)
        for z in range(2):
            np.savetxt(series / f"{z}.slice", values, fmt="%.0f")
        rows.append({"path": f"series/s{i:02d}", "patient": f"P{i:02d}", "spots": count})
    rows.append(rows[0] | {"path": "series/s01", "patient": "P01", "spots": rows[1]["spots"]})
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def train_words(place: Path, out: Path) -> tuple[object, ...]:
    return (
        *("train", place / "labels.csv", "--out", out, "--plugins", place / "plug-ins"),
        *("--label", "spots", "--task", "spot_count", "--task.slack", "0.01", "--method", "glance"),
        *("--reader.text_slices.window", "2000", "--export", "png,peak_line", "--heatmaps", "3"),
        *("--encoder", "speckle", "--encoder.dim", "16", "--epochs", "4"),
        *("--view.patch-px", "64", "--view.glimpse-px", "64"),
    )


@pytest.fixture
def run(place: Path, foveate: Command) -> Path:
    """Train once with only the five files added; a second call reuses the run."""
    out = place / "run"
    result = foveate(*train_words(place, out))
    assert result.returncode == 0, result.stderr
    return out


@pytest.mark.slow
def test_a_run_lists_the_plug_ins_it_uses(place: Path, run: Path, foveate: Command) -> None:
    card = read_json(run / "fold_0" / "model" / "model.json")
    names = (card["task"], card["method"], card["encoder"])
    assert names == ("spot_count", "glance", "speckle")
    assert card["encoder_options"] == {"dim": 16}
    assert list(card["settled"]) == ["middle"]
    assert card["task_options"] == {"slack": 0.01}
    assert card["readers"] == {"text_slices": {"window": 2000.0}}
    metrics = read_json(run / "metrics.json")
    assert list(metrics["metrics"]) == ["error"]
    rows = read_rows(run / "predictions_oof.csv")
    assert all(row["predicted"].isdecimal() and float(row["count"]) > -1 for row in rows)


def test_the_report_contains_texts_figures_and_files_of_plug_ins(run: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "counts were off by a factor of" in page
    assert "error factor" in page
    assert (run / "figures" / "counts.png").is_file()
    assert page.count(">peak</a>") == 3
    assert "AUROC" not in page
    assert "onfusion" not in page


def test_the_requested_exports_are_written(run: Path) -> None:
    entries = [
        entry for entry in read_json(run / "heatmaps" / "index.json") if entry.get("peak_line")
    ]
    assert len(entries) == 3
    for entry in entries:
        assert entry["geojson"] is None
        assert (run / "heatmaps" / entry["png"]).is_file()
        text = (run / "heatmaps" / entry["peak_line"]).read_text(encoding="utf-8")
        assert text.startswith(f"{entry['image_id']} {entry['predicted']} [32.0, 32.0] of [64.0")
        assert text.endswith("window 2000\n"), "the option of training"
    assert not list((run / "heatmaps").glob("*.geojson"))


def test_folders_are_predicted_with_the_training_options(
    place: Path, run: Path, foveate: Command
) -> None:
    out = place / "predicted"
    plugins = ("--plugins", place / "plug-ins", "--export", "geojson,peak_line")
    result = foveate("predict", run, place / "series", "--out", out, *plugins)
    assert result.returncode == 0, result.stderr
    rows = read_rows(out / "predictions.csv")
    assert len(rows) == N_IMAGES, "a folder of slices is one image, wherever it lies"
    text = (out / "heatmaps" / "s03.peak.txt").read_text(encoding="utf-8")
    assert text.endswith("window 2000\n")
    assert json.loads((out / "heatmaps" / "s03.geojson").read_text())["features"]
    assert not list((out / "heatmaps").glob("*.png"))
    one = foveate("predict", run, place / "series" / "s03", "--out", place / "one", *plugins[:2])
    assert one.returncode == 0, one.stderr
    (row,) = read_rows(place / "one" / "predictions.csv")
    assert row["count"] == next(r for r in rows if r["image_id"] == "s03")["count"]


def test_evaluation_sets_invalid_labels_aside(place: Path, run: Path, foveate: Command) -> None:
    table = place / "other.csv"
    table.write_text("path,spots\nseries/s04,3\nseries/s05,many\nseries/s06,12\n")
    words = (run, table, "--label", "spots", "--out", place / "scored")
    result = foveate("evaluate", *words, "--plugins", place / "plug-ins")
    assert result.returncode == 2, result.stderr
    assert "'many' 1; it knows counts" in result.stderr
    assert read_json(place / "scored" / "metrics.json")["n_images"] == 2
    assert "error " in result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--reader.text_slices.windw", "3"), "no option 'reader.text_slices.windw'. Did you mean"),
        (("--reader.text_slice.window", "3"), "no reader 'text_slice'. Did you mean 'text_slices'"),
        (("--reader.window", "3"), "--reader.NAME.option"),
        (("--reader.text_slices.window", "wide"), "got 'wide', expected a number"),
        (("--export", "png,peek_line"), "no export 'peek_line'. Did you mean 'peak_line'"),
        (("--task", "spot_cuont"), "no task 'spot_cuont'. Did you mean 'spot_count'"),
    ],
)
def test_an_unknown_option_is_refused_before_reading(
    place: Path, tmp_path: Path, foveate: Command, words: tuple[str, str], message: str
) -> None:
    result = foveate(*train_words(place, tmp_path / "run"), *words)
    assert result.returncode == 1
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_folder_that_no_reader_takes_is_no_image(place: Path, tmp_path: Path) -> None:
    from foveate.errors import UnsupportedFormat
    from foveate.readers import open_image

    with pytest.raises(UnsupportedFormat, match="is a folder, not an image file"):
        open_image(tmp_path)


@pytest.mark.parametrize("name", PARTS)
def test_no_file_of_foveate_names_the_plug_ins(name: str) -> None:
    """Neither the name of a plug-in nor that of its class is in any source file of foveate."""
    source = Path(__file__).resolve().parents[2] / "src" / "foveate"
    words = {Path(name).stem, *re.findall(r"^class (\w+)\(", PARTS[name], re.MULTILINE)}
    assert len(words) == 2
    texts = [path for path in source.rglob("*") if path.suffix in (".py", ".j2", ".css", ".js")]
    assert len(texts) > 100
    for path in texts:
        text = path.read_text(encoding="utf-8").lower()
        assert not [word for word in words if word.lower() in text], path
