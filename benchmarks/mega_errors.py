"""Analysis of the errors of a finished run on megapixel MNIST.

    python -m benchmarks.mega_errors OUT --mnist MNIST [--method centred_glimpse] [--seed 1]
        [--look 24,48]

OUT is the folder of a finished ``python -m benchmarks megapixel-mnist``, variant ``ips``. The
weights that were tested look at the canvases of a part again, with several numbers of patches if so
wished:

- how often each question is answered rightly;
- how many of the five digits lie within `NEAR_PX` of the middle of a patch that was looked at;
- what was answered instead of the topmost digit.

The truth beside the canvases is read for this, which no training does. Give ``--glimpse 8`` for a
run with ``--view.glimpse-spacing-um 8``. Nothing is written.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.canvas.loading import CanvasLoader
from benchmarks.mnist import megapixel_mnist
from benchmarks.mnist.base import Bytes, Ints, Mnist, prepare
from benchmarks.mnist.idx import load_mnist
from foveate.encoders import build_encoder
from foveate.parts import add_plugin_folder, find
from foveate.prediction.answer import Answer
from foveate.prediction.predict import predict_cases
from foveate.runs.card import ModelCard
from foveate.runs.checkpoint import Model, read_tensors
from foveate.runs.models import Ensemble
from foveate.table import Case

RECIPE = {"variant": "ips", "side": 1500, "noise": 50}
NEAR_PX = 12
CLOSE_PX = 20


@dataclass(frozen=True)
class Truth:
    """The five digits of each canvas of a part.

    Attributes:
        centre: ``(n, 5, 2)`` in pixels.
        digit: ``(n, 5)``.
    """

    centre: np.ndarray[Any, Any]
    digit: Bytes

    def by_height(self, i: int) -> tuple[Ints, np.ndarray[Any, Any]]:
        """Return the digits of canvas i from the topmost down, and their rows."""
        y, x = self.centre[i].T
        order = np.lexsort((x, y))
        return self.digit[i, order].astype(np.int64), y[order]


def truth_of(canvases: Path, mnist: Mnist, part: str, n: Mapping[str, int]) -> Truth:
    """Read the digits of the canvases of a part."""
    with np.load(canvases / "digits.npz", allow_pickle=False) as stored:
        boxes, sources = stored["boxes_px0"].reshape(-1, 5, 4), stored["sources"].reshape(-1, 5)
    begin = {"train": 0, "val": n["train"], "test": n["train"] + n["val"]}[part]
    part_rows = slice(begin, begin + n[part])
    labels = mnist.test_labels if part == "test" else mnist.train_labels
    return Truth(boxes[part_rows, :, :2] + boxes[part_rows, :, 2:] / 2, labels[sources[part_rows]])


def model_of(run: Path, row: Mapping[str, Any], glimpse_um: float | None) -> Model:
    """Load the model of a finished row."""
    benchmark = megapixel_mnist.BENCHMARK
    task, part = benchmark.task(RECIPE), find("methods", row["method"])
    view = replace(benchmark.view(RECIPE), **benchmark.defaults(row["method"], RECIPE)["view"])
    if glimpse_um is not None:
        view = replace(view, glimpse_spacing_um=glimpse_um)
    encoder = build_encoder(row["encoder"], json.loads(row["encoder_options"]))
    method = part(encoder=encoder, heads=task.heads, **json.loads(row["method_options"]))
    weights, _ = read_tensors(run / "checkpoints" / "best.safetensors")
    method.load_state_dict(weights)
    card = ModelCard(row["method"], {}, row["encoder"], {}, "benchmark", {}, task.settled, view)
    return Model(card, method, task)


def describe_answers(model: Model, cases: Sequence[Case], truth: Truth) -> Iterator[str]:
    """Yield the lines to print for one pass over the cases."""
    loader = CanvasLoader(model.card.view)
    try:
        answers = list(predict_cases(Ensemble((model,)), cases, loader, device=torch.device("cpu")))
    finally:
        loader.close()
    reports = [report for report in answers if isinstance(report, Answer)]
    assert len(reports) == len(cases)
    target = model.task.targets([str(case.label) for case in cases])
    logits = torch.tensor([report.logits for report in reports])
    right = model.task.log_scores(model.task.decode(logits, {}), target)
    yield "right: " + "  ".join(
        f"{k.removeprefix('val_')} {v:.3f}" for k, v in right.items() if k != "val_loss"
    )
    covered = np.stack(
        [
            _covered_digits(report, centre)
            for report, centre in zip(reports, truth.centre, strict=True)
        ]
    )
    mean, complete = covered.sum(1).mean(), covered.all(1).mean()
    yield f"digits looked at: {mean:.2f} of 5, all five on {complete:.1%}"
    names = [head.name for head in model.task.heads]
    at = 10 * names.index("top")
    wrong = Counter(
        _describe_error(int(np.argmax(report.logits[at : at + 10])), *truth.by_height(i))
        for i, report in enumerate(reports)
    )
    yield f"topmost of {len(reports)}: " + ", ".join(
        f"{n} {error}" for error, n in wrong.most_common()
    )


def _covered_digits(report: Answer, centre: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return which of the digits ``(5,)`` lie in the middle of some box."""
    middle = report.evidence.origin_um + report.evidence.size_um / 2
    away = np.abs(middle[:, None] - centre).max(-1)
    hit: np.ndarray[Any, Any] = (away < NEAR_PX).any(0)
    return hit


def _describe_error(answer: int, digits: Ints, rows: np.ndarray[Any, Any]) -> str:
    """Name the error of an answer, from digits and their rows, topmost first."""
    if answer == digits[0]:
        return "right"
    if answer not in digits:
        return "a digit that is not there"
    below = rows[np.flatnonzero(digits == answer)[0]] - rows[0]
    return f"a digit {'less' if below < CLOSE_PX else 'more'} than {CLOSE_PX} px below"


def main() -> None:
    """Print the analysis of both parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--mnist", type=Path, required=True)
    parser.add_argument("--method", default="centred_glimpse")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--look", default="", help="glimpse: patches to look at")
    parser.add_argument("--glimpse", type=float, help="spacing, where it was not the benchmark's")
    parser.add_argument("--part", choices=["val", "test"], default="test")
    args = parser.parse_args()
    add_plugin_folder(Path(__file__).parent)
    (row_path,) = args.out.glob(f"runs/{args.method}-{args.seed}-*/row.json")
    row = json.loads(row_path.read_text(encoding="utf-8"))
    (canvases,) = args.out.glob(f"canvases/*-seed{args.seed}")
    mnist, n = load_mnist(args.mnist), {part: row[f"n_{part}"] for part in ("train", "val", "test")}
    counts = {"n_train": n["train"] + n["val"], "n_test": n["test"]}
    parts = prepare(
        megapixel_mnist.BENCHMARK, canvases, mnist, **counts, seed=args.seed, recipe=RECIPE
    )
    model = model_of(row_path.parent, row, args.glimpse)
    truth = truth_of(canvases, mnist, args.part, n)
    looks: list[int | None] = [int(word) for word in args.look.split(",") if word]
    for look in looks or [None]:
        if look is not None:
            choice: Any = model.method.choice
            choice.eval_patches = look
            print(f"{look} patches")
        print(*describe_answers(model, parts[args.part], truth), sep="\n")


if __name__ == "__main__":
    main()
