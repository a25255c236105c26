"""One experiment as one plain file: every key is also a flag, unknown keys get the nearest name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from foveate.errors import OptionError, did_you_mean, explain_os_error
from foveate.exports import DEFAULT, build_exports
from foveate.loading.scan import ViewOptions
from foveate.parts import find, names, options, parse_options
from foveate.readers import check_options
from foveate.runs.schedule import TrainOptions
from foveate.yamltext import parse_yaml


@dataclass(frozen=True)
class TableOptions:
    """Which table, and which of its columns.

    Attributes:
        path: the table of labels, CSV, TSV or XLSX.
        files: a second table, one row an image, where `path` has one row a patient (STAMP's).
        images: folder that paths in the table are relative to; by default the table's own.
        label, patient, image: column names, where the guess is wrong.
        classes: keep only images of these labels (comma-separated).
    """

    path: str
    files: str | None = None
    images: str | None = None
    label: str | None = None
    patient: str | None = None
    image: str | None = None
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class SplitOptions:
    """How patients are divided.

    Attributes:
        folds: 1 for a single hold-out; more for cross-validation with pooled predictions.
        test_fraction: of patients, for a single hold-out.
        val_fraction: of the remaining patients, for stopping and for the threshold.
        seed: of the division.
    """

    folds: int = 1
    test_fraction: float = 0.25
    val_fraction: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.folds < 1:
            raise OptionError(f"split.folds: got {self.folds}, expected 1 or more")
        for key in ("test_fraction", "val_fraction"):
            if not 0 < getattr(self, key) < 1:
                raise OptionError(f"split.{key}: got {getattr(self, key)}, expected 0 to 1")


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the outcome of a run.

    Attributes:
        table, view, split, train: see their classes.
        method, encoder, task: names; their options beside them. Encoder ``auto`` is lite0 for
            pictures and slides, slices for volumes.
        reader_options: options of readers, by the reader's name.
        heatmaps: how many test images get pictures.
        export: which kinds of pictures, by name (comma-separated).
        permute_labels: shuffle the labels over patients; the score must then be chance.
        refit: after the folds are scored, train one model on all images; it answers alone then.
    """

    table: TableOptions
    method: str = "glimpse"
    encoder: str = "auto"
    task: str = "auto"
    method_options: dict[str, Any] = field(default_factory=dict)
    encoder_options: dict[str, Any] = field(default_factory=dict)
    task_options: dict[str, Any] = field(default_factory=dict)
    reader_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    view: ViewOptions = field(default_factory=ViewOptions)
    split: SplitOptions = field(default_factory=SplitOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    heatmaps: int = 40
    export: tuple[str, ...] = DEFAULT
    permute_labels: bool = False
    refit: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain values for YAML and JSON."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


_SECTIONS: dict[str, type[Any]] = {
    "table": TableOptions,
    "view": ViewOptions,
    "split": SplitOptions,
    "train": TrainOptions,
}
_PLAIN = ("heatmaps", "export", "permute_labels", "refit")
_PARTS = {"method": "methods", "encoder": "encoders", "task": "tasks"}


def build_config(given: Mapping[str, Any]) -> RunConfig:
    """A checked config from nested values such as ``{"train": {"lr": "1e-4"}}``.

    Sections are ``table, view, split, train``; ``method``, ``encoder`` and ``task`` are names, and
    ``method_options`` and so on their options.

    Raises:
        OptionError: an unknown key, with the nearest known one, or a value that does not fit.
        UnknownName: no such method, encoder, task or export.
    """
    known = set(RunConfig.__dataclass_fields__)
    for key in map(str, given):
        if key not in known:
            raise OptionError(f"no option '{key}'.{did_you_mean(key, known)}")
    if "path" not in given.get("table", {}):
        raise OptionError("table.path: missing, expected the table of labels")
    values: dict[str, Any] = {}
    for key, section in _SECTIONS.items():
        if key in given:
            values[key] = section(**parse_options_all(section, given[key], key))
    simple = {k: v for k, v in given.items() if k in _PLAIN}
    values |= parse_options(RunConfig, simple, "run")
    for part in _PARTS:
        if part in given:
            values[part] = _name(given[part], part)
        values[f"{part}_options"] = dict(given.get(f"{part}_options", {}))
    if values.get("heatmaps", 0) < 0:
        raise OptionError(f"heatmaps: got {values['heatmaps']}, expected 0 or more")
    values["reader_options"] = check_options(_sections(given.get("reader_options", {})))
    config = RunConfig(**values)
    build_exports(config.export)
    return _checked_parts(config, values)


def section_keys() -> list[str]:
    """Every key of the config with its section, as flags spell them: ``train.lr``.

    Of methods, those of the default one.
    """
    found = [
        f"{section}.{key}"
        for section, kind in _SECTIONS.items()
        for key in kind.__dataclass_fields__
    ]
    found += [f"method.{key}" for key in options(find("methods", RunConfig.method))]
    return [key.replace("_", "-") for key in found]


def _sections(given: Any) -> dict[str, dict[str, Any]]:
    """Options of readers, which are sections within a section."""
    for name, own in dict(given).items():
        if not isinstance(own, dict):
            raise OptionError(f"reader.{name}: got '{own}', expected a reader's options")
    return dict(given)


def _name(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise OptionError(f"{key}: got '{value}', expected a name")
    return value


def parse_options_all(section: type[Any], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Like `parse_options`, keywords without a default included."""
    required = {k: v for k, v in given.items() if k == "path" and section is TableOptions}
    rest = {k: v for k, v in given.items() if k not in required}
    for key, value in required.items():
        if not isinstance(value, str | Path) or not str(value):
            raise OptionError(f"{where}.{key}: got '{value}', expected a path")
    return {k: str(v) for k, v in required.items()} | parse_options(section, rest, where)


def _checked_parts(config: RunConfig, values: dict[str, Any]) -> RunConfig:
    method = find("methods", config.method)
    values["method_options"] = _defaults(method) | parse_options(
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
    values["encoder_options"] = encoder_options(config, method)
    return RunConfig(**values)


AUTOMATIC = {2: "lite0", 3: "slices"}
"""The encoder that images of so many axes get where none is named."""


def settle_encoder(config: RunConfig, axes: int) -> RunConfig:
    """The config with an encoder named, for images of so many axes."""
    if config.encoder != "auto":
        return config
    named = replace(config, encoder=AUTOMATIC[axes])
    return replace(named, encoder_options=encoder_options(named, find("methods", config.method)))


def encoder_options(config: RunConfig, method: Any) -> dict[str, Any]:
    """All options of the encoder: its own, those that the method needs, the user's.

    Raises:
        OptionError: an option that the encoder does not take.
    """
    own = config.encoder in names("encoders") and config.encoder != "timm"
    encoder = find("encoders", config.encoder if own else "timm")
    wanted = {k: v for k, v in method.encoder_defaults.items() if k in options(encoder)}
    given = parse_options(encoder, config.encoder_options, "encoder")
    settled = _defaults(encoder) | wanted | given
    return settled if own else settled | {"name": config.encoder}


def _defaults(part: Any) -> dict[str, Any]:
    return {name: option.default for name, option in options(part).items()}


def load_yaml(path: Path) -> dict[str, Any]:
    """A config file as nested values.

    Raises:
        OptionError: no such file, or not YAML with sections.
    """
    if not path.is_file():
        raise OptionError(f"--config {path}: no such file; give a YAML file, or flags alone")
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"--config {path} cannot be read: {explain_os_error(error)}") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        raise OptionError(
            f"--config {path}{where}: not YAML; compare it with the config.yaml of a run"
        ) from error
    if not isinstance(content, dict):
        raise OptionError(f"--config {path}: expected sections such as 'train:'")
    for key in (*_SECTIONS, "reader_options", *(f"{part}_options" for part in _PARTS)):
        if not isinstance(content.get(key, {}), dict):
            raise OptionError(
                f"--config {path}: '{key}' is '{content[key]}', expected a section of keys and "
                "values"
            )
    return content


def dump_yaml(config: RunConfig) -> str:
    """The resolved config as text."""
    text: str = yaml.safe_dump(config.as_dict(), sort_keys=False, allow_unicode=True)
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value
