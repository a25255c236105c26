"""Device, precision and seeds; what one process says to nobody."""

from __future__ import annotations

import pytest
import torch

from foveate.errors import OptionError
from foveate.runs.schedule import TrainOptions
from foveate.runtime import find_device, start_runtime


def test_one_process_gives_back_what_it_is_told() -> None:
    runtime = start_runtime(device="cpu", seed=3)
    assert (runtime.rank, runtime.world_size, runtime.is_main) == (0, 1, True)
    assert runtime.device == find_device("cpu") == torch.device("cpu")
    assert runtime.sum(1.0, 2.5) == [1.0, 2.5]
    assert runtime.gather("a") == ["a"]
    part = torch.ones(3)
    whole, nothing = runtime.sum_present([part, None], [part, part])
    assert whole is part
    assert nothing.numel() == 0
    runtime.close()


def test_seeds_hang_on_every_key() -> None:
    seeds = {
        start_runtime(device="cpu", seed=seed).seed_of(*keys)
        for seed in (0, 1)
        for keys in ((0, 0), (0, 1), (1, 0), (0, 0, 1))
    }
    assert len(seeds) == 8


def test_precision_follows_what_the_device_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveate.runtime.computes_in_bf16", lambda: True)
    found = [
        start_runtime(device="cpu", pretrained=pretrained).fabric._precision.precision
        for pretrained in (False, True)
    ]
    assert found == ["32-true", "bf16-mixed"]


def test_what_is_not_on_this_machine_is_refused() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(OptionError, match="'cuda' is not on this machine"):
            find_device("cuda")
    with pytest.raises(OptionError, match=r"train\.devices: got 0"):
        TrainOptions(devices=0)
