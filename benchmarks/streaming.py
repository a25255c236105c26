"""What a streamed training step costs: exactness, seconds and memory beside the plain network.

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
from benchmarks.process import measured_apart, peaks, say_done
from foveate.batch import Batch, View, channels_last, lay_kernels
from foveate.encoders import build_encoder
from foveate.encoders.base import CellMap
from foveate.errors import OptionError
from foveate.files.atomic import write_json
from foveate.loading.loader import CaseLoader
from foveate.memory import give_back, peak_rss_mib
from foveate.messages.display import Display
from foveate.runs.folder import read_json
from foveate.streaming import AbstractSource, Plan, Region, Streamed
from foveate.table import Case

_RATE_SIDE = {2: 1024, 3: 128}
_REPEATS = 3


@dataclass(frozen=True)
class Streaming:
    """One row.

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
    """One row for each step; rows that are done are kept.

    Raises:
        OptionError: a value that is not allowed.
        NotLocal: the encoder cannot be streamed.
        TrainingError: the process of a row was killed, most likely for want of memory.
    """
    rows = []
    for i, step in enumerate(steps):
        _check(step)
        what = f"side {step.side}" if step.image is None else Path(step.image).name
        said = f"streaming {step.encoder}, {what}"
        settings = json.dumps(asdict(step), sort_keys=True)
        digest = hashlib.sha256(settings.encode()).hexdigest()[:8]
        done = out / "runs" / f"streaming-{step.encoder}-{step.side}-{digest}" / "row.json"
        if not done.is_file():
            display.say(f"row {i + 1} of {len(steps)}: {said}")
            row = measured_apart(
                measure_streaming,
                step,
                said=said,
                less="a smaller --sides or --budget-mib",
                frugal=step.frugal,
                tell=_Bar(display, f"% of one step, {what}"),
            )
            write_json(done, {"benchmark": "streaming", **row})
        rows.append(read_json(done))
        write_table(out)
    return rows


class _Bar:
    """Hundredths of a step, and for how long they will go on."""

    def __init__(self, display: Display, title: str) -> None:
        self.display, self.title, self.shown = display, title, -1

    def __call__(self, share: float) -> None:
        percent = int(100 * share)
        if percent > self.shown:
            self.shown = percent
            self.display.bar(self.title, percent, 100)


def measure_streaming(step: Streaming) -> dict[str, Any]:
    """One row. Run in a process of its own."""
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
        give_back()
        forget_peaks()
        streamed.progress = say_done
        before, begun = peak_rss_mib(), time.perf_counter()
        _step(streamed, source, step)
        seconds = time.perf_counter() - begun
        held, streamed.progress = peaks(before, "cpu"), None
        rate = (rate + _plain_seconds(net, step)) / 2
        size = math.prod(source.shape[1:])
        found = {
            "encoder": step.encoder,
            "side": max(source.shape[1:]),
            "shape": "x".join(map(str, source.shape[1:])),
            "gigapixels": round(size / 1e9, 4),
            "budget_mib": 0 if step.tile else step.budget_mib,
            "precision": "bf16" if step.bf16 else "fp32",
            "frugal": step.frugal,
            "tiles": plan.told(),
            "tiles_forward": streamed.counts["forward"],
            "tiles_backward": streamed.counts["backward"],
            "work_ratio": round(plan.work, 3),
            "live_share": round(_live_share(plan, source), 4),
            "seconds": round(seconds, 2),
            "bound_seconds": round(4 / 3 * rate * size, 2),
            "to_bound": round(seconds / (4 / 3 * rate * size), 3),
            **held,
            "threads": torch.get_num_threads(),
        }
        return found | (_beside_plain(net, streamed, source, step) if step.plain else {})


def _live_share(plan: Plan, source: AbstractSource) -> float:
    """Of the tiles, those that hold more than background."""
    return 1.0 - float(plan.segments[0].grid.blank(source).mean())


def _beside_plain(
    net: nn.Module, streamed: Streamed, source: AbstractSource, step: Streaming
) -> dict[str, Any]:
    """Turns of both: median seconds, and how far the results lie apart."""
    whole: Region = tuple((0, n) for n in source.shape[1:])
    (x,) = source.crops([whole])
    times: dict[str, list[float]] = {"plain": [], "streamed": []}
    results = {}
    for _ in range(_REPEATS):
        for name, run, given in (("plain", net, x), ("streamed", streamed, source)):
            begun = time.perf_counter()
            results[name] = _step(run, given, step)
            times[name].append(time.perf_counter() - begun)
    plain, ours = (statistics.median(times[name]) for name in ("plain", "streamed"))
    (y, g), (z, h) = results["plain"], results["streamed"]
    return {
        "plain_seconds": round(plain, 2),
        "streamed_seconds": round(ours, 2),
        "to_plain": round(ours / plain, 3),
        "output_error": _apart([y], [z]),
        "gradient_error": _apart(g, h),
    }


def _step(
    run: nn.Module, given: Tensor | AbstractSource, step: Streaming
) -> tuple[Tensor, list[Tensor]]:
    """Forward, mean of the squares, backward: the map and the gradients."""
    learnt = [p for p in run.parameters() if p.requires_grad]
    with _precision(step):
        y = run(given)
    gradients = torch.autograd.grad(y.float().square().mean(), learnt, allow_unused=True)
    return y.detach(), [g for g in gradients if g is not None]


def _precision(step: Streaming) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=step.bf16)


def _apart(plain: Sequence[Tensor], ours: Sequence[Tensor]) -> float:
    """The largest difference, relative to the largest entry of its tensor."""
    pairs = zip(plain, ours, strict=True)
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-30)) for a, b in pairs)


def _plain_seconds(net: CellMap, step: Streaming) -> float:
    """Seconds per pixel of a plain step on a part, the median of three: this machine's rate now."""
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
    """Frozen norms with random statistics, so that nothing is zero."""
    norm = "local" if step.encoder.startswith("small") else "frozen"
    options: dict[str, object] = {"pretrained": False, "norm": norm}
    net = CellMap(build_encoder(step.encoder, None, options), step.group)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    lay_kernels(net)
    return net.eval()


class _Noise(AbstractSource):
    """Random bytes that are made when asked for: the same at the same place, nothing held."""

    def __init__(self, space: Sequence[int]) -> None:
        most = 509 if len(space) == 2 else 127
        self.shape, self.device = (3, *space), torch.device("cpu")
        block = (3, *(min(n, most) for n in space))
        self._block = torch.randint(256, block, dtype=torch.uint8)

    def crops(self, regions: Sequence[Region]) -> Iterator[Tensor]:
        """A block that repeats, of no power of two."""
        for region in regions:
            x = self._block
            for axis, (low, high) in enumerate(region):
                cells = torch.arange(low, high) % self._block.shape[axis + 1]
                x = x.index_select(axis + 1, cells)
            x = x[None].float() / 255 - 0.5
            yield channels_last(x)


def _source(step: Streaming, axes: int, stack: ExitStack) -> AbstractSource:
    if step.image is None:
        return _Noise((step.side,) * axes)
    path = Path(step.image)
    # Its own pixels, whatever they measure.
    view = View(1.0, 256, 64.0, axes=axes)
    loader = CaseLoader(view)
    stack.callback(loader.close)
    case = Case(path.name, path.name, path, spacing_um=(1.0,) * axes)
    device = torch.device("cpu")
    normalise = ((0.5,) * 3, (0.25,) * 3)
    batch = Batch(
        [loader.load(case)], view=view, normalise=normalise, device=device, pool=loader.crops
    )
    return batch.whole(0, skip_background=step.skip_background)


def _check(step: Streaming) -> None:
    if step.side < 32 or step.budget_mib < 1 or step.group < 1 or step.tile < 0:
        raise OptionError("--side, --budget-mib, --group, --tile: expected at least 32, 1, 1 and 0")
