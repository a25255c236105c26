"""The command ``check``: find at once what would stop or spoil a training, before it begins."""

from __future__ import annotations

import math
import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from foveate import defaults
from foveate._version import __version__
from foveate.checks.children import ProbeOptions, probe_all
from foveate.checks.confounds import Measured, find_confounds, measure_facts, suggest_fit
from foveate.checks.cost import estimate_cost
from foveate.checks.duplicates import find_duplicates
from foveate.checks.images import find_in_images, find_in_plan
from foveate.checks.joins import JoinedTable, join_images
from foveate.checks.options import CheckOptions
from foveate.checks.page import CheckedImages, write_check_page
from foveate.checks.records import SEVERITIES, CheckFinding, ImageRecord
from foveate.checks.stored import compute_source_digest
from foveate.errors import CheckpointError, FoveateError
from foveate.files.atomic import remove_partial_files, write_json
from foveate.files.digest import code_sha256
from foveate.files.identical import image_state
from foveate.files.journal import Journal
from foveate.files.lock import NAME, lock_folder
from foveate.files.run_layout import CheckLayout
from foveate.messages.display import Display
from foveate.parts import plugin_folders
from foveate.presentation import write_count
from foveate.readers import check_options
from foveate.runs.folder import check_folder, write_rows
from foveate.table import Case
from foveate.tasks import build_task
from foveate.tasks.base import AbstractTask
from foveate.wording import one_line

_SCHEMA = 1
_MAX_WORKERS = 4
_MAX_LABELS = 20
"""Number of labels whose images are counted on the page."""
COLUMNS = (
    *("image_id", "patient_id", "label", "path", "kind", "shape", "levels", "spacing_um"),
    *("spacing_from", "low", "high", "mean", "foreground", "channels", "bits", "file_bytes"),
    *("date", "device", "reader", "findings"),
)
"""Columns of ``check.csv``."""


@dataclass(frozen=True, repr=False)
class CheckResult:
    """The result of a check.

    Attributes:
        folder: folder with its files.
        findings: what would stop or spoil a training, the worst first.
        n_images: number of images whose file exists.
        command: the next command to type.
    """

    folder: Path
    findings: tuple[CheckFinding, ...]
    n_images: int
    command: str

    @property
    def severity(self) -> str:
        """The severity of the worst finding; ``note`` without any."""
        return self.findings[0].severity if self.findings else "note"

    def __repr__(self) -> str:
        return f"Check of {self.n_images} images: {_count_severities(self.findings)}"


def run_check(source: Path, out: Path, options: CheckOptions, display: Display) -> CheckResult:
    """Check a table or a folder of images, and write table, findings and page.

    The same call continues a check that was stopped; images that have not changed are not opened
    again.

    Args:
        source: a table, or a folder of images.
        out: folder for the results.
        options: options of the check.
        display: shows progress.

    Raises:
        TableError: there is no table and no image.
        CheckpointError: the folder holds something else.
    """
    check_folder(out)
    _check_is_ours(out)
    joined = join_images(source, options)
    for note in joined.notes:
        display.say(note)
    with lock_folder(out):
        remove_partial_files(out)
        entries = _probe(joined.cases, out, options, display)
        return _report(joined, entries, out, options, display)


def _check_is_ours(out: Path) -> None:
    """Refuse a folder that holds files, and none of a check.

    Raises:
        CheckpointError: the folder holds something else.
    """
    if not out.is_dir() or (out / CheckLayout.journal).is_file():
        return
    foreign = [p.name for p in out.iterdir() if p.name != NAME and not p.name.endswith(".part")]
    if foreign:
        raise CheckpointError(
            f"{out} holds something else than a check ({foreign[0]}): give another --out"
        )


# -- opening the images ---------------------------------------------------------------------------


def _probe(
    cases: Sequence[Case], out: Path, options: CheckOptions, display: Display
) -> dict[str, dict[str, Any]]:
    """Open every image that is not in the journal as it is now; return the entries by image id."""
    readers = check_options(options.reader_options or {})
    dependencies = {
        "check": _SCHEMA,
        "readers": readers,
        "code": code_sha256(),
        "plugins": sorted(map(str, plugin_folders())),
    }
    journal = Journal(CheckLayout(out).journal, dependencies, anew=True)
    opening = ProbeOptions(options.seconds, options.memory_gib, readers)
    states = {case.path: _read_state(case.path, opening) for case in cases}
    known = {case.path: journal.entries.get(_name(case.path), {}) for case in cases}
    todo = [path for path, entry in known.items() if not _is_current(entry, states[path])]
    n_known, n = len(known) - len(todo), len(known)
    if n_known:
        display.say(f"{n_known} of {n} images were opened by an earlier check")
    display.bar("opening images", n_known, n)
    workers = options.workers or min(_MAX_WORKERS, os.cpu_count() or 1)
    absolute = {path.absolute(): path for path in todo}
    for done, (path, answer) in enumerate(probe_all(list(absolute), workers, opening), n_known + 1):
        entry = answer | {"state": states[absolute[path]]}
        journal.add(_name(path), entry)
        known[absolute[path]] = journal.entries[_name(path)]
        display.bar("opening images", done, n)
    journal.finish()
    return {case.image_id: known[case.path] for case in cases}


def _name(path: Path) -> str:
    """Return the key of an image in the journal."""
    return os.fspath(path.absolute())


def _read_state(path: Path, opening: ProbeOptions) -> list[float]:
    """Return what an entry about a file depends on: its size, its time, and the limits."""
    try:
        state = image_state(path)
    except OSError:
        return [-1, 0, opening.seconds, opening.memory_gib]
    return [*state, opening.seconds, opening.memory_gib]


def _is_current(entry: Mapping[str, Any], state: Sequence[float]) -> bool:
    """Return whether an entry is about the file as it is; limits matter where it failed."""
    known = entry.get("state")
    if known is None:
        return False
    if "failed" in entry:
        return bool(known == list(state))
    complete = all(field.name in entry for field in fields(ImageRecord))
    return complete and bool(known[:2] == list(state[:2]))


# -- the results ----------------------------------------------------------------------------------


def _report(
    joined: JoinedTable,
    entries: Mapping[str, Mapping[str, Any]],
    out: Path,
    options: CheckOptions,
    display: Display,
) -> CheckResult:
    """Compare the images with each other and with their labels, and write the results."""
    failed = {i: str(entry["failed"]) for i, entry in entries.items() if "failed" in entry}
    records = {i: ImageRecord.from_entry(entry) for i, entry in entries.items() if i not in failed}
    task, question = _settle_task(joined, options)
    display.say("comparing images with each other and with their labels")
    measured = [] if task is None else measure_facts(joined, records, task)
    assumed_um = options.assume_spacing_um
    found = [
        *joined.findings,
        *find_in_images(joined.cases, records, failed, assumed_um),
        *find_in_plan(joined.cases, records, task, assumed_um),
        *find_duplicates(joined.cases, records),
        *find_confounds(measured, records),
    ]
    findings = tuple(sorted(found, key=lambda f: (SEVERITIES.index(f.severity), -f.weight)))
    command = _write_command(joined, options, findings, records)
    rows = _build_rows(joined, records, findings)
    cost = estimate_cost(joined.cases, records, assumed_um, display)
    checked = CheckedImages(
        joined, records, rows, findings, measured, question, _count_severities(findings), cost,
        command,
    )  # fmt: skip
    layout = CheckLayout(out)
    write_rows(layout.images, rows, COLUMNS)
    write_check_page(checked, layout.page)
    write_json(layout.findings, _build_json(checked))
    return CheckResult(out, findings, len(joined.cases), command)


def _settle_task(joined: JoinedTable, options: CheckOptions) -> tuple[AbstractTask | None, str]:
    """Return the task of the labels with a description; None where they fit no task."""
    labels = [case.label for case in joined.cases if case.label is not None]
    column = str(joined.label_column)
    if not labels:
        return None, ""
    try:
        task = build_task(options.task, labels, {}, column)
    except FoveateError:
        return None, ""
    counts = sorted(Counter(labels).items())
    listed = ", ".join(f"{label} {n}" for label, n in counts)
    many = f"{len(counts)} different values" if len(counts) > _MAX_LABELS else f"images: {listed}"
    return task, f"Question: {task.describe()}, from the column '{column}' ({many})."


def _count_severities(findings: Sequence[CheckFinding]) -> str:
    """Describe how many findings of each severity there are, in one sentence."""
    n = {severity: sum(f.severity == severity for f in findings) for severity in SEVERITIES}
    if n["unusable"]:
        return (
            f"Training would stop: {write_count(n['unusable'], 'reason')}, and "
            f"{write_count(n['problem'], 'problem')} more."
        )
    if n["problem"]:
        what = write_count(n["problem"], "problem")
        return f"Training can start, but {what} would spoil it or its scores."
    return f"Nothing would stop or spoil a training ({write_count(n['note'], 'note')})."


def _build_rows(
    joined: JoinedTable, records: Mapping[str, ImageRecord], findings: Sequence[CheckFinding]
) -> list[dict[str, Any]]:
    """Build the rows of ``check.csv``: the images in the table's order, then rows set aside."""
    texts: dict[str, list[str]] = defaultdict(list)
    for finding in findings:
        for image_id, text in finding.images.items():
            texts[image_id].append(f"{finding.kind}: {text}" if text else finding.kind)
    rows = []
    for case in joined.cases:
        row = {
            "image_id": case.image_id,
            "patient_id": case.patient_id,
            "label": case.label or "",
            "path": str(case.path),
        }
        rows.append(_fill_row(row, case, records.get(case.image_id)))
    for aside in joined.set_aside:
        row = dict.fromkeys(COLUMNS, "") | {"image_id": aside.image_id, "path": aside.path}
        texts.setdefault(aside.image_id, [aside.reason])
        rows.append(row)
    for row in rows:
        row["findings"] = one_line("; ".join(texts.get(row["image_id"], [])), max_letters=2000)
    return rows


def _fill_row(row: dict[str, str], case: Case, record: ImageRecord | None) -> dict[str, str]:
    """Add the facts about an image to its row; they are empty where it cannot be read."""
    row = dict.fromkeys(COLUMNS, "") | row
    if record is None:
        return row
    spacing_um = case.spacing_um or record.spacing_um
    stated = "file" if record.spacing_um is not None else "none"
    row |= {
        name: str(value)
        for name, value in asdict(record).items()
        if name in COLUMNS and value is not None
    }
    return row | {
        "shape": _join(record.shape),
        "levels": str(len(record.levels)),
        "spacing_um": "" if spacing_um is None else _join([f"{v:.5g}" for v in spacing_um]),
        "spacing_from": "table" if case.spacing_um is not None else stated,
    }


def _join(values: Sequence[object]) -> str:
    return "x".join(map(str, values))


def _build_json(checked: CheckedImages) -> dict[str, Any]:
    """Build the content of ``check.json``."""
    return {
        "schema": _SCHEMA,
        "version": __version__,
        "source": str(checked.joined.source),
        "source_sha256": compute_source_digest(checked.joined.source),
        "verdict": checked.verdict,
        "n_images": len(checked.joined.cases),
        "n_read": len(checked.records),
        "findings": [asdict(finding) for finding in checked.findings],
        "facts": [_build_fact(measured) for measured in checked.measured],
        "notes": list(checked.joined.notes),
        "command": checked.command,
        "cost": asdict(checked.cost),
    }


def _build_fact(measured: Measured) -> dict[str, Any]:
    """Build the entry of a fact that was compared with the labels."""
    values = {"fact": measured.fact.name} | asdict(measured.association)
    values["p_value"] = measured.p_value
    return {k: round(v, 6) if isinstance(v, float) and math.isfinite(v) else v
            for k, v in values.items()}  # fmt: skip


def _write_command(
    joined: JoinedTable,
    options: CheckOptions,
    findings: Sequence[CheckFinding],
    records: Mapping[str, ImageRecord],
) -> str:
    """Write the command that comes next: mend and check again, or train."""
    if joined.source.is_dir():
        return f"foveate init {shlex.quote(str(joined.source))}"
    flags = [
        (flag, value)
        for flag, value in (
            ("--path", options.column),
            ("--label", options.label),
            ("--patient", options.patient),
            ("--files", options.files),
            ("--images", options.images),
            ("--classes", options.classes),
            ("--task", None if options.task == defaults.TASK else options.task),
            *(("--map", f"{old}={new}") for old, new in (options.renamed or {}).items()),
            ("--view.assume-spacing-um", options.assume_spacing_um),
            *(
                (f"--reader.{name}.{key}", value)
                for name, chosen in (options.reader_options or {}).items()
                for key, value in chosen.items()
            ),
        )
        if value is not None
    ]
    words = shlex.join([str(joined.source), *(str(w) for pair in flags for w in pair)])
    if any(finding.severity == "unusable" for finding in findings):
        return f"foveate check {words}"
    by_size = any(f.kind == "confound" and "--view.fit" in f.remedy for f in findings)
    return f"foveate train {words} --out runs/first" + (
        f" {suggest_fit(records)}" if by_size else ""
    )
