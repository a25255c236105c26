"""The page of a check: question, counts, findings, contact sheet and table, in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.checks.confounds import Measured
from foveate.checks.cost import Cost
from foveate.checks.joins import JoinedTable
from foveate.checks.records import CheckFinding, ImageRecord
from foveate.files.atomic import write_text
from foveate.reports.template import MAX_LISTED, fill_template

_MAX_THUMBNAILS, _MAX_ROWS = 300, 2000


@dataclass(frozen=True)
class CheckedImages:
    """Everything that the page shows.

    Attributes:
        joined: the table with its images.
        records: facts about the images that were read, by image id.
        rows: the rows of ``check.csv``.
        findings: the findings, worst first.
        measured: facts that were compared with the labels, the best first.
        question: what the task is, in words; empty without labels.
        verdict: the result in one sentence.
        cost: what a training will cost.
        command: the next command to type.
    """

    joined: JoinedTable
    records: Mapping[str, ImageRecord]
    rows: Sequence[Mapping[str, Any]]
    findings: Sequence[CheckFinding]
    measured: Sequence[Measured]
    question: str
    verdict: str
    cost: Cost
    command: str


def write_check_page(checked: CheckedImages, path: Path) -> None:
    """Write the page of a check.

    Args:
        checked: what it shows.
        path: the file.
    """
    values = _collect_values(checked)
    write_text(path, fill_template("check.html.j2", values, folder=Path(__file__).parent))


def _collect_values(checked: CheckedImages) -> dict[str, Any]:
    rows = list(checked.rows)
    return {
        "name": checked.joined.source.name or str(checked.joined.source),
        "verdict": checked.verdict,
        "question": checked.question,
        "counts": _count(checked),
        "findings": checked.findings,
        "most_listed": MAX_LISTED,
        "measured": checked.measured,
        "has_slides": any(r.kind == "slide" for r in checked.records.values()),
        "sheet": _list_thumbnails(checked),
        "n_images": len(rows),
        "cost": checked.cost,
        "rows": rows[:_MAX_ROWS],
        "notes": checked.joined.notes,
        "command": checked.command,
    }


def _count(checked: CheckedImages) -> list[tuple[int, str]]:
    """Return the numbers at the top of the page, each with its title."""
    cases = checked.joined.cases
    severities = [finding.severity for finding in checked.findings]
    patients = len({case.patient_id for case in cases})
    return [
        (len(cases), "images with a file"),
        (len(checked.records), "of them can be read"),
        (patients, "patients"),
        (len(severities) - severities.count("note"), "problems"),
        (severities.count("note"), "notes"),
    ]


def _list_thumbnails(checked: CheckedImages) -> list[dict[str, str]]:
    """List the images of the contact sheet, the worst first."""
    worst: dict[str, tuple[float, str]] = {}
    for place, finding in enumerate(checked.findings):
        for image_id in finding.images:
            worst.setdefault(image_id, (float(place), finding.kind))
    none = (float(len(checked.findings)), "")
    items = []
    for row in checked.rows:
        image_id = str(row["image_id"])
        record = checked.records.get(image_id)
        rank, kind = worst.get(image_id, none)
        share = -1.0
        if record is not None:
            contrast = record.high - record.low
            share = contrast if record.foreground is None else record.foreground
        about = str(row["shape"])
        if record is not None and record.foreground is not None:
            about += f", tissue {record.foreground:.1%}"
        item = {
            "image_id": image_id,
            "label": str(row["label"]),
            "thumbnail": "" if record is None else record.thumbnail,
            "about": about,
            "finding": kind,
        }
        items.append(((rank, share, image_id), item))
    items.sort(key=lambda pair: pair[0])
    return [item for _, item in items[:_MAX_THUMBNAILS]]
