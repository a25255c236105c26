"""Gradients of every method by two processes, and by one with the whole batch; a script.

Run by ``test_processes.py``: ``python two_processes.py TABLE OUT METHODS…``. The first process
starts the second, which runs the same script.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

import foveate.runtime
from foveate.batch import LoadedImage, View
from foveate.loading.loader import CaseLoader
from foveate.runs.card import ModelCard
from foveate.runs.checkpoint import build_model
from foveate.runs.schedule import TrainOptions
from foveate.runtime import Runtime, start_runtime
from foveate.table import Case, read_cases
from foveate.training.step import Steps

VIEW = View(spacing_um=2.0, patch_px=32, glimpse_spacing_um=16.0)
COARSE = View(spacing_um=2.0, patch_px=32, glimpse_spacing_um=64.0)
"""A view with few cells per glimpse, so that their sums round equally."""
OPTIONS = TrainOptions(device="cpu", precision="32-true")
SMALL = {"chunk": 8}
"""Options that make gradients come from two-pass replay."""


class UnreadableImageFile:
    """An image whose patches cannot be read, as if its file were damaged."""

    def __init__(self, item: LoadedImage) -> None:
        self._image = item.image

    def __getattr__(self, name: str) -> object:
        return getattr(self.__dict__["_image"], name)

    def read_many(self, *_: object) -> None:
        raise OSError("damaged")


def gradients(
    name: str, cases: list[Case], loader: CaseLoader, runtime: Runtime, bad: frozenset[str]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return the summed gradients of one step and the ids of images that were set aside."""
    torch.manual_seed(0)
    options = SMALL if name not in ("downsampled", "streaming_cnn") else {}
    encoder, settled = {"width": 8, "dim": 16}, {"classes": ["normal", "tumour"]}
    card = ModelCard(name, options, "small", encoder, "binary", {}, settled, loader.view)
    model = build_model(card, pretrained=False)
    for module in model.method.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # networks draw from the global generator, another one in each process
    model.method.begin_step(0.1)
    optimizer = torch.optim.SGD(model.method.parameters(), lr=0.1)
    method, _ = runtime.fabric.setup(model.method, optimizer)
    method.train()
    steps = Steps(model, method, loader, OPTIONS, runtime)
    own_cases = steps.team.pick(cases)
    (items,) = loader.ahead([own_cases])
    for item in items:
        if isinstance(item, LoadedImage) and item.image_id in bad:
            object.__setattr__(item, "image", UnreadableImageFile(item))
    steps.accumulate_gradients(own_cases, items, 0, lambda *_: None)
    steps.team.sum_gradients()
    tensors = {k: p.grad for k, p in model.method.named_parameters() if p.grad is not None}
    tensors |= {f"buffer {k}": v for k, v in model.method.named_buffers() if v.is_floating_point()}
    quarantined = sorted(
        {i for ids in runtime.gather(list(steps.progress.quarantined)) for i in ids}
    )
    return tensors, quarantined


def main(table: Path, out: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    foveate.runtime._BUCKET = 500  # so that gradients are summed in several goes
    cases = sorted(read_cases(table).cases, key=lambda case: case.image_id)[:4]
    both = start_runtime(
        device="cpu",
        precision="32-true",
        devices=2,
        command=[__file__, str(table), str(out), *names],
    )
    try:
        alone = start_runtime(device="cpu", precision="32-true")
        rows = {}
        for name in names:
            for label, bad in (("whole", ()), ("one missing", (1,)), ("none of a process", (1, 3))):
                ids = frozenset(cases[i].image_id for i in bad)
                view = COARSE if name == "downsampled" else VIEW
                loader = CaseLoader(view)
                ours, quarantined = gradients(name, cases, loader, both, ids)
                if both.is_main:
                    theirs, same = gradients(name, cases, CaseLoader(view), alone, ids)
                    rows[f"{name} {label}"] = {
                        "ours": ours,
                        "theirs": theirs,
                        "aside": quarantined,
                        "same": same,
                    }
                loader.close()
        if both.is_main:
            torch.save(rows, out)
        both.close()
    finally:
        both.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
