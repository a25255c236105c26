"""Seeds, mutations and visits of the fuzz for tables, configurations and model folders."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import openpyxl
import torch
from PIL import Image

from foveate.batch import View
from foveate.errors import FoveateError
from foveate.files.digest import file_sha256
from foveate.loading.gather import gather_cases
from foveate.runs.card import ModelCard
from foveate.runs.checkpoint import build_model, save_model
from foveate.runs.config import build_config, dump_yaml, load_yaml
from foveate.runs.models import find_models
from foveate.table import LabelRules, read_cases

KINDS = ("images", "tables", "configs", "models")
_TABLES = (".csv", ".tsv", ".xlsx")
_ROWS = [(f"S{i:02d}.png", ("benign", "malignant")[i % 2], f"P{i // 2}", "0.5") for i in range(8)]
_NAMES = ("path", "label", "patient_id", "mpp")
_WORDS = (
    *(b"nan", b"-1", b"1e999", b"-1e-320", b"99999999999999999999", b"null", b"[]", b"{}", b'""'),
    *(b"true", b"&a [*a]", b"!!python/object:os.system", b"0x10", b"1_000", b"=1+1", b"'", b'"'),
    *(b"\t", b"2001-01-01", b"12:30:45", b"\xe2\x80\xae", b"\xff\xfe", b"a" * 70_000, b"[" * 3000),
    *(b"- " * 3000, b"? ", b"<<: *a", b"-.inf", b"#VALUE!", b"sep=;\n", b"\r", b"1" * 5000, b"\0"),
)
_METHODS = ("mil_mean", "glimpse", "clam", "transmil", "tnet", "streaming_cnn", "ips")


def kind_of(name: str) -> str:
    """Return the kind in `KINDS` of a seed of this name."""
    if name.endswith(_TABLES):
        return "tables"
    if name.endswith(".yaml"):
        return "configs"
    return "models" if ".model." in name else "images"


def write_seeds(folder: Path, kinds: Sequence[str]) -> None:
    """Write the seeds of these kinds, except images."""
    for kind, write in (
        ("tables", _write_tables),
        ("configs", _write_configs),
        ("models", _write_models),
    ):
        if kind in kinds:
            write(folder)


def _write_tables(folder: Path) -> None:
    """Write tables of several programs, and a workbook with two sheets and odd formats."""
    lines = [_NAMES, *_ROWS]
    for name, mark, code in (
        ("comma.csv", ",", "utf-8"),
        ("semicolon.csv", ";", "utf-8-sig"),
        ("wide.csv", "\t", "utf-16"),
        ("tab.tsv", "\t", "latin-1"),
    ):
        text = "\r\n".join(mark.join(line) for line in lines)
        text = text.replace("0.5", "0,5") if mark == ";" else text
        (folder / name).write_bytes(text.encode(code))
    quoted = "sep=,\n# saved\n" + "\n".join(",".join(f'"{c}"' for c in line) for line in lines)
    (folder / "quoted.csv").write_text(quoted + "\n")
    (folder / "numbers.csv").write_text(
        "filename;grade\n" + "\n".join(f"{i:03d};{i % 3 + 1}.0" for i in range(8))
    )
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(("Cohort",))
    for line in lines:
        sheet.append(line)
    other = book.create_sheet("numbers")
    for i in range(9):
        other.append((i, i / 3, None, "x"))
        other.cell(i + 1, 1).number_format = '"Q-"000'
    book.save(folder / "book.xlsx")


def _write_configs(folder: Path) -> None:
    """Write a full configuration, a short one, and one with anchors."""
    config = build_config({"table": {"path": "labels.csv"}, "encoder": "small", "task": "binary"})
    (folder / "whole.yaml").write_text(dump_yaml(config))
    (folder / "short.yaml").write_text(
        "table: {path: labels.csv, classes: 'a,b'}\nmethod: abmil\nmethod_options: {hidden: 32}\n"
        "view: {spacing_um: 0.5, fit: 1024x1024}\ntrain:\n  lr: 1e-4\n  batch_size: 2\n"
    )
    (folder / "anchors.yaml").write_text(
        "table: &t\n  path: labels.csv\nsplit: &s {folds: 3, seed: 1}\ntrain: {<<: *s}\n"
        "task_options:\n  a: &a [x, y]\n  b: &b [*a, *a]\n  c: [*b, *b]\n"
    )


def _write_models(folder: Path) -> None:
    """Write cards and weights of models of several methods, for pictures and volumes."""
    for method in _METHODS:
        axes = 3 if method == "mil_mean" else 2
        options = {"width": 4, "dim": 8}
        card = ModelCard(
            method, {}, "small3d" if axes == 3 else "small", options, "binary", {},
            {"classes": ["benign", "malignant"]}, View(0.5, 32, 4.0, axes=axes),
            provenance={"threshold": 0.5, "fold": 0, "temperature": 1.0, "split_hash": "x"},
        )  # fmt: skip
        torch.manual_seed(0)
        original = folder.parent / "kept" / method
        save_model(original, card, build_model(card, pretrained=False).method.state_dict())
        shutil.copy(original / "model.json", folder / f"{method}.model.json")
        shutil.copy(original / "model.safetensors", folder / f"{method}.model.safetensors")


def write_images(folder: Path) -> None:
    """Write the images that the tables name."""
    for i, (name, *_) in enumerate(_ROWS):
        Image.new("RGB", (8, 8), (9, 9, i)).save(folder / name)


# -- mutations -----------------------------------------------------------------------------------


def mutate_words(data: bytearray, rng: np.random.Generator) -> None:
    """Replace words by odd ones, or delete, repeat or move lines."""
    lines = bytes(data).split(b"\n")
    at = int(rng.integers(len(lines)))
    kind = int(rng.integers(6))
    if kind == 0:
        lines.insert(int(rng.integers(len(lines) + 1)), lines[at])
    elif kind == 1:
        del lines[at]
    else:
        cells = lines[at].split(b" " if b" " in lines[at] else b",")
        i, word = int(rng.integers(len(cells))), _WORDS[int(rng.integers(len(_WORDS)))]
        cells[i] = cells[i] + word if kind == 2 else word
        lines[at] = (b" " if b" " in lines[at] else b",").join(cells)
    data[:] = b"\n".join(lines)


def mutate_member(
    data: bytearray, rng: np.random.Generator, mutate: Callable[[bytearray], None]
) -> None:
    """Mutate one file inside a ZIP archive and correct its checksum."""
    new = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(bytes(data))) as old, zipfile.ZipFile(new, "w", 8) as made:
        names = old.namelist()
        # Sheets, strings and styles hold the content; other members only locate them.
        members = [n for n in names if "sheet" in n or "Strings" in n or "styles" in n]
        chosen = str(rng.choice(members if rng.integers(4) else names))
        for name in names:
            content = bytearray(old.read(name))
            if name == chosen:
                mutate(content)
            made.writestr(zipfile.ZipInfo(name), bytes(content))
    data[:] = new.getvalue()


# -- visits --------------------------------------------------------------------------------------


def visit_table(path: Path, images: Path) -> None:
    """Read a table as `train`, `evaluate` and `predict` do."""
    problem: FoveateError | None = None
    reads: tuple[Callable[[], object], ...] = (
        lambda: read_cases(path, images=images),
        lambda: read_cases(
            path,
            images=images,
            labels=LabelRules(known=("benign", "malignant"), for_training=False),
        ),
        lambda: gather_cases([path]),
    )
    for read in reads:
        try:
            read()
        except FoveateError as error:
            problem = problem or error
    if problem is not None:
        raise problem


def visit_config(path: Path) -> None:
    """Parse a configuration as `train --config` does, and write it out again."""
    dump_yaml(build_config(load_yaml(path)))


def visit_model(path: Path, originals: Path) -> None:
    """Load the model folder of a mutated card or weights; changed weights get a new digest."""
    method, _, part = path.name.partition("_")[2].partition(".model.")
    folder = path.parent / f"{path.name}.folder"
    try:
        shutil.copytree(originals / method, folder)
        shutil.copy(path, folder / f"model.{part}")
        if part == "safetensors":
            card = json.loads((folder / "model.json").read_text())
            card["sha256"] = file_sha256(folder / "model.safetensors")
            (folder / "model.json").write_text(json.dumps(card))
        find_models(folder).describe()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
