"""Scores of linear models on frozen features: each feature group, and their weighted mean.

usage: python benchmarks/frozen_features.py TABLE [--label L] [--patient P] [--images DIR]
                                            [--fit YxX] [--encoder lite0] [--folds 5] [--seeds 3]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

from foveate.batch import N_COLOURS, Batch, View
from foveate.encoders import build_encoder
from foveate.encoders.base import AbstractEncoder
from foveate.loading.loader import CaseLoader
from foveate.loading.scan import ViewOptions, choose_view, scan_cases
from foveate.memory import computes_in_bf16
from foveate.nn.overview import OverviewHead
from foveate.table import Case, NamedColumns, read_cases
from foveate.tasks import build_task
from foveate.tasks.base import AbstractTask


def main() -> None:
    """Compute and print the scores."""
    args = _arguments()
    table = read_cases(
        Path(args.table),
        images=args.images,
        columns=NamedColumns(label=args.label, patient=args.patient),
    )
    fit = tuple(map(int, args.fit.split("x"))) if args.fit else None
    options = ViewOptions(fit=fit)
    view = choose_view(scan_cases(table.cases, options).facts.values(), options)
    encoder = build_encoder(args.encoder).eval()
    features = _features(table.cases, encoder, CaseLoader(view), view)
    labels = [str(case.label) for case in table.cases]
    task = build_task("auto", labels, {})
    target = task.targets(labels)
    patients = np.array([case.patient_id for case in table.cases])
    groups = (*encoder.feature_groups, N_COLOURS)
    names = (f"group {i}" for i in range(len(encoder.feature_groups)))
    print("seed", *names, "colours", "mean", sep="\t")
    for seed in range(args.seeds):
        scores = _scores(features, target, patients, task, groups, args, seed)
        print(seed, *(f"{score:.3f}" for score in scores), sep="\t", flush=True)


def _arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table")
    for name in ("label", "patient", "fit"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--encoder", default="lite0")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    return parser.parse_args()


def _features(
    cases: Sequence[Case], encoder: AbstractEncoder, loader: CaseLoader, view: View
) -> Tensor:
    """Compute the features of all cases, ``(n, d)``."""
    rows = []
    with ThreadPoolExecutor(2) as pool:
        for case in cases:
            batch = Batch(
                [loader.load(case)],
                view=view,
                normalise=(encoder.mean, encoder.std),
                device=torch.device("cpu"),
                pool=pool,
            )
            fast = torch.autocast("cpu", torch.bfloat16, enabled=computes_in_bf16())
            with torch.no_grad(), fast:
                rows.append(batch.look(encoder)[0].overview)
    loader.close()
    return torch.cat(rows)


def _scores(
    features: Tensor,
    target: Tensor,
    patients: np.ndarray,
    task: AbstractTask,
    groups: Sequence[int],
    args: argparse.Namespace,
    seed: int,
) -> list[float]:
    """Return the AUROC of each feature group, then of their weighted mean: means over folds."""
    n, k = len(target), sum(head.size for head in task.heads)
    logits = torch.zeros(len(groups) + 1, n, k)
    folds = StratifiedGroupKFold(args.folds, shuffle=True, random_state=seed)
    tests = []
    for train, test in folds.split(features, target, patients):
        tests.append(test)
        inner = StratifiedGroupKFold(5, shuffle=True, random_state=0)
        parts = torch.zeros(len(train), dtype=torch.long)
        for i, (_, rows) in enumerate(inner.split(train, target[train], patients[train])):
            parts[rows] = i
        labels = target[train]

        def each_loss(x: Tensor, rows: Tensor, labels: Tensor = labels) -> Tensor:
            losses: Tensor = task.each_loss(x, labels[rows])
            return losses.double()

        columns = torch.arange(features.shape[1])
        for i, (part, sizes) in enumerate(
            [*((c, (len(c),)) for c in columns.split(list(groups))), (columns, groups)]
        ):
            head = OverviewHead(sizes, k)
            head.fit(features[train][:, part], each_loss, parts)
            with torch.no_grad():
                logits[i, test] = head(features[test][:, part])
    return [
        float(np.mean([_auroc(task, row[test], target[test]) for test in tests])) for row in logits
    ]


def _auroc(task: AbstractTask, logits: Tensor, target: Tensor) -> float:
    """Return the AUROC of logits; with several classes the mean of one against the rest."""
    prob = task.decode(logits, {}).numpy()
    if prob.shape[1] == 2:
        return float(roc_auc_score(target, prob[:, 1]))
    return float(roc_auc_score(target, prob, multi_class="ovr"))


if __name__ == "__main__":
    main()
