from __future__ import annotations

from collections import Counter
from pathlib import Path

import openpyxl
import pytest

from foveate.errors import OptionError, TableError
from foveate.table import (
    CaseTable,
    LabelRules,
    NamedColumns,
    cases_from_folder,
    check_new_names,
    read_cases,
    with_known_labels,
)
from foveate.tasks.multiclass import MulticlassTask

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared images are not here")


def table(folder: Path, text: str, *files: str, name: str = "labels.csv") -> Path:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(file.encode())
    (folder / name).write_bytes(text.encode())
    return folder / name


def ids(read: CaseTable) -> list[str]:
    return [case.image_id for case in read.cases]


def warnings_of(read: CaseTable) -> str:
    return "\n".join(read.notes)


# -- dialects ---------------------------------------------------------------------------------


def test_reads_every_value_as_text(tmp_path: Path) -> None:
    path = table(tmp_path, "path,patient_id,label\n007.tif,0042,0\n008.tif,1e5,1\n",
                 "007.tif", "008.tif")  # fmt: skip
    first, second = read_cases(path).cases
    assert (first.image_id, first.patient_id, first.label) == ("007", "0042", "0")
    assert (second.patient_id, second.label) == ("1e5", "1")
    assert first.path == tmp_path / "007.tif"


@pytest.mark.parametrize(
    ("header", "dialect", "path", "patient"),
    [
        ("case_id,slide_id,label", "CLAM", "slide_id", "case_id"),
        ("patient,slide,label", "slideflow", "slide", "patient"),
        ("PATIENT,FILENAME,isMSIH", "STAMP", "FILENAME", "PATIENT"),
        ("case_id,slide_id,BRCA_subtype", "CLAM", "slide_id", "case_id"),
    ],
)
def test_dialects_are_detected_without_a_suffix(
    tmp_path: Path, header: str, dialect: str, path: str, patient: str
) -> None:
    rows = f"{header}\nP1,TCGA-AA-0001.F6E9,a\nP2,TCGA-AA-0002.F6EA,b\n"
    file = table(tmp_path, rows, "TCGA-AA-0001.F6E9.svs", "deep/TCGA-AA-0002.F6EA.svs")
    read = read_cases(file)
    assert ids(read) == ["TCGA-AA-0001.F6E9", "TCGA-AA-0002.F6EA"]
    assert [c.path.suffix for c in read.cases] == [".svs", ".svs"]
    assert [c.patient_id for c in read.cases] == ["P1", "P2"]
    assert read.columns["path"] == path
    assert read.columns["patient_id"] == patient
    assert read.label_column == header.split(",")[2]
    assert dialect in warnings_of(read)


def test_stamp_filenames_of_features_find_the_slides(tmp_path: Path) -> None:
    path = table(tmp_path, "PATIENT,FILENAME,x\n1,a.h5,u\n2,b.h5,v\n", "a.svs", "b.svs", "a.h5")
    assert [c.path.name for c in read_cases(path).cases] == ["a.svs", "b.svs"]


def test_stamp_two_tables_are_joined_by_patient(tmp_path: Path) -> None:
    clini = table(tmp_path, "PATIENT,MSI\n01,high\n02,low\n03,low\n", name="clini.csv")
    files = table(tmp_path, "PATIENT,FILENAME\n01,a\n01,b\n02,c\n09,d\n",
                  "a.svs", "b.svs", "c.svs", "d.svs", name="slide.csv")  # fmt: skip
    read = read_cases(clini, files=files)
    assert [(c.image_id, c.patient_id, c.label) for c in read.cases] == [
        ("a", "01", "high"), ("b", "01", "high"), ("c", "02", "low"),
    ]  # fmt: skip
    assert "1 files of patients without a label left out: 09" in warnings_of(read)
    assert "1 patients have no file: 03" in warnings_of(read)
    with pytest.raises(TableError, match="second table"):
        read_cases(clini)


def test_a_trident_list_without_labels_is_read(tmp_path: Path) -> None:
    path = table(tmp_path, "wsi,mpp\na.svs,0.25\nb.svs,\n", "a.svs", "b.svs")
    read = read_cases(path, labels=LabelRules(needed=False))
    assert [c.spacing_um for c in read.cases] == [(0.25, 0.25), None]
    assert [c.label for c in read.cases] == [None, None]


def test_slide2vec_tables_are_read(tmp_path: Path) -> None:
    path = table(tmp_path, "sample_id,image_path,mask_path,spacing_at_level_0,label\n"
                 "s1,a.svs,a.png,0.5,x\ns2,b.svs,,0.25,y\n", "a.svs", "b.svs")  # fmt: skip
    read = read_cases(path)
    assert ids(read) == ["s1", "s2"]
    assert read.cases[0].spacing_um == (0.5, 0.5)


def test_patho_bench_tables_with_folds_are_read(tmp_path: Path) -> None:
    path = table(tmp_path, "case_id\tslide_id\tgrade_task\tfold_0\tfold_1\n"
                 "1\ta\tx\ttrain\ttest\n2\tb\ty\ttest\ttrain\n",
                 "a.svs", "b.svs", name="k.tsv")  # fmt: skip
    read = read_cases(path)
    assert read.label_column == "grade_task"
    assert "Patho-Bench" in read.notes[0]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_encodings_and_delimiters_are_detected(
    tmp_path: Path, encoding: str, delimiter: str
) -> None:
    text = "path,label\nä.tif,Müller\nb.tif,x\n\n".replace(",", delimiter)
    path = table(tmp_path, "", "ä.tif", "b.tif")
    path.write_bytes(text.encode(encoding))
    read = read_cases(path)
    assert [c.label for c in read.cases] == ["Müller", "x"]
    assert ("cp1252" in warnings_of(read)) == (encoding == "cp1252")


def test_excel_keeps_zeros(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    for row in (["path", "patient_id", "label"], ["a.tif", "007", 0], ["b.tif", 8, 1.0]):
        sheet.append(row)
    sheet["B3"].number_format = "000"
    book.create_sheet("other")
    book.save(tmp_path / "t.xlsx")
    table(tmp_path, "", "a.tif", "b.tif")
    read = read_cases(tmp_path / "t.xlsx")
    assert [(c.patient_id, c.label) for c in read.cases] == [("007", "0"), ("008", "1")]
    assert "2 sheets" in warnings_of(read)


# -- values -----------------------------------------------------------------------------------


def test_spacing_per_axis_and_in_one_cell(tmp_path: Path) -> None:
    path = table(tmp_path, "path,label,mpp_x,mpp_y\na.tif,0,0.5,0.25\nb.tif,1,,\n",
                 "a.tif", "b.tif")  # fmt: skip
    assert [c.spacing_um for c in read_cases(path).cases] == [(0.25, 0.5), None]
    path = table(tmp_path, "path;label;spacing\na.tif;0;5x0,5x0.25\nb.tif;1;2,5\n")
    assert [c.spacing_um for c in read_cases(path).cases] == [(5.0, 0.5, 0.25), (2.5, 2.5)]


@pytest.mark.parametrize("value", ["wide", "0", "-1", "inf", "0.5in"])
def test_nonsense_spacing_names_file_row_and_value(tmp_path: Path, value: str) -> None:
    path = table(tmp_path, f"path,label,mpp\na.tif,0,0.5\nb.tif,1,{value}\n", "a.tif", "b.tif")
    with pytest.raises(TableError, match=rf"labels.csv, row 3, column 'mpp': got '{value}'"):
        read_cases(path)


def test_rows_without_usable_label_are_skipped_with_a_warning(tmp_path: Path) -> None:
    path = table(tmp_path, "path,label\na.tif,x\nb.tif,\nc.tif,y\nd.tif,z\n",
                 "a.tif", "b.tif", "c.tif", "d.tif")  # fmt: skip
    read = read_cases(path, labels=LabelRules(wanted=["x", "y"]))
    assert ids(read) == ["a", "c"]
    assert "1 rows without a 'label' left out (first: row 3)" in warnings_of(read)
    assert "1 rows with other labels left out: z" in warnings_of(read)
    with pytest.raises(TableError, match="no row has the label 'X'"):
        read_cases(path, labels=LabelRules(wanted=["X", "y"]))


def test_ids_are_unique_and_safe_as_file_names(tmp_path: Path) -> None:
    path = table(tmp_path, "path,label\na/1.tif,x\nb/1.tif,y\n../out.tif,y\n",
                 "a/1.tif", "b/1.tif", "../out.tif")  # fmt: skip
    assert ids(read_cases(path)) == ["a__1", "b__1", "out"]
    path = table(tmp_path, "path,label\nc.tif,x\nc.svs,y\n", "c.tif", "c.svs")
    assert ids(read_cases(path)) == ["c.tif", "c.svs"]
    path = table(tmp_path, "path,image_id,label\na/1.tif,../../x,p\nb/1.tif,C:y,q\n")
    assert ids(read_cases(path)) == ["_.._x", "C_y"]


def test_paths_of_another_machine_are_found_below_images(tmp_path: Path) -> None:
    path = table(tmp_path, "path,label\nC:\\slides\\a.svs,0\n/old/b.svs,1\nsub\\c.svs,1\n",
                 "new/a.svs", "new/b.svs", "new/sub/c.svs")  # fmt: skip
    read = read_cases(path, images=tmp_path / "new")
    assert [c.path.name for c in read.cases] == ["a.svs", "b.svs", "c.svs"]


def test_missing_files_are_set_aside_with_row_and_reason(tmp_path: Path) -> None:
    path = table(tmp_path, "path,label\na.tif,0\ngone.tif,1\nb.tif,1\n,1\n",
                 "a.tif", "b.tif", "extra.tif")  # fmt: skip
    read = read_cases(path)
    assert [(s.row, s.image_id) for s in read.set_aside] == [(3, "gone"), (5, "row_5")]
    assert read.set_aside[0].reason == f"no file 'gone.tif' in {tmp_path}"
    assert "extra.tif" in warnings_of(read)


def test_repeated_rows_are_dropped(tmp_path: Path) -> None:
    path = table(tmp_path, "path,label\na.tif,0\nb.tif,1\na.tif,0\n", "a.tif", "b.tif")
    read = read_cases(path)
    assert ids(read) == ["a", "b"]
    assert "1 repeated rows dropped: row 4" in warnings_of(read)


def test_a_patient_with_two_classes_is_reported(tmp_path: Path) -> None:
    path = table(tmp_path, "path,patient,label\na.tif,p,0\nb.tif,p,1\n", "a.tif", "b.tif")
    assert "1 patient has images of several classes: p" in warnings_of(read_cases(path))


def test_patient_defaults_to_image_with_a_warning(tmp_path: Path) -> None:
    path = table(tmp_path, "path,label\na.tif,0\nb.tif,1\n", "a.tif", "b.tif")
    read = read_cases(path)
    assert [c.patient_id for c in read.cases] == ["a", "b"]
    assert "warning: patient_id defaults to image_id" in warnings_of(read)


# -- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("path,label\n", "no rows"),
        ("path,path\na.tif,b\n", "two columns are named 'path'"),
        ("path,label\na.tif,x,y\n", "row 2: 3 cells for 2 columns"),
        ("colour,label\nred,x\n", "no column holds the images' paths"),
        ("path,width\na.tif,3\n", "which column holds the label"),
        ("path,u,v\na.tif,3,4\n", "it could be one of: u, v"),
        ("path,label\na.tif,\nb.tif,\n", "column 'label' is empty in every row"),
        ("path,label\na.tif,x\nb.tif,x\n", "one class only, 'x'"),
        ("path,label\nq.tif,x\nr.tif,y\n", "row 2, column 'path': no file 'q.tif'"),
        ("path,label\na.tif,x\na.tif,y\n", "row 3: a.tif has the label 'y', but 'x' in row 2"),
        ("path,patient,label\na.tif,p,x\na.tif,q,x\nb.tif,q,y\n", "has the patient 'q'"),
        ("path,image_id,label\na.tif,i,x\nb.tif,i,y\n", "row 3: image 'i' is"),
        ("path,label,mpp_x\na.tif,x,1\nb.tif,y,1\n", "needs one for the other axis"),
        ("path,label\na\0.tif,x\n", "is no table"),
    ],
)
def test_refusals_are_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    path = table(tmp_path, text, "a.tif", "b.tif")
    with pytest.raises(TableError) as caught:
        read_cases(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_column_name_gets_the_nearest(tmp_path: Path) -> None:
    path = table(tmp_path, "path,diagnosis\na.tif,0\nb.tif,1\n", "a.tif", "b.tif")
    with pytest.raises(TableError, match=r"no column 'diagnosi' \(--label\). Did you mean 'diagn"):
        read_cases(path, columns=NamedColumns(label="diagnosi"))
    assert read_cases(path, columns=NamedColumns(label="DIAGNOSIS")).label_column == "diagnosis"


def test_an_ambiguous_name_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path, "slide,label\na,0\nb,1\n", "x/a.tif", "y/a.svs", "b.tif")
    with pytest.raises(TableError, match="row 2, column 'slide': 'a' fits several files"):
        read_cases(path)


def test_missing_tables_and_damaged_workbooks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no such table"):
        read_cases(tmp_path / "no.csv")
    with pytest.raises(TableError, match="is a folder"):
        read_cases(tmp_path)
    with pytest.raises(TableError, match="cannot be read as Excel"):
        read_cases(table(tmp_path, "no zip", name="t.xlsx"))
    with pytest.raises(TableError, match="--images"):
        read_cases(table(tmp_path, "path,label\n"), images=tmp_path / "no")


# -- folders ----------------------------------------------------------------------------------


def test_folder_skips_what_is_no_image(tmp_path: Path) -> None:
    table(tmp_path, "", "a.svs", "sub/b.ome.tif", "sub/a.svs", ".DS_Store", "Thumbs.db", "x.json",
          "x.geojson", ".hidden/c.svs", "m.mrxs", "m/Data0000.dat", "m/Slidedat.ini",
          "plain")  # fmt: skip
    read = cases_from_folder(tmp_path)
    relative_paths = {
        case.image_id: case.path.relative_to(tmp_path).as_posix() for case in read.cases
    }
    assert relative_paths == {
        "a": "a.svs", "m": "m.mrxs", "plain": "plain", "sub__a": "sub/a.svs",
        "b": "sub/b.ome.tif",
    }  # fmt: skip
    assert cases_from_folder(tmp_path / "a.svs").cases[0].image_id == "a"


def test_folder_ids_differ_even_when_only_the_suffix_does(tmp_path: Path) -> None:
    table(tmp_path, "", "s/a.svs", "s/a.tif", "s/A.png")
    assert sorted(ids(cases_from_folder(tmp_path))) == ["s__A.png", "s__a.svs", "s__a.tif"]


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no file that could be an image"):
        cases_from_folder(tmp_path)


# -- real tables ------------------------------------------------------------------------------


@needs_data
@pytest.mark.parametrize(
    ("name", "patient", "n", "n_patients"),
    [
        ("pathology_atlas/slides_5x", "case_id", 20, 13),
        ("xray_kermany", "patient_id", 44, 41),
        ("xray_nih", "patient_id", 12, 12),
        ("histo_osteosarcoma", "slide", 21, 15),
        ("histo_oral", None, 400, 399),
        ("mri_hippocampus", None, 100, 100),
    ],
)
def test_real_tables_are_read(name: str, patient: str | None, n: int, n_patients: int) -> None:
    if not (DATA / name / "labels.csv").is_file():
        pytest.skip(f"{name} is not here")
    read = read_cases(DATA / name / "labels.csv")
    assert len(read.cases) == n
    assert len({case.patient_id for case in read.cases}) == n_patients
    assert read.columns.get("patient_id") == patient
    assert all(case.path.is_file() for case in read.cases)
    assert not read.set_aside


@needs_data
def test_the_atlas_table_lacks_eight_spacings() -> None:
    path = DATA / "pathology_atlas/slides_5x/labels.csv"
    if not path.is_file():
        pytest.skip("the atlas is not here")
    read = read_cases(path, labels=LabelRules(needed=False))
    assert read.columns["spacing"] == "mpp"
    assert sum(case.spacing_um is None for case in read.cases) == 8
    two = read_cases(path, labels=LabelRules(wanted=["malignant", "non_neoplastic"]))
    assert Counter(c.label for c in two.cases) == {"malignant": 10, "non_neoplastic": 10}


@needs_data
@pytest.mark.parametrize(
    ("name", "message"), [("one_class", "one label only"), ("missing_file", "row 2, column 'file'")]
)
def test_broken_tables_are_refused(name: str, message: str) -> None:
    path = DATA / f"broken/made/tables/{name}.csv"
    if not path.is_file():
        pytest.skip("the broken tables are not here")
    with pytest.raises(TableError, match=message):
        read_cases(path)


# -- labels that a trained model does not know --------------------------------------------------


def classes(*names: str) -> MulticlassTask:
    return MulticlassTask(classes=names)


def four_labels(tmp_path: Path, rules: LabelRules | None = None) -> CaseTable:
    rows = "path,label\n" + "".join(f"{i}.tif,{name}\n" for i, name in enumerate("abxybx"))
    return read_cases(table(tmp_path, rows, *(f"{i}.tif" for i in range(6))), labels=rules)


def test_unknown_labels_are_left_out_and_counted(tmp_path: Path) -> None:
    read = four_labels(tmp_path)
    table = with_known_labels(read, classes("a", "b"))
    assert ids(table) == ["0", "1", "4"]
    assert "3 of 6 rows left out" in table.notes[-1]
    assert "'x' 2, 'y' 1; it knows a, b" in table.notes[-1]
    assert [row.image_id for row in table.set_aside] == ["2", "3", "5"]
    assert "label 'x' is none of a, b" in table.set_aside[0].reason
    assert with_known_labels(read, classes(*"abxy")) == read


def test_labels_are_renamed(tmp_path: Path) -> None:
    rules = LabelRules(known=("a", "b"), renamed={"x": "a", "y": "b"}, for_training=False)
    table = four_labels(tmp_path, rules)
    assert [case.label for case in table.cases] == list("ababba")
    assert not table.set_aside


def test_a_label_is_renamed_to_a_class_only(tmp_path: Path) -> None:
    read = four_labels(tmp_path)
    with pytest.raises(OptionError, match="--map x=c: the model knows no 'c'"):
        check_new_names({"x": "c"}, classes("a", "b"))
    with pytest.raises(OptionError, match="--map z=a: the table has no label 'z'"):
        four_labels(tmp_path, LabelRules(renamed={"z": "a"}))
    with pytest.raises(TableError, match="holds no label that the model knows: 'a' 1, 'b' 2"):
        with_known_labels(read, classes("tumour", "normal"))
