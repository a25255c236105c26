"""The whole image through a convolutional network at full resolution, exactly, in bounded memory.

Source: Pinckaers, van Ginneken & Litjens, "Streaming convolutional neural networks for end-to-end
learning with multi-megapixel images", TPAMI 2020; Pinckaers et al., "Detection of prostate cancer
in whole-slide images through end-to-end training with image-level labels", TMI 2021.

Differs: outputs and gradients equal those of the plain network up to rounding (theirs are tested to
1 %), found by interval arithmetic over the layers rather than by measuring; any batch size and
image size; regions that the glimpse shows to be background are neither read nor computed more than
once, and do not dilute what is pooled; cells are averaged in small groups and weighed by gated
attention rather than averaged over all.

Use when: the decisive part may be anywhere and is too small or too faint for a glimpse to show it,
and there is time: every pixel of the foreground goes through the network, forwards twice and
backwards once. A cell sees others only within its receptive field.

Cost: reads every pixel of the foreground, twice in training; memory of one tile, chosen to fit
`budget_mib`, and of the final map.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from foveate.bags.embedding import pad_rows, padding_mask
from foveate.batch import Batch, WholeImage
from foveate.encoders.base import AbstractEncoder, CellMap
from foveate.errors import OptionError
from foveate.images.evidence import Evidence, EvidenceList
from foveate.methods.base import AbstractMethod, Auxiliary, Prediction
from foveate.nn.heads import Head, InstanceHead
from foveate.nn.pooling import GatedPool, MaxPool, MeanPool
from foveate.streaming import Streamed


class StreamingCnn(AbstractMethod):
    """Every pixel of the foreground, a map of cells, a pool over the cells, a linear head.

    The encoder must be local: frozen batch norm, as pretrained ones have, norms over channels, of
    kernels or none, no squeeze-excite. From scratch, with ``--encoder.norm local``, this method's
    default, foveate's own and timm's plain networks are; with ``weights``, foveate's own learns
    small parts on a plain ground sooner.
    Evidence is the share of each cell in what is pooled.

    Args:
        pool: over the cells: gated ``attention``, ``mean`` or ``max``.
        group: cells a side that are averaged into one before pooling; coarser evidence, less
            memory for the final map.
        budget_mib: memory that a step may use beside the parameters and the final map; tiles are
            chosen by it. Without a GPU the allocator keeps about as much again, unless
            ``MALLOC_MMAP_THRESHOLD_=262144`` is in the environment, which takes a tenth more time.
        tile: side of a tile in pixels; 0 chooses it by `budget_mib`.
        scratch: folder on disk for maps that are stored between two rounds of tiles and too large
            for memory, which spares large images a sixth of the arithmetic; by default that for
            temporary files (``TMPDIR``), ``none`` lays none there. Without a GPU only.
        skip_background: regions in which the glimpse shows nothing are not read: the colour of the
            background stands for them, and they are computed once. Cells over nothing else do not
            take part in the pool.
        hidden: width of the attention network.
        dropout: rate of dropout on the pooled vector.
        instance: weight of the instance head's loss: cells answer the task on their own, pooled as
            the task allows. 0 leaves it out.

    Raises:
        OptionError: `group`, `budget_mib` or `tile` is too small, or the encoder is not local.
    """

    reads = frozenset({"glimpse", "whole"})
    summary = "every pixel through one network, exactly, tile by tile; gated attention over cells"
    meets = ("no", "yes", "yes", "yes", "partly")
    encoder_defaults: ClassVar[Mapping[str, object]] = {"norm": "local"}

    def __init__(
        self,
        *,
        encoder: AbstractEncoder,
        heads: Sequence[Head],
        pool: Literal["attention", "mean", "max"] = "attention",
        group: int = 2,
        budget_mib: int = 2048,
        tile: int = 0,
        scratch: str = "",
        skip_background: bool = True,
        hidden: int = 128,
        dropout: float = 0.1,
        instance: float = 1.0,
    ) -> None:
        super().__init__()
        if group < 1 or budget_mib < 1 or tile < 0:
            raise OptionError(
                f"group, budget_mib, tile: got {group}, {budget_mib}, {tile}, expected at least "
                "1, 1 and 0"
            )
        if not encoder.local:
            raise OptionError(
                "method streaming_cnn: every cell sees the whole image in this encoder, so it "
                "cannot be streamed; take a convolutional one, such as lite0"
            )
        self.encoder, self.group, self.instance = encoder, group, instance
        self.budget_bytes, self.skip_background = budget_mib << 20, skip_background
        dim = encoder.map_dims[-1]
        self.norm = nn.LayerNorm(dim)
        pools: Mapping[str, nn.Module] = {
            "attention": GatedPool(dim, hidden=hidden),
            "mean": MeanPool(),
            "max": MaxPool(),
        }
        self.pool = pools[pool]
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, sum(h.size for h in heads)))
        self.head_instance = InstanceHead(dim, heads) if instance > 0 else None
        # Not a submodule: its parameters are the encoder's and would be saved twice.
        folder = None if scratch == "none" else Path(scratch or tempfile.gettempdir())
        streamed = Streamed(CellMap(encoder, group), tile=tile or None, scratch=folder)
        streamed.check(encoder.axes)
        # Parameters that only `embed` uses would never get a gradient.
        reached = {id(p) for p in streamed.used_parameters()}
        for parameter in encoder.parameters():
            parameter.requires_grad_(parameter.requires_grad and id(parameter) in reached)
        self.__dict__["streamed"] = streamed

    def forward(self, batch: Batch) -> Prediction:
        """Predict from all pixels."""
        streamed: Streamed = self.__dict__["streamed"]
        streamed.budget_bytes = self.budget_bytes // len(batch)
        streamed.train(self.training)
        sources = [batch.whole(i, skip_background=self.skip_background) for i in range(len(batch))]
        maps = []
        for i, (source, tell) in enumerate(zip(sources, _progress_callbacks(batch), strict=True)):
            streamed.on_progress = tell
            compute = functools.partial(streamed, source)
            maps.append(
                compute()
                if batch.frozen_features is None
                else batch.frozen_features.map(i, compute)
            )
        cells = [self._cells(source, map_) for source, map_ in zip(sources, maps, strict=True)]
        rows = [map_[0].flatten(1).T[index] for map_, index in zip(maps, cells, strict=True)]
        valid = padding_mask([len(r) for r in rows], rows[0].device)
        h = self.norm(pad_rows(torch.cat(rows).float(), valid))
        vector, share = self.pool(h, valid)
        logits = self.head(vector)
        if not self.training:
            parts = enumerate(zip(maps, cells, share, strict=True))
            evidence = EvidenceList(
                self._evidence(batch, i, map_, index, weight) for i, (map_, index, weight) in parts
            )
            return Prediction(logits, evidence)
        if self.head_instance is None:
            return Prediction(logits)
        alone = self.head_instance(h, valid)
        return Prediction(logits, further={"instance": Auxiliary(alone, self.instance)})

    def _cells(self, source: WholeImage, map_: Tensor) -> Tensor:
        """Return the indices of cells that lie on more than background; of all if none does."""
        index = torch.arange(map_[0, 0].numel(), device=map_.device)
        if not source.has_blank:
            return index
        size, corner = self._size_px, self._corner_px
        first = [np.floor(corner + size * np.arange(n)).astype(np.int64) for n in map_.shape[2:]]
        blank = source.blank([(low, low + size) for low in first])
        shown = torch.from_numpy(~blank.ravel()).to(map_.device)
        return index[shown] if shown.any() else index

    def _evidence(
        self, batch: Batch, i: int, map_: Tensor, cells: Tensor, share: Tensor
    ) -> Evidence:
        spacing = batch.view.spacing_um
        places = np.unravel_index(cells.cpu().numpy(), tuple(map_.shape[2:]))
        origin = spacing * (
            self._corner_px + self._size_px * np.stack(places, -1).astype(np.float64)
        )
        weight = share[: len(origin)].detach().double().cpu().numpy()
        extent = np.asarray(batch.items[i].image.box_um.size)
        return Evidence(origin, np.full_like(origin, self._size_px * spacing), weight, extent)

    @property
    def _size_px(self) -> int:
        """Return the side of a cell in pixels."""
        return self.encoder.strides[-1] * self.group

    @property
    def _corner_px(self) -> float:
        """Return the corner of the first cell in pixels."""
        return self.encoder.map_centres[-1] - self.encoder.strides[-1] / 2


def _progress_callbacks(batch: Batch) -> list[Callable[[float], None] | None]:
    """Return, for each image, the function to call with the share of its tiles that are done."""
    if batch.tell is None:
        return [None] * len(batch)
    tell, done = batch.tell, [0.0] * len(batch)

    def report(i: int, share: float) -> None:
        done[i] = share
        tell(sum(done) / len(done))

    return [functools.partial(report, i) for i in range(len(batch))]
