"""The command ``features``: embed the patches of images once, and write them for other programs.

Patches and their foreground are those of the methods that read all patches. Each image is one file,
written completely or not at all, and noted in a journal, so that the same command continues.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foveate import defaults
from foveate.batch import View
from foveate.encoders import build_encoder
from foveate.encoders.base import AbstractEncoder
from foveate.errors import CheckpointError, OptionError, UnreadableImage
from foveate.files.atomic import remove_partial_files
from foveate.files.fields import Fields
from foveate.files.journal import Journal
from foveate.files.lock import lock_folder
from foveate.files.run_layout import FeaturesLayout, RunLayout
from foveate.images.stored import Recipe
from foveate.loading.gather import gather_cases
from foveate.loading.loader import CaseLoader
from foveate.loading.scan import ViewOptions, choose_view, scan_cases
from foveate.messages.display import Display, OnUpdate, as_display
from foveate.readers import check_options
from foveate.runs.card import parse_view
from foveate.runs.folder import check_folder, log_into, make_quarantine_row, write_rows
from foveate.runs.view_words import describe_view
from foveate.runtime import find_device
from foveate.table import Case, CaseTable
from foveate.workflows.feature_files import ExtractionJob, embed_all, feature_path
from foveate.workflows.feature_options import FeatureOptions

_COMMAND = "features"


@dataclass(frozen=True, repr=False)
class Extraction:
    """The result of ``features``.

    Attributes:
        folder: folder of the results.
        rows: rows of ``features.csv``, one for each file.
        failed: by image id, why there is no file.
    """

    folder: Path
    rows: list[dict[str, Any]]
    failed: dict[str, str]

    def __repr__(self) -> str:
        n = sum(row["n_patches"] for row in self.rows)
        return f"{n} patches of {len(self.rows)} images embedded, {len(self.failed)} failed"


def extract_features(
    source: Path | str,
    out: Path | str,
    options: FeatureOptions | None = None,
    *,
    on_progress: OnUpdate | Display | None = None,
) -> Extraction:
    """Embed all patches with foreground of images by a frozen encoder, and write one file each.

    The same call continues where an earlier one stopped. Images that fail are listed in
    ``quarantine.csv``. Training on ``features.csv`` needs no images.

    Args:
        source: a table, a folder of images, or an image.
        out: folder for the results.
        options: encoder, patches and layout, such as ``FeatureOptions(layout="stamp")``.
        on_progress: called with the progress of the work.

    Raises:
        OptionError: the encoder or the layout does not fit the images.
        UnreadableImage: none of the images could be embedded.
        CheckpointError: `out` holds files of other settings, or that this command did not write.
        FolderInUse: another process writes into `out`.

    Example:
        >>> options = foveate.FeatureOptions(patch_px=32)
        >>> foveate.extract_features("new", "vectors", options)
        … patches of 2 images embedded, 0 failed
    """
    out, options, display = Path(out), options or FeatureOptions(), as_display(on_progress)
    check_folder(out)
    if RunLayout(out).config.is_file():
        raise CheckpointError(f"--out {out} is the folder of a run: give another --out")
    encoder = _build_encoder(options)
    images = None if options.images is None else Path(options.images)
    readers = check_options(options.reader_options or {})
    table = gather_cases([Path(source)], images=images, readers=readers)
    with lock_folder(out), log_into(out, display):
        remove_partial_files(out)
        for note in table.notes:
            display.say(note)
        job = _plan(table.cases, out, options, encoder, display)
        with contextlib.closing(job.loader):
            embed_all(job, table.cases)
        return _write_tables(job, table)


def _build_encoder(options: FeatureOptions) -> AbstractEncoder:
    """Build the encoder that embeds patches.

    Raises:
        OptionError: it is not pretrained, or reads no pictures.
    """
    name = _name_encoder(options)
    encoder = build_encoder(name, options.encoder_options)
    if not encoder.reads_pixels or encoder.axes != 2:
        raise OptionError(
            f"encoder: '{name}' does not read pictures or slides, whose patches are embedded here: "
            "take --encoder lite0, or a network of timm"
        )
    if encoder.from_scratch:
        raise OptionError(
            f"encoder: '{name}' has no pretrained weights, so that its vectors mean nothing: give "
            "--encoder.weights FILE, or take --encoder lite0"
        )
    return encoder.eval().requires_grad_(False)


def _name_encoder(options: FeatureOptions) -> str:
    """Return the name of the encoder; ``auto`` is the one of pictures and slides."""
    return defaults.ENCODER_BY_AXES[2] if options.encoder == "auto" else options.encoder


def _plan(
    cases: Sequence[Case],
    out: Path,
    options: FeatureOptions,
    encoder: AbstractEncoder,
    display: Display,
) -> ExtractionJob:
    """Settle view and recipe, and open the journal of the folder.

    Raises:
        OptionError: the images are volumes, or files of features already.
        CheckpointError: the folder holds files of other settings.
    """
    layout = FeaturesLayout(out)
    readers = check_options(options.reader_options or {})
    stated = json.loads(json.dumps(asdict(options), default=str))
    stated = {key: stated[key] for key in stated if key not in ("device", "chunk", "images")}
    view = _read_view(layout, stated) or _choose_view(cases, options, readers, display)
    if view.axes != 2 or view.recipe is not None:
        kind = "volumes" if view.axes != 2 else "files of features already"
        raise OptionError(f"features: these are {kind}; give slides or pictures")
    display.say(describe_view(view, []))
    recipe = _make_recipe(options, encoder, view)
    dependencies = {"command": _COMMAND, **stated, "revision": recipe.revision}
    journal = Journal(layout.journal, {**dependencies, "view": asdict(view)})
    loader = CaseLoader(
        view,
        assume_spacing_um=options.assume_spacing_um,
        readers=readers,
        keep_bytes=0,
        keep_open=0,
    )
    device = find_device(options.device)
    return ExtractionJob(
        layout, options, encoder.to(device), recipe, loader, device, journal, display
    )


def _read_view(layout: FeaturesLayout, stated: Mapping[str, Any]) -> View | None:
    """Return the view of the files in the folder, if they were made with the same options."""
    if not layout.journal.is_file():
        return None
    with layout.journal.open(encoding="utf-8") as file:
        first = file.readline()
    try:
        head = json.loads(first)
        same = all(head[key] == value for key, value in stated.items())
        return parse_view(Fields(head["view"], str(layout.journal))) if same else None
    except (ValueError, KeyError, TypeError, CheckpointError):
        return None  # the journal refuses what it cannot read


def _choose_view(
    cases: Sequence[Case],
    options: FeatureOptions,
    readers: Mapping[str, Mapping[str, Any]],
    display: Display,
) -> View:
    """Open all images once, and choose the view as a training does.

    Raises:
        UnreadableImage: no image can be opened.
    """
    wanted = ViewOptions(
        spacing_um=options.spacing_um,
        patch_px=options.patch_px,
        assume_spacing_um=options.assume_spacing_um,
    )

    def show(done: float, total: int = 1) -> None:
        display.bar("opening images", done, total)

    scan = scan_cases(cases, wanted, show, {k: dict(v) for k, v in readers.items()})
    if not scan.facts:
        first = next(iter(scan.failed.values()), "there is none")
        raise UnreadableImage(f"no image can be opened; the first: {first}. Mend this")
    return choose_view(scan.facts.values(), wanted)


def _make_recipe(options: FeatureOptions, encoder: AbstractEncoder, view: View) -> Recipe:
    """Describe how the vectors are made: encoder, its weights, and the pixels that it sees."""
    digest = hashlib.sha256()
    for name, weights in encoder.state_dict().items():
        if not name.startswith("mixed."):  # the projection is not learnt here
            digest.update(name.encode())
            digest.update(weights.detach().cpu().contiguous().numpy().tobytes())
    colours = (",".join(f"{v:.4g}" for v in values) for values in (encoder.mean, encoder.std))
    mean, std = colours
    unit = "um" if view.unit == "um" else "level-0 pixels"
    return Recipe(
        encoder=_name_encoder(options),
        dim=encoder.n_features,
        revision=digest.hexdigest()[:12],
        transform=f"{view.patch_px} px of {view.spacing_um:g} {unit}, RGB in 0 to 1, mean {mean}, "
        f"std {std}",
    )


def _write_tables(job: ExtractionJob, table: CaseTable) -> Extraction:
    """Write ``features.csv`` and ``quarantine.csv`` from the journal, and return the result."""
    rows = []
    for case in table.cases:
        entry = job.journal.entries.get(case.image_id, {})
        if "n_patches" in entry:
            path = feature_path(job, case).relative_to(job.layout.folder)
            row = {"image_id": case.image_id, "patient_id": case.patient_id, "path": str(path)}
            if case.label is not None:
                row["label"] = str(case.label)
            rows.append({**row, "n_patches": entry["n_patches"], "image": str(case.path)})
    paths = {case.image_id: str(case.path) for case in table.cases}
    aside = [make_quarantine_row(r.image_id, r.path, "table", r.reason) for r in table.set_aside]
    aside += [make_quarantine_row(i, paths[i], _COMMAND, why) for i, why in job.failed.items()]
    if aside:
        write_rows(job.layout.quarantine, aside, list(aside[0]))
    else:
        job.layout.quarantine.unlink(missing_ok=True)
    if not rows:
        first = aside[0]["reason"] if aside else "there is none"
        raise UnreadableImage(f"no image could be embedded; the first: {first}. Mend this")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    write_rows(job.layout.table, rows, columns)
    failed = job.failed | {row.image_id: row.reason for row in table.set_aside}
    return Extraction(job.layout.folder, rows, failed)
