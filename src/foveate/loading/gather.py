"""Gather the images to predict from files, folders and tables, each image once."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from foveate.errors import ImageNotFound, TableError
from foveate.readers import ReaderOptions, is_image_folder
from foveate.table import (
    Case,
    CaseTable,
    LabelRules,
    cases_from_folder,
    describe_results,
    is_result,
    read_cases,
    safe_id,
)

_TABLES = (".csv", ".tsv", ".xlsx")


def gather_cases(
    paths: Sequence[Path],
    labels: LabelRules | None = None,
    images: Path | None = None,
    readers: ReaderOptions | None = None,
) -> CaseTable:
    """Gather cases from files, folders and tables, and the rows of tables that cannot be used.

    A broken link is a case, too: prediction sets it aside. Results of foveate are left out.

    Args:
        paths: image files, folders of images, and tables.
        labels: rules for the labels of tables; by default they may be anything.
        images: folder that paths in tables are relative to; by default that of the table.
        readers: options of readers, which say whether a folder of slices is one image.

    Raises:
        ImageNotFound: a path does not exist.
        TableError: there is no image, or there are only results of foveate.
    """
    rules = labels or LabelRules(needed=False)
    is_image = partial(is_image_folder, options=readers)
    tables: list[CaseTable] = []
    results: list[Path] = []
    for path in paths:
        if not path.exists() and not path.is_symlink():
            raise ImageNotFound(f"{path}: no such file or folder; check the name")
        if is_result(path):
            results.append(path)
        elif path.suffix.lower() in _TABLES and path.is_file():
            tables.append(read_cases(path, images=images, labels=rules, is_image=is_image))
        else:
            tables.append(cases_from_folder(path, is_image))
    if results and not tables:
        raise TableError(
            f"{results[0]}: results of foveate, whose pictures are no images to predict; give the "
            "images, or a table of them"
        )
    once: dict[str, Case] = {}
    for case in (case for table in tables for case in table.cases):
        once.setdefault(os.path.realpath(case.path), case)
    return CaseTable(
        cases=tuple(_with_distinct_ids(list(once.values()))),
        notes=(
            *([describe_results(results)] if results else []),
            *(note for table in tables for note in table.notes),
        ),
        set_aside=tuple(row for table in tables for row in table.set_aside),
    )


def _with_distinct_ids(cases: Sequence[Case]) -> list[Case]:
    """Prefix the ids of files that have the same name in several folders with their folder's name.

    Where ids are still the same, a few digits of the path's hash follow.
    """
    out = list(cases)
    for rename in (_with_folder, _with_hash):
        count = Counter(case.image_id.casefold() for case in out)
        out = [
            replace(case, image_id=rename(case)) if count[case.image_id.casefold()] > 1 else case
            for case in out
        ]
    return out


def _with_folder(case: Case) -> str:
    return f"{safe_id(case.path.parent.name)}-{safe_id(case.path.name)}"


def _with_hash(case: Case) -> str:
    digest = hashlib.sha256(os.fsencode(case.path.absolute())).hexdigest()
    return f"{case.image_id}-{digest[:8]}"
