"""The processes that share a training: how images are divided and results are exchanged."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foveate.runtime import Runtime
from foveate.training.state import Progress

T = TypeVar("T")

_READ = ("decoded_px", "asked_px")


@dataclass(frozen=True)
class StepCount:
    """The numbers of images and the losses of a step, over all processes.

    Attributes:
        share: this process's share of the images that could be read.
        images: number of images that could be read.
        loss: the task's loss, summed over these images.
        total: the task's loss and all further losses, summed over these images.
    """

    share: float
    images: float
    loss: float
    total: float


class Team:
    """One process's view of the processes of a training; a single process exchanges nothing.

    A batch is divided by place, so several processes see the same batches as one would. Every loss
    is a mean over images, so the sum of the processes' losses, weighed by their shares of the
    images, is the loss that one process would compute.

    Args:
        runtime: runtime of this process.
        method: the method that is trained, the same in all processes.
    """

    def __init__(self, runtime: Runtime, method: nn.Module) -> None:
        self._runtime, self._method = runtime, method
        self._buffers: dict[str, Tensor] = {}

    def pick(self, group: Sequence[T]) -> list[T]:
        """Return this process's part of a group."""
        return list(group[self._runtime.rank :: self._runtime.world_size])

    def places(self, n: int) -> list[int]:
        """Return the places, in their group, of this process's n members."""
        return [self._runtime.rank + i * self._runtime.world_size for i in range(n)]

    @torch.no_grad()
    def align(self) -> None:
        """Copy the weights of the first process, so that all processes have exactly the same."""
        if self._runtime.world_size == 1:
            return
        tensors = [x for x in self._method.state_dict().values() if x.is_floating_point()]
        mine = tensors if self._runtime.is_main else [None] * len(tensors)
        sums = self._runtime.sum_present(mine, tensors)
        for tensor, value in zip(tensors, sums, strict=True):
            tensor.copy_(value)

    @contextlib.contextmanager
    def apart(self, wrapped: Any) -> Iterator[None]:
        """Run passes without waiting for other processes, and note the buffers' values before.

        Args:
            wrapped: the method, as Fabric wraps it.
        """
        several = self._runtime.world_size > 1
        if several and not self._buffers:
            self._buffers = {k: v.clone() for k, v in self._floats()}
        with self._runtime.fabric.no_backward_sync(wrapped, enabled=several):
            yield

    def count(self, images: int, loss: float = 0.0, total: float = 0.0) -> StepCount:
        """Exchange the number of images that were read in a step, and their mean losses.

        Every process calls it once a step, also one that could read no image.

        Args:
            images: number of images that this process could read.
            loss: their mean loss of the task.
            total: their mean of all losses.
        """
        number, *sums = self._runtime.sum(images, images * loss, images * total)
        return StepCount(images / max(number, 1.0), number, *sums)

    @torch.no_grad()
    def sum_gradients(self) -> None:
        """Sum up the gradients of all processes, which are weighed by shares of images already."""
        if self._runtime.world_size == 1:
            return
        learnt = [p for p in self._method.parameters() if p.requires_grad]
        sums = self._runtime.sum_present([p.grad for p in learnt], learnt)
        for parameter, gradient in zip(learnt, sums, strict=True):
            parameter.grad = gradient.to(parameter.dtype) if gradient.numel() else None

    @torch.no_grad()
    def mean_buffers(self, share: float) -> None:
        """Average the changes of buffers in a step, such as running means, over all images.

        Args:
            share: this process's share of the images.
        """
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

    def share(self, progress: Progress) -> dict[str, str]:
        """Exchange which images were set aside, and the numbers of pixels read in the epoch.

        Returns:
            The reason for each image that other processes have set aside since the last exchange.
        """
        if self._runtime.world_size == 1:
            return {}
        news = {
            image_id: reason
            for quarantined in self._runtime.gather(progress.quarantined)
            for image_id, reason in quarantined.items()
            if progress.set_aside(image_id, reason)
        }
        sums = self._runtime.sum(*(progress.sums.get(key, 0.0) for key in _READ))
        progress.sums |= dict(zip(_READ, sums, strict=True))
        return news

    def resume(self, progress: Progress) -> None:
        """Reset counts of pixels in all but the first process, which restores those of all."""
        if not self._runtime.is_main:
            progress.sums |= dict.fromkeys(_READ, 0.0)

    def wait(self) -> None:
        """Wait until all processes have reached this call."""
        self._runtime.sum(0.0)

    def _floats(self) -> list[tuple[str, Float[Tensor, " ..."]]]:
        """Return names and values of buffers of floating-point numbers."""
        return [(k, v) for k, v in self._method.named_buffers() if v.is_floating_point()]


class CountOnce:
    """Exchanges the count of one step at the first call, and returns the same at later calls.

    A step may be computed anew without an image that cannot be read, but other processes take part
    in one exchange only.

    Args:
        team: the processes of the training.
    """

    def __init__(self, team: Team) -> None:
        self._team = team
        self._count: StepCount | None = None

    def __call__(self, images: int = 0, loss: float = 0.0, total: float = 0.0) -> StepCount:
        """Return the count of the step, exchanged if it was not yet.

        Args:
            images: number of images that this process could read.
            loss: their mean loss of the task.
            total: their mean of all losses.
        """
        if self._count is None:
            self._count = self._team.count(images, loss, total)
        return self._count
