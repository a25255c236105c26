"""Batches of images for methods under test."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from foveate.batch import Batch
from foveate.batch.features import FeatureStore
from foveate.loading.loader import CaseLoader
from foveate.table import Case


def load_batch(
    cases: Sequence[Case],
    loader: CaseLoader,
    pool: ThreadPoolExecutor,
    store: FeatureStore | None = None,
) -> Batch:
    """Load cases into one batch on the CPU, with the loader's view and without augmentation."""
    return Batch(
        [loader.load(case) for case in cases],
        view=loader.view,
        normalise=((0.5,) * 3, (0.25,) * 3),
        device=torch.device("cpu"),
        pool=pool,
        store=store,
    )
