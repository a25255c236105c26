"""Two-pass replay gives the gradients of one pass, with dropout, in constant memory."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from foveate.nn.replay import replay


def _encoder() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.GroupNorm(2, 8),
        nn.GELU(),
        nn.Dropout(0.3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ).double()


def _head(features: Tensor) -> Tensor:
    weight = (features @ torch.linspace(-1, 1, 5, dtype=features.dtype)).softmax(0)
    return (weight @ features).pow(2).sum()


def _gradients(encoder: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in encoder.parameters() if p.grad is not None]


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("size", [1, 3, 10])
def test_replay_equals_one_pass(dropout: bool, size: int) -> None:
    encoder = _encoder().train(dropout)
    patches = torch.randn(10, 3, 12, 12, dtype=torch.float64)
    chunks = patches.split(size)

    torch.manual_seed(7)
    loss = _head(replay(encoder, list(encoder.parameters()), lambda i: chunks[i], len(chunks)))
    after = torch.rand(3)
    loss.backward()
    actual = _gradients(encoder)

    encoder.zero_grad()
    torch.manual_seed(7)
    once = _head(torch.cat([encoder(chunk) for chunk in chunks]))
    assert torch.equal(torch.rand(3), after)
    once.backward()
    torch.testing.assert_close(loss, once, atol=1e-12, rtol=0)
    assert len(actual) == len(list(encoder.parameters()))
    for ours, theirs in zip(actual, _gradients(encoder), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


def test_replay_restores_the_random_generator() -> None:
    encoder = _encoder().train()
    patches = torch.randn(4, 3, 12, 12, dtype=torch.float64)
    loss = _head(replay(encoder, list(encoder.parameters()), lambda i: patches[i : i + 1], 4))
    state = torch.get_rng_state()
    loss.backward()
    assert torch.equal(torch.get_rng_state(), state)


def test_replay_passes_gradcheck() -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Tanh()).double()
    patches = torch.randn(5, 3, 2, 2, dtype=torch.float64)
    parameters = list(encoder.parameters())

    def run(*_: Tensor) -> Tensor:
        return replay(encoder, parameters, lambda i: patches[i : i + 1], 5)

    assert torch.autograd.gradcheck(run, parameters)


def test_a_frozen_encoder_needs_no_gradient() -> None:
    encoder = _encoder().requires_grad_(False)
    patches = torch.randn(4, 3, 12, 12, dtype=torch.float64)
    features = replay(encoder, list(encoder.parameters()), lambda i: patches[i : i + 1], 4)
    assert not features.requires_grad


_PROBE = """
import sys, torch
from foveate.memory import peak_rss_mib
from foveate.encoders import build_encoder
from foveate.nn.replay import replay
n = int(sys.argv[1])
torch.set_num_threads(1)
encoder = build_encoder("small")
def load(i):
    return torch.full((16, 3, 48, 48), (i % 7) / 7.0)
for _ in range(2):
    features = replay(encoder, list(encoder.parameters()), load, n // 16)
    features.pow(2).mean().backward()
print(round(1024 * peak_rss_mib()))
"""


def _peak_kib(n_patches: int) -> int:
    # Tensors straight from the system, so that the peak counts what is held, not what the
    # allocator keeps for later.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "262144"}
    result = subprocess.run(
        [sys.executable, "-c", _PROBE, str(n_patches)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return int(result.stdout)


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_patches() -> None:
    """Peaks of a process with 64 and with 4,096 patches differ by less than 5 %."""
    few, many = _peak_kib(64), _peak_kib(4096)
    assert abs(many - few) / few < 0.05, (few, many)
