"""``python -m benchmarks``: rows, repeating, resuming, and user mistakes.

The four tasks are run on MNIST itself; the rest needs no file from elsewhere.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from benchmarks.__main__ import _RECIPES
from benchmarks.canvas.loading import CanvasLoader
from benchmarks.mnist import BENCHMARKS, run
from benchmarks.mnist.idx import FILES
from foveate.batch import View
from foveate.runs.folder import read_json, read_rows
from foveate.table import Case
from foveate.training.loop import Trainer
from helpers.commands import Completed, assert_refused
from helpers.files import encode_idx

pytestmark = pytest.mark.slow

Command = Callable[..., Completed]

SMALL = (
    *("--train-images", "12", "--test-images", "4", "--epochs", "1"),
    *("--encoder.width", "8", "--encoder.dim", "16"),
)
FEW = ("--method", "glimpse", "--method.patches", "2", "--method.eval-patches", "2")
NEEDLE = ("needle-mnist", "--side", "64", *SMALL)

COLUMNS = {
    *("benchmark", "method", "seed", "n_train", "n_val", "n_test", "test_loss", "read_fraction"),
    *("uses_layout", "epochs", "best_epoch", "left_chance_epoch", "train_minutes"),
    *("reading_share", "asked_px_per_image", "peak_memory_mib", "method_options", "device"),
    *("encoder", "encoder_options", "spacing"),
}
CLOCKED = ("test_seconds", "train_minutes", "reading_share", "peak_memory_mib")
"""Columns of timings, which differ between runs."""


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write random digits in the four files of MNIST."""
    folder, rng = tmp_path_factory.mktemp("digits"), np.random.default_rng(0)
    for images, labels, n in ((FILES[0], FILES[1], 60), (FILES[2], FILES[3], 40)):
        pixels = np.zeros((n, 28, 28), np.uint8)
        pixels[:, 4:24, 4:24] = rng.integers(0, 256, (n, 20, 20))
        (folder / images).write_bytes(encode_idx(pixels))
        (folder / labels).write_bytes(encode_idx((np.arange(n) % 10).astype(np.uint8)))
    return folder


def assert_ok(result: Completed) -> Completed:
    assert result.returncode == 0, result.stderr
    return result


def without_timings(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without its timings."""
    return {key: value for key, value in row.items() if key not in CLOCKED}


# -- rows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "scores", "asked_px"),  # pixels of the glimpse, and of patches in the last case
    [
        (
            ("megapixel-mnist", "--side", "200", "--noise", "3", "--method", "downsampled"),
            ("test_majority", "test_max", "test_top", "test_multi"),
            40**2,
        ),
        (("ultra-mnist", "--method", "downsampled"), ("test_sum",), 128**2),
        (
            ("needle-mnist", "--side", "64", "--method", "downsampled", "--seeds", "0,1"),
            ("test_auroc",),
            64**2,
        ),
        (
            ("spatial-bag", "--side", "1024", "--task", "C", *FEW),
            ("test_auroc",),
            256**2 + 2 * 28**2,
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_every_task_writes_its_rows(
    words: tuple[str, ...],
    scores: tuple[str, ...],
    asked_px: int,
    shared_data: Path,
    tmp_path: Path,
    bench: Command,
) -> None:
    mnist, out = shared_data / "mnist", tmp_path / "out"
    if not mnist.is_dir():
        pytest.skip(f"MNIST is not here: {mnist}")
    result = assert_ok(bench(*words, "--mnist", mnist, "--out", out, *SMALL))
    rows = read_rows(out / "results.csv")
    seeds = ["0", "1"] if "--seeds" in words else ["0"]
    assert [row["seed"] for row in rows] == seeds
    for row in rows:
        assert set(row) >= COLUMNS | set(scores)
        assert row["benchmark"].startswith(f"{words[0]} ")
        assert row["method"] == words[words.index("--method") + 1]
        assert [row[f"n_{part}"] for part in ("train", "val", "test")] == ["11", "1", "4"]
        assert all(0 <= float(row[score]) <= 1 for score in scores)
        assert row["epochs"] == row["best_epoch"] == "1"
        assert row["left_chance_epoch"] in ("0", "1")
        assert 0 < float(row["test_loss"]) < 10
        assert float(row["train_minutes"]) < 1
        assert 0 < float(row["reading_share"]) < 1
        assert 50 < float(row["peak_memory_mib"]) < 20_000
        assert int(row["asked_px_per_image"]) == asked_px
        side = {"ultra-mnist": 512}.get(words[0], 0) or int(words[words.index("--side") + 1])
        assert float(row["read_fraction"]) == pytest.approx(asked_px / side**2, abs=1e-4)
        assert row["uses_layout"] == ("True" if "glimpse" in words else "")
        assert f"{words[0]} {row['method']} seed {row['seed']}: {scores[0]} " in result.stdout
    assert str(out / "results.csv") in result.stdout
    canvases = [p.read_bytes() for p in sorted(out.glob("canvases/*/train/00000.sparse"))]
    assert len(set(canvases)) == len(seeds), "every seed has canvases of its own"


# -- repeating and going on ------------------------------------------------------------------------


def test_repeating_a_command_keeps_rows_without_training(
    digits: Path, tmp_path: Path, bench: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*NEEDLE, "--mnist", digits, "--out", tmp_path, *FEW)
    assert_ok(bench(*words))
    table = (tmp_path / "results.csv").read_bytes()
    fits = []
    fit = Trainer.fit

    def watched(self: Trainer, *parts: Any) -> Any:
        fits.append(self.options.seed)
        return fit(self, *parts)

    monkeypatch.setattr(Trainer, "fit", watched)
    assert_ok(bench(*words))
    assert (tmp_path / "results.csv").read_bytes() == table
    assert fits == []

    assert_ok(bench(*words, "--seeds", "0,2", "--train-images", "12"))
    assert fits == [2], "one more seed is one more row"
    assert [row["seed"] for row in read_rows(tmp_path / "results.csv")] == ["0", "2"]
    assert_ok(bench(*words, "--method.dropout", "0.2"))
    assert fits == [2, 0], "other options are another row"


def test_a_stopped_run_resumes_to_the_same_result(
    digits: Path, tmp_path: Path, bench: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, cut = tmp_path / "whole", tmp_path / "cut"
    words = (*NEEDLE, "--mnist", digits, *FEW, "--epochs", "3", "--probe-minutes", "0")
    assert_ok(bench(*words, "--out", undisturbed))

    look = run._Probe.after_epoch

    def stopped(self: Any, folder: Path) -> None:
        look(self, folder)
        if len(self.trainer.progress.history) == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run._Probe, "after_epoch", stopped)
        result = bench(*words, "--out", cut)
    assert result.returncode == 130
    assert "The same command continues" in result.stderr
    assert not (cut / "results.csv").exists()

    assert_ok(bench(*words, "--out", cut))
    (row,), (expected,) = read_rows(cut / "results.csv"), read_rows(undisturbed / "results.csv")
    assert row["epochs"] == "3"
    # The probe after the first epoch is stored and not repeated after the second.
    assert float(row.pop("probe_minutes")) >= 0
    expected.pop("probe_minutes")
    expected.pop("probe_test_seconds")
    assert "probe_test_auroc" in row
    probed = read_json(next(cut.glob("runs/*/probe.json")))
    assert probed["probe_test_seconds"] == float(row.pop("probe_test_seconds"))
    # The resumed process reads the glimpses again.
    assert int(row.pop("asked_px_per_image")) > int(expected.pop("asked_px_per_image"))
    assert without_timings(row) == without_timings(expected)


def test_a_lost_row_is_scored_again_without_training(
    digits: Path, tmp_path: Path, bench: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*NEEDLE, "--mnist", digits, "--out", tmp_path, *FEW)
    assert_ok(bench(*words))
    (before,) = read_rows(tmp_path / "results.csv")
    (row,) = tmp_path.glob("runs/*/row.json")
    checkpoint = row.parent / "checkpoints" / "latest.safetensors"
    written = checkpoint.stat().st_mtime_ns
    row.unlink()
    (tmp_path / "results.csv").unlink()

    def trains(*_: Any) -> None:
        raise AssertionError("it is trained again")

    monkeypatch.setattr(Trainer, "_train_epoch", trains)
    assert_ok(bench(*words))
    (after,) = read_rows(tmp_path / "results.csv")
    assert without_timings(after) == without_timings(before)
    assert [after[k] for k in ("train_minutes", "peak_memory_mib")] == [
        before[k] for k in ("train_minutes", "peak_memory_mib")
    ], "what training took is remembered"
    assert checkpoint.stat().st_mtime_ns == written


def test_peak_memory_is_measured_per_row(digits: Path, tmp_path: Path, bench: Command) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system cannot forget a peak")
    heavy = np.ones(1 << 26)  # half a gigabyte, gone when the row begins
    del heavy
    assert_ok(bench(*NEEDLE, "--mnist", digits, "--out", tmp_path, "--method", "downsampled"))
    (row,) = read_rows(tmp_path / "results.csv")
    used_mib = psutil.Process().memory_info().rss / 2**20
    assert float(row["peak_memory_mib"]) < used_mib + 256


# -- what a user gets wrong ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--seeds", "0;1"), ("--seeds: got '0;1'", "whole numbers such as 0,1,2")),
        (("--seeds", ""), ("--seeds: got ''", "whole numbers")),
        (("--seeds", "-1"), ("seed: got -1", "0 or more")),
        (("--train-images", "1"), ("--train-images: got 1", "validation")),
        (("--test-images", "0"), ("--test-images: got 0", "1 or more")),
        (("--side", "100"), ("--side", "'100' is not one of '64', '128'")),
        (("--method", "glimse"), ("no method 'glimse'", "Did you mean 'glimpse'?")),
        (("--method.patchs", "3"), ("no option 'method.patchs'", "'patches'")),
        (("--method.patches", "few"), ("method.patches: got 'few'", "whole number")),
        (("--encoder.widht", "4"), ("no option 'encoder.widht'", "'width'")),
        (("--train.seed", "3"), ("--train.seed", "--seeds")),
        (("--train.lr", "-1"), ("train.lr: got -1",)),
        (("--view.patch", "36"), ("no option 'view.patch'", "'patch_px'")),
        (("--view.patch-px", "4"), ("view.patch_px", "16")),
        (("--view.glimpse-spacing-um", "wide"), ("view.glimpse_spacing_um: got 'wide'",)),
        (("--split.folds", "3"), ("--split.*", "--train.*, --view.*, --method.*, --encoder.*")),
        (
            ("--variant", "ips"),
            ("no option '--variant'", "python -m benchmarks needle-mnist --help"),
        ),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(
    words: tuple[str, ...],
    parts: tuple[str, ...],
    digits: Path,
    tmp_path: Path,
    bench: Command,
) -> None:
    out = tmp_path / "out"
    begin = tuple(w for w in NEEDLE if words[0] != "--side" or w not in ("--side", "64"))
    result = bench(*begin, "--mnist", digits, "--out", out, *words)
    assert_refused(result, *parts)
    assert not list(out.glob("runs/*"))
    assert not list(out.glob("canvases/*"))


def test_unusable_folders_are_refused_by_name(digits: Path, tmp_path: Path, bench: Command) -> None:
    nowhere, out = tmp_path / "nowhere", tmp_path / "out"
    assert_refused(bench(*NEEDLE, "--mnist", nowhere, "--out", out), str(nowhere), "https://")
    assert_refused(bench(*NEEDLE, "--mnist", digits), "missing option '--out'")

    torn = tmp_path / "torn"
    shutil.copytree(digits, torn)
    (torn / FILES[2]).write_bytes((torn / FILES[2]).read_bytes()[:-5])
    assert_refused(bench(*NEEDLE, "--mnist", torn, "--out", out), FILES[2], "less than")

    taken = tmp_path / "taken"
    taken.write_text("a file")
    assert_refused(bench(*NEEDLE, "--mnist", digits, "--out", taken), str(taken))

    words = (*NEEDLE, "--mnist", digits, "--out", out, "--method", "downsampled")
    assert_ok(bench(*words))
    result = bench(*words, "--test-images", "6")
    assert_refused(result, "n_test 4 (wanted: 6)", "name another folder or delete it")
    assert_refused(bench("needel-mnist"), "no such command", "needle-mnist")


# -- help ------------------------------------------------------------------------------------------


def test_help_lists_options_and_defaults(bench: Command) -> None:
    assert set(_RECIPES) == set(BENCHMARKS)
    listing = assert_ok(bench("--help")).stdout
    assert assert_ok(bench()).stdout == listing
    assert "\\b" not in listing
    assert "\n    python -m benchmarks memory --out out/memory" in listing, (
        "examples keep their lines"
    )
    every = {key for benchmark in BENCHMARKS.values() for key in benchmark.recipe}
    for name, benchmark in BENCHMARKS.items():
        assert f"  {name}  " in listing
        help_text = " ".join(assert_ok(bench(name, "--help")).stdout.split())
        assert "\\b" not in help_text
        for key, default in benchmark.recipe.items():
            assert f" --{key} " in help_text
            described = help_text.split(f" --{key} ")[1]
            default_text = "[default: " if default is None else f"[default: {default}]"
            assert described.index(default_text) < described.index(" --method "), key
        for key in every - set(benchmark.recipe):
            assert f" --{key} " not in help_text
        assert f"validation included. [default: {benchmark.n_train}]" in help_text
        assert f"Canvases to test on. [default: {benchmark.n_test}]" in help_text


# -- memory ----------------------------------------------------------------------------------------

HUNGRY = '''
"""A method whose process dies, as if the system had run out of memory."""
import os
from foveate.methods.downsampled import Downsampled

class Hungry(Downsampled):
    """Dies."""
    summary = "dies"

    def forward(self, batch):
        os._exit(9)
'''

MEMORY = ("memory", "--patch-px", "32", "--width", "8")
"""The command with small patches and a small encoder."""


def test_memory_writes_a_row_per_side_and_patch_number(
    tmp_path: Path, bench: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*MEMORY, "--out", tmp_path, "--method", "ips", "--encoder.dim", "16")
    environment = dict(os.environ)
    result = assert_ok(bench(*words, "--sides", "256", "--kept", "16,4", "--batch-size", "2"))
    assert dict(os.environ) == environment
    rows = read_rows(tmp_path / "results.csv")
    assert [(row["side"], row["kept"]) for row in rows] == [("256", "4"), ("256", "16")]
    for row in rows:
        assert (row["benchmark"], row["method"], row["device"]) == ("memory", "ips", "cpu")
        assert (row["patches"], row["patch_px"], row["batch_size"]) == ("64", "32", "2")
        assert (row["encoder_width"], row["encoder_dim"]) == ("8", "16")
        assert float(row["gigapixels"]) == pytest.approx(256**2 / 1e9, abs=1e-4)
        # The glimpse and every patch once, the kept ones again; the lattice moves: 64 to 81.
        low, high = (g + n * 32**2 for g, n in ((256**2, 64), (256**2, 81 + int(row["kept"]))))
        assert low <= float(row["asked_fraction"]) * 256**2 <= high
        assert 0 < float(row["step_mib"]) < float(row["rss_peak_mib"])
        assert 0 <= float(row["seconds_reading"]) < float(row["seconds"]) < 60
        assert f"kept {row['kept']}:" in result.stdout

    requested: list[Any] = []

    def measured(*words: Any, **__: Any) -> None:
        requested.append(words)
        raise AssertionError("it is measured again")

    monkeypatch.setattr("benchmarks.memory.measure_in_process", measured)
    table = (tmp_path / "results.csv").read_bytes()
    assert_ok(bench(*words, "--sides", "256", "--kept", "16,4", "--batch-size", "2"))
    assert (tmp_path / "results.csv").read_bytes() == table
    assert not requested
    for changed in (("--patch-px", "64"), ("--width", "4"), ("--batch-size", "1")):
        again = (*words, "--sides", "256", "--kept", "16", "--batch-size", "2", *changed)
        before = len(requested)
        assert bench(*again).returncode != 0
        assert len(requested) == before + 1


def test_the_death_of_a_process_is_reported(tmp_path: Path, bench: Command) -> None:
    part = tmp_path / "parts" / "methods" / "hungry.py"
    part.parent.mkdir(parents=True)
    part.write_text(HUNGRY, encoding="utf-8")
    words = (*MEMORY, "--out", tmp_path / "out", "--method", "hungry", "--sides", "64")
    begun = time.monotonic()
    result = bench(*words, "--plugins", tmp_path / "parts")
    assert_refused(result, "side 64", "killed", "want of memory", "--batch-size")
    assert time.monotonic() - begun < 60
    assert not list((tmp_path / "out").glob("runs/*/row.json"))


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--sides", "4k"), ("--sides: got '4k'", "whole numbers")),
        (("--sides", "16"), ("--sides: got 16", "32 (one patch)")),
        (("--sides", "10000000"), ("--sides: got 10000000", "4194304")),
        (("--patch-px", "8"), ("--patch-px: got 8", "16")),
        (("--batch-size", "0"), ("--batch-size: got 0",)),
        (("--kept", "4"), ("no option 'method.kept'", "patches")),
        (("--method", "isp", "--kept", "4"), ("no method 'isp'", "'ips'")),
        (("--train.lr", "1"), ("--train.*",)),
        (("--encoder.widht", "4"), ("no option 'encoder.widht'", "'width'")),
    ],
)
def test_memory_refuses_impossible_measurements(
    words: tuple[str, ...], parts: tuple[str, ...], tmp_path: Path, bench: Command
) -> None:
    assert_refused(bench(*MEMORY, "--out", tmp_path / "out", *words), *parts)
    assert not (tmp_path / "out").exists()


def test_a_crowded_canvas_fills_every_cell(tmp_path: Path) -> None:
    from benchmarks.canvas import read_canvas, render
    from benchmarks.memory import crowded_canvas

    path = crowded_canvas(tmp_path, side=700, cell_px=100)
    pixels = render(read_canvas(path), (0, 0), (700, 700))[..., 0]
    cells = pixels.reshape(7, 100, 7, 100).swapaxes(1, 2)
    lit = (cells > 0).mean((2, 3))
    assert lit.min() > 0.7, "84 of 100 pixels a side"
    assert len({cell.tobytes() for row in cells for cell in row}) == 49, "and no two are alike"
    written = path.stat().st_mtime_ns
    assert crowded_canvas(tmp_path, side=700, cell_px=100) == path
    assert path.stat().st_mtime_ns == written
    loader = CanvasLoader(View(1.0, 100, 10.0, unit="px"))
    try:
        item = loader.load(Case("a", "a", path))
    finally:
        loader.close()
    assert (item.contrast > 0).mean() > 0.7
