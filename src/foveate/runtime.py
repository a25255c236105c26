"""The runtime of a run: device, precision, processes and seeds, chosen once and passed down.

Several processes share a training on Lightning Fabric's DDP. The gradients of a step are summed
once, after its last backward pass, by `Runtime.sum_present`, and never within one: two-pass replay
and streaming go backwards several times a step, some losses leave some parameters out, and a
process whose images cannot be read goes backwards not at all.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from foveate.errors import OptionError, TrainingError
from foveate.memory import computes_in_bf16

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")

RANK = "FOVEATE_RANK"
"""Environment variable with the number of a process that the first process of a run started."""

_BUCKET = 1 << 24
"""Float32 numbers that are summed at a time: 64 MiB."""
_PATIENCE = timedelta(days=7)
"""Time limit of waiting: other processes wait while the first predicts test images or writes."""
_CLOSING_S = 20.0


def process_rank() -> int:
    """Return the number of this process in its run; process 0 writes files."""
    return int(os.environ.get(RANK, "0"))


@dataclass(frozen=True)
class Child:
    """A process that the first one started.

    Attributes:
        process: the process.
        output: file of all that it prints.
    """

    process: subprocess.Popen[bytes]
    output: IO[bytes]


@dataclass(frozen=True)
class Runtime:
    """The device and the processes of a training.

    Attributes:
        fabric: places modules and tensors, and casts to the precision.
        seed: seed of all random draws.
        children: processes that this one started.
    """

    fabric: Fabric
    seed: int = 0
    children: list[Child] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """Return the device of this process."""
        device: torch.device = self.fabric.device
        return device

    @property
    def rank(self) -> int:
        """Return the number of this process."""
        return int(self.fabric.global_rank)

    @property
    def world_size(self) -> int:
        """Return the number of processes that share the training."""
        return int(self.fabric.world_size)

    @property
    def is_main(self) -> bool:
        """Return whether this process writes files and shows progress."""
        return self.rank == 0

    def seed_of(self, *keys: int) -> int:
        """Derive the seed of a draw from the run's seed and the keys that name the draw."""
        return int(np.random.SeedSequence((self.seed, *keys)).generate_state(1)[0])

    # -- between processes -------------------------------------------------------------------

    def gather(self, value: T) -> list[T]:
        """Gather a value of each process, by rank, in all processes."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        with self._together():
            torch.distributed.all_gather_object(values, value)
        return values

    def sum(self, *numbers: float) -> list[float]:
        """Add up numbers over the processes, in float64."""
        if self.world_size == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        self._add_up(total)
        return [float(number) for number in total]

    def sum_present(
        self, parts: Sequence[Shaped[Tensor, " ..."] | None], like: Sequence[Shaped[Tensor, " ..."]]
    ) -> list[Shaped[Tensor, " ..."]]:
        """Add up tensors over the processes, many at a time.

        Args:
            parts: float32 tensors of this process; None where it has none.
            like: tensors of the same shapes, whether the process has a part or not.

        Returns:
            the sums; empty tensors where no process has a part.
        """
        if self.world_size == 1:
            return [like[i].new_empty(0) if x is None else x for i, x in enumerate(parts)]
        here = torch.tensor([x is not None for x in parts], dtype=torch.int32, device=self.device)
        self._add_up(here)
        sums = [x.new_empty(0) for x in like]
        waiting = [i for i, n in enumerate(here.tolist()) if n > 0]
        while waiting:
            taken = _take_bucket(waiting, like)
            sizes = [like[i].numel() for i in taken]
            flat = torch.cat([_flat(parts[i], like[i]) for i in taken])
            self._add_up(flat)
            for i, part in zip(taken, torch.split(flat, sizes), strict=True):
                sums[i] = part.view_as(like[i])
        return sums

    def close(self) -> None:
        """Leave the group of processes, and wait for those that this one started to end."""
        if self.world_size > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for child in self.children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(_CLOSING_S)
        self.stop()

    def stop(self) -> None:
        """Kill the processes that this one started, where they still run."""
        for child in self.children:
            if child.process.poll() is None:
                child.process.kill()
                child.process.wait()
            child.output.close()
        self.children.clear()

    def _add_up(self, tensor: Shaped[Tensor, " n"]) -> None:
        with self._together():
            torch.distributed.all_reduce(tensor)

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise TrainingError(self._describe_lost_process()) from error

    def _describe_lost_process(self) -> str:
        """Describe why the processes lost each other."""
        for rank, child in enumerate(self.children, 1):
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(_CLOSING_S)
            child.output.seek(0)
            lines = child.output.read().decode(errors="replace").strip().splitlines()
            if child.process.returncode not in (None, 0):
                message = lines[-1].removeprefix("error: ") if lines else "it said nothing"
                return (
                    f"process {rank} of this run ended with code {child.process.returncode}: "
                    f"{message}. Repeat the same command, which continues where this one stopped"
                )
        return "the processes of this run lost each other: repeat the same command to continue it"


def start_runtime(
    *,
    device: str = "auto",
    precision: str = "auto",
    devices: int = 1,
    seed: int = 0,
    pretrained: bool = False,
    command: Sequence[str] = (),
) -> Runtime:
    """Choose device and precision; with several devices, start a process for each further one.

    Args:
        device: name of the device; ``auto`` takes a GPU when there is one.
        precision: name of the precision; ``auto`` is bf16 where the device computes in it.
        devices: number of processes that train together, each on its own device.
        seed: seed of all random draws.
        pretrained: whether the encoder is pretrained; from scratch, CPUs compute in float32.
        command: arguments of ``python`` that continue this run, for the further processes.

    Raises:
        OptionError: there is no such device, or too few of them.
    """
    if precision == "auto":
        cuda = device in ("auto", "cuda") and torch.cuda.is_available()
        fast = torch.cuda.is_bf16_supported() if cuda else computes_in_bf16()
        precision = "bf16-mixed" if fast and (cuda or pretrained) else "32-true"
    if devices == 1:
        return Runtime(_build_fabric(device, precision), seed)
    port = int(os.environ["MASTER_PORT"]) if process_rank() else _free_port()
    fabric = _build_fabric(device, precision, devices, port)
    children: list[Child] = []
    if process_rank() == 0:
        children += [_start_child(rank, port, command) for rank in range(1, devices)]
    runtime = Runtime(fabric, seed, children)
    try:
        fabric.launch()
    except RuntimeError as error:
        runtime.stop()
        raise TrainingError(
            "the processes of this run could not find each other: repeat the command, or train "
            "with --train.devices 1"
        ) from error
    return runtime


def find_device(device: str = "auto") -> torch.device:
    """Return the device of a name; ``auto`` takes a GPU when there is one.

    Raises:
        OptionError: the device is not on this machine.
    """
    return start_runtime(device=device, precision="32-true").device


def _build_fabric(device: str, precision: str, devices: int = 1, port: int = 0) -> Fabric:
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    # The import sets the level of this logger, so that it prints the precision.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    chosen: dict[str, Any] = {"accelerator": device, "devices": devices, "precision": precision}
    if devices > 1:
        chosen["strategy"] = DDPStrategy(
            cluster_environment=_environment(process_rank(), devices, port),
            timeout=_PATIENCE,
            # No forward pass may wait for another process, whose images may all be unreadable.
            **cast(Any, {_sync_option(): False}),
        )
    try:
        return Fabric(**chosen)
    except RuntimeError as error:
        raise OptionError(f"train.device: '{device}' is not on this machine") from error
    except (MisconfigurationException, ValueError) as error:
        if devices == 1:
            raise
        raise OptionError(
            f"train.devices: {devices} devices '{device}' are not on this machine"
        ) from error


def _sync_option() -> str:
    """Return the name of DDP's option for the broadcast of buffers, which PyTorch renamed."""
    names = inspect.signature(torch.nn.parallel.DistributedDataParallel).parameters
    return next(name for name in ("forward_sync_buffers", "broadcast_buffers") if name in names)


def _environment(rank: int, size: int, port: int) -> Any:
    """Build the environment that tells Fabric about processes that were started by us."""
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

    settled: dict[str, Any] = {
        "creates_processes_externally": True,
        "main_address": "127.0.0.1",
        "main_port": port,
        "local_rank": lambda _: rank,
        "node_rank": lambda _: 0,
        "global_rank": lambda _: rank,
        "world_size": lambda _: size,
    }
    return type("Environment", (LightningEnvironment,), settled)()


def _start_child(rank: int, port: int, command: Sequence[str]) -> Child:
    """Start a further process of this run, whose output goes to an unnamed temporary file."""
    variables: Mapping[str, str] = {RANK: str(rank), "MASTER_PORT": str(port)}
    output = tempfile.TemporaryFile()  # noqa: SIM115 (closed when the process has ended)
    process = subprocess.Popen(
        [sys.executable, *command],
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
    )
    return Child(process, output)


def _free_port() -> int:
    from lightning_fabric.plugins.environments.lightning import find_free_network_port

    return int(find_free_network_port())


def _take_bucket(waiting: list[int], like: Sequence[Shaped[Tensor, " ..."]]) -> list[int]:
    """Remove tensors from the front of `waiting` that are sent together, at least one.

    Args:
        waiting: indices of the tensors that are still to be sent.
        like: the tensors.
    """
    taken = [waiting.pop(0)]
    room = _BUCKET - like[taken[0]].numel()
    while waiting and like[waiting[0]].numel() <= room:
        room -= like[waiting[0]].numel()
        taken.append(waiting.pop(0))
    return taken


def _flat(
    part: Shaped[Tensor, " *shape"] | None, like: Shaped[Tensor, " *shape"]
) -> Float[Tensor, " n"]:
    flat = torch.zeros_like(like) if part is None else part
    return flat.detach().float().reshape(-1)
