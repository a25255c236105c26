"""Load weights from a user's file into a network by name and shape, or refuse them."""

from __future__ import annotations

import itertools
import json
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from foveate.errors import CheckpointError, converting
from foveate.files.digest import file_sha256
from foveate.wording import one_line

Tensors = dict[str, Shaped[Tensor, " ..."]]

_WRAPPERS = ("state_dict", "model", "teacher")
_PREFIXES = ("module.", "backbone.", "encoder.", "model.")
_MAX_PREFIXES = 3
_DIGITS = 12


def read_weights(file: str, expected: str = "") -> tuple[Tensors, str]:
    """Read the named tensors of a file, and the first digits of its sha256.

    Args:
        file: path of a safetensors file, or of one that ``torch.save`` wrote; its code is never
            run.
        expected: first digits of the file's sha256; "" accepts any.

    Raises:
        CheckpointError: the file is missing, damaged, not the expected one, or has no named
            tensors.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise CheckpointError(
            f"encoder.weights: {path}: no such file; check the name, or leave the option out"
        )
    digest = file_sha256(path)
    if not digest.startswith(expected.lower()):
        raise CheckpointError(
            f"encoder.weights: {path}: its sha256 begins with {digest[:_DIGITS]}, expected "
            f"{expected}: it is another file; fetch the right one, or mend the digits"
        )
    content = _load_safetensors(path) if path.suffix == ".safetensors" else _load_pickle(path)
    tensors = _unwrap(content)
    if not tensors:
        raise CheckpointError(
            f"encoder.weights: {path} holds no tensors by name; save the network's state_dict()"
        )
    return tensors, digest[:_DIGITS]


def fit_weights(
    net: nn.Module,
    tensors: Mapping[str, Shaped[Tensor, " ..."]],
    *,
    file: str,
    encoder: str,
    adapt: Callable[[Tensors], Tensors] | None = None,
) -> None:
    """Load tensors into a network, in place.

    Names are compared without the prefixes that training code puts before them, and with ``_``
    equal to ``.``, since timm names layers so in networks that return their stages. Tensors of no
    part of the network, such as a classifier's, are ignored.

    Args:
        net: the network.
        tensors: weights by name.
        file: the file of weights, for messages.
        encoder: name of the encoder, for messages.
        adapt: converts names and shapes to those of the network, after prefixes are removed.

    Raises:
        CheckpointError: tensors are missing, too many, or of another shape.
    """
    wanted = {_plain(name): name for name in net.state_dict() if not _is_count(name)}
    prefix = _prefix(tensors, wanted)
    weights = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    if adapt is not None:
        try:
            weights = adapt(weights)
        except (RuntimeError, ValueError, LookupError, AttributeError) as error:
            raise CheckpointError(
                f"encoder.weights: {file} does not fit encoder '{encoder}': "
                f"{one_line(str(error), max_letters=160)}. Name the network that these weights are "
                "of with --encoder"
            ) from error
    weights = {name: tensor for name, tensor in weights.items() if not _is_count(name)}
    _check(net, weights, wanted, f"encoder.weights: {file}", encoder)
    state = {wanted[_plain(n)]: tensor for n, tensor in weights.items() if _plain(n) in wanted}
    net.load_state_dict(state, strict=False)


def read_colours(file: str) -> dict[str, tuple[float, ...]]:
    """Read ``mean`` and ``std`` from the ``config.json`` that hubs put beside a file of weights.

    Returns:
        both by their keys, or {} where the file states none.
    """
    path = Path(file).expanduser().with_name("config.json")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        stated = {**content, **content.get("pretrained_cfg", {})}
        return {key: tuple(float(v) for v in stated[key]) for key in ("mean", "std")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _check(
    net: nn.Module, weights: Tensors, wanted: Mapping[str, str], file: str, encoder: str
) -> None:
    """Raise `CheckpointError` unless weights fit a network.

    Args:
        net: the network.
        weights: tensors by name, without prefixes.
        wanted: the network's names by their plain form.
        file: the file of weights, for messages.
        encoder: name of the encoder, for messages.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    stored = {_plain(name): tuple(tensor.shape) for name, tensor in weights.items()}
    missing = [full_name for name, full_name in wanted.items() if name not in stored]
    if len(missing) == len(wanted):
        raise CheckpointError(
            f"{file}: none of its {len(stored)} tensors belongs to encoder '{encoder}' (it has "
            f"'{next(iter(weights), '')}', expected '{missing[0]}'): is it of another network? "
            "Name that with --encoder"
        )
    other = [n for n in wanted if n in stored and stored[n] != shapes[wanted[n]]]
    parts = {_part(name) for name in wanted.values()}
    beyond = [n for n in weights if _plain(n) not in wanted and _part(n) in parts]
    faults = []
    if missing:
        faults.append(f"{len(missing)} of {len(wanted)} tensors missing (first: {missing[0]})")
    if other:
        name = wanted[other[0]]
        faults.append(
            f"{len(other)} of another shape (first: {name} is {stored[other[0]]}, "
            f"expected {shapes[name]})"
        )
    if beyond:
        faults.append(f"{len(beyond)} that it has no place for (first: {beyond[0]})")
    if faults:
        raise CheckpointError(
            f"{file} does not fit encoder '{encoder}': {'; '.join(faults)}. Name the network that "
            "these weights are of with --encoder"
        )


def _prefix(tensors: Mapping[str, Shaped[Tensor, " ..."]], wanted: Mapping[str, str]) -> str:
    """Find the chain of prefixes after whose removal most names are those of the network."""
    best, most = "", -1
    for n in range(_MAX_PREFIXES + 1):
        for chain in itertools.product(_PREFIXES, repeat=n):
            prefix = "".join(chain)
            rest = (k.removeprefix(prefix) for k in tensors if k.startswith(prefix))
            fit = sum(_plain(name) in wanted for name in rest)
            if fit > most:
                best, most = prefix, fit
    return best


def _plain(name: str) -> str:
    """Convert a name to the form that is common to timm's networks and to their stages."""
    return name.removeprefix("model.").replace("_", ".")


def _part(name: str) -> str:
    """Return the part of a network that a tensor belongs to, by its name."""
    return re.sub(r"_\d+$", "", name.removeprefix("model.").split(".")[0])


def _is_count(name: str) -> bool:
    """Return whether a tensor is a batch norm's counter of batches, which is not needed."""
    return name.endswith("num_batches_tracked")


def _load_safetensors(path: Path) -> object:
    """Load a file of safetensors."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"encoder.weights: {path} is damaged or no safetensors file; fetch it again"
        ) from error


def _load_pickle(path: Path) -> object:
    """Load a file that ``torch.save`` wrote, without running code from it."""
    with converting(path, _explain_pickle):
        return torch.load(path, map_location="cpu", weights_only=True)


def _explain_pickle(error: Exception, path: object) -> CheckpointError:
    """Build the error for a file that PyTorch does not load."""
    if isinstance(error, pickle.UnpicklingError) and "Unsupported global" in str(error):
        return CheckpointError(
            f"encoder.weights: {path} cannot be read without running code from it; save the "
            "network's state_dict() alone, best as safetensors"
        )
    return CheckpointError(
        f"encoder.weights: {path} is damaged or no file of PyTorch; fetch it again"
    )


def _unwrap(content: object) -> Tensors:
    """Return the named tensors inside the dictionaries that training code wraps them in."""
    while isinstance(content, Mapping):
        inner = [content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner:
            return {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
        content = inner[0]
    return {}
