"""Device, precision, seeds, and communication in a single process."""

from __future__ import annotations

import pytest
import torch

from foveate.errors import OptionError
from foveate.runs.schedule import TrainOptions
from foveate.runtime import find_device, start_runtime


def test_one_process_returns_its_own_values() -> None:
    runtime = start_runtime(device="cpu", seed=3)
    assert (runtime.rank, runtime.world_size, runtime.is_main) == (0, 1, True)
    assert runtime.device == find_device("cpu") == torch.device("cpu")
    assert runtime.sum(1.0, 2.5) == [1.0, 2.5]
    assert runtime.gather("a") == ["a"]
    part = torch.ones(3)
    total, nothing = runtime.sum_present([part, None], [part, part])
    assert total is part
    assert nothing.numel() == 0
    runtime.close()


def test_seeds_depend_on_every_key() -> None:
    seeds = {
        start_runtime(device="cpu", seed=seed).seed_of(*keys)
        for seed in (0, 1)
        for keys in ((0, 0), (0, 1), (1, 0), (0, 0, 1))
    }
    assert len(seeds) == 8


def test_precision_follows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveate.runtime.computes_in_bf16", lambda: True)
    precisions = [
        start_runtime(device="cpu", pretrained=pretrained).fabric._precision.precision
        for pretrained in (False, True)
    ]
    assert precisions == ["32-true", "bf16-mixed"]


def test_absent_devices_are_refused() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(OptionError, match="'cuda' is not on this machine"):
            find_device("cuda")
    with pytest.raises(OptionError, match=r"train\.devices: got 0"):
        TrainOptions(devices=0)
