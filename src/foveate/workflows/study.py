"""The command ``report``: the page of one run, or one page over several runs of one table."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from foveate.errors import CheckpointError, OptionError
from foveate.evaluation.comparison import Contestant, compare_contestants
from foveate.evaluation.stability import correlate_answers, correlate_evidence
from foveate.files.run_layout import RunLayout
from foveate.images.evidence import Evidence
from foveate.prediction.pictures import evidence_file
from foveate.reports import write_report, write_study
from foveate.runs.folder import read_json
from foveate.tasks.base import AbstractTask
from foveate.workflows.compare import check_labels, check_question, name_runs, read_contestants

_SUFFIX = ".html"
_MAX_COMPARED = 60
"""Number of images whose evidence is compared for each pair of runs."""


def write_reports(runs: Sequence[Path], out: Path | None) -> Path:
    """Write the page of one run into its folder, or one page over several runs to `out`.

    Args:
        runs: folders of runs.
        out: the page over several runs; None for one run.

    Raises:
        OptionError: `out` is missing for several runs, is given for one, or is no name of a page.
        CheckpointError: a folder holds no finished run, or the runs do not belong together.
    """
    if len(runs) == 1:
        if out is not None:
            raise OptionError(
                f"--out: got {out} for one run, whose page is in its folder: leave --out out, or "
                "give two or more runs"
            )
        return write_report(runs[0])
    if not runs:
        raise OptionError("expected the folders of one run or several")
    if out is None:
        raise OptionError("--out: missing for several runs, expected a page such as study.html")
    if out.suffix.lower() != _SUFFIX or out.is_dir():
        raise OptionError(f"--out: got {out}, expected a page, a name that ends in {_SUFFIX}")
    if len({run.resolve() for run in runs}) < len(runs):
        raise OptionError("a run is given twice: give each run once")
    _write_study(name_runs(runs), out)
    return out


def _write_study(runs: Mapping[str, Path], page: Path) -> None:
    """Compare finished runs where they answer the same images, and write the page."""
    task = check_question(list(runs.values()))
    _check_tables(runs)
    contestants = [_read_run(name, run, page.parent) for name, run in runs.items()]
    check_labels(contestants)
    content = compare_contestants(contestants, task)
    content["likeness"] = _measure_likeness(runs, contestants, task)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_study(runs, content, task, page)


def _measure_likeness(
    runs: Mapping[str, Path], contestants: Sequence[Contestant], task: AbstractTask
) -> list[dict[str, Any]]:
    """Measure how alike answers and evidence of each pair of runs are on the images of both."""
    pairs = []
    for a, b in itertools.combinations(contestants, 2):
        rows, others = ({row["image_id"]: row for row in c.rows} for c in (a, b))
        both = [image for image in rows if image in others]
        if not both:
            continue
        answers = np.array(
            [[[float(r[i][c]) for c in task.columns] for i in both] for r in (rows, others)]
        )
        some = both[:: -(-len(both) // _MAX_COMPARED)]
        evidence = [_correlate_stored(image, runs[a.name], runs[b.name]) for image in some]
        known = [value for value in evidence if value is not None]
        pairs.append(
            {
                "first": a.name,
                "second": b.name,
                "n": len(both),
                "answers": correlate_answers(answers),
                "evidence": statistics.fmean(known) if known else None,
            }
        )
    return pairs


def _correlate_stored(image_id: str, *runs: Path) -> float | None:
    """Compute the rank correlation of the stored evidence of runs; None where one has none."""
    files = [evidence_file(RunLayout(run).heatmaps_folder, image_id) for run in runs]
    if not all(file.is_file() for file in files):
        return None
    return correlate_evidence([Evidence.load(file) for file in files])


def _read_run(name: str, run: Path, folder: Path) -> Contestant:
    """Read the answers of a run, without those of its frozen start."""
    split = str(read_json(RunLayout(run).splits)["folds"])
    return replace(read_contestants(name, run, folder)[0], split=split)


def _check_tables(runs: Mapping[str, Path]) -> None:
    """Refuse a run of another table: none of its images, or another label of one of them.

    Raises:
        CheckpointError: there is such a run; the message names it.
    """
    known: dict[str, tuple[str, str | None]] = {}
    for name, run in runs.items():
        splits = read_json(RunLayout(run).splits)
        images, labels = splits["patients"], splits.get("labels") or {}
        if known and not known.keys() & images.keys():
            first = next(iter(runs))
            raise CheckpointError(
                f"{name} and {first} have no image in common: give runs of one table"
            )
        for image in images:
            label = labels.get(image)
            other, known_label = known.setdefault(image, (name, label))
            if None not in (label, known_label) and label != known_label:
                raise CheckpointError(
                    f"image '{image}' has the label '{known_label}' in {other}, but '{label}' in "
                    f"{name}: give runs on the same labels"
                )
