"""Store the features of a frozen encoder in memory and on disk, both with a bound."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor

from foveate.files.atomic import write_aside
from foveate.images.evidence import Floats

log = logging.getLogger("foveate")

_HALF_MAX = 65504.0
_FORMAT = 2
"""Version of the stored tensors: raised when they change, so that old features are recomputed."""


@dataclass
class _Entry:
    """The tensors of one image by name, and the row of each box in the tensor ``rows``."""

    tensors: dict[str, Shaped[Tensor, " ..."]] = field(default_factory=dict)
    row_of: dict[bytes, int] = field(default_factory=dict)
    changed: bool = False

    @property
    def n_bytes(self) -> int:
        return sum(t.nbytes for t in self.tensors.values())


class FeatureStore:
    """Features of boxes and glimpses by image, as half-precision numbers.

    A store serves one encoder whose weights do not change. Features that do not fit in memory go to
    disk, and those that do not fit there are computed again.

    Args:
        folder: folder on disk, made when it is needed; None stores in memory only.
        memory_bytes: bound of the memory; the image used last is always kept.
        disk_bytes: bound of the files on disk.
    """

    def __init__(
        self, folder: Path | None, *, memory_bytes: int = 1 << 29, disk_bytes: int = 20 << 30
    ) -> None:
        self._folder, self._memory_bytes, self._disk_bytes = folder, memory_bytes, disk_bytes
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._on_disk: dict[Path, int] = {}
        if folder is not None and folder.is_dir():
            self._on_disk = {p: p.stat().st_size for p in folder.glob("*.safetensors")}

    def rows(
        self,
        image: str,
        boxes: Floats,
        compute: Callable[[NDArray[np.int64]], Float[Tensor, "m d"]],
    ) -> Float[Tensor, "n d"]:
        """Return features of boxes of one image, computed where they are not stored yet.

        Args:
            image: key of the image.
            boxes: numbers ``(n, …)`` that tell each box from others.
            compute: computes the features ``(m, d)`` of the boxes with m indices.

        Returns:
            features ``(n, d)``, float32 on the CPU.
        """
        entry = self._entry(image)
        keys = [np.round(box, 3).tobytes() for box in boxes]
        first = {key: i for i, key in reversed(list(enumerate(keys))) if key not in entry.row_of}
        new = np.array(sorted(first.values()), np.int64)
        if len(new):
            computed = _to_half(compute(new))
            begin = len(entry.row_of)
            entry.row_of |= {keys[i]: begin + j for j, i in enumerate(new)}
            known = entry.tensors.get("rows")
            # Autocast on the CPU cannot concatenate half-precision numbers.
            with torch.autocast("cpu", enabled=False):
                entry.tensors["rows"] = computed if known is None else torch.cat([known, computed])
            entry.changed = True
            self._make_room()
        if not keys:
            return torch.empty(0)
        return entry.tensors["rows"][[entry.row_of[key] for key in keys]].float()

    def once(
        self, image: str, compute: Callable[[], Sequence[Shaped[Tensor, " ..."]]]
    ) -> list[Float[Tensor, " ..."]]:
        """Return tensors of one image, computed if they are not stored; float32 on the CPU.

        Args:
            image: key of the image.
            compute: computes the tensors.
        """
        entry = self._entry(image)
        if "look0" not in entry.tensors:
            for i, tensor in enumerate(compute()):
                entry.tensors[f"look{i}"] = _to_half(tensor)
            entry.changed = True
            self._make_room()
        names = sorted((n for n in entry.tensors if n != "rows"), key=lambda n: int(n[4:]))
        return [entry.tensors[name].float() for name in names]

    def save(self) -> None:
        """Write entries that are not on disk yet, as far as the bound allows.

        A network's rounding depends on the number of images it is given at once. A training that
        continues after a stop has the same features to the last digit only if they were saved.
        """
        for image, entry in self._entries.items():
            if entry.changed:
                self._save(image, entry)

    def _entry(self, image: str) -> _Entry:
        entry = self._entries.get(image)
        if entry is None:
            entry = self._entries[image] = self._load(image) or _Entry()
            self._make_room()
        self._entries.move_to_end(image)
        return entry

    def _make_room(self) -> None:
        n_bytes = sum(entry.n_bytes for entry in self._entries.values())
        while n_bytes > self._memory_bytes and len(self._entries) > 1:
            image, entry = self._entries.popitem(last=False)
            n_bytes -= entry.n_bytes
            if entry.changed:
                self._save(image, entry)

    def _path(self, image: str) -> Path | None:
        if self._folder is None:
            return None
        name = hashlib.sha256(f"{_FORMAT} {image}".encode()).hexdigest()[:24]
        return self._folder / f"{name}.safetensors"

    def _save(self, image: str, entry: _Entry) -> None:
        path = self._path(image)
        if path is None:
            return
        others = sum(size for p, size in self._on_disk.items() if p != path)
        if others + entry.n_bytes > self._disk_bytes:
            return
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        keys = list(entry.row_of)
        boxes = np.array([np.frombuffer(key, np.uint8) for key in keys])
        tensors = entry.tensors | {"boxes": torch.from_numpy(boxes.astype(np.uint8))}
        try:
            write_aside(path, lambda aside: save_file(tensors, aside))
            self._on_disk[path] = path.stat().st_size
        except (SafetensorError, OSError) as error:  # such as a full disk: features are recomputed
            log.warning("features are not kept on disk: %s: %s", path, error)
            self._folder = None
        entry.changed = False

    def _load(self, image: str) -> _Entry | None:
        path = self._path(image)
        if path is None or path not in self._on_disk:
            return None
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(path)
            boxes = tensors.pop("boxes").numpy()
        except (SafetensorError, OSError, KeyError):
            return None  # a file that cannot be read is computed again
        return _Entry(tensors, {row.tobytes(): i for i, row in enumerate(boxes)})


def _to_half(tensor: Float[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
    plain = tensor.detach().to("cpu", torch.float32).clamp(-_HALF_MAX, _HALF_MAX)
    return plain.half().contiguous()
