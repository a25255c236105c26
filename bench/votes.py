"""What a prediction on megapixel MNIST owes to patches' votes, and what to what is pooled.

    python bench/votes.py OUT --mnist MNIST --seed 1 [--look 20,32,48] [--part val]

OUT is the folder of a finished ``foveate bench megapixel-mnist --method glimpse``, the one method
in which patches vote. The weights that were tested look at the canvases of a part again: how often
each question is answered rightly by the method, by votes alone (`foveate.nn.heads.Voted`) and by
what is pooled alone, with several numbers of patches. Give ``--glimpse 6`` where
``--view.glimpse-spacing-um 6`` was given. Nothing is written.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.benchmark import megapixel_mnist
from foveate.benchmark.base import prepare
from foveate.benchmark.mnist import load_mnist
from foveate.checkpoint import Model, ModelCard, read_tensors
from foveate.encoders import build_encoder
from foveate.loading import CaseLoader
from foveate.plugins import find
from foveate.prediction import predict_cases

RECIPE = {"variant": "ips", "side": 1500, "noise": 50}


def model_of(run: Path, row: Mapping[str, Any], glimpse_um: float | None) -> Model:
    benchmark = megapixel_mnist.BENCHMARK
    task, part = benchmark.task(RECIPE), find("methods", row["method"])
    view = replace(benchmark.view(RECIPE), **benchmark.defaults(row["method"])["view"])
    if glimpse_um is not None:
        view = replace(view, glimpse_spacing_um=glimpse_um)
    encoder = build_encoder(row["encoder"], json.loads(row["encoder_options"]))
    method = part(encoder=encoder, heads=task.heads, **json.loads(row["method_options"]))
    weights, _ = read_tensors(run / "checkpoints" / "best.safetensors")
    method.load_state_dict(weights)
    card = ModelCard(row["method"], {}, row["encoder"], {}, "benchmark", {}, task.classes, view)
    return Model(card, method, task)


def shares(model: Model, cases: list[Any], look: int | None) -> dict[str, dict[str, float]]:
    """How often each question is right, for every way to answer it."""
    if look is not None:
        model.method.eval_patches = look
    said: dict[str, list[Tensor]] = {"both": [], "votes": [], "pooled": []}

    def keep(module: Any, given: tuple[Tensor, Tensor], found: tuple[Tensor, Any]) -> None:
        answers, pooled = given
        said["both"].append(found[0])
        # Not called as a module, which would call this hook again.
        said["votes"].append(module.forward(answers, torch.zeros_like(pooled))[0])
        said["pooled"].append(pooled)

    hook = model.method.voted.register_forward_hook(keep)
    loader = CaseLoader(model.card.view)
    try:
        for _ in predict_cases(model, cases, loader, device=torch.device("cpu")):
            pass
    finally:
        loader.close()
        hook.remove()
    target = torch.tensor([model.task.target(str(case.label)) for case in cases])
    return {name: model.task.validation(torch.cat(rows), target) for name, rows in said.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--mnist", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--look", default="")
    parser.add_argument("--glimpse", type=float, help="spacing, where it was not the benchmark's")
    parser.add_argument("--part", choices=["val", "test"], default="test")
    args = parser.parse_args()
    (done,) = args.out.glob(f"runs/glimpse-{args.seed}-*/row.json")
    row = json.loads(done.read_text(encoding="utf-8"))
    (canvases,) = args.out.glob(f"canvases/*-seed{args.seed}")
    parts = prepare(
        megapixel_mnist.BENCHMARK,
        canvases,
        load_mnist(args.mnist),
        n_train=row["n_train"] + row["n_val"],
        n_test=row["n_test"],
        seed=args.seed,
        recipe=RECIPE,
    )
    model = model_of(done.parent, row, args.glimpse)
    for look in [int(word) for word in args.look.split(",") if word] or [None]:
        for name, found in shares(model, parts[args.part], look).items():
            figures = "  ".join(f"{k.removeprefix('val_')} {v:.3f}" for k, v in found.items())
            print(f"{'' if look is None else f'{look} patches, '}{name}: {figures}")


if __name__ == "__main__":
    main()
