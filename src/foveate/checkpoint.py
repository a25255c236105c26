"""Models and training states as data, never code: safetensors with JSON beside or inside."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate import __version__
from foveate.atomic import write_aside, write_json
from foveate.batch import View
from foveate.encoders import build_encoder
from foveate.errors import CheckpointError, OptionError
from foveate.methods.base import AbstractMethod
from foveate.plugins import find, parse_options
from foveate.tasks import restore_task
from foveate.tasks.base import AbstractTask

SCHEMA = 1


@dataclass(frozen=True)
class ModelCard:
    """Everything besides weights that makes a model: names and numbers only.

    Attributes:
        method, method_options: which method, built how.
        encoder, encoder_options: which encoder.
        task, task_options, classes: what is predicted.
        view: the geometry of reading.
        assume_spacing_um: spacing given to slides that stated none.
        provenance: split hash, counts, validation score, versions.
    """

    method: str
    method_options: dict[str, Any]
    encoder: str
    encoder_options: dict[str, Any]
    task: str
    task_options: dict[str, Any]
    classes: tuple[str, ...]
    view: View
    assume_spacing_um: float | None = None
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """A method with its task and view, ready to predict."""

    card: ModelCard
    method: AbstractMethod
    task: AbstractTask


def build_model(card: ModelCard, *, pretrained: bool) -> Model:
    """A model with fresh weights; `pretrained` False leaves out an encoder's own.

    Raises:
        UnknownName, OptionError: the card names a part or option that does not exist, or parts
            that do not fit each other.
    """
    task = restore_task(card.task, card.classes, card.task_options)
    part = find("methods", card.method)
    encoder = build_encoder(
        card.encoder, card.encoder_options, part.encoder_defaults, pretrained=pretrained
    )
    if encoder.axes not in part.axes:
        raise OptionError(
            f"method: '{card.method}' takes no images of {encoder.axes} axes, which encoder "
            f"'{card.encoder}' reads; `foveate methods` lists the others"
        )
    given = parse_options(part, card.method_options, "method")
    method: AbstractMethod = part(encoder=encoder, heads=task.heads, **given)
    return Model(card, method, task)


def save_model(folder: Path, card: ModelCard, weights: Mapping[str, Tensor]) -> None:
    """Write ``model.safetensors`` and ``model.json``; the JSON, written last, seals both."""
    path = folder / "model.safetensors"
    write_tensors(path, weights, {})
    content = {"schema": SCHEMA, "foveate": __version__, "sha256": _digest(path), **asdict(card)}
    write_json(folder / "model.json", content)


def load_model(folder: Path) -> Model:
    """The model in a folder that holds ``model.json`` and ``model.safetensors``.

    Raises:
        CheckpointError: a file is missing, damaged or from a newer version.
    """
    card, digest = _read_card(folder / "model.json")
    path = folder / "model.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: the model is incomplete")
    if _digest(path) != digest:
        raise CheckpointError(f"{path} is damaged: its checksum is not the one in model.json")
    model = build_model(card, pretrained=False)
    weights, _ = read_tensors(path)
    try:
        model.method.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path} does not fit method '{card.method}': {reason}") from error
    model.method.eval()
    return model


def write_tensors(path: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
    """Tensors and a JSON note in one file, whole or not at all."""
    from safetensors.torch import save_file

    plain = {k: v.detach().to("cpu").contiguous().clone() for k, v in tensors.items()}
    metadata = {"note": json.dumps(note, allow_nan=False)}
    write_aside(path, lambda aside: save_file(plain, aside, metadata))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_tensors` wrote.

    Raises:
        CheckpointError: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            note = json.loads((file.metadata() or {}).get("note", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return tensors, note


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{index}.{key}": torch.as_tensor(value)
        for index, values in state.items()
        for key, value in values.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _read_card(path: Path) -> tuple[ModelCard, str]:
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing: give a run folder whose training has finished, or a model folder"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("schema") > SCHEMA:
            raise CheckpointError(f"{path} was written by a newer foveate; upgrade to read it")
        content.pop("foveate")
        digest = content.pop("sha256")
        view = content.pop("view")
        fit = None if view["fit"] is None else tuple(view["fit"])
        classes = tuple(content.pop("classes"))
        card = ModelCard(**content, classes=classes, view=View(**{**view, "fit": fit}))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    return card, digest


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
