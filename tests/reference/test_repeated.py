"""Embedding constant patches once gives the values and gradients of embedding every patch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from foveate.nn.repeated import EmbedOnce
from foveate.nn.replay import replay

SIDE = 6
GREY, RED, BLACK = (0.5, 0.5, 0.5), (1.0, 0.0, 0.25), (0.0, 0.0, 0.0)


def encoder() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.GroupNorm(2, 6),
        nn.GELU(),
        nn.Conv2d(6, 4, 3, stride=2),
        nn.Flatten(),
        nn.Linear(16, 5),
    ).double()


def constant_patches(*colours: tuple[float, float, float]) -> Tensor:
    """Return one constant patch of each colour, ``(n, 3, 6, 6)``."""
    rows = torch.tensor(colours, dtype=torch.float64).view(-1, 3, 1, 1)
    return rows.expand(-1, -1, SIDE, SIDE).contiguous()


def noise_patches(n: int) -> Tensor:
    torch.manual_seed(2)
    return torch.rand(n, 3, SIDE, SIDE, dtype=torch.float64)


def mixed_patches() -> Tensor:
    """Return twelve shuffled patches of three colours; two differ in one pixel only."""
    almost = constant_patches(GREY, BLACK)
    almost[0, 1, 2, 3] += 1e-9
    almost[1, 2, 5, 5] = 1.0
    actual = torch.cat(
        [
            constant_patches(GREY, RED, GREY),
            noise_patches(3),
            constant_patches(BLACK, GREY, RED),
            almost,
        ]
    )
    return torch.cat([actual, constant_patches(BLACK)])


BAGS: dict[str, tuple[Callable[[], Tensor], int]] = {
    "mixed": (mixed_patches, 3 + 5),
    "all constant": (lambda: constant_patches(RED, BLACK, RED, RED, BLACK), 2),
    "one colour": (lambda: constant_patches(*[BLACK] * 7), 1),
    "none constant": (lambda: noise_patches(4), 4),
    "one constant": (lambda: torch.cat([noise_patches(2), constant_patches(RED)]), 3),
    "a single patch": (lambda: constant_patches(RED), 1),
    "nothing": (lambda: constant_patches(RED)[:0], 0),
}
"""Patches, and how many of them are embedded if each colour is embedded once."""


def loss_of(f: Tensor) -> Tensor:
    """Return a loss that weighs every row differently."""
    weight = torch.linspace(0.5, 2, f.numel(), dtype=f.dtype).view_as(f)
    return (weight * f.sin()).sum()


def gradients(network: nn.Module) -> list[Tensor]:
    actual = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    network.zero_grad()
    return actual


def assert_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs) == 8, "every parameter has a gradient"
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("name", BAGS)
def test_values_and_gradients_match_embedding_every_patch(name: str) -> None:
    make, n_needed = BAGS[name]
    network, patches = encoder(), make()
    expected = network(patches)
    loss_of(expected).backward()
    theirs = gradients(network)

    once = EmbedOnce(network)
    actual = once(patches)
    loss_of(actual).backward()
    assert actual.dtype == torch.float64
    torch.testing.assert_close(actual, expected, atol=1e-13, rtol=0)
    assert_close(gradients(network), theirs)
    assert once.n_embedded == n_needed


@pytest.mark.parametrize("name", BAGS)
def test_values_match_without_gradient(name: str) -> None:
    make, n_needed = BAGS[name]
    network, patches = encoder(), make()
    once = EmbedOnce(network)
    with torch.no_grad():
        torch.testing.assert_close(once(patches), network(patches), atol=1e-13, rtol=0)
        assert once.n_embedded == n_needed
        torch.testing.assert_close(once(patches), network(patches), atol=1e-13, rtol=0)
    n_varied = n_needed - len({tuple(p[:, 0, 0].tolist()) for p in patches if constant(p)})
    assert once.n_embedded == n_needed + n_varied, "colours are known the second time"


def constant(patch: Tensor) -> bool:
    return all(len(set(channel.flatten().tolist())) == 1 for channel in patch)


def test_each_colour_is_embedded_once_without_gradient() -> None:
    network = encoder()
    met: list[Tensor] = []

    def watched(patches: Tensor) -> Tensor:
        met.extend(patches)
        return network(patches)

    once, chunks = EmbedOnce(watched), mixed_patches().split(2)
    with torch.no_grad():
        actual = torch.cat([once(chunk) for chunk in chunks])
        torch.testing.assert_close(actual, network(mixed_patches()), atol=1e-13, rtol=0)
    colours = [tuple(p[:, 0, 0].tolist()) for p in met if constant(p)]
    assert sorted(colours) == sorted([GREY, RED, BLACK])
    assert len(met) == once.n_embedded == 3 + 5


def test_rows_cached_without_gradient_are_not_used_in_training() -> None:
    """A cached row has no gradient: using it in training would leave parameters untrained."""
    network = encoder()
    once = EmbedOnce(network)
    with torch.no_grad():
        once(mixed_patches())
    loss_of(once(mixed_patches())).backward()
    ours = gradients(network)
    loss_of(network(mixed_patches())).backward()
    assert_close(ours, gradients(network))


@pytest.mark.parametrize("size", [1, 2, 5, 12])
@pytest.mark.parametrize("name", ["mixed", "all constant", "none constant"])
def test_replay_across_chunks_gives_the_full_gradient(name: str, size: int) -> None:
    network, patches = encoder(), BAGS[name][0]()
    chunks = patches.split(size)
    actual = replay(
        EmbedOnce(network), list(network.parameters()), lambda i: chunks[i], len(chunks)
    )
    loss_of(actual).backward()
    ours = gradients(network)
    expected = network(patches)
    loss_of(expected).backward()
    torch.testing.assert_close(actual, expected, atol=1e-13, rtol=0)
    assert_close(ours, gradients(network))


def test_the_first_pass_of_replay_embeds_each_colour_once() -> None:
    network, chunks = encoder(), mixed_patches().split(3)
    once = EmbedOnce(network)
    actual = replay(once, list(network.parameters()), lambda i: chunks[i], len(chunks))
    assert once.n_embedded == 3 + 5
    loss_of(actual).backward()
    assert once.n_embedded > 3 + 5, "the second pass needs the gradient of each chunk's own"


def test_the_number_of_cached_colours_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveate.nn.repeated._MAX_COLOURS", 2)
    network = encoder()
    once = EmbedOnce(network)
    with torch.no_grad():
        for colours, n_embedded in (((GREY, RED), 2), ((BLACK, RED), 3), ((BLACK, GREY), 4)):
            patches = constant_patches(*colours)
            torch.testing.assert_close(once(patches), network(patches), atol=1e-13, rtol=0)
            assert once.n_embedded == n_embedded
