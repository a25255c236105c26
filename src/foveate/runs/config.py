"""The config of a run: one plain file, whose keys are also flags of the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from foveate import defaults
from foveate.batch import View
from foveate.errors import OptionError
from foveate.exports import build_exports
from foveate.images.stored import Recipe
from foveate.loading.scan import ViewOptions
from foveate.parts import find, names
from foveate.parts.options import options, parse_options
from foveate.readers import check_options
from foveate.runs.card import ModelCard
from foveate.runs.max_failed import count_allowed
from foveate.runs.schedule import TrainOptions
from foveate.wording import did_you_mean
from foveate.yamltext import read_config, write_yaml


@dataclass(frozen=True)
class TableOptions:
    """Options about the table of labels and its columns.

    Attributes:
        path: the table of labels, CSV, TSV or XLSX.
        files: a second table with one row per image, where `path` has one row per patient (STAMP).
        images: folder that paths in the table are relative to; by default the table's own.
        label, patient, image: names of columns, where they are not recognised; columns that hold
            the label together are comma-separated.
        classes: keep only images of these labels (comma-separated).
        renamed: new name by label of the table; an empty name means that the label is missing.
    """

    path: str
    files: str | None = None
    images: str | None = None
    label: str | None = None
    patient: str | None = None
    image: str | None = None
    classes: tuple[str, ...] | None = None
    renamed: dict[str, str] | None = None


@dataclass(frozen=True)
class SplitOptions:
    """Options about the division of patients into training, validation and test part.

    Attributes:
        folds: 1 for a single hold-out; more for cross-validation with pooled predictions.
        test_fraction: share of the patients in the test part of a single hold-out.
        val_fraction: share of the remaining patients in the validation part, which decides when
            training stops and which threshold is taken.
        seed: seed of the random division.
        repeats: number of cross-validations, each with another division; every patient is tested
            so many times.
        site: column of sites, such as hospitals, whose patients are tested together; one of the
            usual names (``site``, ``center`` …) stands for the others.
        from_: a split that is taken as it is (``--split.from``): a folder or file of CLAM
            (``splits_0.csv`` …), ``splits.json`` of STAMP or of another run, or a table with
            columns ``fold_0`` … or ``split``.
    """

    folds: int = defaults.FOLDS
    test_fraction: float = 0.25
    val_fraction: float = 0.2
    seed: int = defaults.SEED
    repeats: int = 1
    site: str | None = None
    from_: str | None = None

    def __post_init__(self) -> None:
        for key in ("folds", "repeats"):
            if getattr(self, key) < 1:
                raise OptionError(f"split.{key}: got {getattr(self, key)}, expected 1 or more")
        if self.repeats > 1 and self.folds == 1:
            raise OptionError(
                f"split.repeats: got {self.repeats} with one fold; cross-validations are repeated, "
                "so give --folds 2 or more as well"
            )
        if self.from_ is not None and (self.site is not None or self.repeats > 1):
            other = "--split.site" if self.site is not None else "--split.repeats"
            raise OptionError(
                f"split.from: a split is taken as it is; leave {other} out, or --split.from"
            )
        for key in ("test_fraction", "val_fraction"):
            if not 0 < getattr(self, key) < 1:
                raise OptionError(
                    f"split.{key}: got {getattr(self, key)}, expected more than 0 and less than 1"
                )


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the outcome of a run.

    Attributes:
        table, view, split, train: sections of options; see their classes.
        method, encoder, task: names of parts; ``method_options`` and so on hold their options.
            Encoder ``auto`` is lite0 for pictures and slides, slices for volumes.
        reader_options: options of readers, by the reader's name.
        bag: whether each image is answered, or each patient from all images together.
        heatmaps: number of test images that get pictures.
        export: kinds of pictures, by name (comma-separated).
        permute_labels: whether labels are shuffled over patients; scores must then be at chance.
        refit: whether one model is trained on all images after the folds are scored, which then
            answers alone.
        max_failed: number of images, or share of them, that may be set aside; None for no limit.
    """

    table: TableOptions
    method: str = defaults.METHOD
    encoder: str = defaults.ENCODER
    task: str = defaults.TASK
    method_options: dict[str, Any] = field(default_factory=dict)
    encoder_options: dict[str, Any] = field(default_factory=dict)
    task_options: dict[str, Any] = field(default_factory=dict)
    reader_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    view: ViewOptions = field(default_factory=ViewOptions)
    split: SplitOptions = field(default_factory=SplitOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    bag: defaults.Bag = defaults.BAG
    heatmaps: int = defaults.TRAIN_HEATMAPS
    export: tuple[str, ...] = defaults.EXPORT
    permute_labels: bool = False
    refit: bool = False
    max_failed: str | None = None

    def __post_init__(self) -> None:
        if self.max_failed is not None:
            count_allowed(self.max_failed, 0)

    def as_dict(self) -> dict[str, Any]:
        """Return the config as plain values for YAML and JSON."""
        plain: dict[str, Any] = _make_plain(asdict(self))
        for section in _SECTIONS:
            plain[section] = {key.removesuffix("_"): v for key, v in plain[section].items()}
        return plain


_SECTIONS: dict[str, type[Any]] = {
    "table": TableOptions,
    "view": ViewOptions,
    "split": SplitOptions,
    "train": TrainOptions,
}
_PLAIN = ("bag", "heatmaps", "export", "permute_labels", "refit", "max_failed")
STORED = "stored"
"""The encoder of files of features."""
_PACKAGES = {"method": "methods", "encoder": "encoders", "task": "tasks"}


def build_config(nested: Mapping[str, Any]) -> RunConfig:
    """Build a checked config from nested values such as ``{"train": {"lr": "1e-4"}}``.

    Sections are ``table, view, split, train``; ``method``, ``encoder`` and ``task`` are names, and
    ``method_options`` and so on their options.

    Raises:
        OptionError: an unknown key, with the nearest known one, or a value that does not fit.
        UnknownName: no such method, encoder, task or export.
    """
    _check_keys(nested)
    values: dict[str, Any] = {
        key: section(**parse_options_all(section, nested[key], key))
        for key, section in _SECTIONS.items()
        if key in nested
    }
    simple = {k: v for k, v in nested.items() if k in _PLAIN}
    values |= parse_options(RunConfig, simple, "run")
    for part in _PACKAGES:
        if part in nested:
            values[part] = _check_name(nested[part], part)
        values[f"{part}_options"] = dict(nested.get(f"{part}_options", {}))
    if values.get("heatmaps", 0) < 0:
        raise OptionError(f"heatmaps: got {values['heatmaps']}, expected 0 or more")
    values["reader_options"] = check_options(_check_sections(nested.get("reader_options", {})))
    config = RunConfig(**values)
    build_exports(config.export)
    return _check_part_options(config, values)


def _check_keys(nested: Mapping[str, Any]) -> None:
    """Raise `OptionError` if a key is unknown, or the table is missing."""
    known = set(RunConfig.__dataclass_fields__)
    for key in map(str, nested):
        if key not in known:
            raise OptionError(f"no option '{key}'.{did_you_mean(key, known)}")
    if "path" not in nested.get("table", {}):
        raise OptionError("table.path: missing, expected the table of labels")


def list_section_keys() -> list[str]:
    """Return all keys of the config with their section, as flags spell them: ``train.lr``.

    For the section ``method``, these are the options of the default method.
    """
    keys = [
        f"{section}.{key}"
        for section, kind in _SECTIONS.items()
        for key in kind.__dataclass_fields__
    ]
    keys += [f"method.{key}" for key in options(find("methods", RunConfig.method))]
    return [key.removesuffix("_").replace("_", "-") for key in keys]


def _check_sections(nested: Any) -> dict[str, dict[str, Any]]:
    """Check that the options of readers are sections within a section, and copy them."""
    for name, section in dict(nested).items():
        if not isinstance(section, dict):
            raise OptionError(f"reader.{name}: got '{section}', expected a reader's options")
    return dict(nested)


def _check_name(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise OptionError(f"{key}: got '{value}', expected a name")
    return value


def parse_options_all(section: type[Any], nested: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Parse the options of a section, also those without a default, which `parse_options` skips.

    Args:
        section: the class of the section's options.
        nested: values by name, from the file and the flags.
        where: name of the section, for messages.

    Raises:
        OptionError: a key is unknown, or a value does not fit.
    """
    required = {k: v for k, v in nested.items() if k == "path" and section is TableOptions}
    rest = {k: v for k, v in nested.items() if k not in required}
    for key, value in required.items():
        if not isinstance(value, str | Path) or not str(value):
            raise OptionError(f"{where}.{key}: got '{value}', expected a path")
    return {k: str(v) for k, v in required.items()} | parse_options(section, rest, where)


def _check_part_options(config: RunConfig, values: dict[str, Any]) -> RunConfig:
    method = find("methods", config.method)
    values["method_options"] = _list_defaults(method) | parse_options(
        method, config.method_options, "method"
    )
    if config.task != "auto":
        values["task_options"] = parse_options(
            find("tasks", config.task), config.task_options, "task"
        )
    if config.encoder == "auto":
        if config.encoder_options:
            raise OptionError("encoder: its options need a name, such as --encoder lite0")
        return RunConfig(**values)
    values["encoder_options"] = fill_encoder_options(config, method)
    return RunConfig(**values)


def settle_encoder(config: RunConfig, axes: int, recipe: Recipe | None = None) -> RunConfig:
    """Return the config with encoder ``auto`` replaced by the one for images of `axes` axes.

    Args:
        config: options of the run.
        axes: axes of its images, 2 or 3.
        recipe: how the vectors were made, if they are files of features.

    Raises:
        OptionError: the encoder that the config names does not fit images or files of features.
    """
    if recipe is not None:
        return _settle_stored(config, recipe)
    if config.encoder == STORED:
        raise OptionError(
            f"encoder: '{STORED}' is for files of features, these are images with pixels: take "
            "--encoder lite0"
        )
    if config.encoder != "auto":
        return config
    named = replace(config, encoder=defaults.ENCODER_BY_AXES[axes])
    return replace(
        named, encoder_options=fill_encoder_options(named, find("methods", config.method))
    )


def _settle_stored(config: RunConfig, recipe: Recipe) -> RunConfig:
    """Return the config with the encoder of files of features, for vectors of a recipe.

    Raises:
        OptionError: the config names an encoder of pixels.
    """
    if config.encoder not in ("auto", STORED):
        raise OptionError(
            f"encoder: '{config.encoder}' reads pixels, but the table names files of features, "
            f"{recipe.describe()}: leave out --encoder, or give a table of images"
        )
    named = replace(config, encoder=STORED)
    options = fill_encoder_options(named, find("methods", config.method))
    return replace(named, encoder_options=options | {"stored_dim": recipe.dim})


def make_card(
    config: RunConfig, view: View, task: str, options: dict[str, Any], settled: dict[str, Any]
) -> ModelCard:
    """Make the card of the model that a config asks for, before anything is trained.

    Args:
        config: the config, which names its encoder.
        view: the view of the images.
        task: name of the task.
        options: options of the task.
        settled: what the task settled from the labels.
    """
    return ModelCard(
        method=config.method,
        method_options=config.method_options,
        encoder=config.encoder,
        encoder_options=config.encoder_options,
        task=task,
        task_options=options,
        settled=settled,
        view=view,
        assume_spacing_um=config.view.assume_spacing_um,
        readers=config.reader_options,
        renamed=config.table.renamed or {},
        bag=config.bag,
    )


def fill_encoder_options(config: RunConfig, method: Any) -> dict[str, Any]:
    """Return all options of the encoder: its defaults, then the method's, then the user's.

    Args:
        config: options of the run.
        method: class of the method, which may set defaults of its encoder.

    Raises:
        OptionError: an option that the encoder does not take.
    """
    is_listed = config.encoder in names("encoders") and config.encoder != "timm"
    encoder = find("encoders", config.encoder if is_listed else "timm")
    wanted = {k: v for k, v in method.encoder_defaults.items() if k in options(encoder)}
    from_user = parse_options(encoder, config.encoder_options, "encoder")
    settled = _list_defaults(encoder) | wanted | from_user
    return settled if is_listed else settled | {"name": config.encoder}


def _list_defaults(part: Any) -> dict[str, Any]:
    return {name: option.default for name, option in options(part).items()}


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a config file as nested values.

    Raises:
        OptionError: there is no such file, or it is not YAML with sections.
    """
    content = read_config(path)
    for key in (*_SECTIONS, "reader_options", *(f"{part}_options" for part in _PACKAGES)):
        if not isinstance(content.get(key, {}), dict):
            raise OptionError(
                f"--config {path}: '{key}' is '{content[key]}', expected a section of keys and "
                "values"
            )
    return content


def dump_yaml(config: RunConfig) -> str:
    """Return the resolved config as YAML text."""
    return write_yaml(config.as_dict())


def _make_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _make_plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_make_plain(v) for v in value]
    return value
