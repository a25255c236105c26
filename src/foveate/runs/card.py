"""The card of a model: everything but its weights, and its checked reading from ``model.json``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from foveate import defaults
from foveate.batch import View
from foveate.batch.types import PATCH_PX, SPACING
from foveate.errors import CheckpointError
from foveate.files.fields import Fields, read_fields
from foveate.images.likeness import COLOURS, TrainedOn
from foveate.images.read_count import VALUES
from foveate.images.stored import Recipe

SCHEMA = 1
_SIDE_PX = (16, 65536)
_LARGE = 1e12
_TRAINED_ON_KEYS = {"spacing_um": "spacing", "side_um": "side", "short_side_um": "short_side"}
"""Keys in files of those fields of `TrainedOn` whose names differ."""
_KEYS = (
    *("schema", "foveate", "sha256", "method", "method_options", "encoder", "encoder_options"),
    *(
        "task",
        "task_options",
        "settled",
        "view",
        "assume_spacing_um",
        "provenance",
        "trained_on",
        "readers",
        "renamed",
        "bag",
    ),
)


@dataclass(frozen=True)
class ModelCard:
    """Everything besides weights that makes a model: names and numbers only.

    Attributes:
        method, method_options: name of the method, and the options that it was built with.
        encoder, encoder_options: name of the encoder, and its options.
        task, task_options: name of the task, which says what is predicted, and its options.
        settled: what the task settled from the labels of the table, such as the classes.
        view: at which spacing and size patches and glimpses are read.
        assume_spacing_um: spacing assumed for slides that state none.
        provenance: split hash, digest of the code, what was assumed about the labels, counts,
            validation score.
        trained_on: facts about the images of the run; None in models of older versions.
        readers: options that readers opened the images with, by the name of the reader.
        renamed: new name by label of the table of training; a table to evaluate is read alike.
        bag: whether the model answers about images, or about patients from all their images.
    """

    method: str
    method_options: dict[str, Any]
    encoder: str
    encoder_options: dict[str, Any]
    task: str
    task_options: dict[str, Any]
    settled: dict[str, Any]
    view: View
    assume_spacing_um: float | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    trained_on: TrainedOn | None = None
    readers: dict[str, dict[str, Any]] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    bag: defaults.Bag = defaults.BAG


def read_card(path: Path) -> tuple[ModelCard, str]:
    """Read the card in a ``model.json``, and the SHA-256 of the weights that belong to it.

    Every field is checked before anything is built from it.

    Raises:
        CheckpointError: the file is missing, damaged or from a newer version, or a field does not
            fit; the message names file and field.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing: give a run folder whose training has finished, or a model folder"
        )
    fields = read_fields(path)
    if fields.integer("schema", 1, 1 << 30) > SCHEMA:
        raise CheckpointError(f"{path} was written by a newer foveate; upgrade to read it")
    fields.text("foveate")
    fields.only(_KEYS)
    card = ModelCard(
        method=fields.text("method"),
        method_options=fields.options("method_options"),
        encoder=fields.text("encoder"),
        encoder_options=fields.options("encoder_options"),
        task=fields.text("task"),
        task_options=fields.options("task_options"),
        settled=fields.options("settled"),
        view=parse_view(fields.part("view")),
        assume_spacing_um=fields.maybe_number("assume_spacing_um", *SPACING),
        provenance=_read_provenance(fields.part("provenance")),
        trained_on=parse_trained_on(fields.part("trained_on"))
        if _has(fields, "trained_on")
        else None,
        readers=_read_readers(fields.part("readers")) if _has(fields, "readers") else {},
        renamed=_read_renamed(fields.part("renamed")) if _has(fields, "renamed") else {},
        bag=cast(defaults.Bag, fields.text("bag", get_args(defaults.Bag)))
        if _has(fields, "bag")
        else defaults.BAG,
    )
    return card, fields.text("sha256")


def _read_readers(fields: Fields) -> dict[str, dict[str, Any]]:
    return {name: fields.options(name) for name in fields.plain()}


def _read_renamed(fields: Fields) -> dict[str, str]:
    return {label: fields.text(label, may_be_empty=True) for label in fields.plain()}


def parse_view(fields: Fields) -> View:
    """Read a stored view, and check its fields.

    Raises:
        CheckpointError: a field does not fit.
    """
    fields.only(tuple(View.__dataclass_fields__))
    axes = fields.integer("axes", 2, 3) if "axes" in fields else 2
    fit = None
    if _has(fields, "fit"):
        fit = tuple(int(side) for side in fields.numbers("fit", *_SIDE_PX, n=2))
    return View(
        spacing_um=fields.number("spacing_um", *SPACING),
        patch_px=fields.integer("patch_px", *PATCH_PX),
        glimpse_spacing_um=fields.number("glimpse_spacing_um", *SPACING),
        unit=cast(Literal["um", "px"], fields.text("unit", ("um", "px"))),
        fit=fit,
        axes=axes,
        bits=fields.integer("bits", 8, 16) if _has(fields, "bits") else None,
        recipe=_parse_recipe(fields.part("recipe")) if _has(fields, "recipe") else None,
    )


def _parse_recipe(fields: Fields) -> Recipe:
    """Read how the vectors of files of features were made."""
    fields.only(tuple(Recipe.__dataclass_fields__))
    return Recipe(
        encoder=fields.text("encoder", may_be_empty=True),
        dim=fields.integer("dim", 1, 1 << 16),
        revision=fields.text("revision", may_be_empty=True),
        transform=fields.text("transform", may_be_empty=True),
    )


def store_trained_on(facts: TrainedOn) -> dict[str, Any]:
    """Return facts about the images of a run under the keys that `parse_trained_on` reads.

    Facts that such images do not have are left out.
    """
    return {
        _TRAINED_ON_KEYS.get(name, name): value
        for name, value in asdict(facts).items()
        if value not in (None, ())
    }


def parse_trained_on(fields: Fields) -> TrainedOn:
    """Read the stored facts about the images of a run, and check them.

    Raises:
        CheckpointError: a field does not fit.
    """
    fields.only([_TRAINED_ON_KEYS.get(name, name) for name in TrainedOn.__dataclass_fields__])
    low, high = fields.numbers("spacing", *SPACING, n=2)
    short, long = fields.numbers("side", 1e-4, _LARGE, n=2)
    return TrainedOn(
        n=fields.integer("n", 1, 1 << 40),
        kinds=fields.texts("kinds"),
        channels=tuple(int(c) for c in fields.numbers("channels", 1, 1024)),
        unit=fields.text("unit", ("um", "px")),
        spacing_um=(low, high),
        side_um=(short, long),
        assumed=fields.integer("assumed", 0, 1 << 40),
        short_side_um=_read_range(fields, "short_side", 1e-4, _LARGE),
        slices=_read_slices(fields),
        anisotropy=_read_range(fields, "anisotropy", 1.0, _LARGE),
        values=tuple(name for name in fields.texts("values") if name in VALUES)
        if "values" in fields
        else (),
        colours=tuple(name for name in fields.texts("colours") if name in COLOURS)
        if "colours" in fields
        else (),
    )


def _read_range(fields: Fields, key: str, low: float, high: float) -> tuple[float, float] | None:
    """Read a smallest and a largest number; None in files of older versions."""
    if key not in fields:
        return None
    smallest, largest = fields.numbers(key, low, high, n=2)
    return smallest, largest


def _read_slices(fields: Fields) -> tuple[int, int] | None:
    """Read the smallest and the largest number of slices; None in files of older versions."""
    ends = _read_range(fields, "slices", 1, _LARGE)
    return None if ends is None else (int(ends[0]), int(ends[1]))


def _read_provenance(fields: Fields) -> dict[str, Any]:
    """Read the provenance; check the fields that are used, and take the others as they are."""
    fields.maybe_number("threshold", 0.0, 1.0)
    if "temperature" in fields:
        fields.number("temperature", 1e-6, 1e6)
    for key in ("fold", "n_train", "n_val"):
        if _has(fields, key):
            fields.integer(key, 0, 1 << 40)
    if "refit" in fields:
        fields.flag("refit")
    if _has(fields, "split_hash"):
        fields.text("split_hash")
    if "assumptions" in fields:
        fields.texts("assumptions", 0)
    for key in ("quarantined", "train"):
        if key in fields:
            fields.part(key)
    return fields.plain()


def _has(fields: Fields, key: str) -> bool:
    return fields.plain().get(key) is not None
