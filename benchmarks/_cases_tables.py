"""Checks of the shared cases about tables, runs and permissions."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterator

from _cases_base import PICTURES, Case, Check, CommandOutput

CLASSES = {"benign", "malignant"}


def xlsx_dimension(case: Case) -> Iterator[Check]:
    """Check that workbooks with a wrong stated range are read."""
    for name in ("rows_cut", "column_cut", "a1", "none"):
        output = case.train(name, f"{name}.xlsx", "--patient", "patient")
        images = case.inputs(name)
        patients = {about["patient"] for about in images.values()}
        yield Check(
            f"{name}: 16 images of 8 patients",
            f"{len(images)} images of {len(patients)} patients; {output.brief}",
            output.code == 0 and len(images) == 16 and len(patients) == 8,
        )
        output = case.train(f"{name}_guessed", f"{name}.xlsx")
        patients = {about["patient"] for about in case.inputs(f"{name}_guessed").values()}
        yield Check(
            f"{name}: the patient column is found without a word",
            f"{len(patients)} patients; {output.brief}",
            len(patients) == 8,
        )


def patient_column(case: Case) -> Iterator[Check]:
    """Check which patient columns are used."""
    for name in ("whole", "gaps", "spelling", "number"):
        output = case.train(name, f"{name}.csv")
        splits, sides = case.splits(name), defaultdict(set)
        for part in ("train", "val", "test"):
            for image in splits["folds"][0][part] if splits else ():
                sides[int(image[1:4]) // 3].add(part)
        torn = sum(len(parts) > 1 for parts in sides.values())
        yield Check(
            f"{name}: no patient on two sides",
            f"{torn} of {len(sides)} patients on two sides; {output.brief}",
            torn == 0 and (output.code == 0) == (len(sides) == 8),
        )
        if name == "gaps":
            message = output.error or next(iter(output.lines_with("warning", "patient")), "")
            yield Check("gaps: refused or warned of, with their number", message, "8" in message)
        if name in ("spelling", "number"):
            message = next(iter(output.lines_with("patient")), "nothing")
            yield Check(f"{name}: said", message, message != "nothing")


def table_dialects(case: Case) -> Iterator[Check]:
    """Check that table dialects are read as such or refused."""
    for name in ("sep_line", "comment", "two_boms", "utf16_nobom", "bom_semicolon_crlf"):
        yield _read(case, f"{name}.csv", 8)
    for name in ("gb18030", "shiftjis"):
        output = case.train(name, f"{name}.csv")
        labels = {about["label"] for about in case.inputs(name).values()}
        right = labels in ({"良性", "恶性"}, {"良性", "悪性"})
        actual = f"{sorted(labels)}; {output.brief}"
        yield Check(f"{name}: read as such, or refused", actual, right or bool(output.error))
    yield _read(case, "errors.xlsx", 6)
    yield _read(case, "format000.xlsx", 8)
    output = case.train("formatQ", "q/formatQ.xlsx")
    n = len(case.inputs("formatQ"))
    ok = (output.code == 0 and n == 8) or "Q-001" in output.error
    yield Check(
        "formatQ: the text shown, or the message names it", f"{n} images; {output.brief}", ok
    )
    for name in ("readme_first", "empty_first", "title_above"):
        yield _read(case, f"{name}.xlsx", 8)
    output = CommandOutput(0, (case.results / "said.txt").read_text(errors="replace"))
    warning = next(iter(output.lines_with("sheet", "'Data'")), "nothing")
    yield Check("readme_first: the sheet is said by name", warning, warning != "nothing")
    yield _read(case, "mac/nfc.csv", 8)


def _read(case: Case, file: str, n: int) -> Check:
    """Check that a table gives this number of images and no classes but the two."""
    name = file.replace("/", "_")
    output = case.train(name, file)
    images = case.inputs(name)
    labels = {about["label"] for about in images.values()}
    return Check(
        f"{file}: {n} images of {len(CLASSES)} classes",
        f"{len(images)} images of {sorted(labels)}; {output.brief}",
        output.code in (0, 2) and len(images) == n and labels == CLASSES,
    )


def stamp_two_tables(case: Case) -> Iterator[Check]:
    """Check that two joined tables in the style of STAMP are read."""
    for file in ("slide.csv", "slide.txt"):
        taken = case.train(file, "clini.csv", "--files", file, "--images", "slides")
        n = len(case.inputs(file))
        actual = f"{n} images; {taken.brief}"
        yield Check(f"clini.csv with --files {file}: taken", actual, taken.code == 0 and n == 12)
    output = case.train("alone", "clini.csv")
    yield Check(
        "clini.csv alone: the message names --files", output.error, "--files" in output.error
    )


def resume_labels_changed(case: Case) -> Iterator[Check]:
    """Check that a run with changed labels is refused."""
    table = case.folder / "labels.csv"
    output = case.train("run", "labels.csv")
    yield Check("the run is made", output.brief, output.code == 0)
    output = case.train("run", "labels.csv")
    yield Check("the same table: it goes on", output.brief, output.code == 0)
    shutil.copy(case.folder / "v4_reordered.csv", table)
    output = case.train("run", "labels.csv")
    yield Check("rows in another order: it goes on", output.brief, output.code == 0)
    for name in ("v2_swapped", "v3_renamed"):
        shutil.copy(case.folder / f"{name}.csv", table)
        output = case.train("run", "labels.csv")
        ok = "labels of" in output.error and "S000" in output.error
        yield Check(f"{name}: refused in one line that names the change", output.brief, ok)
    rows = (case.folder / "v1.csv").read_text().split()
    table.write_text("\n".join([f"{rows[0]},mpp", *(f"{row},0.25" for row in rows[1:])]))
    output = case.train("run", "labels.csv")
    ok = "spacing" in output.error and "S000" in output.error
    yield Check("another mpp: refused in one line that names the change", output.brief, ok)


def readonly(case: Case) -> Iterator[Check]:
    """Check that folders without write permission are refused."""
    data, out = case.folder / "data", case.folder / "open"
    out.mkdir()
    out.chmod(0o777)
    for path in (data, *data.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    table = data / "labels.csv"
    output = case.foveate("train", table, "--out", out / "run", *PICTURES, stranger=True)
    yield Check(
        "another user without a home trains on data that is read only",
        output.brief,
        output.code == 0,
    )
    words = ("predict", out / "run", data / "slides")
    output = case.foveate(*words, "--out", out / "predicted", stranger=True)
    yield Check("and predicts", output.brief, output.code == 0)
    closed = case.folder / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    for command in (("train", table, *PICTURES), words):
        output = case.foveate(*command, "--out", closed / "sub", stranger=True)
        ok = str(closed) in output.error and "--out" in output.error
        yield Check(f"{command[0]}: an --out that cannot be made is one line", output.brief, ok)


TABLES = {
    f.__name__: f
    for f in (
        *(patient_column, readonly, resume_labels_changed, stamp_two_tables, table_dialects),
        xlsx_dimension,
    )
}
