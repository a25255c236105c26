"""Cost of a streamed training step: accuracy, seconds and memory beside the plain network.

Every row is a fresh process. First one streamed step is measured, alone; then, where the plain step
is asked for, both take turns and the medians are compared, so that other work on the machine falls
on both. Without it the bound comes from plain steps on a part of the image: the arithmetic of a
forward pass, the same again, and a backward pass, at the rate that this machine shows right before
and after the streamed step.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.mnist.run import forget_peaks, write_table
from benchmarks.process import measure_in_process, peaks, report_share_done
from foveate.batch import Batch, View, channels_last, lay_kernels
from foveate.encoders import build_encoder
from foveate.encoders.base import CellMap
from foveate.errors import OptionError
from foveate.files.atomic import write_json
from foveate.loading.loader import CaseLoader
from foveate.memory import peak_rss_mib, release_memory
from foveate.messages.display import Display
from foveate.runs.folder import read_json
from foveate.streaming import AbstractSource, Region, Streamed, StreamingPlan
from foveate.table import Case

_RATE_SIDE = {2: 1024, 3: 128}
_REPEATS = 3


@dataclass(frozen=True)
class Streaming:
    """The settings of one row.

    Attributes:
        encoder: any that streams; its axes are those of the image.
        side: of the image, pixels.
        budget_mib: what a step may hold.
        tile: side of a tile in pixels; 0 chooses by the budget.
        plain: compare with the plain step.
        bf16: in half precision (autocast).
        image: a file to read instead of noise; its own size holds.
        skip_background: leave out what the glimpse of that file shows to be background.
        group: cells a side that are averaged into one before the map is kept.
        scratch: folder on disk for maps that are too large for memory.
        frugal: count what is held, not what the allocator keeps for what comes next.
    """

    encoder: str
    side: int
    budget_mib: int
    tile: int
    plain: bool
    bf16: bool
    image: str | None
    skip_background: bool
    group: int
    scratch: str | None = None
    frugal: bool = False


def sweep_streaming(
    out: Path, *, steps: Sequence[Streaming], display: Display
) -> list[dict[str, Any]]:
    """Measure one row for each step; finished rows are reused.

    Raises:
        OptionError: a value that is not allowed.
        NotLocal: the encoder cannot be streamed.
        TrainingError: the process of a row was killed, most likely for want of memory.
    """
    rows = []
    for i, step in enumerate(steps):
        _check(step)
        image_name = f"side {step.side}" if step.image is None else Path(step.image).name
        description = f"streaming {step.encoder}, {image_name}"
        settings = json.dumps(asdict(step), sort_keys=True)
        digest = hashlib.sha256(settings.encode()).hexdigest()[:8]
        row_path = out / "runs" / f"streaming-{step.encoder}-{step.side}-{digest}" / "row.json"
        if not row_path.is_file():
            display.say(f"row {i + 1} of {len(steps)}: {description}")
            row = measure_in_process(
                measure_streaming,
                step,
                label=description,
                less="a smaller --sides or --budget-mib",
                frugal=step.frugal,
                tell=_Bar(display, f"% of one step, {image_name}"),
            )
            write_json(row_path, {"benchmark": "streaming", **row})
        rows.append(read_json(row_path))
        write_table(out)
    return rows


class _Bar:
    """A progress display in hundredths of a step, with the remaining time."""

    def __init__(self, display: Display, title: str) -> None:
        self.display, self.title, self.shown = display, title, -1

    def __call__(self, share: float) -> None:
        percent = int(100 * share)
        if percent > self.shown:
            self.shown = percent
            self.display.bar(self.title, percent, 100)


def measure_streaming(step: Streaming) -> dict[str, Any]:
    """Measure one row, in a process of its own."""
    torch.manual_seed(0)
    net = _network(step)
    streamed = Streamed(
        net,
        tile=step.tile or None,
        budget_bytes=step.budget_mib << 20,
        scratch=None if step.scratch is None else Path(step.scratch),
    )
    with ExitStack() as stack:
        source = _source(step, net.encoder.axes, stack)
        rate = _plain_seconds(net, step)
        with _precision(step):
            plan = streamed.plan_for(source)
        release_memory()
        forget_peaks()
        streamed.on_progress = report_share_done
        before, begun = peak_rss_mib(), time.perf_counter()
        _step(streamed, source, step)
        seconds = time.perf_counter() - begun
        memory, streamed.on_progress = peaks(before, "cpu"), None
        rate = (rate + _plain_seconds(net, step)) / 2
        size = math.prod(source.shape[1:])
        row = {
            "encoder": step.encoder,
            "side": max(source.shape[1:]),
            "shape": "x".join(map(str, source.shape[1:])),
            "gigapixels": round(size / 1e9, 4),
            "budget_mib": 0 if step.tile else step.budget_mib,
            "precision": "bf16" if step.bf16 else "fp32",
            "frugal": step.frugal,
            "tiles": plan.describe(),
            "tiles_forward": streamed.counts["forward"],
            "tiles_backward": streamed.counts["backward"],
            "work_ratio": round(plan.work, 3),
            "live_share": round(_live_share(plan, source), 4),
            "seconds": round(seconds, 2),
            "bound_seconds": round(4 / 3 * rate * size, 2),
            "to_bound": round(seconds / (4 / 3 * rate * size), 3),
            **memory,
            "threads": torch.get_num_threads(),
        }
        return row | (_beside_plain(net, streamed, source, step) if step.plain else {})


def _live_share(plan: StreamingPlan, source: AbstractSource) -> float:
    """Return the share of tiles that contain more than background."""
    return 1.0 - float(plan.segments[0].grid.blank(source).mean())


def _beside_plain(
    net: nn.Module, streamed: Streamed, source: AbstractSource, step: Streaming
) -> dict[str, Any]:
    """Alternate plain and streamed steps; returns median seconds and largest differences."""
    full: Region = tuple((0, n) for n in source.shape[1:])
    (x,) = source.crops([full])
    times: dict[str, list[float]] = {"plain": [], "streamed": []}
    results = {}
    for _ in range(_REPEATS):
        for name, run, image in (("plain", net, x), ("streamed", streamed, source)):
            begun = time.perf_counter()
            results[name] = _step(run, image, step)
            times[name].append(time.perf_counter() - begun)
    plain, ours = (statistics.median(times[name]) for name in ("plain", "streamed"))
    (y, g), (z, h) = results["plain"], results["streamed"]
    return {
        "plain_seconds": round(plain, 2),
        "streamed_seconds": round(ours, 2),
        "to_plain": round(ours / plain, 3),
        "output_error": _largest_difference([y], [z]),
        "gradient_error": _largest_difference(g, h),
    }


def _step(
    run: nn.Module, image: Tensor | AbstractSource, step: Streaming
) -> tuple[Tensor, list[Tensor]]:
    """Run forward, mean square and backward; returns the map and the gradients."""
    learnt = [p for p in run.parameters() if p.requires_grad]
    with _precision(step):
        y = run(image)
    gradients = torch.autograd.grad(y.float().square().mean(), learnt, allow_unused=True)
    return y.detach(), [g for g in gradients if g is not None]


def _precision(step: Streaming) -> torch.autocast:
    """Return the autocast context of a step."""
    return torch.autocast("cpu", torch.bfloat16, enabled=step.bf16)


def _largest_difference(plain: Sequence[Tensor], ours: Sequence[Tensor]) -> float:
    """Return the largest difference, relative to the largest entry of its tensor."""
    pairs = zip(plain, ours, strict=True)
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-30)) for a, b in pairs)


def _plain_seconds(net: CellMap, step: Streaming) -> float:
    """Return the seconds per pixel of a plain step on a part, the median of three."""
    axes = net.encoder.axes
    side = min(_RATE_SIDE[axes], step.side)
    region: Region = ((0, side),) * axes
    (x,) = _Noise((side,) * axes).crops([region])
    seconds = []
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        _step(net, x, step)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds) / x[0, 0].numel()


def _network(step: Streaming) -> CellMap:
    """Build the network with frozen norms of random statistics."""
    norm = "local" if step.encoder.startswith("small") else "frozen"
    options: dict[str, object] = {"pretrained": False, "norm": norm}
    net = CellMap(build_encoder(step.encoder, None, options), step.group)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    lay_kernels(net)
    return net.eval()


class _Noise(AbstractSource):
    """A source of random bytes that are computed on demand and depend on position only."""

    def __init__(self, space: Sequence[int]) -> None:
        most = 509 if len(space) == 2 else 127
        self.shape, self.device = (3, *space), torch.device("cpu")
        block = (3, *(min(n, most) for n in space))
        self._block = torch.randint(256, block, dtype=torch.uint8)

    def crops(self, regions: Sequence[Region]) -> Iterator[Tensor]:
        """Yield the pixels of regions of a repeating block."""
        for region in regions:
            x = self._block
            for axis, (low, high) in enumerate(region):
                cells = torch.arange(low, high) % self._block.shape[axis + 1]
                x = x.index_select(axis + 1, cells)
            x = x[None].float() / 255 - 0.5
            yield channels_last(x)


def _source(step: Streaming, axes: int, stack: ExitStack) -> AbstractSource:
    """Build the image source of a step."""
    if step.image is None:
        return _Noise((step.side,) * axes)
    path = Path(step.image)
    # The pixels of the image, whatever their size in micrometres.
    view = View(1.0, 256, 64.0, axes=axes)
    loader = CaseLoader(view)
    stack.callback(loader.close)
    case = Case(path.name, path.name, path, spacing_um=(1.0,) * axes)
    device = torch.device("cpu")
    normalise = ((0.5,) * 3, (0.25,) * 3)
    batch = Batch(
        [loader.load(case)], view=view, normalise=normalise, device=device, pool=loader.threads
    )
    return batch.whole(0, skip_background=step.skip_background)


def _check(step: Streaming) -> None:
    """Check the options of a step."""
    if step.side < 32 or step.budget_mib < 1 or step.group < 1 or step.tile < 0:
        raise OptionError("--side, --budget-mib, --group, --tile: expected at least 32, 1, 1 and 0")
