"""The processes that share a training: who has which images, and what they tell each other."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from foveate.runtime import Runtime
from foveate.training.state import Progress

log = logging.getLogger("foveate")

T = TypeVar("T")

_READ = ("decoded_px", "asked_px")


@dataclass(frozen=True)
class StepCount:
    """What a step came to, over all processes.

    Attributes:
        share: of the images of the step that this process could read.
        images: that were read.
        loss: the task's, summed over them.
        total: all that is learnt from, summed over them.
    """

    share: float
    images: float
    loss: float
    total: float


class Team:
    """One process's view of the processes of a training. With one, nothing is told to anybody.

    A batch is divided by place, so a training of several processes sees the batches of one; every
    loss is a mean over images, so the sum of what processes compute, weighed by their shares of the
    images, is what one would have computed.

    Args:
        runtime: of this process.
        method: that is trained, in all processes alike.
    """

    def __init__(self, runtime: Runtime, method: nn.Module) -> None:
        self._runtime, self._method = runtime, method
        self._buffers: dict[str, Tensor] = {}

    def part(self, group: Sequence[T]) -> list[T]:
        """Return what this process has of a group."""
        return list(group[self._runtime.rank :: self._runtime.world_size])

    def places(self, n: int) -> list[int]:
        """Return the places in the group of the n that this process has."""
        return [self._runtime.rank + i * self._runtime.world_size for i in range(n)]

    @torch.no_grad()
    def align(self) -> None:
        """Take the weights of the first process, where all have settled the same."""
        if self._runtime.world_size == 1:
            return
        own = [x for x in self._method.state_dict().values() if x.is_floating_point()]
        parts = own if self._runtime.is_main else [None] * len(own)
        for tensor, value in zip(own, self._runtime.sum_present(parts, own), strict=True):
            tensor.copy_(value)

    @contextlib.contextmanager
    def apart(self, wrapped: Any) -> Iterator[None]:
        """Go forwards and backwards without waiting for others; note what buffers were before."""
        several = self._runtime.world_size > 1
        if several and not self._buffers:
            self._buffers = {k: v.clone() for k, v in self._floats()}
        with self._runtime.fabric.no_backward_sync(wrapped, enabled=several):
            yield

    def count(self, images: int, loss: float = 0.0, total: float = 0.0) -> StepCount:
        """Tell the others how many images of a step were read, and their mean losses.

        Every process calls it once a step, also one that could read none.
        """
        number, *sums = self._runtime.sum(images, images * loss, images * total)
        return StepCount(images / max(number, 1.0), number, *sums)

    @torch.no_grad()
    def sum_gradients(self) -> None:
        """Add up the gradients of all processes; each has weighed its own by its share."""
        if self._runtime.world_size == 1:
            return
        learnt = [p for p in self._method.parameters() if p.requires_grad]
        sums = self._runtime.sum_present([p.grad for p in learnt], learnt)
        for parameter, gradient in zip(learnt, sums, strict=True):
            parameter.grad = gradient.to(parameter.dtype) if gradient.numel() else None

    @torch.no_grad()
    def mean_buffers(self, share: float) -> None:
        """Average what a step changed in buffers, as running means, over the images of all."""
        if self._runtime.world_size == 1:
            return
        now = dict(self._floats())
        before = self._buffers or now
        parts = [
            None if torch.equal(before[k], v) else share * (v - before[k]) for k, v in now.items()
        ]
        changes = self._runtime.sum_present(parts, list(now.values()))
        for (name, value), change in zip(now.items(), changes, strict=True):
            if change.numel():
                value.copy_(before[name] + change)
        self._buffers = {}

    def share(self, progress: Progress) -> None:
        """Tell each other which images were set aside, and what was read in the epoch."""
        if self._runtime.world_size == 1:
            return
        for quarantined in self._runtime.gather(progress.quarantined):
            for image_id, reason in quarantined.items():
                if progress.quarantine(image_id, reason):
                    log.warning("set aside %s: %s", image_id, reason)
        sums = self._runtime.sum(*(progress.sums.get(key, 0.0) for key in _READ))
        progress.sums |= dict(zip(_READ, sums, strict=True))

    def resume(self, progress: Progress) -> None:
        """Leave to the first process what it had read before the training was stopped."""
        if not self._runtime.is_main:
            progress.sums |= dict.fromkeys(_READ, 0.0)

    def wait(self) -> None:
        """Wait until all processes have come so far."""
        self._runtime.sum(0.0)

    def _floats(self) -> list[tuple[str, Tensor]]:
        """Return the buffers that are no flags and no counts."""
        return [(k, v) for k, v in self._method.named_buffers() if v.is_floating_point()]
