"""The whole image through a convolutional network at full resolution, exactly, in bounded memory.

Source: Pinckaers, van Ginneken & Litjens, "Streaming convolutional neural networks for end-to-end
learning with multi-megapixel images", TPAMI 2020; Pinckaers et al., "Detection of prostate cancer
in whole-slide images through end-to-end training with image-level labels", TMI 2021.

Differs: outputs and gradients equal those of the plain network up to rounding (theirs are tested to
1 %), and follow from interval arithmetic over the layers instead of measurements; any batch size
and image size; regions that are background in the glimpse are not read, are computed only once, and
do not dilute the pooled vector; cells are averaged in small groups and weighted by gated attention
instead of averaged over the image.

Use when: the decisive part may be anywhere and is too small or too faint for a glimpse to show it,
and there is enough time: every pixel of the foreground passes the network twice forwards and once
backwards. A cell depends only on its receptive field.

Cost: reads every pixel of the foreground, twice in training; needs memory for one tile, chosen to
fit `budget_mib`, and for the final map.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from foveate.bags.embedding import pad_rows, padding_mask
from foveate.batch import Batch, WholeImage
from foveate.encoders.base import AbstractEncoder, CellMap
from foveate.errors import OptionError
from foveate.geometry.lattice import lattice_um_from_map, points_um_from_cell
from foveate.images.evidence import Evidence, EvidenceList
from foveate.messages.display import OnProgress
from foveate.methods.base import AbstractMethod, Auxiliary, Prediction, Requirements
from foveate.nn.heads import Head, InstanceHead
from foveate.nn.pooling import GatedPool, MaxPool, MeanPool
from foveate.parts.options import DropoutRate, Width
from foveate.streaming import Streamed


class StreamingCnn(AbstractMethod):
    """Compute a map of cells from every pixel of the foreground, pool the cells, and answer.

    The encoder must be local. Allowed are frozen batch norms (as in pretrained networks), norms
    over channels, norms of kernels, and no norm; squeeze-and-excite modules are not allowed. From
    scratch, the encoders of foveate and plain networks of timm are local with ``--encoder.norm
    local``, the default of this method. With ``--encoder.norm weights``, foveate's encoder learns
    small parts on a plain background sooner. Evidence is the share of each cell in the pooled
    vector.

    Args:
        pool: pooling over the cells: gated ``attention``, ``mean`` or ``max``.
        group: side, in cells, of the groups that are averaged before pooling; larger groups give
            coarser evidence and need less memory for the final map.
        budget_mib: memory that a step may use in addition to the parameters and the final map; the
            tiles are chosen to fit. Without a GPU the allocator holds about twice as much, unless
            ``MALLOC_MMAP_THRESHOLD_=262144`` is in the environment, which costs a tenth more time.
        tile: side of a tile in pixels; with 0, `budget_mib` decides.
        scratch: folder for maps that are stored between two rounds of tiles and too large for
            memory, which saves a sixth of the arithmetic for large images. The default is the
            folder for temporary files (``TMPDIR``); ``none`` stores no maps on disk. Used only
            without a GPU.
        skip_background: whether regions that are background in the glimpse are not read. The colour
            of the background replaces them, and they are computed only once. Cells that contain
            nothing else are not pooled.
        hidden: width of the attention network.
        dropout: rate of dropout on the pooled vector.
        instance: weight of the loss of the instance head, which answers the task from single cells
            and pools these answers as the task allows; 0 for no such head.

    Raises:
        OptionError: `group`, `budget_mib` or `tile` is too small, or the encoder is not local.
    """

    reads = frozenset({"glimpse", "whole"})
    summary = "every pixel through one network, exactly, tile by tile; gated attention over cells"
    meets = Requirements(
        relevant_parts="no",
        any_number="yes",
        any_size="yes",
        one_gpu="yes",
        dependencies="partly",
    )
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
        hidden: Width = 128,
        dropout: DropoutRate = 0.1,
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
        for i, (source, on_progress) in enumerate(
            zip(sources, _progress_callbacks(batch), strict=True)
        ):
            streamed.on_progress = on_progress
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

    def _cells(
        self, source: WholeImage, map_: Float[Tensor, "1 c *cells"]
    ) -> Int[Tensor, " shown"]:
        """Return the indices of cells that show more than background; of all cells if none does."""
        index = torch.arange(map_[0, 0].numel(), device=map_.device)
        if not source.has_blank:
            return index
        size, corner = self._size_px, self._corner_px
        first = [np.floor(corner + size * np.arange(n)).astype(np.int64) for n in map_.shape[2:]]
        blank = source.blank([(low, low + size) for low in first])
        shown = torch.from_numpy(~blank.ravel()).to(map_.device)
        return index[shown] if shown.any() else index

    def _evidence(
        self,
        batch: Batch,
        i: int,
        map_: Float[Tensor, "1 c *cells"],
        cells: Int[Tensor, " shown"],
        share: Float[Tensor, " n"],
    ) -> Evidence:
        lattice = lattice_um_from_map(
            tuple(map_.shape[2:]),
            stride_px=self._size_px,
            centre_px=self._corner_px + self._size_px / 2,
            spacing_um=batch.view.spacing_um,
        )
        places = np.unravel_index(cells.cpu().numpy(), lattice.shape)
        origin_um = points_um_from_cell(np.stack(places, -1), lattice)
        size_um = np.full_like(origin_um, lattice.cell_um[0])
        weight = share[: len(origin_um)].detach().double().cpu().numpy()
        extent_um = np.asarray(batch.items[i].image.box_um.size)
        return Evidence(origin_um, size_um, weight, extent_um)

    @property
    def _size_px(self) -> int:
        """Return the side of a cell in pixels."""
        return self.encoder.strides[-1] * self.group

    @property
    def _corner_px(self) -> float:
        """Return the corner of the first cell in pixels."""
        return self.encoder.map_centres_px[-1] - self.encoder.strides[-1] / 2


def _progress_callbacks(batch: Batch) -> list[OnProgress | None]:
    """Return, for each image, the function to call with the share of its tiles that are done."""
    if batch.on_progress is None:
        return [None] * len(batch)
    on_progress, done = batch.on_progress, [0.0] * len(batch)

    def report(i: int, share: float, total: int = 1) -> None:
        done[i] = share / total
        on_progress(sum(done) / len(done))

    return [functools.partial(report, i) for i in range(len(batch))]
