"""Models and training states as data, never code: safetensors with JSON beside or inside."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from foveate._version import __version__
from foveate.encoders import build_encoder
from foveate.encoders.base import AbstractEncoder
from foveate.errors import (
    CheckpointError,
    FoveateError,
    OptionError,
    PartFault,
    UnknownName,
    converting,
    running_part,
)
from foveate.files.atomic import write_aside, write_json
from foveate.files.digest import file_sha256
from foveate.files.run_layout import ModelLayout
from foveate.methods.base import AbstractMethod
from foveate.parts import check_built, find
from foveate.parts.options import parse_options
from foveate.readers import check_options
from foveate.runs.card import SCHEMA, ModelCard, read_card, store_trained_on
from foveate.tasks import restore_task
from foveate.tasks.base import AbstractTask

log = logging.getLogger("foveate")


@dataclass(frozen=True)
class Model:
    """A method with its task and view, ready to predict."""

    card: ModelCard
    method: AbstractMethod
    task: AbstractTask


def build_model(card: ModelCard, *, pretrained: bool) -> Model:
    """Build the model that a card describes, with fresh weights.

    Args:
        card: names and options of the parts.
        pretrained: whether the encoder loads its pretrained weights; False where stored weights
            replace them anyway.

    Raises:
        UnknownName, OptionError: the card names a part or option that does not exist, or parts
            that do not fit each other.
        PartFault: the constructor of the method failed.
    """
    check_options(card.readers)
    task = restore_task(card.task, card.settled, card.task_options)
    method_class = find("methods", card.method)
    encoder = build_encoder(
        card.encoder, card.encoder_options, method_class.encoder_defaults, pretrained=pretrained
    )
    _check_axes(card, method_class, encoder)
    options = parse_options(method_class, card.method_options, "method")
    with running_part("method", method_class):
        method = method_class(encoder=encoder, heads=task.heads, **options)
    return Model(card, check_built("methods", method), task)


def _check_axes(card: ModelCard, method: type[AbstractMethod], encoder: AbstractEncoder) -> None:
    """Raise `OptionError` if the method does not take images of as many axes as the encoder."""
    if encoder.axes not in method.axes:
        raise OptionError(
            f"method: '{card.method}' takes no images of {encoder.axes} axes, which encoder "
            f"'{card.encoder}' reads; `foveate methods` lists the others"
        )


def save_model(
    folder: Path, card: ModelCard, weights: Mapping[str, Shaped[Tensor, " ..."]]
) -> None:
    """Write ``model.safetensors`` and ``model.json``; the JSON, written last, seals both.

    Args:
        folder: folder of the model.
        card: content of ``model.json``.
        weights: weights by name, of any shapes.
    """
    files = ModelLayout(folder)
    write_tensors(files.weights, weights, {})
    content = {
        "schema": SCHEMA,
        "foveate": __version__,
        "sha256": file_sha256(files.weights),
        **asdict(card),
        "trained_on": None if card.trained_on is None else store_trained_on(card.trained_on),
    }
    write_json(files.card, content)


def load_model(folder: Path) -> Model:
    """Load the model in a folder that holds ``model.json`` and ``model.safetensors``.

    Raises:
        CheckpointError: a file is missing, damaged or from a newer version.
    """
    files = ModelLayout(folder)
    path = files.weights
    card, digest = read_card(files.card)
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing: the model is incomplete; restore it, or train again"
        )
    if file_sha256(path) != digest:
        raise CheckpointError(
            f"{path} is damaged: its checksum is not the one in model.json; restore both from a "
            f"copy, or delete {folder} and repeat the `foveate train` command"
        )
    model = _build_stored(card, files.card)
    weights, _ = read_tensors(path)
    try:
        model.method.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} does not fit what model.json describes (method '{card.method}', encoder "
            f"'{card.encoder}'): {_first_misfit(model.method, weights)}. The two files are not of "
            f"one model: restore both from one copy, or delete {folder} and repeat the `foveate "
            "train` command"
        ) from error
    model.method.eval()
    return model


def _build_stored(card: ModelCard, path: Path) -> Model:
    """Build the model that a stored card describes, with fresh weights.

    Raises:
        CheckpointError: no model can be built from the card.
        UnknownName: the card names a part that is not installed.
    """

    def explain(error: Exception, about: object) -> CheckpointError:
        log.info("%s", about, exc_info=error)
        return CheckpointError(
            f"no model can be built of its options (method '{card.method}', encoder "
            f"'{card.encoder}'): restore the file from a copy, or delete it and repeat the "
            "`foveate train` command"
        )

    try:
        with converting(path, explain):
            return build_model(card, pretrained=False)
    except PartFault as error:
        raise CheckpointError(f"{path}: {explain(error, path)}") from error
    except UnknownName as error:
        raise UnknownName(f"{path}: {error} A part of your own needs --plugins") from error
    except FoveateError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _first_misfit(method: AbstractMethod, weights: Mapping[str, Shaped[Tensor, " ..."]]) -> str:
    expected = method.state_dict()
    for name in [*expected, *(n for n in weights if n not in expected)]:
        if name not in weights:
            return f"'{name}' is missing"
        if name not in expected:
            return f"'{name}' is too much"
        if expected[name].shape != weights[name].shape:
            return f"'{name}' is {tuple(weights[name].shape)}, not {tuple(expected[name].shape)}"
    return "its tensors are of another kind"


def write_tensors(
    path: Path, tensors: Mapping[str, Shaped[Tensor, " ..."]], note: Mapping[str, Any]
) -> None:
    """Write tensors and a JSON note into one file, completely or not at all.

    Args:
        path: the file.
        tensors: tensors by name, of any shapes.
        note: plain values by name.

    Raises:
        DiskFull: there is no room.
        CheckpointError: the file cannot be written for another reason.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {k: v.detach().to("cpu").contiguous().clone() for k, v in tensors.items()}
    metadata = {"note": json.dumps(note, allow_nan=False)}
    try:
        write_aside(path, lambda aside: save_file(plain, aside, metadata))
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} could not be written; check that the folder is there, that you may write to "
            "it, and that the disk works"
        ) from error


def read_tensors(path: Path) -> tuple[dict[str, Shaped[Tensor, " ..."]], dict[str, Any]]:
    """Read the tensors and the note that `write_tensors` wrote.

    Raises:
        CheckpointError: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            note = json.loads((file.metadata() or {}).get("note", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        log.info("%s", path, exc_info=error)
        raise CheckpointError(
            f"{path} is damaged: restore it from a copy, or delete it and train again"
        ) from error
    return tensors, note


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Shaped[Tensor, " ..."]]:
    """Return the state of an optimiser as named tensors, with the learning rates of its groups."""
    state = optimizer.state_dict()["state"]
    rates = torch.tensor([group["lr"] for group in optimizer.param_groups], dtype=torch.float64)
    return {"learning_rates": rates} | {
        f"optimizer.{index}.{key}": torch.as_tensor(value)
        for index, values in state.items()
        for key, value in values.items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Shaped[Tensor, " ..."]]
) -> None:
    """Set the state of an optimiser to the tensors that `optimizer_tensors` returned.

    Args:
        optimizer: optimiser of the same parameters; it is changed.
        tensors: its state by name.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    for group, rate in zip(groups, tensors.get("learning_rates", torch.empty(0)), strict=False):
        group["lr"] = float(rate)
    optimizer.load_state_dict({"state": state, "param_groups": groups})
