"""Tables saved by Excel, R, macOS and other systems are read correctly or refused."""

from __future__ import annotations

import time
import unicodedata
import zipfile
from pathlib import Path

import openpyxl
import pytest

from foveate.errors import TableError
from foveate.table import CaseTable, LabelRules, NamedColumns, read_cases, spacing_for_axes

LABELS = ("benign", "malignant")
ROWS = [(f"{i:03d}.tif", LABELS[i % 2]) for i in range(1, 9)]


def images(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    images(tmp_path, *(name for name, _ in ROWS))
    return tmp_path


def lines(delimiter: str, header: str = "path,label") -> str:
    body = "".join(f"{name}{delimiter}{label}\n" for name, label in ROWS)
    return header.replace(",", delimiter) + "\n" + body


def warnings_of(read: CaseTable) -> str:
    return "\n".join(read.notes)


def pairs(read: CaseTable) -> list[tuple[str, str | None]]:
    return [(case.path.name, case.label) for case in read.cases]


# -- text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "note"),
    [
        (("sep=;\n" + lines(";")).encode(), ""),
        (('"sep=\t"\r\n' + lines("\t")).encode(), ""),
        (("# exported 2024-05-01, by hand\n#\n" + lines(",")).encode(), "2 comment lines above"),
        (("#path,label\n" + lines(",").split("\n", 1)[1]).encode(), ""),
        ((lines(",") + "# end, of, table\n").encode(), "1 comment lines skipped"),
        (b"\xef\xbb\xbf\xef\xbb\xbf" + lines(",").encode(), ""),
        (b"\xef\xbb\xbfsep=,\n" + lines(",").encode(), ""),
        (lines("\t").encode("utf-16-le"), ""),
        (lines("\t").encode("utf-16-be"), ""),
        (lines("\t").encode("utf-16"), ""),
        (lines(",").encode("utf-32"), ""),
        (("Cohort 2024\n\n" + lines(",")).encode(), "1 rows above the header skipped: 'Cohort"),
        (("Study;X\nDate;2024\n" + lines(";")).encode(), "2 rows above the header skipped"),
        (lines(",").replace("\n", "\r").encode(), ""),
    ],
)
def test_every_dialect_gives_the_same_rows(cohort: Path, raw: bytes, note: str) -> None:
    (cohort / "t.csv").write_bytes(raw)
    read = read_cases(cohort / "t.csv")
    assert pairs(read) == ROWS
    assert note in warnings_of(read)


def test_decimal_commas_do_not_split_cells(cohort: Path) -> None:
    body = "".join(f"{name};{label};0,5\r\n" for name, label in ROWS)
    (cohort / "t.csv").write_bytes(b"\xef\xbb\xbf" + f"path;label;mpp\r\n{body}".encode())
    read = read_cases(cohort / "t.csv")
    assert {case.spacing_um for case in read.cases} == {(0.5, 0.5)}


@pytest.mark.parametrize(
    ("encoding", "benign", "malignant"),
    [
        ("gb18030", "良性", "恶性"),
        ("gb18030", "无", "有"),
        ("shift_jis", "良性", "悪性"),
        ("shift_jis", "陰性", "陽性"),
        ("big5", "良性", "惡性"),
        ("euc_kr", "양성", "음성"),
        ("cp1251", "доброкачественная", "злокачественная"),
        ("mac_roman", "gutartig", "bösartig"),
    ],
)
def test_wrongly_decoded_labels_do_not_become_classes(
    cohort: Path, encoding: str, benign: str, malignant: str
) -> None:
    text = lines(",").replace("benign", benign).replace("malignant", malignant)
    (cohort / "t.csv").write_bytes(text.encode(encoding))
    with pytest.raises(TableError, match=r"t\.csv is not UTF-8, and its code page is unknown"):
        read_cases(cohort / "t.csv")


@pytest.mark.parametrize("word", ["bösartig", "größer", "ações", "créée", "naïve – sûr", "20 µm"])
def test_western_encodings_are_read_with_a_warning(cohort: Path, word: str) -> None:
    text = lines(",").replace("malignant", word)
    (cohort / "t.csv").write_bytes(text.encode("cp1252"))
    read = read_cases(cohort / "t.csv")
    assert {case.label for case in read.cases} == {"benign", word}
    assert "read as cp1252" in warnings_of(read)


def test_rows_are_numbered_as_in_an_editor(cohort: Path) -> None:
    text = 'sep=,\npath,label,note\n001.tif,benign,"two\nlines"\n\n002.tif,malignant,x,y\n'
    (cohort / "t.csv").write_text(text, encoding="utf-8")
    with pytest.raises(TableError, match="row 6: 4 cells for 3 columns"):
        read_cases(cohort / "t.csv")
    (cohort / "t.csv").write_text('path,label\n001.tif,"benign\n002.tif,x\n', encoding="utf-8")
    with pytest.raises(TableError, match="row 2: a quotation mark is opened and not closed"):
        read_cases(cohort / "t.csv")


def test_cells_of_spreadsheet_errors_are_missing(cohort: Path) -> None:
    wrong = {"003.tif": "#VALUE!", "004.tif": "#N/A", "005.tif": "#DIV/0!", "006.tif": "#BEZUG!"}
    body = "".join(f"{name},{wrong.get(name, label)}\n" for name, label in ROWS)
    (cohort / "t.csv").write_text(f"path,label\n{body}", encoding="utf-8")
    read = read_cases(cohort / "t.csv")
    assert {case.label for case in read.cases} == set(LABELS)
    assert "4 cells hold an error of the spreadsheet ('#VALUE!')" in warnings_of(read)
    assert "first: row 4" in warnings_of(read)


# -- workbooks ------------------------------------------------------------------------------------


def workbook(path: Path, *sheets: tuple[str, list[tuple[object, ...]]], shape: str = "") -> Path:
    book = openpyxl.Workbook()
    book.remove(book.worksheets[0])
    for title, rows in sheets:
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
        for cell in sheet["A"][1:] if shape else ():
            cell.number_format = shape
    book.save(path)
    return path


TABLE: list[tuple[object, ...]] = [("path", "label"), *ROWS]


@pytest.mark.parametrize(
    "front", [[], [("See the next sheet",)], [("Version", "Author"), (1, "x")]]
)
def test_the_sheet_that_holds_the_table_is_read_and_named(
    cohort: Path, front: list[tuple[object, ...]]
) -> None:
    read = read_cases(workbook(cohort / "t.xlsx", ("Start", front), ("Data", TABLE)))
    assert pairs(read) == ROWS
    assert "2 sheets; 'Data' was read" in warnings_of(read)


def test_two_possible_sheets_are_reported(cohort: Path) -> None:
    read = read_cases(workbook(cohort / "t.xlsx", ("A", TABLE), ("B", TABLE[:3])))
    assert len(read.cases) == 8
    assert "warning: 'B' could be the table as well" in warnings_of(read)


def test_title_rows_and_error_cells_are_skipped(cohort: Path) -> None:
    rows: list[tuple[object, ...]] = [("Cohort 2024",), (), *TABLE[:-1], ("008.tif", "#VALUE!")]
    read = read_cases(workbook(cohort / "t.xlsx", ("S", rows)))
    assert pairs(read) == ROWS[:-1]
    assert "1 rows above the header skipped: 'Cohort 2024'" in warnings_of(read)
    assert "1 rows without a 'label' left out (first: row 11)" in warnings_of(read)


@pytest.mark.parametrize(
    ("shape", "name"),
    [("000", "007"), ('"Q-"000', "Q-007"), ('"Q0"00', "Q007"), (r"\P\-00", "P-07"), ("0.00", "7")],
)
def test_numbers_are_read_as_displayed(cohort: Path, shape: str, name: str) -> None:
    images(cohort, "Q-007.tif", "Q007.tif", "P-07.tif", "7.tif")
    rows: list[tuple[object, ...]] = [("path", "label"), (7, "a"), (7.0, "a")]
    rows += [(f"00{n}.tif", "b") for n in (1, 2)]
    read = read_cases(workbook(cohort / "t.xlsx", ("S", rows), shape=shape))
    assert read.cases[0].path.name == f"{name}.tif"


def test_an_unsupported_number_format_is_reported(cohort: Path) -> None:
    images(cohort, "7.tif")
    rows: list[tuple[object, ...]] = [("path", "label"), (7, "a"), ("001.tif", "b")]
    read = read_cases(workbook(cohort / "t.xlsx", ("S", rows), shape='[Red]"Q"0'))
    assert "shows numbers by the format '[Red]\"Q\"0'" in warnings_of(read)


def edit_workbook(path: Path, old: bytes, new: bytes) -> Path:
    """Replace XML text in the first sheet of a workbook."""
    with zipfile.ZipFile(path) as book:
        parts = {entry: book.read(entry) for entry in book.namelist()}
    sheet = "xl/worksheets/sheet1.xml"
    assert old in parts[sheet]
    parts[sheet] = parts[sheet].replace(old, new)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as book:
        for entry, content in parts.items():
            book.writestr(entry, content)
    return path


@pytest.mark.parametrize("stated", [b'ref="A1:B4"', b'ref="A1:A9"', b'ref="A1"'])
def test_a_wrong_stated_range_loses_nothing(cohort: Path, stated: bytes) -> None:
    path = edit_workbook(workbook(cohort / "t.xlsx", ("S", TABLE)), b'ref="A1:B9"', stated)
    assert pairs(read_cases(path)) == ROWS


@pytest.mark.parametrize("row", [b"2000000000", b"1048577"])
def test_a_row_far_outside_is_refused_at_once(cohort: Path, row: bytes) -> None:
    path = edit_workbook(
        workbook(cohort / "t.xlsx", ("S", TABLE)), b'<row r="9"', b'<row r="%s"' % row
    )
    begun = time.monotonic()
    with pytest.raises(TableError, match=r"t\.xlsx: sheet 'S' states more than 1048576 rows"):
        read_cases(path)
    assert time.monotonic() - begun < 10


def test_a_cell_far_to_the_right_costs_no_memory(cohort: Path) -> None:
    rows: list[tuple[object, ...]] = [*TABLE, *[("x",)] * 3000]
    path = workbook(cohort / "t.xlsx", ("S", rows))
    path = edit_workbook(path, b'<c r="B9"', b'<c r="XFD9"')
    with pytest.raises(TableError, match="which is no table of images"):
        read_cases(path)


def test_unsupported_workbooks_are_refused_with_advice(cohort: Path) -> None:
    workbook(cohort / "t.xlsx", ("S", TABLE)).rename(cohort / "t.csv")
    assert pairs(read_cases(cohort / "t.csv")) == ROWS, "a workbook under another name"
    (cohort / "t.xls").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(600))
    with pytest.raises(TableError, match="save it as XLSX or CSV"):
        read_cases(cohort / "t.xls")


# -- patients and labels --------------------------------------------------------------------------


def with_patients(folder: Path, spelt: list[str], labels: list[str] | None = None) -> Path:
    """Write a table of four patients with three images each, in the given spellings."""
    rows = []
    for p in range(4):
        for k, word in enumerate(spelt):
            name = f"i{p}{k}.tif"
            images(folder, name)
            label = (labels or list(LABELS))[p % 2]
            rows.append(f"{name},{label},{word.replace('#', str(p))}")
    (folder / "t.csv").write_text("path,label,patient\n" + "\n".join(rows), encoding="utf-8")
    return folder / "t.csv"


@pytest.mark.parametrize(
    "spelt",
    [
        ["P0#", "p0#", "P 0#"],
        ["#", "#.0", "00#"],
        ["P#", "P\u00a0#", "P-0#"],
        ["Jürgen #", "Ju\u0308rgen #", "JÜRGEN#"],
        ["A#B", "a#b", "A#B\u200b"],
        ["T-A#-x", "T\u2011A#\u2013x", "\uff34-A#-x"],
    ],
)
def test_spellings_of_a_patient_are_one_patient(tmp_path: Path, spelt: list[str]) -> None:
    read = read_cases(with_patients(tmp_path, spelt))
    owners = [case.patient_id for case in read.cases]
    assert len(set(owners)) == 4
    assert all(len(set(owners[i : i + 3])) == 1 for i in range(0, 12, 3))
    assert "warning: 4 patients are written in several ways" in warnings_of(read)


def test_similar_names_of_different_patients_stay_separate(tmp_path: Path) -> None:
    read = read_cases(with_patients(tmp_path, ["P#", "Q#", "1.#0"]))
    assert len({case.patient_id for case in read.cases}) == 12
    assert "several ways" not in warnings_of(read)


def test_missing_patients_are_refused_with_their_number(tmp_path: Path) -> None:
    path = with_patients(tmp_path, ["P#", "", "P#"])
    with pytest.raises(TableError, match=r"4 of 12 rows have no 'patient' \(first: row 3\)"):
        read_cases(path)
    read = read_cases(path, labels=LabelRules(for_training=False))
    assert "warning: 4 of 12 rows have no 'patient'" in warnings_of(read)
    assert (
        len({c.patient_id for c in read_cases(path, columns=NamedColumns(patient="path")).cases})
        == 12
    )


def test_joined_tables_spell_patients_differently(tmp_path: Path) -> None:
    images(tmp_path, "a.tif", "b.tif", "c.tif")
    (tmp_path / "clini.csv").write_text("PATIENT,MSI\nP01,high\n2,low\n", encoding="utf-8")
    (tmp_path / "slide.csv").write_text(
        "PATIENT,FILENAME\np 1,a.tif\n2.0,b.tif\n,c.tif\n", encoding="utf-8"
    )
    read = read_cases(tmp_path / "clini.csv", files=tmp_path / "slide.csv")
    assert [(c.image_id, c.label) for c in read.cases] == [("a", "high"), ("b", "low")]
    assert "1 files of patients without a label left out: row 4" in warnings_of(read)


@pytest.mark.parametrize(
    ("spelt", "label"),
    [
        (["1", "1.0", "01"], "1"),
        (["high grade", "high\u00a0grade", " high  grade"], "high grade"),
        (["bösartig", "bo\u0308sartig", "bösartig\u200b"], "bösartig"),
        (["T1a", "\uff341a", "T1a\u3000"], "T1a"),
    ],
)
def test_spellings_of_a_label_are_one_class(tmp_path: Path, spelt: list[str], label: str) -> None:
    images(tmp_path, *(f"{i}.tif" for i in range(7)))
    words = [*spelt, spelt[0], "other", "other", "other"]
    body = "".join(f"{i}.tif,{word}\n" for i, word in enumerate(words))
    (tmp_path / "t.csv").write_text(f"path,label\n{body}", encoding="utf-8")
    read = read_cases(tmp_path / "t.csv")
    assert {case.label for case in read.cases} == {label, "other"}
    assert f"label '{label}' is also written" in warnings_of(read)
    table = read_cases(tmp_path / "t.csv", labels=LabelRules(wanted=[spelt[1], "other"]))
    assert len(table.cases) == 7


def test_labels_take_the_spelling_of_the_model(tmp_path: Path) -> None:
    images(tmp_path, "a.tif", "b.tif")
    (tmp_path / "t.csv").write_text("path,label\na.tif,1.0\nb.tif,0.0\n", encoding="utf-8")
    read = read_cases(tmp_path / "t.csv", labels=LabelRules(known=("0", "1"), for_training=False))
    assert [case.label for case in read.cases] == ["1", "0"]


# -- paths ----------------------------------------------------------------------------------------


def one_table(folder: Path, *values: str) -> Path:
    rows = "".join(f"{value},{LABELS[i % 2]}\n" for i, value in enumerate(values))
    (folder / "t.csv").write_text(f"path,label\n{rows}", encoding="utf-8")
    return folder / "t.csv"


@pytest.mark.parametrize(
    "prefix", ["", "/data/", "D:\\data\\", "../data/", "file:///data/", "s3://bucket/", "old/"]
)
def test_a_missing_file_is_not_replaced_by_its_namesake(tmp_path: Path, prefix: str) -> None:
    images(tmp_path, "siteB/001.tif", "siteB/002.tif", "siteA/003.tif")
    prefixed = [f"{prefix}{v}" for v in ("siteA/001.tif", "siteB/002.tif", "siteA/003.tif")]
    if prefix == "old/":
        prefixed[1:] = ["siteB/002.tif", "siteA/003.tif"]
    read = read_cases(one_table(tmp_path, *prefixed))
    assert [c.path.relative_to(tmp_path).as_posix() for c in read.cases] == [
        "siteB/002.tif",
        "siteA/003.tif",
    ]
    (quarantined,) = read.set_aside
    assert "siteB/001.tif is another file" in quarantined.reason


def test_another_suffix_is_another_file(tmp_path: Path) -> None:
    images(tmp_path, "a.tif", "b.png", "c.svs", "d.svs")
    read = read_cases(one_table(tmp_path, "a.png", "b.png", "c", "d"))
    assert [c.path.name for c in read.cases] == ["b.png", "c.svs", "d.svs"]
    assert read.set_aside[0].path == "a.png"


def test_ambiguous_file_names_are_set_aside(tmp_path: Path) -> None:
    images(tmp_path, "001.tif", "002.tif", "003.tif")
    values = ("/x/siteA/001.tif", "/x/siteB/001.tif", "/x/siteA/002.tif", "/x/siteB/003.tif")
    read = read_cases(one_table(tmp_path, *values))
    assert [c.path.name for c in read.cases] == ["002.tif", "003.tif"]
    assert "could be '/x/siteA/001.tif' or '/x/siteB/001.tif'" in read.set_aside[0].reason


def test_composed_unicode_names_match_decomposed_files(tmp_path: Path) -> None:
    names = [f"Präparate/Präparat {i}.tif" for i in range(4)]
    images(tmp_path, *(unicodedata.normalize("NFD", name) for name in names))
    read = read_cases(one_table(tmp_path, *(unicodedata.normalize("NFC", n) for n in names)))
    assert len(read.cases) == 4


def test_a_name_with_blanks_at_its_ends_is_found(tmp_path: Path) -> None:
    images(tmp_path, " leading.tif", "two  blanks.tif")
    read = read_cases(one_table(tmp_path, " leading.tif", "two  blanks.tif"))
    assert [c.path.name for c in read.cases] == [" leading.tif", "two  blanks.tif"]


# -- spacing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "good"),
    [
        ("a.tif", "500", False),
        ("a.tif", "0.0005", False),
        ("a.tif", "20", False),
        ("a.tif", "nan.", False),
        ("a.tif", "0.25", True),
        ("a.nii.gz", "1000", True),
        ("a.nii.gz", "0.5", False),
    ],
)
def test_spacing_in_tables_has_the_limits_of_files(
    tmp_path: Path, name: str, value: str, good: bool
) -> None:
    images(tmp_path, name, "b.tif")
    text = f"path,label,mpp\n{name},x,{value}\nb.tif,y,\n"
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    if good:
        assert read_cases(tmp_path / "t.csv").cases[0].spacing_um == (float(value),) * 2
        return
    with pytest.raises(TableError, match=rf"row 2, column 'mpp': got '{value}', expected"):
        read_cases(tmp_path / "t.csv")


def test_a_spacing_of_other_axes_is_refused_not_guessed() -> None:
    path = Path("a.tif")
    assert spacing_for_axes((0.5, 0.5), 3, path) == (0.5, 0.5, 0.5)
    assert spacing_for_axes((5.0, 0.5, 0.25), 3, path) == (5.0, 0.5, 0.25)
    with pytest.raises(TableError, match=r"a\.tif: has 2 axes, but the table gives 3 pixel sizes"):
        spacing_for_axes((5.0, 0.5, 0.25), 2, path)


# -- labels that are no classes -------------------------------------------------------------------


def read_labels(folder: Path, labels: list[str], column: str = "label") -> Path:
    images(folder, *(f"{i:03d}.tif" for i in range(len(labels))))
    rows = "".join(f'{i:03d}.tif,"{label}"\n' for i, label in enumerate(labels))
    (folder / "t.csv").write_text(f"path,{column}\n{rows}", encoding="utf-8")
    return folder / "t.csv"


@pytest.mark.parametrize(
    ("labels", "column", "message"),
    [
        ([f"{i / 7:.3f}" for i in range(96)], "score", "96 different numbers"),
        ([str(20 + i) for i in range(40)], "years", "40 different numbers"),
        (["a, b", "a", "b", "c"] * 3, "label", "several labels in one cell for 3 images"),
        (["['a']", "['b']", "['a', 'b']"] * 3, "label", "several labels in one cell"),
    ],
)
def test_labels_that_are_no_classes_are_refused_with_advice(
    tmp_path: Path, labels: list[str], column: str, message: str
) -> None:
    path = read_labels(tmp_path, labels, column)
    with pytest.raises(TableError, match=message) as caught:
        read_cases(path, columns=NamedColumns(label=column))
    assert f"'{column}'" in str(caught.value)
    assert "--task multiclass" in str(caught.value)
    assert len(
        read_cases(
            path, columns=NamedColumns(label=column), labels=LabelRules(task="multiclass")
        ).cases
    ) == len(labels)
    assert read_cases(
        path, columns=NamedColumns(label=column), labels=LabelRules(for_training=False)
    ).cases, "a model may know them"


@pytest.mark.parametrize(
    "labels",
    [
        ["0", "1"],
        [str(i) for i in range(10)],
        ["low", "high"],
        ["G1", "G2"],
        ["class1", "class2", "class3"],
        ["H&E", "PAS", "CD3+"],
        ["Barrett, low grade", "Barrett, high grade", "Barrett"],
        ["adeno/squamous", "small cell", "other"],
        ["0.5", "1.5", "2.5"],
    ],
)
def test_classes_stay_classes(tmp_path: Path, labels: list[str]) -> None:
    read = read_cases(read_labels(tmp_path, labels * 5))
    assert {case.label for case in read.cases} == set(labels)


def test_an_event_without_a_time_is_a_class(tmp_path: Path) -> None:
    read = read_cases(read_labels(tmp_path, ["0", "1"] * 4, "event"))
    assert read.label_column == "event"


def test_labels_that_differ_in_capitals_or_dashes_are_reported(tmp_path: Path) -> None:
    labels = ("high grade", "High-grade", "HER2+", "HER2-")
    path = read_labels(tmp_path, list(labels))
    with pytest.raises(TableError, match=r"--map 'high grade=High-grade' if they mean the same"):
        read_cases(path)
    read = read_cases(path, labels=LabelRules(wanted=labels))
    assert len([note for note in read.notes if "capitals, blanks, dashes or marks" in note]) == 2


@pytest.mark.parametrize("row", ["," * 20_000, "a," * 3_000])
def test_a_table_of_very_many_columns_is_refused_at_once(tmp_path: Path, row: str) -> None:
    (tmp_path / "t.csv").write_text("path,label\n" + f"{row}\n" * 2000, encoding="utf-8")
    begun = time.monotonic()
    with pytest.raises(TableError, match="no table of images"):
        read_cases(tmp_path / "t.csv")
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("n", [40_000, 140_000])
def test_an_overlong_cell_is_refused(n: int, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    for text in (f"path,label\na.png,{'x' * n}\nb.png,y\n", f"path,{'x' * n}\na.png,y\n"):
        table.write_text(text)
        with pytest.raises(TableError, match=rf"row \d: a cell of {n:,} letters"):
            read_cases(table)
