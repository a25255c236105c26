"""Weights from a user's file, fitted to a network by name and shape, or refused in one line."""

from __future__ import annotations

import hashlib
import itertools
import json
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from foveate.errors import CheckpointError

Tensors = dict[str, Tensor]

_WRAPPERS = ("state_dict", "model", "teacher")
_PREFIXES = ("module.", "backbone.", "encoder.", "model.")
_MOST_PREFIXES = 3
_DIGITS = 12


def read_weights(file: str, expected: str = "") -> tuple[Tensors, str]:
    """The named tensors of a file, and the first digits of its sha256.

    Args:
        file: safetensors, or what ``torch.save`` wrote; never runs code from it.
        expected: first digits of its sha256; "" for any.

    Raises:
        CheckpointError: no such file, damaged, another than expected, or without named tensors.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise CheckpointError(f"encoder.weights: {path}: no such file")
    with path.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if not digest.startswith(expected.lower()):
        raise CheckpointError(
            f"encoder.weights: {path}: its sha256 begins with {digest[:_DIGITS]}, expected "
            f"{expected}: it is another file"
        )
    content = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    tensors = _unwrapped(content)
    if not tensors:
        raise CheckpointError(f"encoder.weights: {path} holds no tensors by name")
    return tensors, digest[:_DIGITS]


def fit_weights(
    net: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    file: str,
    encoder: str,
    adapt: Callable[[Tensors], Tensors] | None = None,
) -> None:
    """Put tensors into a network, in place.

    Names are compared without the prefixes that training code puts before them, and with ``_`` and
    ``.`` alike, as timm names the layers of a network that gives its stages. What belongs to no
    part of the network, such as a classifier, is left out.

    Args:
        net: that they go into.
        tensors: by name.
        file, encoder: for messages.
        adapt: brings names and shapes into the network's form, once prefixes are gone.

    Raises:
        CheckpointError: tensors are missing, too many, or of another shape.
    """
    wanted = {_plain(name): name for name in net.state_dict() if not _is_count(name)}
    prefix = _prefix(tensors, wanted)
    given = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    if adapt is not None:
        try:
            given = adapt(given)
        except (RuntimeError, ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"encoder.weights: {file} does not fit encoder '{encoder}': "
                f"{' '.join(str(error).split())[:160]}"
            ) from error
    given = {name: tensor for name, tensor in given.items() if not _is_count(name)}
    _check(net, given, wanted, f"encoder.weights: {file}", encoder)
    state = {wanted[_plain(n)]: tensor for n, tensor in given.items() if _plain(n) in wanted}
    net.load_state_dict(state, strict=False)


def stated_colours(file: str) -> dict[str, tuple[float, ...]]:
    """Mean and std that a ``config.json`` beside a file states, as hubs lay it; {} for none."""
    path = Path(file).expanduser().with_name("config.json")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        stated = {**content, **content.get("pretrained_cfg", {})}
        return {key: tuple(float(v) for v in stated[key]) for key in ("mean", "std")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _check(
    net: nn.Module, given: Tensors, wanted: Mapping[str, str], file: str, encoder: str
) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    found = {_plain(name): tuple(tensor.shape) for name, tensor in given.items()}
    missing = [own for name, own in wanted.items() if name not in found]
    if len(missing) == len(wanted):
        raise CheckpointError(
            f"{file}: none of its {len(found)} tensors belongs to encoder '{encoder}' (it has "
            f"'{next(iter(given), '')}', expected '{missing[0]}'): is it of another network?"
        )
    other = [n for n in wanted if n in found and found[n] != shapes[wanted[n]]]
    parts = {_part(name) for name in wanted.values()}
    beyond = [n for n in given if _plain(n) not in wanted and _part(n) in parts]
    faults = []
    if missing:
        faults.append(f"{len(missing)} of {len(wanted)} tensors missing (first: {missing[0]})")
    if other:
        name = wanted[other[0]]
        faults.append(
            f"{len(other)} of another shape (first: {name} is {found[other[0]]}, "
            f"expected {shapes[name]})"
        )
    if beyond:
        faults.append(f"{len(beyond)} that it has no place for (first: {beyond[0]})")
    if faults:
        raise CheckpointError(f"{file} does not fit encoder '{encoder}': {'; '.join(faults)}")


def _prefix(tensors: Mapping[str, Tensor], wanted: Mapping[str, str]) -> str:
    """The chain of prefixes without which most names are the network's."""
    best, most = "", -1
    for n in range(_MOST_PREFIXES + 1):
        for chain in itertools.product(_PREFIXES, repeat=n):
            prefix = "".join(chain)
            rest = (k.removeprefix(prefix) for k in tensors if k.startswith(prefix))
            fit = sum(_plain(name) in wanted for name in rest)
            if fit > most:
                best, most = prefix, fit
    return best


def _plain(name: str) -> str:
    """A name in which the places of a list are told as timm's stages and its networks tell them."""
    return name.removeprefix("model.").replace("_", ".")


def _part(name: str) -> str:
    """The part of a network that a tensor belongs to."""
    return re.sub(r"_\d+$", "", name.removeprefix("model.").split(".")[0])


def _is_count(name: str) -> bool:
    """Batches that a batch norm has seen: not needed."""
    return name.endswith("num_batches_tracked")


def _safetensors(path: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"encoder.weights: {path} is damaged or no safetensors file; fetch it again"
        ) from error


def _pickled(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error):
            raise CheckpointError(
                f"encoder.weights: {path} cannot be read without running code from it; save the "
                "network's state_dict() alone, best as safetensors"
            ) from error
        raise _damaged(path) from error
    except Exception as error:  # what a damaged pickle raises is not limited
        raise _damaged(path) from error


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(
        f"encoder.weights: {path} is damaged or no file of PyTorch; fetch it again"
    )


def _unwrapped(content: object) -> Tensors:
    """Named tensors, out of the wrappers that training code puts around them."""
    while isinstance(content, Mapping):
        inner = [content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner:
            return {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
        content = inner[0]
    return {}
