"""Residual networks for volumes, built as for videos but with equal treatment of all axes."""

from __future__ import annotations

from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from foveate.encoders.base import AbstractEncoder
from foveate.pretrained.norms import freeze_batch_norm, replace_batch_norm

_BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class Resnet3dEncoder(AbstractEncoder):
    """A 3D ResNet of basic blocks, trained from scratch.

    Source: Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action Recognition",
    CVPR 2018 (R3D), by torchvision. Where we differ: the stem halves all three axes twice; norms do
    not depend on the batch.

    Args:
        depth: 10, 18 or 34 layers.
        norm: ``group``, over the whole patch; ``local``, over the channels of each cell; or
            ``frozen`` batch norms, for weights that come with theirs. Streaming needs one of the
            last two.
    """

    axes: ClassVar[int] = 3

    def __init__(
        self,
        *,
        depth: Literal[10, 18, 34] = 18,
        norm: Literal["group", "local", "frozen"] = "group",
    ) -> None:
        super().__init__()
        from torchvision.models.video.resnet import (
            BasicBlock,
            Conv3DSimple,
            VideoResNet,
        )

        net = VideoResNet(BasicBlock, [Conv3DSimple] * 4, list(_BLOCKS[depth]), _stem)
        if norm != "frozen":
            replace_batch_norm(net, "channel" if norm == "local" else "group")
        self.stem = net.stem
        self.stages = nn.ModuleList([net.layer1, net.layer2, net.layer3, net.layer4])
        self.strides = (4, 8, 16, 32)
        self.map_dims = (64, 128, 256, 512)
        # Kernels with odd sides: cell 0 lies on pixel 0.
        self.map_centres_px = (0.5,) * 4
        self.dim = self.map_dims[-1]
        freeze_batch_norm(self)

    def train(self, mode: bool = True) -> Resnet3dEncoder:
        """Set the training mode; batch norms stay frozen."""
        super().train(mode)
        freeze_batch_norm(self)
        return self

    def maps(self, x: Float[Tensor, "b 3 *space"]) -> list[Float[Tensor, "b _c *_cells"]]:
        """Compute four maps ``(b, c, *cells)`` of ``(b, 3, *space)``, strides 4, 8, 16 and 32."""
        maps, x = [], self.stem(x)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def pool(self, maps: list[Float[Tensor, "b _c *_cells"]]) -> Float[Tensor, "b dim"]:
        """Average the last map to the vector ``(b, dim)``."""
        return maps[-1].mean((-3, -2, -1))


def _stem() -> nn.Module:
    """Build the first layers, which shrink all axes by four."""
    return nn.Sequential(
        nn.Conv3d(3, 64, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm3d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool3d(3, stride=2, padding=1),
    )
