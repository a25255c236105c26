"""Checks of the shared cases about images."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from _cases_base import VOLUMES, Case, Check


def _open_in_child(what: str, *words: object) -> str:
    """Run `_open_file.py` in a child process and return its output."""
    command = [sys.executable, str(Path(__file__).with_name("_open_file.py")), what]
    command += map(str, words)
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    return (result.stdout + result.stderr).strip()


def big_png(case: Case) -> Iterator[Check]:
    """Check that a large PNG file is read."""
    output = case.predict("p100", "p100.png", "--spacing-um", "0.05")
    loud = output.lines_with("bomb") + output.lines_with("warning:", "pillow")
    ok = output.code == 0 and len(case.rows("p100")) == 1 and not loud
    yield Check("100 MPx: read, without a word of Pillow", output.brief, ok)
    output = case.predict("p200", "p200.png", "--spacing-um", "0.05")
    yield Check(
        "200 MPx: refused in one line that says what to do", output.brief, "TIFF" in output.error
    )


def broken_files(case: Case) -> Iterator[Check]:
    """Check that broken files are set aside and others are predicted."""
    output = case.predict("in", "in")
    names = sorted(row["image_id"] for row in case.rows("in"))
    yield Check("the two good ones are predicted", str(names), names == ["good1", "good2"])
    yield Check("exit code 2", output.brief, output.code == 2)
    for name in ("cut", "empty", "login", "lfs", "gdc", "badtile"):
        lines = output.lines_with(f"set aside {name}:")
        yield Check(f"{name}: one line", " / ".join(lines), len(lines) == 1)
    helpers = ("Thumbs", "DS_Store", "._", "SYNOPHOTO", "@eaDir", "md5", "desktop", "aux.xml")
    loud = [line for word in helpers for line in output.lines_with(word)]
    yield Check("nothing about helper files", " / ".join(loud) or "nothing", not loud)


def foreground(case: Case) -> Iterator[Check]:
    """Check which regions the methods look at."""
    output = case.predict("in", "in", "--heatmaps", "0")
    tissue = np.zeros((512, 512), bool)
    tissue[100:400, 100:400] = True
    core = np.ones((512, 512), bool)
    core[200:300, 220:330] = False
    most = np.ones((512, 512), bool)
    most[:, :150] = False
    where = {"core_lumen": core, "tissue_70percent": most}
    for name in ("usual", "pale", "pale_pen", "pale_blackborder", "he12bit_pen", *where):
        looked_at = _covered_pixels(case, name)
        share = float(looked_at[where.get(name, tissue)].mean())
        yield Check(
            f"{name}: at least 95 % of the tissue is looked at", f"{share:.1%}", share >= 0.95
        )
    for name in ("pale_blackborder", "core_lumen"):
        lines = output.lines_with(name, "border")
        yield Check(
            f"{name}: a word that the border is no glass",
            " / ".join(lines) or "nothing",
            bool(lines),
        )
    for kind in ("core", "margin"):
        output_of_kind = case.train(kind, f"{kind}.csv")
        yield Check(f"{kind}: trained on", output_of_kind.brief, output_of_kind.code == 0)


def _covered_pixels(case: Case, name: str) -> np.ndarray:
    """Return which pixels of a slide of 512 at 0.5 um lie in a region that the method read."""
    covered = np.zeros((512, 512), bool)
    path = case.results / "in" / "heatmaps" / f"{name}.npz"
    if path.is_file():
        boxes = np.load(path)
        begin = np.floor(boxes["origin_um"] / 0.5).astype(int)
        end = np.ceil((boxes["origin_um"] + boxes["size_um"]) / 0.5).astype(int)
        for (top, left), (bottom, right) in zip(begin, end, strict=True):
            covered[max(top, 0) : bottom, max(left, 0) : right] = True
    return covered


def hostile(case: Case) -> Iterator[Check]:
    """Check that hostile files are refused quickly and in one line."""
    names = sorted(
        p.name for p in case.folder.iterdir() if p.suffix in (".svs", ".tif", ".nii", ".gz")
    )
    output = case.predict("all", *names, case.base / "slides")
    n = len(case.rows("all"))
    yield Check(
        "the good slides beside them are predicted",
        f"{n}; {output.brief}",
        (output.code, n) == (2, 12),
    )
    for name in names:
        lines = output.lines_with("set aside", name.partition(".")[0])
        actual = _open_in_child("look", case.folder / name)
        seconds, mib = (float(part.split()[0]) for part in actual.split(", ")[:2])
        ok = "refused: " in actual and "\n" not in actual and len(lines) == 1
        yield Check(f"{name}: one line, 1 s, 100 MiB", actual, ok and seconds <= 1 and mib <= 100)


def limits(case: Case) -> Iterator[Check]:
    """Check that files at the limits are handled."""
    output = case.predict("many", "many", "--heatmaps", "0")
    n = len(case.rows("many"))
    yield Check("1500 slides are predicted", f"{n}; {output.brief}", (output.code, n) == (0, 1500))
    output = case.predict("few_files", "many", "--heatmaps", "0", files=64)
    n = len(case.rows("few_files"))
    ok = (output.code, n) == (0, 1500) or "too many files" in output.error
    yield Check("with 64 open files: predicted, or one line says so", f"{n}; {output.brief}", ok)
    output = case.train("run", "many.csv", files=64)
    n_aside = len(case.rows("run", "quarantine.csv"))
    ok = (output.code == 0 and not n_aside) or "too many files" in output.error
    yield Check("and trained on, or one line says so", f"{n_aside} set aside; {output.brief}", ok)


def mixed_pictures(case: Case) -> Iterator[Check]:
    """Check that pictures of different modes are trained on and predicted."""
    output = case.train("run", "t.csv")
    n_aside, n = len(case.rows("run", "quarantine.csv")), len(case.inputs("run"))
    actual = f"{n} pictures, {n_aside} set aside; {output.brief}"
    yield Check("trains; every picture counts", actual, (output.code, n, n_aside) == (0, 16, 0))
    output = case.foveate("predict", case.results / "run", "p", "--out", case.results / "all")
    rows = case.rows("all")
    unlike = sum(row["unlike"] != "" for row in rows)
    actual = f"{len(rows)} predicted, {unlike} called unlike; {output.brief}"
    yield Check(
        "predicts; every picture counts", actual, (output.code, len(rows), unlike) == (0, 16, 0)
    )


def nifti_headers(case: Case) -> Iterator[Check]:
    """Check that unusual NIfTI headers are read or refused."""
    run = case.results / "run"
    output = case.foveate("train", "t.csv", "--out", run, *VOLUMES)
    yield Check("trains on the good ones", output.brief, output.code == 0)
    output = case.foveate("predict", run, "odd", "--out", case.results / "odd")
    rows = {row["image_id"] for row in case.rows("odd")}
    um = (2000.0, 1000.0, 1000.0)
    for name in (
        "qfac0",
        "qfac2",
        "negative_pixdim_qform",
        "sform_zero_qform_good",
        "sform_nan_qform_good",
        "good",
    ):
        read = _pixels(case, f"odd/{name}.nii")
        actual = str(read if isinstance(read, str) else tuple(read["um"]))
        empty = name.startswith("sform") and isinstance(read, str) and "sform" in read
        ok = empty or (not isinstance(read, str) and tuple(read["um"]) == um and name in rows)
        yield Check(f"{name}: read with z, y, x of {um} um", actual, ok)
    for name in ("vox_offset_0", "vox_offset_348"):
        read = _pixels(case, f"odd/{name}.nii")
        data = np.frombuffer((case.folder / f"odd/{name}.nii").read_bytes()[352:], "<i2")
        if isinstance(read, str):
            actual, ok = read, read != ""
        else:
            r = _correlation(read["pixels"][..., 0], data.reshape(20, 36, 32))
            actual, ok = f"correlation with them {r:.3f}", r > 0.95
        yield Check(f"{name}: voxels from byte 352 on, or refused", actual, ok)
    for name in ("inter_nan", "units_4"):
        lines = output.lines_with(f"set aside {name}:")
        ok = len(lines) == 1 and "Error" not in lines[0]
        yield Check(f"{name}: one line in words", " / ".join(lines), ok)
    lines = output.lines_with("warning", "sform_1mm_pixdim_half")
    yield Check("sform and pixdim that disagree: a warning", " / ".join(lines), bool(lines))
    read = _pixels(case, "odd/float64_1e300.nii")
    fine = isinstance(read, str) or np.isfinite(read["pixels"]).all()
    ok = fine and (
        "float64_1e300" in rows or len(output.lines_with("set aside float64_1e300")) == 1
    )
    yield Check("float64 beyond float32: finite, or one line", str(read)[:200], ok)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return the highest correlation of two volumes over all orientations."""
    turned = [np.flip(other, tuple(i for i in range(3) if n >> i & 1)) for n in range(8)]
    return float(max(np.corrcoef(one.ravel(), t.ravel())[0, 1] for t in turned))


def _pixels(case: Case, file: str) -> dict[str, np.ndarray] | str:
    """Return the pixels of level 0 with spacing and number of levels, or the error line."""
    stored = case.results / "pixels.npz"
    stored.unlink(missing_ok=True)
    case.results.mkdir(exist_ok=True)
    text = _open_in_child("pixels", case.folder / file, stored)
    return dict(np.load(stored)) if stored.is_file() else text


def odd_names_and_sizes(case: Case) -> Iterator[Check]:
    """Check that unusual file names and sizes are predicted."""
    for folder in ("in", "long"):
        output = case.predict(folder, folder)
        total = sum(path.is_file() for path in (case.folder / folder).rglob("*"))
        rows = case.rows(folder)
        actual = f"{len(rows)} of {total}; {output.brief}"
        yield Check(f"{folder}: all predicted", actual, (output.code, len(rows)) == (0, total))
        index = case.results / folder / "heatmaps" / "index.json"
        drawn = json.loads(index.read_text(encoding="utf-8"))
        n = sum((index.parent / str(entry["png"])).is_file() for entry in drawn)
        yield Check(f"{folder}: a picture for each", f"{n} of {total}", n == total)
    names = [p for p in sorted((case.folder / "in").rglob("*.tif")) if not p.name.startswith("z_")]
    lines = [
        '"' + str(p.relative_to(case.folder)).replace('"', '""') + f'",{("<i>a", "b&c")[i % 2]}'
        for i, p in enumerate(names)
    ]
    (case.folder / "names.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    output = case.train("run", "names.csv", "--heatmaps", "20", "--folds", "2")
    page = case.results / "run" / "report.html"
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    ok = output.code == 0 and len(case.inputs("run")) == len(names)
    yield Check("in: trained on from a table", output.brief, ok)
    yield Check(
        "the page escapes what the table says",
        f"{len(text)} letters",
        "&lt;i&gt;a" in text and "<i>a" not in text,
    )


def tiff_variants(case: Case) -> Iterator[Check]:
    """Check that variants of TIFF are read or refused."""
    truth = np.load(case.folder / "truth.npy").astype(int)
    for path in sorted((case.folder / "in").iterdir()):
        read = _pixels(case, f"in/{path.name}")
        if isinstance(read, str):
            ok = read != "" and "\n" not in read and "Traceback" not in read
            yield Check(f"{path.name}: right or refused in one line", read, ok)
            continue
        right = np.rot90(truth, -1) if "orientation" in path.name else truth
        right = right[:200, :200] if "200" in path.name else right
        off = float(np.abs(read["pixels"].astype(int) - right).mean())
        um, levels = tuple(map(float, read["um"])), int(read["levels"])
        expected, ok = "mean|d| below 5", off < 5
        if path.name.startswith(("imagej", "aperio")):
            # ImageJ's unit of the millimetre stands beside 2000 pixels a unit: 0.5 um too.
            value = 0.499 if path.name.startswith("aperio") else 0.5
            expected += f", {value} um"
            ok &= len(um) == 2 and max(abs(n - value) for n in um) < 1e-3
        if "second_page" in path.name:
            expected, ok = f"{expected}, one level", ok and levels == 1
        yield Check(f"{path.name}: {expected}", f"{off:.1f}, {um} um, {levels} levels", ok)


IMAGES = {
    f.__name__: f
    for f in (
        *(big_png, broken_files, foreground, hostile, limits, mixed_pictures, nifti_headers),
        *(odd_names_and_sizes, tiff_variants),
    )
}
